//! Reading everything that is in use, online, to find rotten blocks: superblocks, bitmaps,
//! catalogue, map nodes and data. Nothing is read from a cache of the pool, and data is read past what
//! the host has in memory (`scrub_data`).
//!
//! Volumes that are removed meanwhile are left out; the next scrub reads the blocks that a child
//! inherits from them.

use super::checkpoint::Checkpointer;
use super::handle::Pool;
use super::heal::Healing;
use super::info::{LastScrub, RecordKind, ScrubFault, ScrubFaultKind, ScrubReport};
use super::scrub_data::Verifier;
use super::shared::Shared;
use super::volume::VolumeCore;
use crate::map::{NodeStore, Own, Tree, next_own};
use cowshed_format::base::background_yield::{self, Background};
use cowshed_format::base::codec::{Reader, Writer};
use cowshed_format::base::{
    BLOCK_BYTES, BlockAddr, CorruptKind, Error, Generation, Result, VolumeId,
};
use cowshed_format::device::Device;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, SystemTime};

/// Maximum number of faults listed.
const MOST_FAULTS: usize = 10_000;
/// Size of the scrub's own node cache: a path of nodes for the next blocks.
const CACHE_BYTES: u64 = 256 << 10;
/// The volume whose data is the catalogue.
const CATALOGUE: VolumeId = VolumeId(0);

