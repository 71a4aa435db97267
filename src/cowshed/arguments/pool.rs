//! The arguments of `cowshed pool`.

use super::size::Size;
use crate::create_pool::Create;
use crate::dump::Dump;
use crate::mirror::Keep;
use crate::offline::{Check, Upgrade};
use clap::{Args, Subcommand};
use cowshed_daemon::request::HostPath;
use cowshed_daemon::request::pool::{Command, Mirror as MirrorRequest};

/// `cowshed pool …`
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Commands on a pool that is not open.
    #[command(flatten)]
    Offline(Offline),
    /// Commands on an open pool.
    #[command(flatten)]
    Online(Online),
    /// Show and change the sides of the pool's mirror
    #[command(subcommand)]
    Mirror(Mirror),
}

/// The commands that work on a pool that no process has open.
#[derive(Debug, Subcommand)]
pub(crate) enum Offline {
    /// Create a pool in a file or on a block device
    Create(Create),
    /// Check the structure of a pool that is not open
    Check(Check),
    /// Bring a pool that is not open to the newest format, with two copies of its metadata
    Upgrade(Upgrade),
    /// Show the structure of a pool that is not open as lines of JSON, without its data
    Dump(Dump),
}

/// The commands that work on an open pool.
#[derive(Debug, Subcommand)]
pub(crate) enum Online {
    /// Show how full the pool is
    Status(StatusOptions),
    /// Enlarge the pool
    Grow(Grow),
    /// Free the blocks of removed volumes, and return all free space to the host
    Trim,
    /// Write a checkpoint, which empties the log
    Checkpoint,
    /// Read and verify every block in use, and write damaged blocks anew from what has them
    Scrub(Scrub),
}

/// `cowshed pool mirror …`
#[derive(Debug, Subcommand)]
pub(crate) enum Mirror {
    /// Commands on an open pool.
    #[command(flatten)]
    Online(OnlineMirror),
    /// Keep the side that --pool names, of sides that were written apart from each other; the others
    /// get what it has
    Keep(Keep),
}

/// The commands for the sides of an open pool.
#[derive(Debug, Subcommand)]
pub(crate) enum OnlineMirror {
    /// Show the sides, and which of them have everything
    Status,
    /// Add a side, or bring one back that was away, and copy to it what it lacks
    Add(AddSide),
    /// Take a side out; its file or device is no pool any more
    Rm(RmSide),
    /// Copy everything to a new side, then take an old one out
    Replace(ReplaceSide),
}

/// `cowshed pool mirror add`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cowshed pool mirror add /dev/vdc\n  \
    cowshed pool mirror add /disk2/pool\n\n\
    A pool without a mirror gets one. A daemon that serves it starts its worker anew for that, without\n\
    unmounting anything.")]
pub(crate) struct AddSide {
    /// A block device, or a file, which is made if it does not exist
    #[arg(value_parser = super::place::path())]
    pub path: HostPath,
    /// Overwrite the contents of the file or device
    #[arg(long)]
    pub force: bool,
}

/// `cowshed pool mirror rm`
#[derive(Debug, Args)]
pub(crate) struct RmSide {
    /// The side's file or block device
    #[arg(value_parser = super::place::path())]
    pub path: HostPath,
}

/// `cowshed pool mirror replace`
#[derive(Debug, Args)]
pub(crate) struct ReplaceSide {
    /// The file or block device of the side to take out
    #[arg(value_parser = super::place::path())]
    pub old: HostPath,
    /// A block device, or a file, which is made if it does not exist
    #[arg(value_parser = super::place::path())]
    pub new: HostPath,
    /// Overwrite the contents of the new file or device
    #[arg(long)]
    pub force: bool,
}

impl From<OnlineMirror> for MirrorRequest {
    fn from(arguments: OnlineMirror) -> Self {
        match arguments {
            OnlineMirror::Status => Self::Status,
            OnlineMirror::Add(AddSide { path, force }) => Self::Add { path, force },
            OnlineMirror::Rm(RmSide { path }) => Self::Rm { path },
            OnlineMirror::Replace(ReplaceSide { old, new, force }) => {
                Self::Replace { old, new, force }
            }
        }
    }
}

/// `cowshed pool status`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status with --check: 0 all is well; 4 there are warnings; 1 writes are \
    waiting or refused, the pool has stopped, or its state is unknown; 3 the pool is damaged."
)]
pub(crate) struct StatusOptions {
    /// End with an exit status for monitoring: 4 for warnings, 1 where writes fail
    #[arg(long)]
    pub check: bool,
}

/// `cowshed pool scrub`
#[derive(Debug, Args)]
pub(crate) struct Scrub {
    /// The most to read in a second: 50M
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Size>,
}

/// `cowshed pool grow`
#[derive(Debug, Args)]
pub(crate) struct Grow {
    /// The new size
    #[arg(long)]
    pub size: Size,
}

impl From<Online> for Command {
    fn from(arguments: Online) -> Self {
        match arguments {
            Online::Status(StatusOptions { check }) => Self::Status { check },
            Online::Grow(grow) => Self::Grow {
                size_bytes: grow.size.0,
            },
            Online::Trim => Self::Trim,
            Online::Checkpoint => Self::Checkpoint,
            Online::Scrub(Scrub { limit }) => Self::Scrub {
                bytes_per_second: limit.map(|limit| limit.0),
            },
        }
    }
}
