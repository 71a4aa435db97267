//! A device in memory, for tests: it counts its calls and, on request, records every change by
//! epoch, so that a test can build any state that a power cut could have left.
//!
//! # Invariants
//! - An epoch is the changes between two flushes. Each change is in the record before the call that
//!   made it returns, in the order in which it was applied.
//! - A never-written or discarded page reads as zeros.

use super::{Device, check_blocks, gather};
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::sync::{Mutex, RwLock};
use crate::base::{BLOCK_BYTES, BLOCK_SHIFT, Error, Result};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, OnceLock};

type Page = [u8; BLOCK_BYTES];

/// The bytes of what was filled and not written.
const FILL: u8 = 0xf1;

/// The contents of a device at one moment. A clone shares the pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceImage {
    len_bytes: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl DeviceImage {
    /// Returns an image of zeros.
    #[must_use]
    pub const fn zeroed(len_bytes: u64) -> Self {
        Self {
            len_bytes,
            pages: BTreeMap::new(),
        }
    }

    /// Returns the image's length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Applies one recorded change. A write beyond the image's end lengthens the image, since such
    /// a write was possible only after the device had grown.
    pub fn apply(&mut self, op: &RecordedOp) {
        match op {
            RecordedOp::Write {
                offset_bytes,
                bytes,
                ..
            } => {
                self.write(*offset_bytes, bytes);
                self.len_bytes = self.len_bytes.max(offset_bytes + bytes.len() as u64);
            }
            RecordedOp::Discard {
                offset_bytes,
                len_bytes,
            } => self.discard(*offset_bytes, *len_bytes),
            RecordedOp::Grow { len_bytes } => self.len_bytes = self.len_bytes.max(*len_bytes),
        }
    }

    /// Fills `buf` from `offset_bytes`, at any alignment; bytes never written read as zeros.
    pub fn read(&self, mut buf: &mut [u8], offset_bytes: u64) {
        let mut at = offset_bytes;
        while !buf.is_empty() {
            let (page, within) = split(at);
            let len = buf.len().min(BLOCK_BYTES - within);
            let (piece, rest) = buf.split_at_mut(len);
            match self.pages.get(&page) {
                Some(bytes) => piece.copy_from_slice(&bytes[within..within + len]),
                None => piece.fill(0),
            }
            at += len as u64;
            buf = rest;
        }
    }

    fn write(&mut self, offset_bytes: u64, mut bytes: &[u8]) {
        let mut at = offset_bytes;
        while !bytes.is_empty() {
            let (page, within) = split(at);
            let len = bytes.len().min(BLOCK_BYTES - within);
            let (piece, rest) = bytes.split_at(len);
            let page = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            // A page that an image shares is copied first, so that the image stays unchanged.
            Arc::make_mut(page)[within..within + len].copy_from_slice(piece);
            at += len as u64;
            bytes = rest;
        }
    }

    fn discard(&mut self, offset_bytes: u64, len_bytes: u64) {
        let first = offset_bytes >> BLOCK_SHIFT;
        let after = (offset_bytes + len_bytes) >> BLOCK_SHIFT;
        let doomed: Vec<u64> = self
            .pages
            .range(first..after)
            .map(|(page, _)| *page)
            .collect();
        for page in doomed {
            self.pages.remove(&page);
        }
    }
}

/// Returns the page's number and the offset within it.
fn split(offset_bytes: u64) -> (u64, usize) {
    let within = usize::try_from(offset_bytes % BLOCK_BYTES as u64)
        .expect("a remainder of the block's length fits");
    (offset_bytes >> BLOCK_SHIFT, within)
}

/// One change of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedOp {
    /// Bytes were written, or stored through the mapping.
    Write {
        /// The offset from the device's start.
        offset_bytes: u64,
        /// The bytes written.
        bytes: Arc<[u8]>,
        /// True for a store through the mapping, which tears at any byte and not only between
        /// blocks.
        mapped: bool,
    },
    /// A range was discarded.
    Discard {
        /// The range's offset.
        offset_bytes: u64,
        /// The range's length.
        len_bytes: u64,
    },
    /// The device was made longer.
    Grow {
        /// Its length from then on.
        len_bytes: u64,
    },
}

/// All changes of a device since its recording began.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The device's contents before.
    pub base: DeviceImage,
    /// The epochs that a flush has closed: durable, in order.
    pub epochs: Vec<Vec<RecordedOp>>,
    /// The changes after the last flush: after a power cut any of them may be there, whole or torn.
    pub unflushed: Vec<RecordedOp>,
}

impl Recording {
    /// Returns the device's contents when the first `epochs` epochs are durable and `survivors` of
    /// the later changes have reached it too.
    ///
    /// # Panics
    /// When fewer epochs were recorded.
    #[must_use]
    pub fn crash_image<'a>(
        &'a self,
        epochs: usize,
        survivors: impl IntoIterator<Item = &'a RecordedOp>,
    ) -> DeviceImage {
        let mut image = self.base.clone();
        for op in self.epochs[..epochs].iter().flatten().chain(survivors) {
            image.apply(op);
        }
        image
    }
}

/// A device in memory.
pub struct MemoryDevice {
    image: RwLock<DeviceImage>,
    /// Locked before `image`, and held during a change, so that the record has the changes' order.
    recording: Option<Mutex<Recording>>,
    log: OnceLock<(u64, u64)>,
    reads: AtomicU64,
    writes: AtomicU64,
    stores: AtomicU64,
    flushes: AtomicU64,
    forgotten_bytes: AtomicU64,
    filled_bytes: AtomicU64,
    discards: AtomicU64,
}