impl Pool {
    /// Reads and verifies every block of every volume, and the pool's own structures. A block that
    /// volumes share is read once, for the volume that owns it. `progress(done, total)` gets the
    /// number of bytes read and the approximate total, and stops the scrub by returning `false`.
    ///
    /// A scrub that was stopped, or ended by a crash, is continued by the next call: the pool
    /// stores its position every 256 MiB and when it is stopped. One scrub runs at a time: another
    /// one waits for it, and one that runs unasked should end meanwhile (`is_scrub_awaited`).
    ///
    /// # Errors
    /// `Closed`. Blocks that cannot be read are part of the report.
    pub fn scrub(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<ScrubReport> {
        let shared = &self.shared;
        shared.check_open()?;
        let Some(_one) = self.begin_scrub(progress) else {
            return Ok(ScrubReport::default());
        };
        shared.check_open()?;
        let start = self.scrub_position();
        let volumes = self.to_scrub(start.volume);
        let blocks = volumes.iter().map(|(core, _)| core.own_blocks());
        let total = blocks.sum::<u64>() * BLOCK_BYTES as u64;
        let report = ScrubReport {
            resumed: start != ScrubPosition::START,
            ..ScrubReport::default()
        };
        let mut scrub = Scrub {
            pool: self,
            shared,
            store: store_of(shared),
            report,
            progress,
            total,
            told: 0,
            kept: 0,
            healed_before: shared.healed_on_sides(),
            bad_before: start.bad,
        };
        let healed = AtomicU64::new(0);
        let goes_on = thread::scope(|scope| -> Result<bool> {
            let mut verifier = Verifier::start(scope, shared, &healed);
            for (core, branch) in &volumes {
                let from = if core.id == start.volume {
                    start.block
                } else {
                    0
                };
                if !scrub.volume(&mut verifier, core, *branch, from)? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        scrub.report.healed += healed.into_inner();
        if !goes_on? || !scrub.structures()? {
            return Ok(scrub.end());
        }
        scrub.report.finished = true;
        let last = LastScrub {
            finished: SystemTime::now(),
            bad: start.bad + scrub.report.bad.len() as u64 + scrub.report.bad_omitted,
        };
        self.keep_last_scrub(last)?;
        Ok(scrub.end())
    }

    /// Waits until no other scrub runs; `None` if the caller wants to stop before.
    fn begin_scrub(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Option<MutexGuard<'_, ()>> {
        let shared = &self.shared;
        if let Some(begun) = self.try_begin_scrub() {
            return Some(begun);
        }
        shared.scrubs_waiting.fetch_add(1, Ordering::AcqRel);
        let begun = loop {
            if shared.check_open().is_err() || !progress(0, 0) {
                break None;
            }
            thread::sleep(WAIT_STEP);
            if let Some(begun) = self.try_begin_scrub() {
                break Some(begun);
            }
        };
        shared.scrubs_waiting.fetch_sub(1, Ordering::AcqRel);
        begun
    }

    fn try_begin_scrub(&self) -> Option<MutexGuard<'_, ()>> {
        match self.shared.scrubbing.try_lock() {
            Ok(begun) => Some(begun),
            Err(TryLockError::Poisoned(begun)) => Some(begun.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns true if another scrub waits for the end of the one that runs.
    #[must_use]
    pub fn is_scrub_awaited(&self) -> bool {
        self.shared.scrubs_waiting.load(Ordering::Acquire) > 0
    }

    /// Returns true while a scrub runs.
    #[must_use]
    pub fn is_scrubbed(&self) -> bool {
        self.try_begin_scrub().is_none()
    }

    /// Returns the volumes to scrub from `first` on: those with a name, and removed ones that
    /// several others share. With each comes the generation after which its blocks were born.
    /// Blocks owned by a removed volume with one child are read for that child.
    fn to_scrub(&self, first: VolumeId) -> Vec<(Arc<VolumeCore>, Generation)> {
        let forest = self.shared.forest.read();
        let shared = forest
            .removed
            .iter()
            .filter(|id| forest.volumes[*id].children.len() > 1);
        let all = forest.names.values().chain(shared);
        let mut volumes: Vec<_> = all
            .filter(|id| **id >= first)
            .map(|id| {
                let mut top = &forest.volumes[id];
                while let Some(parent) = top.parent.and_then(|id| forest.volumes.get(&id))
                    && parent.name.is_none()
                    && parent.children.len() == 1
                {
                    top = parent;
                }
                // What it has from a parent that is not there has no owner who would be read.
                let parent = top.parent.filter(|id| forest.volumes.contains_key(id));
                let branch = match parent {
                    Some(_) => top.core.writer.lock().branch,
                    None => Generation(0),
                };
                (Arc::clone(&forest.volumes[id].core), branch)
            })
            .collect();
        volumes.sort_by_key(|(core, _)| core.id);
        volumes
    }

    /// Returns true if this volume has several children.
    fn is_shared(&self, id: VolumeId) -> bool {
        let forest = self.shared.forest.read();
        forest
            .volumes
            .get(&id)
            .is_some_and(|volume| volume.children.len() > 1)
    }

    fn scrub_position(&self) -> ScrubPosition {
        let kept = self.record(POSITION, POSITION_KEY);
        kept.and_then(|bytes| ScrubPosition::decode(&bytes))
            .unwrap_or(ScrubPosition::START)
    }

    /// Returns when a scrub last read everything, and with what result.
    #[must_use]
    pub fn last_scrub(&self) -> Option<LastScrub> {
        let bytes = self.record(POSITION, LAST_KEY)?;
        let mut input = Reader::new(&bytes);
        Some(LastScrub {
            finished: SystemTime::UNIX_EPOCH + Duration::from_nanos(input.u64()?),
            bad: input.u64()?,
        })
    }

    /// Returns true if a scrub was stopped before it had read everything: the next one goes on.
    #[must_use]
    pub fn has_unfinished_scrub(&self) -> bool {
        self.scrub_position() != ScrubPosition::START
    }

    /// Stores the result of a scrub that has read everything, if there is space for it.
    fn keep_last_scrub(&self, last: LastScrub) -> Result<()> {
        let since = last.finished.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since.map_or(0, |since| since.as_nanos());
        let mut out = Writer::new();
        out.u64(u64::try_from(nanos).unwrap_or(u64::MAX))
            .u64(last.bad);
        let mut transaction = self.transaction();
        transaction.remove_record(POSITION, POSITION_KEY);
        transaction.put_record(POSITION, LAST_KEY, &out.into_bytes());
        match transaction.commit() {
            Err(error) if error.is_no_room() => self.keep_scrub_position(ScrubPosition::START),
            outcome => outcome,
        }
    }

    /// Stores the position of a scrub, if there is space for it.
    fn keep_scrub_position(&self, position: ScrubPosition) -> Result<()> {
        if position == self.scrub_position() {
            return Ok(());
        }
        let mut transaction = self.transaction();
        if position == ScrubPosition::START {
            transaction.remove_record(POSITION, POSITION_KEY);
        } else {
            transaction.put_record(POSITION, POSITION_KEY, &position.encode());
        }
        match transaction.commit() {
            Err(error) if error.is_no_room() => Ok(()),
            outcome => outcome,
        }
    }
}

/// The engine's own kind of record: the position of a scrub, and the result of the last one.
const POSITION: RecordKind = RecordKind(0);
const POSITION_KEY: &[u8] = b"scrub";
const LAST_KEY: &[u8] = b"scrubbed";
/// Number of blocks read between two stores of the position.
const KEEP_EVERY_BLOCKS: u64 = 1 << 16;
/// Least number of blocks of a batch (2 MiB) that is not the last one of a volume.
const BATCH_BLOCKS_MIN: u64 = 512;
/// Number of batches that are verified at the same time.
const BATCHES: usize = 2;
/// Time between two looks whether a scrub that waits for another one is to stop.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// The position at which a scrub continues.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ScrubPosition {
    volume: VolumeId,
    block: u64,
    /// Number of bad blocks found before.
    bad: u64,
}

impl ScrubPosition {
    const START: Self = Self {
        volume: VolumeId(0),
        block: 0,
        bad: 0,
    };

    fn encode(self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.volume.0).u64(self.block).u64(self.bad);
        out.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        Some(Self {
            volume: VolumeId(input.u64()?),
            block: input.u64()?,
            // Older versions did not store it.
            bad: input.u64().unwrap_or(0),
        })
    }
}

struct Scrub<'a> {
    pool: &'a Pool,
    shared: &'a Shared,
    /// Reads nodes without the pool's cache.
    store: NodeStore,
    report: ScrubReport,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    total: u64,
    /// Numbers of blocks read when the progress was last reported, and the position last stored.
    told: u64,
    kept: u64,
    /// Number of blocks that were written anew on sides of a mirror before.
    healed_before: u64,
    /// Number of bad blocks that the calls found that this one continues.
    bad_before: u64,
}

/// A volume that is scrubbed.
struct Subject<'a> {
    core: &'a VolumeCore,
    branch: Generation,
    was_removed: bool,
}

impl Subject<'_> {
    /// Returns true if its blocks are no longer its own: a removed volume that is reclaimed
    /// meanwhile belongs to its last child.
    fn is_left_out(&self, pool: &Pool) -> bool {
        if self.was_removed {
            !pool.is_shared(self.core.id)
        } else {
            self.core.removed.load(Ordering::Acquire)
        }
    }
}

/// Returns an empty store that reads every copy of a node.
fn store_of(shared: &Shared) -> NodeStore {
    let device = Arc::clone(&shared.device) as _;
    NodeStore::new(device, shared.space.layout(), CACHE_BYTES).reading_all()
}

impl Scrub<'_> {
    /// Returns the report.
    fn end(mut self) -> ScrubReport {
        self.report.healed += self.shared.healed_on_sides() - self.healed_before;
        self.report
    }

