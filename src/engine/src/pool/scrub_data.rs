//! Verifying the data of volumes on the medium, past what the host has in memory, several reads at a
//! time.
//!
//! A block that the medium has lost is written anew from what the host has in memory, or from another
//! side of a mirror. The bytes go through the host's memory as all others do: a device that fails to
//! write them stops the pool at the next flush, or puts the side out.
//!
//! # Invariants
//! - A block is written anew without a mirror only while it is certain that it still belongs to the
//!   pointer that it was read through: no checkpoint is under way or can begin, and the last one has
//!   it in use.
//! - It counts as healed only once the medium has it.

use super::info::ScrubFaultKind;
use super::read::{BATCH_BLOCKS, read_block, read_blocks};
use super::shared::Shared;
use super::volume::VolumeCore;
use cowshed_format::Pointer;
use cowshed_format::base::background_yield::{self, Background};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockIndex, CorruptKind, Error};
use cowshed_format::device::mirror::Media;
use cowshed_format::device::{Device, Medium, MirrorDevice, OnMedium};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, Scope};

/// Number of threads that read at the same time.
const READERS: usize = 4;

/// Blocks that are bad.
pub(super) type Bad = Vec<(ScrubFaultKind, Range<u64>, Error)>;

/// Threads that verify data.
pub(super) struct Verifier<'a> {
    shared: &'a Shared,
    /// `None` if the host has no threads.
    jobs: Option<mpsc::Sender<Job<'a>>>,
    source: Option<Arc<Source<'a>>>,
    healed: &'a AtomicU64,
}

/// Data of a volume that is being verified: ranges, each of which lies side by side.
pub(super) struct Batch {
    /// The end of the last range.
    pub end: u64,
    /// Number of blocks.
    pub blocks: u64,
    ranges: usize,
    done: mpsc::Receiver<Bad>,
}

struct Job<'a> {
    shared: &'a Shared,
    core: &'a VolumeCore,
    source: Arc<Source<'a>>,
    healed: &'a AtomicU64,
    range: Range<u64>,
    tell: mpsc::Sender<Bad>,
}

impl<'a> Verifier<'a> {
    /// Starts the threads; they end when this is dropped. `healed` counts blocks that are written
    /// anew, without those on sides of a mirror.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        shared: &'a Shared,
        healed: &'a AtomicU64,
    ) -> Self {
        let (jobs, queue) = mpsc::channel::<Job<'a>>();
        let queue = Arc::new(Mutex::new(queue));
        let mut has_threads = false;
        for _ in 0..READERS {
            let queue = Arc::clone(&queue);
            let thread = thread::Builder::new().name("cowshed-scrub".into());
            let started = thread.spawn_scoped(scope, move || {
                let _background = Background::begin();
                let mut buf = Buffer::new();
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    job.run(&mut buf);
                    background_yield::offer();
                }
            });
            match started {
                Ok(_) => has_threads = true,
                Err(error) => tracing::warn!(%error, "cannot start a thread for a scrub"),
            }
        }
        Self {
            shared,
            jobs: has_threads.then_some(jobs),
            source: None,
            healed,
        }
    }

    /// Begins to verify ranges of a volume.
    pub(super) fn begin(&mut self, core: &'a VolumeCore, ranges: Vec<Range<u64>>) -> Batch {
        let shared = self.shared;
        let kept = self.source.take();
        let kept = kept.filter(|source| source.is_current(shared));
        let source = kept.unwrap_or_else(|| Arc::new(Source::of(shared)));
        self.source = Some(Arc::clone(&source));
        let (tell, done) = mpsc::channel();
        let batch = Batch {
            end: ranges.last().map_or(0, |range| range.end),
            blocks: ranges.iter().map(|range| range.end - range.start).sum(),
            ranges: ranges.len(),
            done,
        };
        for range in ranges {
            let job = Job {
                shared,
                core,
                source: Arc::clone(&source),
                healed: self.healed,
                range,
                tell: tell.clone(),
            };
            match &self.jobs {
                Some(jobs) => jobs.send(job).expect("the threads wait for jobs"),
                None => job.run(&mut Buffer::new()),
            }
        }
        batch
    }
}

impl Batch {
    /// Waits until it is verified, and returns the blocks that are bad.
    pub(super) fn wait(self) -> Bad {
        let mut bad: Bad = self.done.iter().take(self.ranges).flatten().collect();
        bad.sort_by_key(|(_, range, _)| range.start);
        bad
    }
}

