//! What a daemon serves, and how.

use super::request::HostPath;
use super::snapshotter;
use cowshed_engine::FullOptions;
use cowshed_export::Transport;
use std::time::Duration;

/// The options of a daemon. A keeper and its workers are started with the same ones.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The pool's file or block device.
    pub pool: HostPath,
    /// The socket where clients connect.
    pub socket: HostPath,
    /// The folder where the volumes appear as files. Without it a folder in the state folder.
    pub mount: Option<HostPath>,
    /// Reads and writes the pool past the host's page cache.
    pub direct: bool,
    /// The way by which the kernel's requests for the volumes reach a worker.
    pub transport: Transport,
    /// The policies for a full pool.
    pub full: FullOptions,
    /// The socket where containerd connects. Without it containerd is not served.
    pub containerd_socket: Option<HostPath>,
    /// The options of the services for containerd.
    pub snapshots: snapshotter::Options,
    /// The socket where Docker connects to its volume plugin. Without it Docker is not served.
    pub docker_plugin_socket: Option<HostPath>,
    /// When the pool is scrubbed. Without it only on command.
    pub scrub: Option<ScrubSchedule>,
}

/// When a daemon scrubs its pool by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubSchedule {
    /// The time from the end of a scrub to the next one.
    pub every: Duration,
    /// The most that it reads in a second.
    pub bytes_per_second: u64,
}
