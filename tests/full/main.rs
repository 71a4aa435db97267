//! Full pools: what they refuse, what still works, and how they get space again.
//!
//! `rounds` fills pools of random shapes to the last block. `COWSHED_TEST_SECONDS` sets the
//! duration, or `COWSHED_TEST_ROUNDS` the number of rounds; `COWSHED_TEST_SEED` sets the first
//! seed. `tools/full` runs all of it for a long time. The other tests need root: FUSE, loop
//! devices, mounts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod growing;
mod holding;
mod kernel;
mod reserve;
mod rounds;
mod shape;
mod subject;