/// What reads past the host's memory.
enum Source<'a> {
    Single(Medium),
    Sides(&'a MirrorDevice, Media),
}

impl<'a> Source<'a> {
    fn of(shared: &'a Shared) -> Self {
        match shared.device.mirror() {
            Some(mirror) => Self::Sides(mirror, mirror.media()),
            None => Self::Single(Medium::of(&*shared.device)),
        }
    }

    fn is_current(&self, shared: &Shared) -> bool {
        match self {
            Self::Single(medium) => medium.is_current(&*shared.device),
            Self::Sides(mirror, media) => mirror.has_media(media),
        }
    }
}

/// Memory for one read, aligned so that direct I/O copies nothing.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; (BATCH_BLOCKS + 1) * BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { bytes, start }
    }

    fn take(&mut self, blocks: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..blocks * BLOCK_BYTES]
    }
}

/// What became of a block that the medium does not have right.
enum Outcome {
    /// The medium has it now, or it was written meanwhile, or the next checkpoint has it.
    Settled,
    /// The medium does not have it.
    Failed,
}

impl Job<'_> {
    fn run(self, buf: &mut Buffer) {
        let blocks = usize::try_from(self.range.end - self.range.start).expect("below one leaf");
        let bad = self.verify(buf.take(blocks));
        // A scrub that was stopped does not wait.
        let _ = self.tell.send(bad);
    }

    fn verify(&self, buf: &mut [u8]) -> Bad {
        let bad = match &*self.source {
            Source::Single(medium) => self.verify_single(medium, buf),
            Source::Sides(mirror, media) => self.verify_sides(mirror, media, buf),
        };
        bad.unwrap_or_else(|| {
            // The blocks have moved, or nothing reads past the host's memory.
            match read_blocks(self.shared, self.core, self.range.start, buf) {
                Ok(()) => Vec::new(),
                Err(_) => self
                    .range
                    .clone()
                    .flat_map(|block| self.read(block, buf))
                    .collect(),
            }
        })
    }

    /// Reads a block as any reader does, and returns what is bad.
    fn read(&self, block: u64, buf: &mut [u8]) -> Option<(ScrubFaultKind, Range<u64>, Error)> {
        let read = read_block(self.shared, self.core, block, &mut buf[..BLOCK_BYTES]);
        let error = read.err()?;
        Some((ScrubFaultKind::Data, block..block + 1, error))
    }

    fn bad(
        &self,
        kind: ScrubFaultKind,
        block: u64,
        pointer: Pointer,
    ) -> (ScrubFaultKind, Range<u64>, Error) {
        let (volume, index, addr) = (self.core.id, BlockIndex(block), pointer.addr());
        let error = CorruptKind::DataChecksum {
            volume,
            block: index,
            addr,
        };
        (kind, block..block + 1, error.into())
    }

    /// Verifies the range on the medium; `None` if it cannot be told.
    fn verify_single(&self, medium: &Medium, buf: &mut [u8]) -> Option<Bad> {
        let mut bad = Vec::new();
        for (block, pointer) in self.doubted(medium, buf)? {
            if let Some(found) = self.read(block, buf) {
                bad.push(found);
            } else if let Outcome::Failed = self.write_again(medium, block, pointer, buf) {
                bad.push(self.bad(ScrubFaultKind::Data, block, pointer));
            }
        }
        Some(bad)
    }

    /// Returns the pointers of the range, if they lead to neighbouring blocks; `None` if these have
    /// moved.
    fn pointers(&self) -> Option<Vec<Pointer>> {
        let range = &self.range;
        let mut pointers = vec![Pointer::HOLE; usize::try_from(range.end - range.start).ok()?];
        let tree = &self.core.tree;
        tree.read(&self.shared.store, range.start, &mut pointers)
            .ok()?;
        let start = pointers[0].addr().0;
        let joins = |(at, pointer): (u64, &Pointer)| {
            !pointer.is_hole() && !pointer.is_lost() && pointer.addr().0 == start + at
        };
        (0..).zip(&pointers).all(joins).then_some(pointers)
    }

    /// Reads the range from the medium, and returns the blocks that it does not have right; `None` if
    /// it cannot be told.
    fn doubted(&self, medium: &Medium, buf: &mut [u8]) -> Option<Vec<(u64, Pointer)>> {
        let pointers = self.pointers()?;
        let whole = medium.read(buf, pointers[0].addr().offset_bytes());
        let (blocks, _) = buf.as_chunks_mut::<BLOCK_BYTES>();
        let mut doubted = Vec::new();
        for ((number, pointer), block) in self.range.clone().zip(pointers).zip(blocks) {
            let found = match whole {
                OnMedium::Lost => medium.read(block, pointer.addr().offset_bytes()),
                found => found,
            };
            match found {
                OnMedium::Unknown => return None,
                OnMedium::Read if crc32(block) == pointer.crc() => {}
                OnMedium::Read | OnMedium::Lost => doubted.push((number, pointer)),
            }
        }
        Some(doubted)
    }

    /// Writes a block anew that the medium does not have right, if the host has it in memory.
    fn write_again(
        &self,
        medium: &Medium,
        block: u64,
        doubted: Pointer,
        buf: &mut [u8],
    ) -> Outcome {
        let (shared, buf) = (self.shared, &mut buf[..BLOCK_BYTES]);
        let pool_offset_bytes = doubted.addr().offset_bytes();
        let has_it = |buf: &mut [u8]| {
            medium.read(buf, pool_offset_bytes) == OnMedium::Read && crc32(buf) == doubted.crc()
        };
        let checkpointer = shared.checkpointer.lock();
        let mut now = [Pointer::HOLE];
        let read = self.core.tree.read(&shared.store, block, &mut now);
        if read.is_err() || now[0] != doubted {
            return Outcome::Settled;
        }
        if !checkpointer.committed.is_used(doubted.addr()) && !shared.is_read_only() {
            return Outcome::Settled;
        }
        if has_it(buf) {
            return Outcome::Settled;
        }
        let is_right = shared.may_heal(&checkpointer)
            && shared.device.read_cached(buf, pool_offset_bytes)
            && crc32(buf) == doubted.crc();
        if !is_right {
            return Outcome::Failed;
        }
        if let Err(error) = shared.device.write_again(buf, pool_offset_bytes) {
            tracing::warn!(pool_offset_bytes, %error, "a damaged block stays as it is");
            return Outcome::Failed;
        }
        if !has_it(buf) {
            return Outcome::Failed;
        }
        shared.healed.fetch_add(1, Ordering::Relaxed);
        self.healed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            pool_offset_bytes,
            "a damaged block of data was written anew from the host's memory"
        );
        Outcome::Settled
    }

    /// Verifies the range on every side of a mirror. A block that a side does not have right is
    /// written there anew. `None` if the blocks have moved meanwhile.
    fn verify_sides(&self, mirror: &MirrorDevice, media: &Media, buf: &mut [u8]) -> Option<Bad> {
        let pointers = self.pointers()?;
        let start = pointers[0].addr().offset_bytes();
        let mut wrong = Vec::new();
        mirror.read_each(media, buf, start, &mut |side, found| {
            for (index, pointer) in pointers.iter().enumerate() {
                let at = index * BLOCK_BYTES;
                let is_right = |bytes: &[u8]| crc32(&bytes[at..at + BLOCK_BYTES]) == pointer.crc();
                if !found.is_some_and(is_right) {
                    wrong.push((side, index));
                }
            }
        });
        wrong.sort_by_key(|(_, index)| *index);
        let mut bad: Bad = Vec::new();
        for (side, index) in wrong {
            let (block, pointer) = (self.range.start + index as u64, pointers[index]);
            let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
            let at = pointer.addr().offset_bytes();
            let one = &mut buf[..BLOCK_BYTES];
            if self.shared.check_open().is_err() {
                break;
            }
            if mirror.write_again(media, side, one, at, &is_right) == Some(true) {
                continue;
            }
            let found = mirror.read_verified(one, at, true, &is_right);
            if !found.is_ok_and(|found| found) {
                // Another side may have been met with the same.
                if bad.last().is_none_or(|(_, range, _)| range.start != block) {
                    bad.extend(self.read(block, buf));
                }
            } else if mirror.write_again(media, side, one, at, &is_right) == Some(false) {
                bad.push(self.bad(ScrubFaultKind::Copy, block, pointer));
            }
        }
        Some(bad)
    }
}