    /// Reads superblocks, bitmaps and catalogue, in pieces during which no checkpoint changes them;
    /// `false` if the caller wants to stop.
    fn structures(&mut self) -> Result<bool> {
        let shared = self.shared;
        let device: &dyn Device = &*shared.device;
        let (superblocks, bitmaps) = {
            let mut checkpointer = shared.checkpointer.lock();
            (
                checkpointer.damaged_superblocks(device),
                checkpointer.damaged_bitmaps(device),
            )
        };
        for addr in superblocks {
            self.fault_of_pool(ScrubFaultKind::Superblock, addr);
        }
        for addr in bitmaps {
            self.fault_of_pool(ScrubFaultKind::Bitmap, addr);
        }
        let mut next = 0;
        loop {
            let checkpointer = shared.checkpointer.lock();
            let catalogue = &checkpointer.catalogue;
            let Some(own) = self.next_item(&catalogue.tree, next, Generation(0)) else {
                self.heal(&checkpointer);
                return Ok(true);
            };
            let (range, error) = match own {
                Own::Data(range) => {
                    let block = range.start;
                    let verified = catalogue.verify_block(&self.store, block);
                    (block..block + 1, verified.err())
                }
                Own::Damaged(range, error) => (range, Some(error)),
                Own::Lost(range) => (range, Some(CorruptKind::LostRange.into())),
            };
            self.heal(&checkpointer);
            drop(checkpointer);
            next = range.end;
            if let Some(error) = error {
                self.fault(ScrubFaultKind::Catalogue, CATALOGUE, range, &error);
            }
            let done = self.report.blocks * BLOCK_BYTES as u64;
            if !(self.progress)(done, self.total.max(done)) {
                // All volumes are done.
                self.pool.keep_scrub_position(ScrubPosition {
                    volume: VolumeId(u64::MAX),
                    block: 0,
                    bad: self.bad_before,
                })?;
                return Ok(false);
            }
        }
    }

