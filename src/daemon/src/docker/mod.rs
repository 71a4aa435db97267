//! The volume plugin of Docker Engine: `docker volume create -d cowshed` and what follows from it.
//!
//! Docker finds the socket `/run/docker/plugins/cowshed.sock` by the driver's name, and sends JSON
//! over HTTP to it. Each volume is a data volume of the pool (`container`): a thin ext4 of its own,
//! `data/NAME` among the pool's volumes, so that it can be snapshotted and cloned there.
//!
//! - `wire` has the messages, `driver` implements the calls, `server` has the socket, `plugin` is what the worker
//!   starts and stops.
//!
//! # Invariants
//! - Every call may be repeated: Docker does so when it got no reply.
//! - A call runs to its end even if the caller is gone.
//! - Only the superuser and the daemon's own user are served; a request is bounded in size, and so
//!   is the number of callers.
//!
//! Source: Docker's "Docker volume plugins" and "Docker Plugin API".

mod driver;
mod plugin;
mod server;
mod wire;

pub(crate) use plugin::Plugin;
pub use server::Server;
