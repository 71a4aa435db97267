//! What containerd asks of a snapshotter, answered on a unix socket: the gRPC services of its
//! proxy plugins.
//!
//! Not a place where file systems are mounted or volumes made: that is `container::roots`. Not a
//! second database: what is known of a snapshot is a record in the pool's catalogue, which commits
//! together with the volume that it names. `server` listens, `incoming` has its connections, `rpc`
//! brings messages to functions and back, `wire` has the messages, `convert` makes values of them
//! and `error` codes of errors; `service` is the table of the snapshots service's calls, `store`
//! does them on the records in `record`, and `reaper` clears away behind them what nobody is to
//! wait for. The diff service is `diff_service` with its messages in `diff_wire`; `differ` does its
//! calls, with the blobs that `content` fetches from containerd and takes to it (`content_wire`),
//! as long as somebody waits (`cancel`).
//!
//! # Invariants
//! - A call that has returned is durable where containerd relies on it: one flush for a Prepare,
//!   View, Commit or Update, none where nothing is lost.
//! - A snapshot's record and its volume are made, renamed and given up in one transaction.
//! - Bytes from the socket are hostile: every length is bounded before it is kept.
//! - Only the superuser and the daemon's own user are answered.
//! - The calls run on threads that may wait for a mounted volume; those that serve volumes never
//!   wait for them.

mod cancel;
mod content;
pub mod content_wire;
mod convert;
mod diff_service;
pub mod diff_wire;
mod differ;
mod error;
mod filter;
mod incoming;
mod key_locks;
mod reaper;
mod record;
mod rpc;
mod scan;
mod server;
mod service;
mod store;
mod users;
pub mod wire;

pub use filter::understands_filters;
pub use server::Server;
pub use users::{SnapshotUse, snapshot_uses};

use std::path::PathBuf;

/// How the services answer unless a snapshot says otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a snapshot is handed out as.
    pub mounts: MountMode,
    /// The size of a container's file system.
    pub size_bytes: u64,
    /// containerd's own socket, for the contents of layers; without it there is no diff service.
    pub containerd_address: Option<PathBuf>,
}

/// What a snapshot is handed out as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountMode {
    /// A bind mount of the folder where its file system is mounted.
    #[default]
    Dir,
    /// A loop device.
    Loop,
    /// A file, for a loop device or a virtual machine of the client's own.
    File,
}

impl std::str::FromStr for MountMode {
    type Err = UnknownMountMode;

    fn from_str(text: &str) -> Result<Self, UnknownMountMode> {
        match text {
            "dir" => Ok(Self::Dir),
            "loop" => Ok(Self::Loop),
            "file" => Ok(Self::File),
            _ => Err(UnknownMountMode),
        }
    }
}

impl MountMode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Loop => "loop",
            Self::File => "file",
        }
    }
}

/// The word stands for no way to hand a snapshot out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write dir, loop or file")]
pub struct UnknownMountMode;
