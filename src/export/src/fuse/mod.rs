//! The volumes as files of a FUSE mount: our own side of the kernel's protocol.
//!
//! `connection` makes the mount, `session` and `crew` run the threads that serve it, `transport`, or
//! `rings`, takes requests from the kernel and brings answers back, `dispatch` turns a request into its
//! answer by what `files` knows, and `keepsake` is what a successor is left, with the volumes that
//! had a write `refused`.
//!
//! # Invariants
//! - Any thread may serve any request, and no handler waits for another request of the same
//!   mount. No lock of the export is taken here other than those of the handle tables, which are
//!   held for a look-up only; reading and writing take none.
//! - Reading and writing allocate nothing.
//! - Any request may come twice: the kernel sends those again that a dead process took and did not
//!   answer.

pub(super) mod abi;
mod connection;
mod crew;
mod dispatch;
mod files;
mod keepsake;
mod listings;
mod open_files;
mod pace;
mod refused;
mod rings;
mod session;
#[cfg(test)]
mod tests;
mod transport;

pub use connection::{Connection, ConnectionParts, Negotiated, Transport};
pub use keepsake::Keepsake;

pub(super) use connection::FS_TYPE;
pub(super) use files::VolumeFiles;
pub(super) use keepsake::{AttachedRecord, DeviceRecord};
pub(super) use session::{Origin, Session};
