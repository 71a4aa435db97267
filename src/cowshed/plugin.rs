//! The volume plugin of Docker as the daemon runs it: its socket and its end.

use super::place::HostPath;
use anyhow::Context;
use cowshed_daemon::Listening;
use cowshed_daemon::docker;
use cowshed_host::Host;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// Listens where Docker is to connect; the folder is made.
///
/// # Errors
/// When the socket cannot be made, or somebody else listens there.
pub(super) fn listen(path: &HostPath) -> anyhow::Result<Listening> {
    let what = || format!("listen on {path}");
    if let Some(folder) = path.as_path().parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    Listening::bind(path.as_path()).with_context(what)
}

/// The plugin; the fields go in the order in which they must stop.
pub(super) struct Plugin {
    server: docker::Server,
    /// Its file is the keeper's while there is one.
    socket: Listening,
}

impl Plugin {
    /// Serves the data volumes of `host` on `socket`.
    ///
    /// # Errors
    /// What the host says when threads cannot be started.
    pub(super) fn start(socket: Listening, host: Arc<Host>) -> anyhow::Result<Self> {
        let server = docker::Server::start(socket.socket()?, host);
        let server = server.context("serve the volume plugin")?;
        Ok(Self { server, socket })
    }

    /// Takes no more calls, and waits for those that run; answers whether all ended in time.
    pub(super) fn stop(&mut self, patience: Duration) -> bool {
        self.server.stop(patience)
    }

    /// Makes the socket's file this process's to remove, when the keeper is gone.
    pub(super) fn keep_file(&mut self) {
        self.socket.keep_file(true);
    }
}
