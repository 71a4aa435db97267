//! Keeping long work below a number of bytes per second.

use std::time::{Duration, Instant};

/// The longest wait in one piece: the work looks in between whether it is to stop.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A limit of bytes per second, from the moment at which it was made.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    started: Instant,
}

impl RateLimit {
    /// Returns a limit of `bytes_per_second`, at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            started: Instant::now(),
        }
    }

    /// Waits until `done_bytes` are within the limit; returns `false` as soon as `goes_on` does.
    pub fn wait(&self, done_bytes: u64, mut goes_on: impl FnMut() -> bool) -> bool {
        loop {
            if !goes_on() {
                return false;
            }
            let left = self
                .time_for(done_bytes)
                .saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(WAIT_MAX));
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
        assert!(!RateLimit::new(1).wait(1 << 40, goes_on));
        assert_eq!(asked, 3);
    }
}
