//! Devices that fail: every call of a fixed workload, once and permanently, and hosts that are full
//! or have truncated the pool. Nothing acknowledged is lost, a failed barrier stops the pool, and a
//! pool on a repaired device opens, passes the check and equals the model.
//!
//! `tools/faults` runs more seeds: `COWSHED_TEST_ROUNDS` says how many, each with every call, and
//! `COWSHED_TEST_SEED` the first of them. A failure prints the seed and the fault.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cut_short;
mod full_host;
mod model;
use cowshed_testkit::small_host;
mod sweep;
mod workload;

use cowshed_format::device::{Effect, Fault, Lasting, Operation};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sweep::{Run, calls};

/// Number of faults, approximately, without `COWSHED_TEST_ROUNDS`.
const FAULTS: u64 = 600;
/// A run that takes longer is considered hung.
const PATIENCE: Duration = Duration::from_secs(120);

const EIO: Effect = Effect::Errno(libc::EIO);
const SHORT: Effect = Effect::Short(libc::EIO);
const FULL: Effect = Effect::Errno(libc::ENOSPC);
const SHORT_AND_FULL: Effect = Effect::Short(libc::ENOSPC);

/// The ways in which each operation of a device can fail.
const KINDS: [(Operation, &[Effect]); 6] = [
    (Operation::Read, &[EIO, SHORT]),
    (Operation::Write, &[EIO, SHORT, FULL, SHORT_AND_FULL]),
    (Operation::Store, &[EIO, SHORT, FULL, SHORT_AND_FULL]),
    (Operation::Flush, &[EIO, FULL]),
    (Operation::Discard, &[EIO]),
    (Operation::Grow, &[EIO, FULL]),
];

/// Returns every fault that the workload of `seed` can meet.
fn faults(seed: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (operation, effects) in KINDS {
        let calls = calls(seed, operation);
        assert!(calls > 0, "the workload has no {operation:?}");
        for nth in 1..=calls {
            for effect in effects {
                for lasting in [Lasting::Once, Lasting::Forever] {
                    faults.push(Fault {
                        operation,
                        nth,
                        lasting,
                        effect: *effect,
                    });
                }
            }
        }
    }
    faults
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect(name))
}

/// Ends the process when no run has finished for too long.
fn watch(done: &Arc<AtomicU64>) {
    let done = Arc::clone(done);
    std::thread::spawn(move || {
        loop {
            let before = done.load(Ordering::Relaxed);
            std::thread::sleep(PATIENCE);
            if done.load(Ordering::Relaxed) == before {
                eprintln!("a run hangs, after {before} that did not");
                std::process::abort();
            }
        }
    });
}

#[test]
fn after_any_fault_nothing_acknowledged_is_lost_and_reopening_works() {
    let first = number("COWSHED_TEST_SEED").unwrap_or(1);
    let rounds = number("COWSHED_TEST_ROUNDS");
    let done = Arc::new(AtomicU64::new(0));
    watch(&done);
    for seed in first..first + rounds.unwrap_or(1) {
        let faults = faults(seed);
        // Odd, so that the stride does not skip every second kind of fault.
        let stride = match rounds {
            Some(_) => 1,
            None => (faults.len() as u64 / FAULTS).max(1) | 1,
        };
        let mut hit = 0;
        for fault in faults.iter().step_by(usize::try_from(stride).unwrap()) {
            hit += u64::from(Run::new(seed, Some(*fault)).finish());
            done.fetch_add(1, Ordering::Relaxed);
        }
        println!("seed {seed}: {hit} faults of {}", faults.len());
        assert!(hit > 0);
    }
}

#[test]
fn without_a_fault_the_workload_is_what_the_model_says() {
    for seed in 1..4 {
        assert!(!Run::new(seed, None).finish());
    }
}
