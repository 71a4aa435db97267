//! A device that is only read, for a pool whose host refuses writes.
//!
//! Blocks that recovery writes are kept in memory and read back from there; none of them reaches
//! the device below, and all are gone when this is dropped. They are metadata that the log changes,
//! not users' data: a pool that is open read-only refuses users' writes.
//!
//! # Invariants
//! - The device below is only read.
//! - A read returns the bytes last written here, otherwise those of the device below.

use super::{Device, MirrorDevice, check_blocks};
use crate::base::sync::{Mutex, RwLock};
use crate::base::{BLOCK_BYTES, Error, Result};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

type Block = Box<[u8; BLOCK_BYTES]>;

/// Reads from another device, and keeps writes in memory.
pub struct ReadOnlyDevice {
    inner: Arc<dyn Device>,
    /// The written blocks, by block number.
    written: RwLock<BTreeMap<u64, Block>>,
    /// The log region.
    log: Mutex<Range<u64>>,
}

impl ReadOnlyDevice {
    /// Returns a device that reads from `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self {
            inner,
            written: RwLock::default(),
            log: Mutex::new(0..0),
        }
    }

    /// Keeps `bytes`, which may begin and end anywhere.
    fn keep(&self, mut offset_bytes: u64, mut bytes: &[u8]) -> Result<()> {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        let mut written = self.written.write();
        while !bytes.is_empty() {
            let number = offset_bytes / BLOCK;
            // Below 4,096.
            #[allow(clippy::cast_possible_truncation)]
            let within = (offset_bytes % BLOCK) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - within));
            let mut block = match written.remove(&number) {
                Some(block) => block,
                None => {
                    let mut block = Box::new([0; BLOCK_BYTES]);
                    if now.len() < BLOCK_BYTES {
                        self.inner.read_at(&mut block[..], number * BLOCK)?;
                    }
                    block
                }
            };
            block[within..within + now.len()].copy_from_slice(now);
            written.insert(number, block);
            offset_bytes += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

impl Device for ReadOnlyDevice {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let written = self.written.read();
        self.inner.read_at(buf, offset_bytes)?;
        let first = offset_bytes / BLOCK_BYTES as u64;
        let blocks = (buf.len() / BLOCK_BYTES) as u64;
        for (number, block) in written.range(first..first + blocks) {
            // Below the buffer's length.
            #[allow(clippy::cast_possible_truncation)]
            let at = (number - first) as usize * BLOCK_BYTES;
            buf[at..at + BLOCK_BYTES].copy_from_slice(&block[..]);
        }
        Ok(())
    }

    fn read_accepted(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        all: bool,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let first = offset_bytes / BLOCK_BYTES as u64;
        let blocks = (buf.len() / BLOCK_BYTES) as u64;
        let is_below = self
            .written
            .read()
            .range(first..first + blocks)
            .next()
            .is_none();
        if is_below {
            return self.inner.read_accepted(buf, offset_bytes, all, accept);
        }
        self.read_at(buf, offset_bytes)?;
        Ok(accept(buf))
    }

    fn forget_read(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.forget_read(offset_bytes, len_bytes);
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        check_blocks("write", offset_bytes, buf.len() as u64, self.len_bytes())?;
        self.keep(offset_bytes, buf)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.write_at(&super::gather(bufs), offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        if len_bytes <= self.len_bytes() {
            return Ok(());
        }
        Err(Error::ReadOnly)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        *self.log.lock() = offset_bytes..offset_bytes + len_bytes;
        Ok(())
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let region = self.log.lock().clone();
        assert!(
            offset_bytes + bytes.len() as u64 <= region.end - region.start,
            "the range {offset_bytes}+{} is outside of the log",
            bytes.len()
        );
        self.keep(region.start + offset_bytes, bytes)
    }

    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
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
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn what_is_written_is_read_back_and_reaches_nothing_below() {
        let below = Arc::new(MemoryDevice::new(64 << 10));
        below.write_at(&[1; 8192], 4096).unwrap();
        let device = ReadOnlyDevice::new(Arc::clone(&below) as Arc<dyn Device>);
        device.write_at(&[2; 4096], 8192).unwrap();
        device.map_log(12_288, 12_288).unwrap();
        // Across the boundary of two blocks.
        device.store_log(4000, &[3; 200]).unwrap();
        device.flush().unwrap();

        let mut found = vec![0; 20_480];
        device.read_at(&mut found, 4096).unwrap();
        let mut expected = vec![1; 4096];
        expected.extend([2; 4096]);
        expected.extend([0; 4000]);
        expected.extend([3; 200]);
        expected.resize(20_480, 0);
        assert!(found == expected);

        below.read_at(&mut found, 4096).unwrap();
        assert!(found[..8192] == [1; 8192] && found[8192..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn it_does_not_grow_and_refuses_what_lies_beyond_its_end() {
        let device = ReadOnlyDevice::new(Arc::new(MemoryDevice::new(8192)));
        device.grow(8192).unwrap();
        assert!(matches!(device.grow(8193), Err(Error::ReadOnly)));
        assert!(device.write_at(&[0; 4096], 8192).is_err());
        assert!(device.read_at(&mut [0; 4096], 8192).is_err());
    }
}
