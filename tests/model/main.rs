//! Random operations on a pool, in any order, compared with a plain model in memory.
//!
//! `COWSHED_TEST_SECONDS` sets how long each test runs, `COWSHED_TEST_SEED` repeats one seed.
//! A failure prints its seed and the last operations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_testkit::compare;
mod operations;
use cowshed_testkit::oracle;
mod run;
mod storage;

use run::Run;
use std::time::{Duration, Instant};
use storage::Storage;

/// The time during which each test starts runs.
const SECONDS: u64 = 8;
/// Number of operations in a run.
const OPERATIONS: usize = 1500;

#[test]
fn random_operations_in_memory_match_the_model() {
    for_each_seed(1, |seed| Run::new(seed, Storage::memory(), false));
}

/// A side is away for some of the pool's lives, and comes back.
#[test]
fn random_operations_on_a_mirror_match_the_model() {
    for_each_seed(3 << 32, |seed| Run::new(seed, Storage::mirror(), false));
}

#[test]
fn random_operations_on_a_file_match_the_model() {
    let folder = tempfile::tempdir().unwrap();
    for_each_seed(1 << 32, |seed| {
        let path = folder.path().join(format!("pool-{seed}"));
        Run::new(seed, Storage::file(path), false)
    });
}

#[test]
fn random_operations_beside_the_background_threads_match_the_model() {
    for_each_seed(2 << 32, |seed| Run::new(seed, Storage::memory(), true));
}

/// Runs seeds, from `first` on, until the time is up.
fn for_each_seed(first: u64, start: impl Fn(u64) -> Run) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    if let Some(seed) = number("COWSHED_TEST_SEED") {
        return run(start(seed));
    }
    let limit = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(SECONDS));
    let started = Instant::now();
    let mut seed = first;
    while seed == first || started.elapsed() < limit {
        run(start(seed));
        seed += 1;
    }
    println!("{} runs of {OPERATIONS} operations", seed - first);
}

fn run(mut run: Run) {
    for _ in 0..OPERATIONS {
        run.step();
    }
    run.finish();
}
