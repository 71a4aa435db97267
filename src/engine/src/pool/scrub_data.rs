//! Verifying the data of volumes on the medium, past what the host has in memory, several reads at a
//! time.
//!
//! A block that the medium has lost is written anew from what the host has in memory, or from another
//! side of a mirror.
//!
//! # Invariants
//! - A block is written anew without a mirror only while it is certain that it still belongs to the
//!   pointer that it was read through: no checkpoint is under way or can begin, and the last one has
//!   it in use.

use super::read::{BATCH_BLOCKS, read_block, read_blocks};
use super::shared::Shared;
use super::volume::VolumeCore;
use cowshed_format::Pointer;
use cowshed_format::base::background_yield::{self, Background};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, Error};
use cowshed_format::device::mirror::Media;
use cowshed_format::device::{Device, MirrorDevice};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Scope;

/// Number of threads that read at the same time.
const READERS: usize = 4;

/// The result of verifying blocks.
#[derive(Default)]
pub(super) struct Verified {
    pub bad: Vec<(Range<u64>, Error)>,
    /// Number of blocks written anew, without those on sides of a mirror.
    pub healed: u64,
}

/// Threads that verify data.
pub(super) struct Verifier<'a> {
    shared: &'a Shared,
    jobs: mpsc::Sender<Job<'a>>,
}

/// Data of a volume that is being verified: ranges, each of which lies side by side.
pub(super) struct Batch {
    /// The end of the last range.
    pub end: u64,
    /// Number of blocks.
    pub blocks: u64,
    ranges: usize,
    done: mpsc::Receiver<Verified>,
}

struct Job<'a> {
    core: &'a VolumeCore,
    range: Range<u64>,
    medium: Arc<Medium<'a>>,
    tell: mpsc::Sender<Verified>,
}

impl<'a> Verifier<'a> {
    /// Starts the threads; they end when this is dropped.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, 'a>, shared: &'a Shared) -> Self {
        let (jobs, queue) = mpsc::channel::<Job<'a>>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..READERS {
            let queue = Arc::clone(&queue);
            scope.spawn(move || {
                let _background = Background::begin();
                let mut buf = vec![0; (BATCH_BLOCKS + 1) * BLOCK_BYTES];
                // Direct I/O copies nothing if the memory is aligned.
                let start = buf.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else {
                        return;
                    };
                    job.run(shared, &mut buf[start..]);
                    background_yield::offer();
                }
            });
        }
        Self { shared, jobs }
    }

    /// Begins to verify ranges of a volume.
    pub(super) fn begin(&self, core: &'a VolumeCore, ranges: Vec<Range<u64>>) -> Batch {
        let medium = Arc::new(match self.shared.device.mirror() {
            Some(mirror) => Medium::Sides(mirror, mirror.media()),
            None => Medium::Single(self.shared.device.medium()),
        });
        let (tell, done) = mpsc::channel();
        let batch = Batch {
            end: ranges.last().map_or(0, |range| range.end),
            blocks: ranges.iter().map(|range| range.end - range.start).sum(),
            ranges: ranges.len(),
            done,
        };
        for range in ranges {
            let job = Job {
                core,
                range,
                medium: Arc::clone(&medium),
                tell: tell.clone(),
            };
            self.jobs.send(job).expect("the threads wait for this");
        }
        batch
    }
}

impl Batch {
    /// Waits until it is verified.
    pub(super) fn wait(self) -> Verified {
        let mut all = Verified::default();
        for found in self.done.iter().take(self.ranges) {
            all.bad.extend(found.bad);
            all.healed += found.healed;
        }
        all.bad.sort_by_key(|(range, _)| range.start);
        all
    }
}

impl Job<'_> {
    fn run(self, shared: &Shared, buf: &mut [u8]) {
        let reader = Reader {
            shared,
            core: self.core,
            medium: &self.medium,
        };
        let blocks = usize::try_from(self.range.end - self.range.start).expect("below one leaf");
        let mut found = Verified::default();
        reader.verify(&self.range, &mut buf[..blocks * BLOCK_BYTES], &mut found);
        // A scrub that was stopped does not wait.
        let _ = self.tell.send(found);
    }
}

/// What reads past the host's memory.
enum Medium<'a> {
    Single(Option<Box<dyn Device>>),
    Sides(&'a MirrorDevice, Media),
}

struct Reader<'a> {
    shared: &'a Shared,
    core: &'a VolumeCore,
    medium: &'a Medium<'a>,
}

