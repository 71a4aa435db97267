//! The engine's own sources under a model checker: the rooms of `src`, compiled here with a
//! `base::sync` of their own in place of the engine's, so that at each lock and atomic the checker
//! (shuttle) decides which thread goes on.
//!
//! - `tests/engine.rs`: scenes of the whole engine on a device in memory, in random orders. Each
//!   step is seen by all threads at once.
//! - `tests/entries`: the sequence lock of a node's entries, under loom: in all orders, with the
//!   stale values that a weak memory may show.

#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    reason = "the sources answer to their own crate"
)]

pub mod base;
#[path = "../../../src/device/mod.rs"]
pub mod device;
#[path = "../../../src/format/mod.rs"]
pub mod format;
#[path = "../../../src/log/mod.rs"]
pub mod log;
#[path = "../../../src/map/mod.rs"]
pub mod map;
#[path = "../../../src/pool/mod.rs"]
pub mod pool;
#[path = "../../../src/space/mod.rs"]
pub mod space;
#[path = "../../../src/sys/mod.rs"]
mod sys;
