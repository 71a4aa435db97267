//! Requests about the pool as a whole.

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
}
