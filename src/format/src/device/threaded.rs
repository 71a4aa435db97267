//! A device that is used by threads of its own, whichever thread calls.
//!
//! A thread with a table of descriptors of its own cannot use a file that was opened later. This
//! device's threads can: they have the table of the thread that made it. The bytes are copied on
//! the way.
//!
//! # Invariants
//! - A call returns when the wrapped device's call has.

use super::threads::Threads;
use super::{Device, gather};
use crate::base::{Error, Result};
use std::io::{self, IoSlice};
use std::sync::{Arc, mpsc};

/// Number of threads.
const THREADS: usize = 4;

/// A device that its own threads use.
pub struct ThreadedDevice {
    /// `None` once this is dropped.
    inner: Option<Arc<dyn Device>>,
    threads: Threads,
}

impl ThreadedDevice {
    /// Returns a device over `inner`, used by threads that this thread starts.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self {
            inner: Some(inner),
            threads: Threads::start("cowshed-device", THREADS),
        }
    }

    fn inner(&self) -> &Arc<dyn Device> {
        self.inner.as_ref().expect("it is there until drop")
    }

    /// Has a thread do something with the device, and returns its result.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Device) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = mpsc::sync_channel(1);
        let device = Arc::clone(self.inner());
        let is_begun = self.threads.begin(move || {
            let outcome = work(&*device);
            drop(device);
            // The caller waits until it gets this.
            let _ = tell.send(outcome);
        });
        let gone = || Error::io("use the device", io::Error::other("its threads have ended"));
        if !is_begun {
            return Err(gone());
        }
        told.recv().map_err(|_| gone())?
    }
}

impl Drop for ThreadedDevice {
    fn drop(&mut self) {
        // Here, its descriptors may be those of other files.
        let inner = self.inner.take();
        self.threads.begin(move || drop(inner));
        self.threads.join();
    }
}

impl Device for ThreadedDevice {
    fn len_bytes(&self) -> u64 {
        self.inner().len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let len = buf.len();
        let bytes = self.ask(move |device| {
            let mut bytes = vec![0; len];
            device.read_at(&mut bytes, offset_bytes).map(|()| bytes)
        })?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        // It is a hint, of which no outcome is reported.
        let _ = self.ask(move |device| {
            device.fill_gaps(offset_bytes, len_bytes);
            Ok(())
        });
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        let bytes = buf.to_vec();
        self.ask(move |device| device.write_at(&bytes, offset_bytes))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        let bytes = gather(bufs);
        self.ask(move |device| device.write_at(&bytes, offset_bytes))
    }

    fn flush(&self) -> Result<()> {
        self.ask(|device| device.flush())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.ask(move |device| device.discard(offset_bytes, len_bytes))
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.ask(move |device| device.grow(len_bytes))
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.ask(move |device| device.map_log(offset_bytes, len_bytes))
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let bytes = bytes.to_vec();
        self.ask(move |device| device.store_log(offset_bytes, &bytes))
    }

    fn host_bytes(&self) -> Result<u64> {
        self.ask(|device| device.host_bytes())
    }

    fn host_free_bytes(&self) -> Result<Option<u64>> {
        self.ask(|device| device.host_free_bytes())
    }

    fn reserve_host_bytes(&self, len_bytes: u64) -> Result<Option<u64>> {
        self.ask(move |device| device.reserve_host_bytes(len_bytes))
    }

    fn release_host_bytes(&self, keep_bytes: u64, held_bytes: u64) -> Result<u64> {
        self.ask(move |device| device.release_host_bytes(keep_bytes, held_bytes))
    }

    fn is_direct(&self) -> bool {
        self.inner().is_direct()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn calls_reach_the_device_and_come_back() {
        let memory = Arc::new(MemoryDevice::new(1 << 20));
        let device = ThreadedDevice::new(Arc::clone(&memory) as Arc<dyn Device>);
        device.write_at(&[7; 8192], 4096).unwrap();
        device.map_log(65_536, 65_536).unwrap();
        device.store_log(8, &[9; 16]).unwrap();
        device.flush().unwrap();
        let mut found = [0; 4096];
        device.read_at(&mut found, 8192).unwrap();
        assert_eq!(found, [7; 4096]);
        memory.read_at(&mut found, 65_536).unwrap();
        assert!(found[8..24] == [9; 16]);
        assert!(device.read_at(&mut [0; 4096], 1 << 20).is_err());
        assert_eq!(memory.flushes(), 1);
    }
}
