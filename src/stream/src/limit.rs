//! A writer that lets no more than a number of bytes through each second.

use cowshed_format::base::cancel;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// The longest sleep between two looks at whether the work was cancelled.
const NAP_MAX: Duration = Duration::from_millis(100);
/// The longest time that is made up for after a pause: a burst is no longer than this.
const BURST: Duration = Duration::from_millis(200);

/// A writer with a limit to its rate.
#[derive(Debug)]
pub struct Limited<W> {
    inner: W,
    bytes_per_s: Option<u64>,
    /// The time at which everything written so far may be through.
    paid: Instant,
}

impl<W: Write> Limited<W> {
    /// Returns `inner` with a limit; without one it is as fast as it can be.
    #[must_use]
    pub fn new(inner: W, bytes_per_s: Option<u64>) -> Self {
        let bytes_per_s = bytes_per_s.map(|rate| rate.max(1));
        Self {
            inner,
            bytes_per_s,
            paid: Instant::now(),
        }
    }

    /// Returns the number of bytes that may be written at once.
    fn part(&self) -> usize {
        let Some(rate) = self.bytes_per_s else {
            return usize::MAX;
        };
        // A tenth of a second's worth.
        usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1)
    }

    fn pay(&mut self, len_bytes: usize) -> io::Result<()> {
        let Some(rate) = self.bytes_per_s else {
            return Ok(());
        };
        #[expect(clippy::cast_precision_loss, reason = "a time need not be exact")]
        let cost = Duration::from_secs_f64(len_bytes as f64 / rate as f64);
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.paid = self.paid.max(earliest) + cost;
        loop {
            cancel::check()?;
            let left = self.paid.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(NAP_MAX));
        }
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(&bytes[..bytes.len().min(self.part())])?;
        self.pay(len)?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_and_none_costs_nothing() {
        let began = Instant::now();
        let mut slow = Limited::new(io::sink(), Some(1 << 20));
        slow.write_all(&vec![0; 1 << 19]).unwrap();
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(200), "{took:?}");
        let mut fast = Limited::new(io::sink(), None);
        assert_eq!(fast.write(&[0; 4096]).unwrap(), 4096);
    }
}
