//! A writer that lets no more than a number of bytes through each second.

use cowshed_format::base::cancel;
use cowshed_format::base::rate_limit::RateLimit;
use std::io::{self, Write};

/// A writer with a limit to its rate.
#[derive(Debug)]
pub struct Limited<W> {
    inner: W,
    limit: Option<RateLimit>,
}

impl<W: Write> Limited<W> {
    /// Returns `inner` with a limit; without one it is as fast as it can be.
    #[must_use]
    pub fn new(inner: W, bytes_per_s: Option<u64>) -> Self {
        Self {
            inner,
            limit: bytes_per_s.map(RateLimit::new),
        }
    }

    /// Returns the number of bytes that may be written at once: a tenth of a second's worth.
    fn part(&self) -> usize {
        let rate = self.limit.as_ref().map(RateLimit::bytes_per_second);
        rate.map_or(usize::MAX, |rate| {
            usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1)
        })
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(&bytes[..bytes.len().min(self.part())])?;
        if let Some(limit) = &mut self.limit
            && !limit.pay(len as u64, || cancel::check().is_ok())
        {
            cancel::check()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

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
