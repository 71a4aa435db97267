//! The log: a ring of intent records that makes a flush cost one barrier.
//!
//! It appends and reads records; it does not know what an operation means, nor when a checkpoint
//! is due. Appending is a copy into the mapped ring, without a system call.
//!
//! # Invariants
//! - Records lie end to end from the head to the tail, with sequences that rise by one.
//! - A record is appended only where it fits before the head: nothing that a recovery would need
//!   is overwritten.
//! - The salt changes with each recovery, before the first append, so that a record that an
//!   earlier life left behind the tail is never taken for a new one.
//! - `durable` never names a record that a barrier begun after its append has not covered.

mod commit;
mod replay;
mod ring;

pub(crate) use replay::{Position, Replay};
pub(crate) use ring::Log;
