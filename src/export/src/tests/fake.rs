//! Targets in memory that count the calls they get and can be told to fail.

use crate::{BlockTarget, Directory, Space, TargetHold, TargetInfo};
use cowshed_engine::{Extent, ExtentKind, WaitFreely, Waiter, Waiting};
use cowshed_format::base::{BLOCK_BYTES, Error, Name, Result, VolumeId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Longer than any working test takes.
const MEETING_WAIT: Duration = Duration::from_secs(10);

/// A set of volumes in memory.
pub(crate) struct FakePool {
    volumes: RwLock<BTreeMap<VolumeId, Arc<FakeVolume>>>,
    pub(crate) flushes: AtomicU64,
}

/// A volume in memory. All-zero blocks are data here, so that a discard differs from a write.
pub(crate) struct FakeVolume {
    id: VolumeId,
    name: Mutex<Name>,
    size_bytes: AtomicU64,
    frozen: AtomicBool,
    blocks: RwLock<BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>>,
    holds: Arc<AtomicU32>,
    /// The maximum number of blocks that it takes.
    pub(crate) blocks_max: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) discarded_bytes: AtomicU64,
    pub(crate) largest_read: AtomicU64,
    pub(crate) largest_write: AtomicU64,
    /// True if writes panic.
    pub(crate) panics: AtomicBool,
    /// True if writes that meet others report to their thread's owner that they wait.
    pub(crate) waits: AtomicBool,
    /// The number of writes that must be in progress at once before any of them continues.
    pub(crate) meeting: Meeting,
    /// The duration of a read, in microseconds, and the number of reads that were in progress at
    /// once.
    pub(crate) read_us: AtomicU64,
    reading: AtomicU64,
    pub(crate) reading_max: AtomicU64,
    /// The time for which writes wait when `blocks_max` is reached.
    pub(crate) patience: Mutex<Duration>,
}

/// A barrier at which a number of threads meet before any continues.
#[derive(Default)]
pub(crate) struct Meeting {
    wanted: AtomicU32,
    arrived: Mutex<u32>,
    changed: Condvar,
}

impl Meeting {
    pub(crate) fn of(&self, wanted: u32) {
        self.wanted.store(wanted, Ordering::SeqCst);
    }

    fn arrive(&self) -> Result<()> {
        let wanted = self.wanted.load(Ordering::SeqCst);
        if wanted == 0 {
            return Ok(());
        }
        let mut arrived = self.arrived.lock();
        *arrived += 1;
        self.changed.notify_all();
        while *arrived < wanted {
            if self
                .changed
                .wait_for(&mut arrived, MEETING_WAIT)
                .timed_out()
            {
                return Err(failed(libc::ETIMEDOUT));
            }
        }
        Ok(())
    }
}

struct FakeHold(Arc<AtomicU32>);

impl Drop for FakeHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn failed(code: i32) -> Error {
    Error::io("pretend", std::io::Error::from_raw_os_error(code))
}

impl FakePool {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            volumes: RwLock::default(),
            flushes: AtomicU64::new(0),
        })
    }

    pub(crate) fn create(&self, name: &str, size_bytes: u64) -> Arc<FakeVolume> {
        let mut volumes = self.volumes.write();
        let id = VolumeId(volumes.keys().last().map_or(1, |last| last.0 + 1));
        let volume = Arc::new(FakeVolume {
            id,
            name: Mutex::new(Name::new(name).unwrap()),
            size_bytes: AtomicU64::new(size_bytes),
            frozen: AtomicBool::new(false),
            blocks: RwLock::default(),
            holds: Arc::default(),
            blocks_max: AtomicU64::new(u64::MAX),
            flushes: AtomicU64::new(0),
            discarded_bytes: AtomicU64::new(0),
            largest_read: AtomicU64::new(0),
            largest_write: AtomicU64::new(0),
            panics: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            meeting: Meeting::default(),
            read_us: AtomicU64::new(0),
            reading: AtomicU64::new(0),
            reading_max: AtomicU64::new(0),
            patience: Mutex::default(),
        });
        volumes.insert(id, volume.clone());
        volume
    }

    pub(crate) fn remove(&self, volume: &FakeVolume) {
        assert_eq!(volume.holds(), 0, "a held volume was removed");
        self.volumes.write().remove(&volume.id);
    }
}

impl FakeVolume {
    /// Writes as a caller that may always wait.
    pub(crate) fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        BlockTarget::write_at(self, buf, offset_bytes, &WaitFreely)
    }

    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    pub(crate) fn rename(&self, name: &str) {
        *self.name.lock() = Name::new(name).unwrap();
    }

    pub(crate) fn resize(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::SeqCst);
    }

    pub(crate) fn holds(&self) -> u32 {
        self.holds.load(Ordering::SeqCst)
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.blocks.read().len() as u64 * BLOCK
    }

    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0xEE; len];
        self.read_at(&mut buffer, offset).unwrap();
        buffer
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        let (size_bytes, len_bytes) = (self.size_bytes(), len as u64);
        if offset
            .checked_add(len_bytes)
            .is_none_or(|end| end > size_bytes)
        {
            return Err(Error::OutOfRange {
                offset_bytes: offset,
                len_bytes,
                size_bytes,
            });
        }
        if len == 0 {
            // The trait's contract covers only non-empty ranges.
            return Err(failed(libc::EINVAL));
        }
        Ok(())
    }
}

/// Cuts a range at block boundaries: block, start within it, start within the range, length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK).unwrap();
            let piece = (BLOCK_BYTES - within).min(len - done);
            done += piece;
            (at / BLOCK, within, done - piece, piece)
        })
    })
}

