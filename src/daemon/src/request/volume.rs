//! Requests about volumes, snapshots and clones.
//!
//! A volume is meant by its name or by its id in decimal digits. The name of a new volume must be
//! valid and free, and none that is kept for images and containers.

use super::path::FileOrPipe;
use serde::{Deserialize, Serialize};

/// A request about volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Creates an empty volume.
    Create {
        /// Its name.
        name: String,
        /// Its virtual size in bytes.
        size_bytes: u64,
    },
    /// Removes volumes or snapshots. One that cannot be removed does not keep the others.
    Remove {
        /// The volumes.
        volumes: Vec<String>,
    },
    /// Changes the virtual size of a volume.
    Resize(Resize),
    /// Renames a volume.
    Rename {
        /// The volume.
        volume: String,
        /// Its new name.
        name: String,
    },
    /// Takes a read-only snapshot of a volume.
    Snapshot {
        /// The volume.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Creates a writable volume from a snapshot.
    Clone {
        /// The snapshot.
        snapshot: String,
        /// The new volume's name.
        name: String,
    },
    /// Restores a volume to one of its snapshots.
    Rollback {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Lists all volumes and snapshots.
    List,
    /// Shows one volume.
    Show {
        /// The volume.
        volume: String,
    },
    /// Lists the ranges in which two volumes differ.
    Diff {
        /// The one volume.
        a: String,
        /// The other one; the kinds listed are what this one holds.
        b: String,
    },
    /// Creates a volume from the bytes of a file or stream.
    Import(Import),
    /// Writes the bytes of a volume to a file or stream.
    Export {
        /// The volume.
        volume: String,
        /// The target.
        target: FileOrPipe,
    },
}

/// The change of a volume's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The volume.
    pub volume: String,
    /// Its new virtual size in bytes.
    pub size_bytes: u64,
    /// Allows a smaller size, which gives up what lies beyond the new end. Without it a smaller
    /// size is refused.
    #[serde(default)]
    pub shrink: bool,
}

/// The import of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The new volume's name.
    pub name: String,
    /// The source.
    pub source: FileOrPipe,
    /// Takes the bytes as they are. Without it a file that holds a disk in another form (qcow2,
    /// compressed) is refused.
    #[serde(default)]
    pub raw: bool,
}
