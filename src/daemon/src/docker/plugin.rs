//! The plugin as the daemon runs it: starting and stopping it.

use super::Server;
use crate::Listening;
use anyhow::Context;
use cowshed_host::Host;
use std::sync::Arc;
use std::time::Duration;

/// The plugin; the fields are dropped in the order in which they must stop.
pub(crate) struct Plugin {
    server: Server,
    /// The keeper removes its file, if there is a keeper.
    socket: Listening,
}

impl Plugin {
    /// Serves the data volumes of `host` on `socket`.
    ///
    /// # Errors
    /// The host's error when threads cannot be started.
    pub(crate) fn start(socket: Listening, host: Arc<Host>) -> anyhow::Result<Self> {
        let server = Server::start(socket.socket()?, host);
        let server = server.context("serve the volume plugin")?;
        Ok(Self { server, socket })
    }

    /// Takes no more calls, and waits for those that run; returns true if all ended in time.
    pub(crate) fn stop(&mut self, patience: Duration) -> bool {
        self.server.stop(patience)
    }

    /// Makes this process the one that removes the socket's file, once the keeper is gone.
    pub(crate) fn keep_file(&mut self) {
        self.socket.keep_file(true);
    }
}
