//! The volume plugin of Docker as the daemon runs it: its socket and its end.

use super::place::HostPath;
use crate::container::Host;
use crate::daemon::Listening;
use crate::docker;
use anyhow::Context;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

/// How long calls that run get to end.
const CALLS_TIME: Duration = Duration::from_secs(20);

/// The plugin; the fields go in the order in which they must stop.
pub(super) struct Plugin {
    server: docker::Server,
    _socket: Listening,
}

impl Plugin {
    /// Serves the data volumes of `host` at the socket `path`, whose folder is made.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody else listens there.
    pub(super) fn start(path: &HostPath, host: Arc<Host>) -> anyhow::Result<Self> {
        let what = || format!("listen on {path}");
        if let Some(folder) = path.as_path().parent() {
            fs::create_dir_all(folder).with_context(what)?;
        }
        let socket = Listening::bind(path.as_path()).with_context(what)?;
        let descriptor = socket.as_fd().try_clone_to_owned().with_context(what)?;
        let server = docker::Server::start(UnixListener::from(descriptor), host);
        let server = server.with_context(what)?;
        tracing::info!(socket = %path, "the volume plugin serves");
        Ok(Self {
            server,
            _socket: socket,
        })
    }

    /// Takes no more calls, and waits for those that run.
    pub(super) fn stop(&mut self) {
        if !self.server.stop(CALLS_TIME) {
            tracing::warn!("calls of the volume plugin did not end in time");
        }
    }
}
