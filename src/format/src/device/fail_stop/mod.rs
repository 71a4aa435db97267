//! Fail-stop: after the first failed change of a device, nothing more is changed.
//!
//! Once a host has reported a failed write-back, it forgets the data, so a second flush would
//! succeed without it. Therefore nothing is retried. What is known to be durable can still be read,
//! and opening the pool again recovers from that.
//!
//! # Invariants
//! - Once a write, store or flush has failed, every later change and flush returns `FailStopped`.
//! - A flush returns `Ok` only if no flush failed before it. Flushes run one at a time, because a
//!   host reports a failed write-back to only one of several that run at once.
//! - A failed read or discard stops nothing. Neither does a write or store that the host had no
//!   space for: its caller got an error, so nobody relies on the data, and space may become free.

use super::{Device, MirrorDevice};
use crate::base::sync::Mutex;
use crate::base::{Error, Result};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

/// The first failed action, and its error.
struct Failure {
    action: &'static str,
    source: io::Error,
}

impl Failure {
    fn to_error(&self) -> Error {
        Error::FailStopped {
            action: self.action,
            source: Error::copy_io(&self.source),
        }
    }
}

/// A device that stops for good at the first failed change.
pub struct FailStopDevice {
    inner: Arc<dyn Device>,
    /// Set once. Checking it costs one atomic load.
    first: OnceLock<Failure>,
    /// Held during a flush.
    flushing: Mutex<()>,
    /// Called at the first failure, before any caller gets the error.
    alarm: OnceLock<Alarm>,
}

/// A callback that learns at once that a device has failed.
pub type Alarm = Box<dyn Fn() + Send + Sync>;

impl FailStopDevice {
    /// Returns a fail-stop device over `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self {
            inner,
            first: OnceLock::new(),
            flushing: Mutex::new(()),
            alarm: OnceLock::new(),
        }
    }

    /// Registers `alarm`, which is called when the device stops, in the thread that met the failure
    /// and before that thread's call returns. Only the first registered alarm counts.
    pub fn on_failure(&self, alarm: Alarm) {
        let _ = self.alarm.set(alarm);
    }

    /// Returns the `FailStopped` error that changes now get, if a change has failed.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.first.get().map(Failure::to_error)
    }

    /// Writes bytes over a damaged copy of themselves. The device goes on if that fails: nothing
    /// relies on it.
    ///
    /// # Errors
    /// `FailStopped` once the device has stopped; otherwise as `Device::write_at`.
    pub fn write_again(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.check()?;
        self.inner.write_at(buf, offset_bytes)
    }

    fn check(&self) -> Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(failure) => Err(failure.to_error()),
        }
    }

    /// Stops the device. Of several simultaneous failures, the first to get here is kept.
    fn stop(&self, action: &'static str, error: &Error) {
        let source = match error {
            Error::Io { source, .. } | Error::FailStopped { source, .. } => Error::copy_io(source),
            other => io::Error::from_raw_os_error(other.errno()),
        };
        let is_first = self.first.set(Failure { action, source }).is_ok();
        if let Some(alarm) = self.alarm.get().filter(|_| is_first) {
            alarm();
        }
    }

    fn change(&self, action: &'static str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check()?;
        change().inspect_err(|error| {
            if !error.is_host_full() {
                self.stop(action, error);
            }
        })
    }
}

impl Device for FailStopDevice {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.inner.read_at(buf, offset_bytes)
    }

    fn read_accepted(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        all: bool,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        self.inner.read_accepted(buf, offset_bytes, all, accept)
    }

    fn read_cached(&self, buf: &mut [u8], offset_bytes: u64) -> bool {
        self.inner.read_cached(buf, offset_bytes)
    }

    fn medium(&self) -> Option<Box<dyn Device>> {
        self.inner.medium()
    }

    fn forget_read(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.forget_read(offset_bytes, len_bytes);
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        if self.error().is_none() {
            self.inner.fill_gaps(offset_bytes, len_bytes);
        }
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.change("write", || self.inner.write_at(buf, offset_bytes))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.change("write", || self.inner.write_vectored_at(bufs, offset_bytes))
    }

    fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        self.check()?;
        self.inner
            .flush()
            .inspect_err(|error| self.stop("flush", error))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.check()?;
        self.inner.discard(offset_bytes, len_bytes)
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.check()?;
        self.inner.grow(len_bytes)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.check()?;
        self.inner.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.change("write to the log", || {
            self.inner.store_log(offset_bytes, bytes)
        })
    }

    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
    }

    fn host_free_bytes(&self) -> Result<Option<u64>> {
        self.inner.host_free_bytes()
    }

    fn reserve_host_bytes(&self, len_bytes: u64) -> Result<Option<u64>> {
        self.inner.reserve_host_bytes(len_bytes)
    }

    fn release_host_bytes(&self, keep_bytes: u64, held_bytes: u64) -> Result<u64> {
        self.inner.release_host_bytes(keep_bytes, held_bytes)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.descriptors()
    }

    fn is_direct(&self) -> bool {
        self.inner.is_direct()
    }

    fn mirror(&self) -> Option<&MirrorDevice> {
        self.inner.mirror()
    }
}

#[cfg(test)]
mod tests;
