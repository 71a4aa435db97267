//! Pools on several sides: power cuts that leave each side at another point, sides that fail, rot,
//! disappear, do not answer, or are copies from earlier or of another pool, and copying to a side that is cut off.
//!
//! A pool comes back in one state at or after the last acknowledged flush, all good sides are equal
//! afterwards, and no side that lacks something answers.
//!
//! `COWSHED_TEST_ROUNDS` says how many lives the power cuts have, `COWSHED_TEST_SEED` the first of
//! them. A failure prints the seed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cuts;
mod faults;
mod hangs;
mod life;
mod rot;
mod standing;
mod world;

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect(name))
}

fn rounds(usual: u64) -> u64 {
    number("COWSHED_TEST_ROUNDS").unwrap_or(usual)
}

fn seed() -> u64 {
    number("COWSHED_TEST_SEED").unwrap_or(1)
}
