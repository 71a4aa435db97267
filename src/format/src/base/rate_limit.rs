//! Keeping work below a number of bytes per second.

use std::thread;
use std::time::{Duration, Instant};

/// The longest sleep between two looks at whether the work is to go on.
const NAP_MAX: Duration = Duration::from_millis(100);
/// The longest time that is made up for after a pause: a burst is no longer than this.
const BURST: Duration = Duration::from_millis(200);

/// A limit of bytes per second.
#[derive(Clone, Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// The time from which on everything done so far is within the limit.
    paid: Instant,
}

impl RateLimit {
    /// Returns a limit of `bytes_per_second`, at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid: Instant::now(),
        }
    }

    /// Returns the limit.
    #[must_use]
    pub const fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Adds `bytes` that were done, and waits until they are within the limit; returns `false` as
    /// soon as `goes_on` does.
    pub fn pay(&mut self, bytes: u64, mut goes_on: impl FnMut() -> bool) -> bool {
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid.max(earliest);
        // A time beyond what a clock can hold never comes.
        self.paid = from.checked_add(self.time_for(bytes)).unwrap_or(from);
        loop {
            if !goes_on() {
                return false;
            }
            let left = self.paid.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(NAP_MAX));
        }
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_follows_from_the_bytes() {
        let limit = RateLimit::new(50 << 20);
        assert_eq!(limit.time_for(100 << 20), Duration::from_secs(2));
        assert_eq!(limit.time_for(0), Duration::ZERO);
        assert!(RateLimit::new(0).time_for(u64::MAX) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn a_wait_ends_when_the_work_is_to_stop() {
        let mut asked = 0;
        let goes_on = || {
            asked += 1;
            asked < 3
        };
        assert!(!RateLimit::new(1).pay(1 << 30, goes_on));
        assert_eq!(asked, 3);
    }
}
