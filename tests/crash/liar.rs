//! A device that reports flushes that it has not done: the prover must notice.

use cowshed_format::base::Result;
use cowshed_format::device::{Device, MemoryDevice};
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Forwards everything except one flush in `every`.
pub(crate) struct Liar {
    pub(crate) device: Arc<MemoryDevice>,
    pub(crate) every: u64,
    pub(crate) flushes: AtomicU64,
}

impl Device for Liar {
    fn len_bytes(&self) -> u64 {
        self.device.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.device.read_at(buf, offset_bytes)
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        self.device.fill_gaps(offset_bytes, len_bytes);
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.device.write_at(buf, offset_bytes)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.device.write_vectored_at(bufs, offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        let number = self.flushes.fetch_add(1, Ordering::Relaxed);
        if number % self.every == self.every - 1 {
            return Ok(());
        }
        self.device.flush()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.device.discard(offset_bytes, len_bytes)
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.device.grow(len_bytes)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.device.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.device.store_log(offset_bytes, bytes)
    }

    fn host_bytes(&self) -> Result<u64> {
        self.device.host_bytes()
    }
}
