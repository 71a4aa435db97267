//! The socket through which a client runs commands where the pool is open.
//!
//! A request is a command as JSON together with the client's input, output and error stream as file
//! descriptors; the reply is an exit status. A command therefore runs the same code with the same
//! streams, whether the client opens the pool itself or the daemon runs the command. This crate
//! does not know which commands exist: the caller that starts a [`Server`] passes a [`Handler`].
//!
//! # Invariants
//! - Only the superuser and the daemon's own user are served.
//! - No bytes from the socket make the server panic, wait for ever, or allocate beyond
//!   [`protocol::REQUEST_BYTES_MAX`].
//! - A client that goes away cancels its command and harms nothing else.

pub mod client;
pub mod docker;
pub mod keeper;
pub mod listening;
pub mod protocol;
pub mod request;
pub mod server;
pub mod service_manager;
pub mod size;
pub mod snapshotter;

pub use client::{Client, Connection};
pub use listening::Listening;
pub use protocol::Answer;
pub use request::Request;
pub use server::{Handler, Server, Session};
