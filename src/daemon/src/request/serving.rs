//! Requests about the processes that serve, with which one program takes over from another.
//!
//! # Invariants
//! - Programs of different versions send these to each other: the requests, the style beside them
//!   and the replies keep the form that they have had since version 1 of the protocol. Fields may
//!   be added; a receiver ignores those that it does not know.

use super::path::HostPath;
use serde::{Deserialize, Serialize};

/// A request about the processes that serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Writes `keeper::Serving` as JSON to the output: the processes that serve.
    Serving,
    /// Writes `Running` as JSON to the output: the options that the daemon was started with.
    Running,
    /// Makes the daemon hand over to the program whose open file is the request's input, with the
    /// daemon's own options.
    Upgrade,
    /// Like `Upgrade`, but with other options.
    UpgradeWith {
        /// The bytes of each argument of that program, without its name.
        arguments: Vec<Vec<u8>>,
    },
}

/// The options that a daemon was started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The pool's file or block device.
    pub pool: HostPath,
    /// The daemon's socket.
    pub socket: HostPath,
    /// The folder of the volumes, by default or by option.
    pub mount: HostPath,
    /// The bytes of each argument, the program's name first, with all paths absolute.
    pub arguments: Vec<Vec<u8>>,
}
