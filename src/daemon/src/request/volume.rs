//! Requests about volumes, snapshots and clones.
//!
//! A volume is meant by its name or by its id in decimal digits. The name of a new volume must be
//! valid and free, and none that is kept for images and containers.

use super::path::FileOrPipe;
use super::stream::{Receive, SendOptions};
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
        /// True to leave a hole for each range that cannot be read.
        #[serde(default, skip_serializing_if = "is_false")]
        skip_damaged: bool,
    },
    /// Writes a snapshot, or a set, as a stream to the output.
    Send(Send),
    /// Makes a snapshot, or a set, of the stream on the input.
    Receive(Receive),
    /// Keeps the place of a snapshot in its line, as a base for sending without its blocks.
    Bookmark {
        /// The snapshot.
        snapshot: String,
        /// The bookmark's name.
        name: String,
    },
    /// Keeps a volume from being removed.
    Hold {
        /// The volume.
        volume: String,
        /// The name of whoever holds it.
        tag: String,
    },
    /// Ends a hold.
    Release {
        /// The volume.
        volume: String,
        /// The name of whoever held it.
        tag: String,
    },
}

/// The sending of a snapshot or a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// The snapshot; for a set, the volumes and snapshots. Without any, the one that the token to go
    /// on with is of; for a set, everything in the pool.
    pub volumes: Vec<String>,
    /// Sends a set: what the volumes descend from and what descends from them, too, with the images
    /// and containers that these are.
    #[serde(default)]
    pub forest: bool,
    /// How it is sent.
    pub options: SendOptions,
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

const fn is_false(value: &bool) -> bool {
    !*value
}
