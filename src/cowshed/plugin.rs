//! Docker's volume plugin as the daemon runs it: starting and stopping it.

use anyhow::Context;
use cowshed_daemon::Listening;
use cowshed_daemon::docker;
use cowshed_daemon::request::HostPath;
use cowshed_host::Host;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// Listens on the socket for Docker; creates its folder.
///
/// # Errors
/// When the socket cannot be created, or another process listens there.
pub(super) fn listen(path: &HostPath) -> anyhow::Result<Listening> {
    let what = || format!("listen on {path}");
    if let Some(folder) = path.as_path().parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    Listening::bind(path.as_path()).with_context(what)
}

/// The plugin; the fields are dropped in the order in which they must stop.
pub(super) struct Plugin {
    server: docker::Server,
    /// The keeper removes its file, if there is a keeper.
    socket: Listening,
}

impl Plugin {
    /// Serves the data volumes of `host` on `socket`.
    ///
    /// # Errors
    /// The host's error when threads cannot be started.
    pub(super) fn start(socket: Listening, host: Arc<Host>) -> anyhow::Result<Self> {
        let server = docker::Server::start(socket.socket()?, host);
        let server = server.context("serve the volume plugin")?;
        Ok(Self { server, socket })
    }

    /// Takes no more calls, and waits for those that run; returns true if all ended in time.
    pub(super) fn stop(&mut self, patience: Duration) -> bool {
        self.server.stop(patience)
    }

    /// Makes this process the one that removes the socket's file, once the keeper is gone.
    pub(super) fn keep_file(&mut self) {
        self.socket.keep_file(true);
    }
}
