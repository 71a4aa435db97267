//! The snapshotter for containerd, served on a unix socket: the gRPC services of its proxy plugins.
//!
//! This module does not mount file systems or create volumes: `host::roots` does. It is not a
//! second database: a snapshot's data is a record in the pool's catalogue, which commits together
//! with the volume that it names. `server` listens, `incoming` has its connections, `rpc` converts
//! between messages and functions, `wire` has the messages, `convert` turns them into values and
//! `error` turns errors into codes; `service` is the call table of the snapshots service, `store`
//! implements the calls on the records in `record`, and `reaper` clears away in the background what
//! no caller has to wait for. `diff_service` is the diff service, with its messages in `diff_wire`;
//! `differ` implements its calls, with the blobs that `content` reads from and writes to containerd
//! (`content_wire`), until the client goes away (`cancel`).
//!
//! # Invariants
//! - A call that has returned is durable where containerd relies on it: one flush for a Prepare,
//!   View, Commit or Update, and no flush where nothing can be lost.
//! - A snapshot's record and its volume are created, renamed and given up in one transaction.
//! - Bytes from the socket are hostile: every length is bounded before the bytes are stored.
//! - Only the superuser and the daemon's own user are served.
//! - Calls run on threads that may wait for a mounted volume; the threads that serve volumes never
//!   wait for a call.

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

/// The defaults of the services, unless a snapshot overrides them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form in which a snapshot is handed out.
    pub mounts: MountMode,
    /// The size of a container's file system.
    pub size_bytes: u64,
    /// containerd's own socket, for the contents of layers; `None` means no diff service.
    pub containerd_address: Option<PathBuf>,
}

/// The form in which a snapshot is handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountMode {
    /// A bind mount of the folder where its file system is mounted.
    #[default]
    Dir,
    /// A loop device.
    Loop,
    /// A file, for the client's own loop device or virtual machine.
    File,
    /// An overlay of its parent, which all snapshots over it share in memory, if it is to be written
    /// and has a parent; else as `Dir`. A layer that is unpacked is a `Dir`, too, so that its commit
    /// copies nothing.
    Overlay,
}

impl std::str::FromStr for MountMode {
    type Err = UnknownMountMode;

    fn from_str(text: &str) -> Result<Self, UnknownMountMode> {
        match text {
            "dir" => Ok(Self::Dir),
            "loop" => Ok(Self::Loop),
            "file" => Ok(Self::File),
            "overlay" => Ok(Self::Overlay),
            _ => Err(UnknownMountMode),
        }
    }
}

impl MountMode {
    /// Returns the mode's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Loop => "loop",
            Self::File => "file",
            Self::Overlay => "overlay",
        }
    }
}

/// The word names no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write dir, loop, file or overlay")]
pub struct UnknownMountMode;
