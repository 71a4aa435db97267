//! The volumes as files of a FUSE mount: this process's side of the kernel's protocol.
//!
//! `connection` makes the mount. `session` and `serve_threads` run the threads that serve it.
//! `transport` or `rings` takes requests from the kernel and returns replies. `dispatch` turns a
//! request into its reply by calling `files`. `handover_state` holds the state for a successor,
//! with the volumes that had a write `refused`.
//!
//! # Invariants
//! - Any thread may serve any request, and no handler waits for another request of the same mount.
//!   The only locks of the export taken here are those of the handle tables, which are held only
//!   during a look-up; reading and writing take none.
//! - Reading and writing allocate nothing.
//! - Any request may come twice: the kernel repeats the requests that a dead process took without
//!   replying.

pub(super) mod abi;
mod connection;
mod disk_pressure;
mod dispatch;
mod files;
mod handover_state;
mod listings;
mod open_files;
mod refused;
mod rings;
mod serve_threads;
mod session;
#[cfg(test)]
mod tests;
mod transport;

pub use connection::{Connection, ConnectionParts, Negotiated, Transport};
pub use handover_state::HandoverState;

pub(super) use connection::FS_TYPE;
pub(super) use files::VolumeFiles;
pub(super) use handover_state::{AttachedRecord, DeviceRecord};
pub(super) use session::{Origin, Session};
