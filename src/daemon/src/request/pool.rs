//! Requests about the pool as a whole.

use super::path::HostPath;
use serde::{Deserialize, Serialize};

/// A request about the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Shows how full the pool is.
    Status {
        /// Makes the exit status say how the pool is: 4 for warnings, 1 where writes are held or
        /// refused. Without it the exit status is 0 whatever is shown.
        #[serde(default)]
        check: bool,
    },
    /// Enlarges the pool, then shows its status.
    Grow {
        /// The new size of the pool in bytes, not less than the current one.
        size_bytes: u64,
    },
    /// Frees the blocks of removed volumes and returns all free space to the host.
    Trim,
    /// Writes a checkpoint, then shows the pool's status.
    Checkpoint,
    /// Reads and verifies every block in use.
    Scrub {
        /// The most that is read in a second; `None` for no limit.
        #[serde(default)]
        bytes_per_second: Option<u64>,
    },
    /// Shows or changes the sides of the pool's mirror.
    Mirror(Mirror),
}

/// A request about the sides of a pool's mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Mirror {
    /// Shows the sides.
    Status,
    /// Makes a pool without a mirror one with a single side, if the device could become another side.
    /// Answers with `true` if a worker that is started anew is needed to use it.
    Begin {
        /// The file or block device that is to become a side.
        path: HostPath,
        /// Overwrites what it holds.
        #[serde(default)]
        force: bool,
    },
    /// Adds a side, or brings one back, and copies to it what it lacks.
    Add {
        /// Its file or block device.
        path: HostPath,
        /// Overwrites what it holds.
        #[serde(default)]
        force: bool,
    },
    /// Takes a side out.
    Rm {
        /// Its file or block device.
        path: HostPath,
    },
    /// Adds a side, and takes another one out once it has everything.
    Replace {
        /// The side to take out.
        old: HostPath,
        /// The file or block device of the new side.
        new: HostPath,
        /// Overwrites what the new one holds.
        #[serde(default)]
        force: bool,
    },
}
