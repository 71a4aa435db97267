//! The daemon of a pool: the processes that keep the pool open and its volumes in use, the socket on
//! which clients ask for work, and the services for containerd and Docker.
//!
//! Two processes serve. The *keeper* holds every descriptor that must outlive the other one; the
//! *worker* has the pool open. When the worker dies, the keeper starts another one, which answers
//! the requests that were left: users of the volumes see a pause.
//!
//! This crate parses no arguments, knows no command and prints nothing but its log. A program that
//! wants to be a daemon makes [`ServeOptions`], implements [`Program`] (the commands, and the words
//! for failures), and calls [`keeper::run`] or [`worker::run`].
//!
//! # Invariants
//! - Only the superuser and the daemon's own user are served.
//! - No bytes from a socket make the daemon panic, wait for ever, or allocate beyond a limit such
//!   as [`protocol::REQUEST_BYTES_MAX`].
//! - A client that goes away cancels its command and harms nothing else.
//! - A panic in any thread ends the process, and the next worker opens the pool as after a crash.
//!
//! # Modules
//! | question | module |
//! |---|---|
//! | what the daemon can be asked to do, in which words | [`request`]; [`protocol`] has the bytes |
//! | who connects, who listens | [`client`], [`listening`], [`server`] |
//! | what outlives a worker, when the next one starts | [`keeper`] |
//! | how the keeper gets to know new sides of a mirror | [`side_files`], `keeper::sides` |
//! | what a worker serves, how it stops | [`worker`]; [`serve_options`], [`program`] |
//! | where a killed worker's requests are answered | [`worker`]: `Services::start_on` calls `cowshed_export::Export::resume`, which receives them again |
//! | how another program takes over | [`takeover`], `keeper::handover`, `keeper::succession` |
//! | what is mounted where, what a killed process left | [`open_pool`], [`state_folder`], [`unfinished`] |
//! | where the daemon says what happens | [`log`], [`panics`], [`service_manager`] |
//! | containerd, Docker | [`snapshotter`], [`docker`] |

pub mod client;
pub mod docker;
pub mod keeper;
pub mod listening;
pub mod log;
pub mod open_pool;
pub mod panics;
pub mod program;
pub mod protocol;
pub mod request;
pub mod serve_options;
pub mod server;
pub mod service_manager;
pub mod side_files;
pub mod size;
pub mod snapshotter;
pub mod state_folder;
pub mod takeover;
pub mod unfinished;
pub mod worker;

pub use client::{Client, Connection};
pub use listening::Listening;
pub use open_pool::OpenPool;
pub use program::{Program, Started};
pub use protocol::Answer;
pub use request::Request;
pub use serve_options::{ScrubSchedule, ServeOptions};
pub use server::{Handler, Server, Session};
pub use side_files::SideFiles;