impl MemoryDevice {
    /// Returns a device of zeros.
    #[must_use]
    pub fn new(len_bytes: u64) -> Self {
        Self::from_image(DeviceImage::zeroed(len_bytes))
    }

    /// Returns a device of zeros that records every change.
    #[must_use]
    pub fn recording(len_bytes: u64) -> Self {
        Self::recording_from(DeviceImage::zeroed(len_bytes))
    }

    /// Returns a device that holds `image`.
    #[must_use]
    pub fn from_image(image: DeviceImage) -> Self {
        Self {
            image: RwLock::new(image),
            recording: None,
            log: OnceLock::new(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            stores: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            forgotten_bytes: AtomicU64::new(0),
            filled_bytes: AtomicU64::new(0),
            discards: AtomicU64::new(0),
        }
    }

    /// Returns a device that holds `image` and records every change.
    #[must_use]
    pub fn recording_from(image: DeviceImage) -> Self {
        let recording = Recording {
            base: image.clone(),
            epochs: Vec::new(),
            unflushed: Vec::new(),
        };
        Self {
            recording: Some(Mutex::new(recording)),
            ..Self::from_image(image)
        }
    }

    /// Returns the device's present contents, flushed or not: the state that the death of the
    /// process leaves.
    #[must_use]
    pub fn snapshot_image(&self) -> DeviceImage {
        self.image.read().clone()
    }

    /// Returns all changes until now, if the device records.
    #[must_use]
    pub fn recorded(&self) -> Option<Recording> {
        self.recording
            .as_ref()
            .map(|recording| recording.lock().clone())
    }

    /// Returns the present position in the record: the number of closed epochs, and the number of
    /// changes after the last one.
    #[must_use]
    pub fn moment(&self) -> Option<(usize, usize)> {
        let recording = self.recording.as_ref()?.lock();
        Some((recording.epochs.len(), recording.unflushed.len()))
    }

    /// Returns the number of reads.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns the number of writes, without stores.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Returns the number of stores into the log.
    #[must_use]
    pub fn stores(&self) -> u64 {
        self.stores.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the host was told to forget after they were read.
    #[must_use]
    pub fn forgotten_bytes(&self) -> u64 {
        self.forgotten_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that were filled before they were written.
    #[must_use]
    pub fn filled_bytes(&self) -> u64 {
        self.filled_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of flushes.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Returns the number of discards.
    #[must_use]
    pub fn discards(&self) -> u64 {
        self.discards.load(Ordering::Relaxed)
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8], mapped: bool) {
        let Some(recording) = &self.recording else {
            self.image.write().write(offset_bytes, bytes);
            return;
        };
        let mut recording = recording.lock();
        self.image.write().write(offset_bytes, bytes);
        recording.unflushed.push(RecordedOp::Write {
            offset_bytes,
            bytes: bytes.into(),
            mapped,
        });
    }
}

impl Device for MemoryDevice {
    fn len_bytes(&self) -> u64 {
        self.image.read().len_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let image = self.image.read();
        check_blocks(
            "read the device",
            offset_bytes,
            buf.len() as u64,
            image.len_bytes,
        )?;
        image.read(buf, offset_bytes);
        Ok(())
    }

    fn forget_read(&self, _offset_bytes: u64, len_bytes: u64) {
        self.forgotten_bytes.fetch_add(len_bytes, Ordering::Relaxed);
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        self.filled_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        let len = usize::try_from(len_bytes).expect("a range in memory");
        self.write(offset_bytes, &vec![FILL; len], false);
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let len_bytes = buf.len() as u64;
        check_blocks(
            "write the device",
            offset_bytes,
            len_bytes,
            self.len_bytes(),
        )?;
        self.write(offset_bytes, buf, false);
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.write_at(&gather(bufs), offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if let Some(recording) = &self.recording {
            let mut recording = recording.lock();
            let epoch = std::mem::take(&mut recording.unflushed);
            recording.epochs.push(epoch);
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.discards.fetch_add(1, Ordering::Relaxed);
        check_blocks("discard", offset_bytes, len_bytes, self.len_bytes())?;
        let mut recording = self.recording.as_ref().map(Mutex::lock);
        self.image.write().discard(offset_bytes, len_bytes);
        if let Some(recording) = &mut recording {
            recording.unflushed.push(RecordedOp::Discard {
                offset_bytes,
                len_bytes,
            });
        }
        Ok(())
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        let mut recording = self.recording.as_ref().map(Mutex::lock);
        let mut image = self.image.write();
        if len_bytes > image.len_bytes {
            image.len_bytes = len_bytes;
            if let Some(recording) = &mut recording {
                recording.unflushed.push(RecordedOp::Grow { len_bytes });
            }
        }
        Ok(())
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        check_blocks("map the log", offset_bytes, len_bytes, self.len_bytes())?;
        if *self.log.get_or_init(|| (offset_bytes, len_bytes)) == (offset_bytes, len_bytes) {
            return Ok(());
        }
        Err(Error::io(
            "map the log",
            io::Error::from(io::ErrorKind::AlreadyExists),
        ))
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.stores.fetch_add(1, Ordering::Relaxed);
        let (start, len_bytes) = *self
            .log
            .get()
            .expect("the log is mapped before it is stored into");
        let end = offset_bytes.checked_add(bytes.len() as u64);
        assert!(
            end.is_some_and(|end| end <= len_bytes),
            "a store outside the log region"
        );
        self.write(start + offset_bytes, bytes, true);
        Ok(())
    }

    fn host_bytes(&self) -> Result<u64> {
        Ok((self.image.read().pages.len() as u64) << BLOCK_SHIFT)
    }
}

#[cfg(test)]
mod tests;