    /// As `next_item`, of a volume; damaged copies of nodes on the way are written anew.
    fn next(&mut self, subject: &Subject<'_>, from: u64) -> Option<Own> {
        let (tree, branch) = (&subject.core.tree, subject.branch);
        let own = self.next_item(tree, from, branch);
        if !self.store.has_damage() {
            return own;
        }
        // Once more from the device, while no checkpoint can free what is read.
        let shared = self.shared;
        let checkpointer = shared.checkpointer.lock();
        self.store = store_of(shared);
        let own = self.next_item(tree, from, branch);
        if !subject.is_left_out(self.pool) {
            self.heal(&checkpointer);
        }
        own
    }

    /// Writes the damaged copies anew that were found; no checkpoint has ended since.
    fn heal(&mut self, checkpointer: &Checkpointer) {
        for damage in self.store.take_damage(usize::MAX) {
            match self.shared.heal_noted(checkpointer, &damage) {
                Healing::Healed => self.report.healed += 1,
                Healing::Nothing => {}
                Healing::Failed => self.fault_of_pool(ScrubFaultKind::Copy, damage.addr),
            }
        }
    }

    /// Returns the next item of the volume's map. A node that was freed and reused during the walk
    /// looks damaged: only damage that a second walk meets in the same way is real.
    fn next_item(&self, tree: &Tree, from: u64, branch: Generation) -> Option<Own> {
        let mut last: Option<CorruptKind> = None;
        loop {
            self.store.set_frees(self.shared.store.frees());
            self.store.set_now(self.shared.generation());
            self.store.set_layout(self.shared.space.layout());
            let own = next_own(&self.store, &tree.root_to_keep(), from, branch);
            match own {
                Some(Own::Damaged(_, Error::Corrupt(kind))) if last != Some(kind) => {
                    last = Some(kind);
                }
                own => return own,
            }
        }
    }

