//! Volumes and snapshots under observation: the engine's calls, each with its history.

use crate::history::{BlockHistory, Clock, LANES, Outcome, Tick};
use crate::stamps::{BLOCK, LANE_BYTES, fill, value_of};
use cowshed_engine::Volume;
use cowshed_format::base::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

/// The blocks in use, in clusters: at the start, across the border of two leaves, across that of
/// two nodes above leaves, and a tail that a resize cuts off.
const CLUSTERS: [Range<u64>; 4] = [0..64, 224..288, 65_504..65_568, 66_000..66_064];
const CLUSTER: usize = 64;
/// Number of lanes of one cluster, which are contiguous.
const CLUSTER_LANES: usize = CLUSTER * LANES;
const SLOTS: usize = CLUSTERS.len() * CLUSTER;
/// The first block of the tail.
const TAIL_START: u64 = 66_000;
/// The size of a volume that was not resized, in blocks.
pub(crate) const FULL_BLOCKS: u64 = 66_064;

/// The values of each lane of each block.
pub(crate) type Content = Vec<[u64; LANES]>;

/// The sizes that a resize may choose.
pub(crate) const TAIL: Range<u64> = TAIL_START - 100..FULL_BLOCKS;

fn block_of(slot: usize) -> u64 {
    CLUSTERS[slot / CLUSTER].start + (slot % CLUSTER) as u64
}

fn place(slot: usize, lane: usize) -> u64 {
    block_of(slot) * LANES as u64 + lane as u64
}

fn bytes(lanes: usize) -> u64 {
    (lanes * LANE_BYTES) as u64
}

/// Lanes of one cluster, which are contiguous in the volume.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    cluster: usize,
    lanes: Range<usize>,
}

impl Span {
    pub(crate) const CLUSTERS: usize = CLUSTERS.len();
    pub(crate) const LANES: usize = CLUSTER_LANES;

    pub(crate) fn new(cluster: usize, lanes: Range<usize>) -> Self {
        assert!(cluster < CLUSTERS.len() && lanes.end <= CLUSTER_LANES);
        Self { cluster, lanes }
    }

    fn offset_bytes(&self) -> u64 {
        CLUSTERS[self.cluster].start * BLOCK + bytes(self.lanes.start)
    }

    fn len_bytes(&self) -> u64 {
        bytes(self.lanes.len())
    }

    fn in_tail(&self) -> bool {
        CLUSTERS[self.cluster].start >= TAIL_START
    }

    /// Returns the blocks that the span touches, each with its lanes.
    fn blocks(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (base, lanes) = (self.cluster * CLUSTER, self.lanes.clone());
        (lanes.start / LANES..lanes.end.div_ceil(LANES)).map(move |block| {
            let from = lanes.start.max(block * LANES) - block * LANES;
            let to = lanes.end.min((block + 1) * LANES) - block * LANES;
            (base + block, from..to)
        })
    }
}

/// The state that all threads share.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) clock: Clock,
    values: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) full: AtomicU64,
}

