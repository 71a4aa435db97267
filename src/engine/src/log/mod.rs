//! The log: a ring of intent records that makes a flush cost one barrier.
//!
//! It appends and reads records; it does not know the meaning of operations, nor when a checkpoint
//! is due. Appending is a copy into the mapped ring, without a system call.
//!
//! # Invariants
//! - Records lie end to end from the head to the tail, with sequences that rise by one.
//! - A record is appended only where it fits before the head, so nothing that a recovery would need
//!   is overwritten.
//! - The salt changes with each recovery, before the first append, so that a record that an earlier
//!   life left behind the tail is never taken for a new one.
//! - `durable` only names a record if a barrier that began after its append has succeeded.

mod commit;
mod replay;
mod ring;

pub(crate) use replay::{Position, Replay};
pub(crate) use ring::Log;
