//! The arguments of `cowshed pool`.

use super::size::Size;
use crate::dump::Dump;
use crate::offline::{Check, Create, Upgrade};
use clap::{Args, Subcommand};
use cowshed_daemon::request::pool::Command;

/// `cowshed pool …`
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// What needs the pool to be closed.
    #[command(flatten)]
    Offline(Offline),
    /// What works on an open pool.
    #[command(flatten)]
    Online(Online),
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
    /// Read and verify every block in use, and write damaged metadata anew from its copies
    Scrub(Scrub),
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
