//! Whether requests take long because a disk is at work. Then more of them are better taken at
//! once than there are processors: the disk answers several side by side.
//!
//! # Invariants
//! - A request counts as slow only if its thread slept: one that others kept from running takes
//!   long, too. A write into the page cache never does: what it sleeps for is another's lock, and
//!   more threads would make that worse.
//! - One slow request proves nothing.

use super::abi::opcode;
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a request may take beside its bytes, when no disk is at work.
const FAST: Duration = Duration::from_micros(100);
/// What copying a byte may take.
const PICOSECONDS_PER_BYTE: u64 = 500;
/// What a slow request adds; each fast one takes 1 off.
const SLOW_WEIGHT: u32 = 8;
/// From here on requests count as slow.
const SLOW_FROM: u32 = 16;
/// The most, so that fast ones are believed soon.
const WEIGHT_MAX: u32 = 64;

/// A request that is timed, from its begin on.
pub(super) struct Timed {
    may_wait: bool,
    sleeps: Option<i64>,
    begun: Instant,
}

impl Timed {
    /// This thread begins with a request; `writes_wait` says whether writes go to the disk at once.
    pub(super) fn begin(opcode: u32, writes_wait: bool) -> Self {
        Self {
            may_wait: writes_wait || opcode != opcode::WRITE,
            sleeps: sleeps(),
            begun: Instant::now(),
        }
    }

    /// How long the request took, if that was for a disk; else nothing.
    pub(super) fn end(self) -> Duration {
        let took = self.begun.elapsed();
        let is_disk = || self.sleeps.is_none() || sleeps() != self.sleeps;
        if self.may_wait && took > FAST && is_disk() {
            took
        } else {
            Duration::ZERO
        }
    }
}

/// How often this thread has given its processor up to wait for something.
fn sleeps() -> Option<i64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    Some(usage.voluntary_context_switches())
}

/// What the last requests have told.
#[derive(Default)]
pub(super) struct DiskPressure(AtomicU32);

impl DiskPressure {
    /// A request that moved so many bytes took so long.
    pub(super) fn note(&self, took: Duration, bytes: usize) {
        let copying = Duration::from_nanos(bytes as u64 * PICOSECONDS_PER_BYTE / 1000);
        let weight = self.0.load(Ordering::Relaxed);
        let next = if took > FAST + copying {
            (weight + SLOW_WEIGHT).min(WEIGHT_MAX)
        } else {
            weight.saturating_sub(1)
        };
        // What another thread notes at the same moment may be missed: it is an estimate.
        if next != weight {
            self.0.store(next, Ordering::Relaxed);
        }
    }

    /// Whether a disk is at work.
    pub(super) fn is_slow(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= SLOW_FROM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_disk_was_waited_for_took_long() {
        let timed = Timed::begin(opcode::READ, true);
        let busy = Instant::now();
        while busy.elapsed() < Duration::from_millis(2) {}
        // Whether others kept it from running or not.
        assert_eq!(timed.end(), Duration::ZERO);
        let wait = |opcode, writes_wait| {
            let timed = Timed::begin(opcode, writes_wait);
            std::thread::sleep(Duration::from_millis(2));
            timed.end() >= Duration::from_millis(2)
        };
        assert!(wait(opcode::READ, false));
        assert!(wait(opcode::FSYNC, false));
        assert!(wait(opcode::WRITE, true));
        assert!(!wait(opcode::WRITE, false));
    }

    #[test]
    fn some_slow_requests_in_a_row_tell_and_many_fast_ones_take_it_back() {
        let disk_pressure = DiskPressure::default();
        let note = |micros, bytes| disk_pressure.note(Duration::from_micros(micros), bytes);
        note(900, 4096);
        assert!(!disk_pressure.is_slow());
        (0..20).for_each(|_| note(5, 4096));
        note(900, 4096);
        assert!(!disk_pressure.is_slow());
        note(900, 4096);
        assert!(disk_pressure.is_slow());
        (0..100).for_each(|_| note(900, 4096));
        (0..40).for_each(|_| note(5, 4096));
        assert!(disk_pressure.is_slow());
        (0..40).for_each(|_| note(5, 4096));
        assert!(!disk_pressure.is_slow());
        // A large one from memory is no slow one.
        (0..10).for_each(|_| note(500, 1 << 20));
        assert!(!disk_pressure.is_slow());
    }
}