impl FakeVolume {
    fn put(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        let mut blocks = self.blocks.write();
        for (block, within, from, len) in pieces(offset_bytes, buf.len()) {
            let is_full = blocks.len() as u64 >= self.blocks_max.load(Ordering::SeqCst);
            if is_full && !blocks.contains_key(&block) {
                return Err(Error::NoSpace);
            }
            let data = blocks
                .entry(block)
                .or_insert_with(|| Box::new([0; BLOCK_BYTES]));
            data[within..within + len].copy_from_slice(&buf[from..from + len]);
        }
        Ok(())
    }

    /// Waits as long as allowed while there is no space; returns true if the caller may wait again.
    fn await_room(
        &self,
        len: usize,
        offset_bytes: u64,
        until: Instant,
        waiter: &dyn Waiter,
    ) -> bool {
        let is_full = || {
            let blocks = self.blocks.read();
            let new = pieces(offset_bytes, len).filter(|(block, ..)| !blocks.contains_key(block));
            (blocks.len() + new.count()) as u64 > self.blocks_max.load(Ordering::SeqCst)
        };
        if Instant::now() >= until {
            return false;
        }
        if !is_full() {
            return true;
        }
        let Some(_waiting) = Waiting::begin(waiter) else {
            return false;
        };
        while is_full() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl BlockTarget for FakeVolume {
    fn info(&self) -> Result<TargetInfo> {
        Ok(TargetInfo {
            id: self.id,
            name: self.name(),
            size_bytes: self.size_bytes(),
            allocated_bytes: self.allocated_bytes(),
            is_read_only: self.frozen.load(Ordering::SeqCst),
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        })
    }

    fn id(&self) -> VolumeId {
        self.id
    }

    fn name(&self) -> Name {
        self.name.lock().clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.check(offset_bytes, buf.len())?;
        self.largest_read
            .fetch_max(buf.len() as u64, Ordering::SeqCst);
        let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.reading_max.fetch_max(reading, Ordering::SeqCst);
        let pause = self.read_us.load(Ordering::SeqCst);
        if pause > 0 {
            thread::sleep(Duration::from_micros(pause));
        }
        self.reading.fetch_sub(1, Ordering::SeqCst);
        let blocks = self.blocks.read();
        for (block, within, from, len) in pieces(offset_bytes, buf.len()) {
            match blocks.get(&block) {
                Some(data) => buf[from..from + len].copy_from_slice(&data[within..within + len]),
                None => buf[from..from + len].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64, waiter: &dyn Waiter) -> Result<()> {
        self.check(offset_bytes, buf.len())?;
        if self.frozen.load(Ordering::SeqCst) {
            return Err(Error::Frozen(self.name()));
        }
        assert!(
            !self.panics.load(Ordering::SeqCst),
            "as a broken engine does"
        );
        if self.waits.load(Ordering::SeqCst) {
            let _waiting = Waiting::begin(waiter).ok_or(Error::NoSpace)?;
            self.meeting.arrive()?;
        } else {
            self.meeting.arrive()?;
        }
        self.largest_write
            .fetch_max(buf.len() as u64, Ordering::SeqCst);
        let until = Instant::now() + *self.patience.lock();
        // Another write may take the space that this one waited for.
        loop {
            let may_wait_again = self.await_room(buf.len(), offset_bytes, until, waiter);
            match self.put(buf, offset_bytes) {
                Err(Error::NoSpace) if may_wait_again => {}
                done => return done,
            }
        }
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let len = usize::try_from(len_bytes).unwrap();
        self.check(offset_bytes, len)?;
        self.discarded_bytes.fetch_add(len_bytes, Ordering::SeqCst);
        let mut blocks = self.blocks.write();
        for (block, within, _, len) in pieces(offset_bytes, len) {
            if len == BLOCK_BYTES {
                blocks.remove(&block);
            } else if let Some(data) = blocks.get_mut(&block) {
                data[within..within + len].fill(0);
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        let size = self.size_bytes();
        if offset_bytes >= size {
            return Ok(None);
        }
        let blocks = self.blocks.read();
        let first = offset_bytes / BLOCK;
        let is_data = blocks.contains_key(&first);
        let end = (first..size.div_ceil(BLOCK))
            .find(|block| blocks.contains_key(block) != is_data)
            .map_or(size, |block| block * BLOCK);
        let kind = if is_data {
            ExtentKind::Data
        } else {
            ExtentKind::Zero
        };
        Ok(Some(Extent {
            offset_bytes,
            len_bytes: end - offset_bytes,
            kind,
        }))
    }

    fn hold(&self) -> Result<TargetHold> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeHold(self.holds.clone())))
    }
}

impl Directory for FakePool {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn list(&self) -> Vec<TargetInfo> {
        self.volumes
            .read()
            .values()
            .map(|volume| volume.info().unwrap())
            .collect()
    }

    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>> {
        let volumes = self.volumes.read();
        let found = volumes.values().find(|volume| volume.name() == *name);
        found
            .map(|volume| volume.clone() as Arc<dyn BlockTarget>)
            .ok_or_else(|| Error::NotFound(name.clone()))
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        let volumes = self.volumes.read();
        volumes
            .get(&id)
            .map(|volume| volume.clone() as Arc<dyn BlockTarget>)
            .ok_or(Error::NoSuchVolume(id))
    }

    fn space(&self) -> Result<Space> {
        let targets = self.volumes.read().len() as u64;
        Ok(Space {
            size_bytes: 64 << 20,
            free_bytes: 48 << 20,
            targets,
        })
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