impl Record {
    /// Returns a number that was not used before.
    pub(crate) fn number(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A writable volume.
pub(crate) struct Subject {
    lineage: u64,
    pub(crate) volume: Volume,
    blocks: Vec<Mutex<BlockHistory>>,
    /// Held during a change of the size, and during a rollback.
    size: RwLock<()>,
    /// Set before the volume is removed.
    pub(crate) leaving: AtomicBool,
}

/// A snapshot, with its contents at the first read.
pub(crate) struct Frozen {
    pub(crate) volume: Volume,
    pub(crate) content: Content,
    pub(crate) leaving: AtomicBool,
}

impl Subject {
    pub(crate) fn new(record: &Record, volume: Volume, content: Option<&Content>) -> Self {
        let block = |slot| content.map_or([0; LANES], |content| content[slot]);
        Self {
            lineage: record.number(),
            volume,
            blocks: (0..SLOTS)
                .map(|slot| Mutex::new(BlockHistory::holding(block(slot))))
                .collect(),
            size: RwLock::new(()),
            leaving: AtomicBool::new(false),
        }
    }

    fn block(&self, slot: usize) -> MutexGuard<'_, BlockHistory> {
        self.blocks[slot].lock().unwrap()
    }

    /// Returns the outcome of a failed call; panics if the call must not have failed.
    fn outcome(&self, record: &Record, result: Result<()>, in_tail: bool) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(Error::NoSuchVolume(_)) if self.leaving.load(Ordering::SeqCst) => Outcome::Failed,
            Err(Error::OutOfRange { .. }) if in_tail => Outcome::Failed,
            Err(Error::NoSpace) => {
                record.full.fetch_add(1, Ordering::Relaxed);
                Outcome::Failed
            }
            Err(error) => panic!("lineage {}: {error} ({error:?})", self.lineage),
        }
    }

    fn begin(&self, record: &Record, since: Tick, span: &Span, value: u64) {
        for (slot, lanes) in span.blocks() {
            self.block(slot).begin(&record.clock, since, lanes, value);
        }
    }

    fn end(&self, record: &Record, since: Tick, span: &Span, outcome: Outcome) {
        let now = record.clock.now();
        for (slot, _) in span.blocks() {
            self.block(slot).end(since, now, outcome);
        }
    }

    /// Writes a unique value to a span, or zeros.
    pub(crate) fn write(&self, record: &Record, span: &Span, zeros: bool) {
        let value = if zeros { 0 } else { record.number() };
        let mut buffer = vec![0; usize::try_from(span.len_bytes()).unwrap()];
        let mut lanes = buffer.chunks_mut(LANE_BYTES);
        for (slot, range) in span.blocks() {
            for lane in range {
                fill(
                    lanes.next().unwrap(),
                    value,
                    self.lineage,
                    place(slot, lane),
                );
            }
        }
        let call = record.clock.begin();
        self.begin(record, call.since, span, value);
        let result = self.volume.write_at(&buffer, span.offset_bytes());
        let outcome = self.outcome(record, result, span.in_tail());
        self.end(record, call.since, span, outcome);
        record.writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn discard(&self, record: &Record, span: &Span) {
        let call = record.clock.begin();
        self.begin(record, call.since, span, 0);
        let result = self.volume.discard(span.offset_bytes(), span.len_bytes());
        let outcome = self.outcome(record, result, span.in_tail());
        self.end(record, call.since, span, outcome);
    }

    /// Reads a span, and asserts that every lane holds a permitted value.
    pub(crate) fn read(&self, record: &Record, span: &Span) {
        let call = record.clock.begin();
        let Some(values) = self.values(&self.volume, record, span) else {
            return;
        };
        let now = record.clock.now();
        let mut values = &values[..];
        for (slot, lanes) in span.blocks() {
            let (these, rest) = values.split_at(lanes.len());
            values = rest;
            let checked = self.block(slot).check(lanes.start, these, call.since, now);
            if let Err(wrong) = checked {
                panic!(
                    "lineage {}, block {}: {wrong}",
                    self.lineage,
                    block_of(slot)
                );
            }
        }
        record.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn values(&self, volume: &Volume, record: &Record, span: &Span) -> Option<Vec<u64>> {
        let mut buffer = vec![0xee; usize::try_from(span.len_bytes()).unwrap()];
        let result = volume.read_at(&mut buffer, span.offset_bytes());
        if self.outcome(record, result, span.in_tail()) != Outcome::Done {
            return None;
        }
        Some(values_in(&buffer, span))
    }

    /// Runs `resize` with the size to choose, while no other thread changes it.
    pub(crate) fn resize(&self, record: &Record, blocks: u64, resize: impl FnOnce() -> Result<()>) {
        let _size = self.size.write().unwrap();
        let old = self.volume.size_bytes() / BLOCK;
        // The blocks beyond the smaller size become zeros, whether the volume shrinks or grows:
        // once when they are discarded, and again, for concurrent writes, when the size changes.
        let from = blocks.min(old).max(TAIL_START) - TAIL_START;
        let from = usize::try_from(from).unwrap().min(CLUSTER) * LANES;
        let span = Span::new(CLUSTERS.len() - 1, from..CLUSTER_LANES);
        let call = record.clock.begin();
        let again = record.clock.now();
        self.begin(record, call.since, &span, 0);
        self.begin(record, again, &span, 0);
        let outcome = self.outcome(record, resize(), false);
        self.end(record, call.since, &span, outcome);
        self.end(record, again, &span, outcome);
    }

    /// Runs `rollback`, which is to make the volume equal to `origin`; returns true if it did.
    pub(crate) fn rollback(
        &self,
        record: &Record,
        origin: &Frozen,
        rollback: impl FnOnce() -> Result<()>,
    ) -> bool {
        let _size = self.size.write().unwrap();
        let call = record.clock.begin();
        for (slot, values) in origin.content.iter().enumerate() {
            self.block(slot)
                .begin_content(&record.clock, call.since, values);
        }
        let outcome = match rollback() {
            Err(Error::NotAncestor { .. } | Error::NoSpace | Error::NoSuchVolume(_)) => {
                Outcome::Refused
            }
            result => self.outcome(record, result, false),
        };
        let now = record.clock.now();
        for slot in 0..SLOTS {
            self.block(slot).end(call.since, now, outcome);
        }
        outcome == Outcome::Done
    }

    /// Checks that `snapshot`, made by a call that began at `since` and has returned, holds the
    /// state of one point in time in between. Returns its contents.
    pub(crate) fn exact(&self, record: &Record, snapshot: &Volume, since: Tick) -> Content {
        let now = record.clock.now();
        let content = content_of(snapshot);
        // It contains writes that had begun by then, so its point in time is after their start, and
        // everything that had taken effect before must be in it.
        let mut moment = since;
        for (slot, values) in content.iter().enumerate() {
            let block = self.block(slot);
            for (lane, value) in values.iter().enumerate() {
                let began = block.began(lane, *value, since, now);
                moment = moment.max(began.unwrap_or(0));
            }
        }
        for (slot, values) in content.iter().enumerate() {
            if let Err(wrong) = self.block(slot).check(0, values, moment, now) {
                panic!(
                    "a snapshot of lineage {} at {since}..{now}, at {moment} or later, block {}: {wrong}",
                    self.lineage,
                    block_of(slot)
                );
            }
        }
        content
    }

    /// Reads everything while no thread writes: it must hold what was written last.
    pub(crate) fn read_all(&self, record: &Record) -> Content {
        for cluster in 0..CLUSTERS.len() {
            let lanes = (visible_blocks(&self.volume, cluster) * LANES).min(CLUSTER_LANES);
            if lanes > 0 {
                self.read(record, &Span::new(cluster, 0..lanes));
            }
        }
        content_of(&self.volume)
    }
}

impl Frozen {
    /// Reads a span, and asserts that it is unchanged.
    pub(crate) fn read(&self, span: &Span) {
        let lanes = span
            .lanes
            .end
            .min(visible_blocks(&self.volume, span.cluster) * LANES);
        if span.lanes.start >= lanes {
            return;
        }
        let span = Span::new(span.cluster, span.lanes.start..lanes);
        let mut buffer = vec![0xee; usize::try_from(span.len_bytes()).unwrap()];
        match self.volume.read_at(&mut buffer, span.offset_bytes()) {
            Err(Error::NoSuchVolume(_)) if self.leaving.load(Ordering::SeqCst) => return,
            result => result.unwrap(),
        }
        let mut values = values_in(&buffer, &span).into_iter();
        for (slot, lanes) in span.blocks() {
            for lane in lanes {
                let found = values.next().unwrap();
                let held = self.content[slot][lane];
                assert_eq!(
                    found,
                    held,
                    "a snapshot's lane {} changed",
                    place(slot, lane)
                );
            }
        }
    }
}

/// Returns the number of blocks of a cluster within the volume's size.
fn visible_blocks(volume: &Volume, cluster: usize) -> usize {
    let start = CLUSTERS[cluster].start;
    let blocks = (volume.size_bytes() / BLOCK).saturating_sub(start);
    usize::try_from(blocks).unwrap().min(CLUSTER)
}

/// Returns the contents of a volume that no thread writes; zeros beyond its end.
pub(crate) fn content_of(volume: &Volume) -> Content {
    let mut content = vec![[0; LANES]; SLOTS];
    for cluster in 0..CLUSTERS.len() {
        let lanes = visible_blocks(volume, cluster) * LANES;
        if lanes == 0 {
            continue;
        }
        let span = Span::new(cluster, 0..lanes);
        let mut buffer = vec![0xee; usize::try_from(span.len_bytes()).unwrap()];
        volume.read_at(&mut buffer, span.offset_bytes()).unwrap();
        let values = values_in(&buffer, &span);
        for ((slot, _), values) in span.blocks().zip(values.as_chunks::<LANES>().0) {
            content[slot] = *values;
        }
    }
    content
}

fn values_in(buffer: &[u8], span: &Span) -> Vec<u64> {
    let mut lanes = buffer.chunks(LANE_BYTES);
    let places = span
        .blocks()
        .flat_map(|(slot, range)| range.map(move |lane| place(slot, lane)));
    let values = places.map(|place| value_of(lanes.next().unwrap(), place));
    values
        .map(|value| value.unwrap_or_else(|wrong| panic!("{wrong}")))
        .collect()
}
