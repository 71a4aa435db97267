//! Full pools: what they refuse, what works all the same, and how they get room again.
//!
//! `rounds` fills pools of random shapes to the last block. `COWSHED_TEST_SECONDS` sets how long
//! it runs, `COWSHED_TEST_ROUNDS` how many rounds instead, `COWSHED_TEST_SEED` where it starts;
//! `tools/full` does all of it for a long run. The others need root: FUSE, loop devices, mounts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod growing;
mod holding;
mod kernel;
mod reserve;
mod rounds;
mod shape;
mod subject;