impl Reader<'_> {
    fn verify(&self, range: &Range<u64>, buf: &mut [u8], found: &mut Verified) {
        let doubted = match self.medium {
            Medium::Sides(mirror, media) => {
                if self.verify_sides(mirror, media, range, buf) {
                    return;
                }
                Vec::new()
            }
            Medium::Single(medium) => match self.doubted(medium.as_deref(), range, buf) {
                Some(doubted) if doubted.is_empty() => return,
                Some(doubted) => doubted,
                None if read_blocks(self.shared, self.core, range.start, buf).is_ok() => return,
                None => Vec::new(),
            },
        };
        for block in range.clone() {
            let buf = &mut buf[..BLOCK_BYTES];
            if let Err(error) = read_block(self.shared, self.core, block, buf) {
                found.bad.push((block..block + 1, error));
            }
        }
        for (block, pointer) in doubted {
            found.healed += u64::from(self.write_again(block, pointer, &mut buf[..BLOCK_BYTES]));
        }
    }

    /// Returns the pointers of a range that leads to neighbouring blocks; `None` if they have moved.
    fn pointers(&self, range: &Range<u64>) -> Option<Vec<Pointer>> {
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

    /// Reads a range from the medium, and returns the blocks that it does not have right; `None` if it
    /// cannot be told.
    fn doubted(
        &self,
        medium: Option<&dyn Device>,
        range: &Range<u64>,
        buf: &mut [u8],
    ) -> Option<Vec<(u64, Pointer)>> {
        let medium = medium?;
        let pointers = self.pointers(range)?;
        let start = pointers[0].addr().offset_bytes();
        let whole = medium.read_at(buf, start);
        if let Err(error) = &whole
            && error.errno() == libc::EINVAL
        {
            // The host has no direct I/O of this kind.
            return None;
        }
        let (blocks, _) = buf.as_chunks_mut::<BLOCK_BYTES>();
        let mut doubted = Vec::new();
        for ((number, pointer), block) in range.clone().zip(pointers).zip(blocks) {
            let addr = pointer.addr();
            let is_read = whole.is_ok() || medium.read_at(block, addr.offset_bytes()).is_ok();
            if !is_read || crc32(block) != pointer.crc() {
                doubted.push((number, pointer));
            }
        }
        Some(doubted)
    }

    /// Writes a block anew that the medium does not have right, if the host has it in memory; returns
    /// true if it did.
    fn write_again(&self, block: u64, doubted: Pointer, buf: &mut [u8]) -> bool {
        let shared = self.shared;
        let addr = doubted.addr();
        let checkpointer = shared.checkpointer.lock();
        let mut now = [Pointer::HOLE];
        let read = self.core.tree.read(&shared.store, block, &mut now);
        let is_its_own = read.is_ok() && now[0] == doubted && checkpointer.committed.is_used(addr);
        let may = shared.may_heal(&checkpointer) && is_its_own;
        let is_right = may
            && shared.device.read_cached(buf, addr.offset_bytes())
            && crc32(buf) == doubted.crc();
        if !is_right {
            return false;
        }
        let pool_offset_bytes = addr.offset_bytes();
        match shared.device.write_again(buf, pool_offset_bytes) {
            Ok(()) => {
                shared.healed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    pool_offset_bytes,
                    "a damaged block of data was written anew from the host's memory"
                );
                true
            }
            Err(error) => {
                tracing::warn!(pool_offset_bytes, %error, "a damaged block stays as it is");
                false
            }
        }
    }

    /// Verifies a range on every side of a mirror. A block that a side does not have right is written
    /// there anew. Returns true if every block is right on a side; false as well if the blocks have
    /// moved meanwhile.
    fn verify_sides(
        &self,
        mirror: &MirrorDevice,
        media: &Media,
        range: &Range<u64>,
        buf: &mut [u8],
    ) -> bool {
        let Some(pointers) = self.pointers(range) else {
            return false;
        };
        let start = pointers[0].addr().offset_bytes();
        let mut doubted = Vec::new();
        mirror.read_each(media, buf, start, &mut |side, found| {
            for (index, pointer) in pointers.iter().enumerate() {
                let at = index * BLOCK_BYTES;
                let is_right = |bytes: &[u8]| crc32(&bytes[at..at + BLOCK_BYTES]) == pointer.crc();
                if !found.is_some_and(is_right) {
                    doubted.push((side, pointer));
                }
            }
        });
        let mut heal = |(side, pointer): (usize, &Pointer)| {
            let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
            let (buf, at) = (&mut buf[..BLOCK_BYTES], pointer.addr().offset_bytes());
            mirror.write_again(media, side, buf, at, &is_right)
                || mirror
                    .read_verified(buf, at, true, &is_right)
                    .is_ok_and(|found| found)
        };
        let mut right = true;
        for item in doubted {
            right &= heal(item);
        }
        right
    }
}
