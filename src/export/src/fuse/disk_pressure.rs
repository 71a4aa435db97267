//! An estimate of whether requests are slow because of a disk. Then it is better to take more
//! requests at once than there are processors: the disk serves several in parallel.
//!
//! # Invariants
//! - A request counts as slow only if its thread slept: a request whose thread was preempted takes
//!   long, too. A write into the page cache never counts: it sleeps for a lock of another thread,
//!   and more threads would make that worse.
//! - One slow request is not enough.

use super::abi::opcode;
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The maximum time of a request that needs no disk, without the time for its bytes.
const FAST: Duration = Duration::from_micros(100);
/// The maximum time for copying a byte.
const PICOSECONDS_PER_BYTE: u64 = 500;
/// The weight that a slow request adds; each fast one subtracts 1.
const SLOW_WEIGHT: u32 = 8;
/// The weight from which on the disk counts as slow.
const SLOW_FROM: u32 = 16;
/// The maximum weight, so that fast requests soon take effect.
const WEIGHT_MAX: u32 = 64;

/// A request that is being timed.
pub(super) struct Timed {
    may_wait: bool,
    sleeps: Option<i64>,
    begun: Instant,
}

impl Timed {
    /// Starts timing a request of this thread; `writes_wait` is true if writes go to the disk at
    /// once.
    pub(super) fn begin(opcode: u32, writes_wait: bool) -> Self {
        Self {
            may_wait: writes_wait || opcode != opcode::WRITE,
            sleeps: sleeps(),
            begun: Instant::now(),
        }
    }

    /// Returns the duration of the request if it waited for a disk, else zero.
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

/// Returns the number of times that this thread has voluntarily given up its processor.
fn sleeps() -> Option<i64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    Some(usage.voluntary_context_switches())
}

/// The weight of the latest requests.
#[derive(Default)]
pub(super) struct DiskPressure(AtomicU32);

impl DiskPressure {
    /// Notes that a request which moved `bytes` took the time `took`.
    pub(super) fn note(&self, took: Duration, bytes: usize) {
        let copying = Duration::from_nanos(bytes as u64 * PICOSECONDS_PER_BYTE / 1000);
        let weight = self.0.load(Ordering::Relaxed);
        let next = if took > FAST + copying {
            (weight + SLOW_WEIGHT).min(WEIGHT_MAX)
        } else {
            weight.saturating_sub(1)
        };
        // An update by another thread at the same moment may be lost: the value is an estimate.
        if next != weight {
            self.0.store(next, Ordering::Relaxed);
        }
    }

    /// Returns true if requests are slow because of a disk.
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
        // Whether or not the thread was preempted.
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
        // A large request that is served from memory is not slow.
        (0..10).for_each(|_| note(500, 1 << 20));
        assert!(!disk_pressure.is_slow());
    }
}