    /// Reads the blocks that a volume owns from block `from` on; `false` if the caller wants to
    /// stop.
    fn volume<'a>(
        &mut self,
        verifier: &mut Verifier<'a>,
        core: &'a VolumeCore,
        branch: Generation,
        from: u64,
    ) -> Result<bool> {
        let subject = Subject {
            core,
            branch,
            was_removed: core.removed.load(Ordering::Acquire),
        };
        let mut next = from;
        let mut batches = VecDeque::new();
        let mut other = None;
        let _background = Background::begin();
        loop {
            while batches.len() < BATCHES && other.is_none() {
                background_yield::offer();
                match self.next(&subject, next) {
                    None => break,
                    Some(Own::Data(first)) => {
                        let ranges = self.neighbours(&subject, first);
                        next = ranges[ranges.len() - 1].end;
                        batches.push_back(verifier.begin(core, ranges));
                    }
                    Some(Own::Damaged(range, error)) => {
                        next = range.end;
                        other = Some((ScrubFaultKind::Map, range, error));
                    }
                    Some(Own::Lost(range)) => {
                        next = range.end;
                        other = Some((ScrubFaultKind::Lost, range, CorruptKind::LostRange.into()));
                    }
                }
            }
            let (bad, position) = if let Some(batch) = batches.pop_front() {
                let (block, blocks) = (batch.end, batch.blocks);
                let bad = batch.wait();
                self.report.blocks += blocks;
                (bad, Some(block))
            } else if let Some((kind, range, error)) = other.take() {
                (vec![(kind, range, error)], None)
            } else {
                return Ok(true);
            };
            if subject.is_left_out(self.pool) {
                return Ok(true);
            }
            for (kind, range, error) in bad {
                self.shared.check_open()?;
                self.fault(kind, core.id, range, &error);
            }
            if let Some(block) = position
                && !self.goes_on(core.id, block)?
            {
                return Ok(false);
            }
        }
    }

    /// Returns ranges of data from `first` on that make a batch; the blocks of each lie side by side.
    fn neighbours(&mut self, subject: &Subject<'_>, first: Range<u64>) -> Vec<Range<u64>> {
        let mut blocks = first.end - first.start;
        let mut end = first.end;
        let mut ranges = vec![first];
        while blocks < BATCH_BLOCKS_MIN
            && let Some(Own::Data(range)) = self.next(subject, end)
        {
            blocks += range.end - range.start;
            end = range.end;
            ranges.push(range);
        }
        ranges
    }

    /// Reports the position, and stores it; `false` if the caller wants to stop.
    fn goes_on(&mut self, volume: VolumeId, block: u64) -> Result<bool> {
        let position = ScrubPosition {
            volume,
            block,
            bad: self.bad_before + self.report.bad.len() as u64 + self.report.bad_omitted,
        };
        let blocks = self.report.blocks;
        if blocks - self.told < BATCH_BLOCKS_MIN {
            return Ok(true);
        }
        self.told = blocks;
        let done = blocks * BLOCK_BYTES as u64;
        let goes_on = (self.progress)(done, self.total.max(done));
        if !goes_on || blocks - self.kept >= KEEP_EVERY_BLOCKS {
            self.kept = blocks;
            self.pool.keep_scrub_position(position)?;
        }
        Ok(goes_on)
    }

    fn fault(&mut self, kind: ScrubFaultKind, volume: VolumeId, at: Range<u64>, error: &Error) {
        let addr = match error {
            Error::Corrupt(
                CorruptKind::DataChecksum { addr, .. } | CorruptKind::NodeChecksum(addr),
            ) => addr.offset_bytes(),
            _ => 0,
        };
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
        self.push(ScrubFault {
            kind,
            volume,
            offset_bytes: bytes(at.start),
            len_bytes: bytes(at.end - at.start),
            pool_offset_bytes: addr,
        });
    }

    fn fault_of_pool(&mut self, kind: ScrubFaultKind, addr: BlockAddr) {
        self.push(ScrubFault {
            kind,
            volume: CATALOGUE,
            offset_bytes: 0,
            len_bytes: 0,
            pool_offset_bytes: addr.offset_bytes(),
        });
    }

    fn push(&mut self, fault: ScrubFault) {
        if self.report.bad.len() < MOST_FAULTS {
            self.report.bad.push(fault);
        } else {
            self.report.bad_omitted += 1;
        }
    }
}
