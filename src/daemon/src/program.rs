//! What the program that runs as keeper and worker brings along: the commands that it carries out
//! for clients, and its words. This crate knows neither commands nor options of a command line.

use super::keeper::ToKeeper;
use super::open_pool::OpenPool;
use super::request::HostPath;
use super::server::Handler;
use cowshed_format::base;
use std::sync::Arc;

/// The program that runs as keeper and worker.
pub trait Program {
    /// The part that carries out the requests of clients.
    type Commands: Handler;

    /// Returns the part that carries out requests on `open_pool`, in a worker that has `keeper`.
    ///
    /// # Errors
    /// Any reason why it cannot.
    fn commands(
        &self,
        open_pool: &Arc<OpenPool>,
        keeper: &Arc<ToKeeper>,
    ) -> anyhow::Result<Self::Commands>;

    /// Adds the pool's path and advice to an error from opening the pool.
    fn explain(&self, error: base::Error) -> anyhow::Error;

    /// Returns the error for a service manager that listens on `found`, and not where clients of
    /// the pool connect.
    fn wrong_socket(&self, found: &HostPath) -> anyhow::Error;

    /// Returns the line that reports a failure; `None` if it is not to be reported.
    fn line(&self, error: &anyhow::Error) -> Option<String>;

    /// Called by a keeper when its first worker serves.
    fn serves(&self, started: &Started);

    /// Called by a keeper that ends without having served, with the reason.
    fn does_not_serve(&self, why: &str);
}

/// A daemon that serves.
#[derive(Clone, Debug)]
pub struct Started {
    /// The socket where clients connect.
    pub socket: HostPath,
    /// The folder where the volumes appear as files.
    pub mount: HostPath,
    /// The process id of the worker.
    pub worker: u32,
}
