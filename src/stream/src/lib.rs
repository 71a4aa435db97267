//! Snapshots as streams of bytes, to be sent to another pool and received there.
//!
//! - [`wire`] is the format of a stream, as `docs/stream.md` specifies it. It knows no pool.
//! - [`send()`](send::send) writes a snapshot as a stream: all of it, or its difference to a base.
//!   [`send_set`] writes several that share blocks, with entries that belong to them.
//! - [`receive()`](receive::receive) makes a snapshot of a stream, [`receive_set`] a set of one.
//! - [`bookmark`] keeps the place of a snapshot in its line, so that it can be a base without its
//!   blocks.
//! - [`identity`] says which snapshot a snapshot is, in whichever pool it lies.
//! - [`token`] says where an interrupted receive goes on.
//! - [`limit`] slows a stream down to a rate.
//!
//! This crate opens no files and prints nothing: its callers bring an open pool, a reader or a
//! writer, and an [`Observer`].
//!
//! | module | what it does | uses |
//! |---|---|---|
//! | `error` | the reasons why a stream is not sent or received | |
//! | `identity`, `labels`, `token`, `limit` | small values | `error` |
//! | `wire` | records, checksums, the digest | `error`, `identity` |
//! | `record` | what the catalogue keeps about received snapshots, bookmarks and unfinished receives | `error`, `identity` |
//! | `bookmark`, `changes` | the base of a difference, and the difference | those above |
//! | `send`, `send_set` | the sender | those above |
//! | `partial`, `fill`, `receive`, `receive_set` | the receiver | those above |
//!
//! # Invariants
//! - A stream holds no block addresses and no generations: nothing of it depends on where the
//!   sending pool keeps a block.
//! - What is received gets its name in one transaction after the last record of the stream was
//!   verified; a set as a whole.
//! - Two snapshots of one identity hold the same bytes: an identity is given once, to a snapshot
//!   that can no longer change, and goes along only with a verified stream.
//! - No bytes of a stream make it panic or use memory without bound.

pub mod bookmark;
mod changes;
pub mod error;
mod fill;
pub mod identity;
pub mod labels;
pub mod limit;
mod partial;
pub mod receive;
pub mod receive_set;
mod record;
pub mod send;
pub mod send_set;
pub mod token;
pub mod wire;

pub use error::{Error, Result};
pub use identity::Identity;
pub use limit::Limited;
pub use receive::{Incoming, Received, receive};
pub use receive_set::{Arrived, Fate, IncomingSet};
pub use record::forget;
pub use send::{SendOptions, Sending, send};
pub use send_set::{SetMember, SetSending};
pub use token::{SetPlace, Token};

/// A caller that shows the progress of a stream.
pub trait Observer {
    /// Called once, with the number of bytes of data that are expected.
    fn begin(&self, total_bytes: u64);
    /// Called as data is sent or received.
    fn advance(&self, len_bytes: u64);
}

/// An observer that shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begin(&self, _total_bytes: u64) {}
    fn advance(&self, _len_bytes: u64) {}
}
