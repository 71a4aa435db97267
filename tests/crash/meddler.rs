//! A device that lets something happen in the middle of an operation, as another thread would:
//! between two writes of a checkpoint, for example. A seed always leads to the same events.

use cowshed_format::base::{Error, Result};
use cowshed_format::device::{Device, MemoryDevice};
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

type Work = Box<dyn FnOnce() + Send>;

/// Forwards everything; before one of its writes, it does the waiting work (not before a flush:
/// work that flushes would wait for the flush in progress).
pub(crate) struct Meddler {
    device: Arc<MemoryDevice>,
    waiting: Mutex<Option<(u32, Work)>>,
    /// Number of changes that still pass before the process dies.
    life: Mutex<Option<u32>>,
}

impl Meddler {
    pub(crate) fn new(device: Arc<MemoryDevice>) -> Self {
        Self {
            device,
            waiting: Mutex::default(),
            life: Mutex::default(),
        }
    }

    /// Makes the process die after `changes` more changes: nothing that it requests later reaches
    /// the device.
    pub(crate) fn kill_after(&self, changes: u32) {
        *self.life.lock().expect("no panic while it is held") = Some(changes);
    }

    /// Gives the device to a new process; returns true if the last one had made all its changes.
    pub(crate) fn revive(&self) -> bool {
        let life = self.life.lock().expect("no panic while it is held").take();
        life == Some(0)
    }

    /// Returns an error for a dead process, whose changes are dropped.
    fn live(&self) -> Result<()> {
        match &mut *self.life.lock().expect("no panic while it is held") {
            None => Ok(()),
            Some(0) => Err(Error::Io {
                action: "be alive",
                source: std::io::Error::other("the process is dead"),
            }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Arms `work`, which is done once `calls` writes have passed.
    pub(crate) fn arm(&self, calls: u32, work: Work) {
        *self.waiting.lock().expect("no panic while it is held") = Some((calls, work));
    }

    /// Discards work that was not done.
    pub(crate) fn disarm(&self) {
        let work = self
            .waiting
            .lock()
            .expect("no panic while it is held")
            .take();
        drop(work);
    }

    fn turn(&self) {
        let due = {
            let mut waiting = self.waiting.lock().expect("no panic while it is held");
            match &mut *waiting {
                Some((calls, _)) if *calls > 0 => {
                    *calls -= 1;
                    None
                }
                _ => waiting.take(),
            }
        };
        if let Some((_, work)) = due {
            work();
        }
    }
}

impl Device for Meddler {
    fn len_bytes(&self) -> u64 {
        self.device.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.device.read_at(buf, offset_bytes)
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        self.turn();
        if self.live().is_ok() {
            self.device.fill_gaps(offset_bytes, len_bytes);
        }
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.turn();
        self.live()?;
        self.device.write_at(buf, offset_bytes)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.turn();
        self.live()?;
        self.device.write_vectored_at(bufs, offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        self.live()?;
        self.device.flush()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.live()?;
        self.device.discard(offset_bytes, len_bytes)
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.live()?;
        self.device.grow(len_bytes)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.device.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.live()?;
        self.device.store_log(offset_bytes, bytes)
    }

    fn host_bytes(&self) -> Result<u64> {
        self.device.host_bytes()
    }
}
