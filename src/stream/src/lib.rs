//! Snapshots as streams of bytes, to be sent to another pool and received there.
//!
//! - [`wire`] is the format of a stream, as `docs/stream.md` specifies it. It knows no pool.
//! - [`send()`](send::send) writes a snapshot as a stream: all of it, or its difference to a base.
//! - [`receive()`](receive::receive) makes a snapshot of a stream.
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
//! | `identity`, `token`, `limit` | small values | `error` |
//! | `wire` | records, checksums, the digest | `error`, `identity` |
//! | `record` | what the catalogue keeps about received snapshots, bookmarks and unfinished receives | `error`, `identity` |
//! | `bookmark`, `changes` | the base of a difference, and the difference | those above |
//! | `send`, `receive`, `partial` | the two ends | those above |
//!
//! # Invariants
//! - A stream holds no block addresses and no generations: nothing of it depends on where the
//!   sending pool keeps a block.
//! - A received snapshot gets its name in the same transaction that freezes it and records its
//!   identity, after the last record of the stream was verified.
//! - Two snapshots of one identity hold the same bytes: an identity is given once, to a snapshot
//!   that can no longer change, and goes along only with a verified stream.
//! - No bytes of a stream make it panic or use memory without bound.

pub mod bookmark;
mod changes;
pub mod error;
pub mod identity;
pub mod limit;
mod partial;
pub mod receive;
mod record;
pub mod send;
pub mod token;
pub mod wire;

pub use error::{Error, Result};
pub use identity::Identity;
pub use limit::Limited;
pub use receive::{Received, receive};
pub use record::forget;
pub use send::{SendOptions, Sending, send};
pub use token::Token;

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
