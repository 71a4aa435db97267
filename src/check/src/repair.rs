//! Repairing what can be derived: bitmaps, counts, leaks, orphans, and lost superblocks; and giving
//! up damaged parts that keep the rest from being repaired: map nodes, and the end of a log.
//!
//! It writes as a checkpoint does: new contents go to blocks that are free both in the old state
//! and in the new one, bitmaps to the slots that do not count, then a barrier, then the older
//! superblock slot. A stop anywhere leaves the old state or the new one.
//!
//! # Invariants
//! - A log that is not empty is left as it is, up to the first damaged record.
//! - Unless the owner of every block is known, no block is freed and no count is changed.

use super::Survey;
use super::bitmaps::{GroupSlots, read_group, whole};
use super::copies;
use super::give_up::give_up;
use super::marks::{used_in, word_bit};
use super::rewrite;
use super::ring::{self, Damage};
use super::slots::SlotPlace;
use super::write::write_at;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Generation, Result, Sequence, VolumeId};
use cowshed_format::device::Device;
use cowshed_format::group::{self, Bitmap};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use cowshed_format::pointer::copy_of;
use cowshed_format::{Layout, Pointer, Superblock};
use std::collections::BTreeMap;
use std::fmt;

/// A repair that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A group's bitmap was written anew.
    Bitmap {
        /// The group.
        group: u64,
        /// Number of blocks that were marked as used and are free now.
        freed: u64,
        /// Number of blocks that are marked as used now and were not.
        marked: u64,
    },
    /// A group's lost bitmap was written again as it was.
    Restored {
        /// The group.
        group: u64,
    },
    /// A volume's counts were corrected.
    Counts(VolumeId),
    /// A volume whose parent is missing has none now, and owns all that it maps.
    Orphan(VolumeId),
    /// A volume whose parent is lost has none now; what its parent had stays in use.
    Detached(VolumeId),
    /// Nothing that a volume owns is freed from now on, since a detached one has blocks of it; or
    /// that no longer holds.
    Pin(VolumeId),
    /// The damaged part of the catalogue was given up.
    Forgotten {
        /// Number of unreadable blocks and nodes.
        blocks: u64,
        /// Number of incomplete entries.
        entries: u64,
    },
    /// The ranges below a volume's damaged map nodes were given up.
    Map(VolumeId),
    /// A damaged copy of a block of metadata was written anew from the other one.
    Copy(BlockAddr),
    /// The log ends before a damaged record now; the records behind it were given up.
    Log(Sequence),
    /// The superblock was written anew, with its counts and copies.
    Superblock,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bitmap {
                group,
                freed,
                marked,
            } => write!(
                f,
                "bitmap of allocation group {group}: {freed} blocks freed, {marked} marked"
            ),
            Self::Restored { group } => {
                write!(
                    f,
                    "bitmap of allocation group {group}, written again unchanged"
                )
            }
            Self::Counts(volume) => write!(f, "counts of volume {volume}"),
            Self::Orphan(volume) => write!(f, "volume {volume}: it has no parent now"),
            Self::Detached(volume) => write!(
                f,
                "volume {volume}: its lost parent is forgotten, and what it has from there stays"
            ),
            Self::Pin(volume) => write!(f, "volume {volume}: what keeps its blocks in use"),
            Self::Forgotten { blocks, entries } => write!(
                f,
                "catalogue: {blocks} damaged blocks and {entries} incomplete entries are forgotten"
            ),
            Self::Map(volume) => write!(
                f,
                "map of volume {volume}: ranges below damaged nodes are marked as lost"
            ),
            Self::Copy(addr) => write!(f, "pool block {addr}, from its copy"),
            Self::Log(sequence) => write!(
                f,
                "log: it ends before the damaged record {sequence} now, and the later changes are \
                 lost"
            ),
            Self::Superblock => f.write_str("superblock, its counts and its copies"),
        }
    }
}

/// The reason for which a repair did nothing or not everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pool was not closed, and its log holds acknowledged changes.
    LogNotEmpty,
    /// The log cannot be read.
    LogUnreadable,
    /// Something is unreadable or used twice, so the owner of some blocks is not known: blocks were
    /// only marked, never freed, and counts were left alone.
    OwnershipUnknown,
    /// No block that is known to be free is left for what must be written anew.
    NoFreeBlock,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LogNotEmpty => {
                "the log is not empty; open the pool once so that it is recovered, then repair it"
            }
            Self::LogUnreadable => "the log cannot be read; a repair would lose what it holds",
            Self::OwnershipUnknown => {
                "some blocks have no certain owner, so nothing was freed and no count was changed"
            }
            Self::NoFreeBlock => {
                "the repair needs a free block, and no block is known to be free; grow the pool, \
                 then repair it again"
            }
        })
    }
}

/// The result of a repair.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) repaired: Vec<Repair>,
    pub(super) refused: Option<Refusal>,
}

/// Repairs what `survey` found wrong.
pub(super) fn repair(device: &dyn Device, survey: &Survey) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    // The newest superblock may come from a process that died right after writing it: nothing that
    // the previous one needs is changed before this one is durable.
    device.flush()?;
    // Where a block has two owners, what looks damaged to one may be the other's.
    if survey.ownership_known {
        let groups_start = survey.superblock().layout.groups_start();
        for copy in &survey.damaged_copies {
            // A copy that cannot be written is found again.
            if copies::restore(device, *copy, groups_start).is_ok() {
                outcome.repaired.push(Repair::Copy(copy.addr));
            }
        }
        device.flush()?;
    }
    match survey.log.damage {
        Damage::Unreadable => {
            outcome.refused = Some(Refusal::LogUnreadable);
            return Ok(outcome);
        }
        Damage::Behind(end) => {
            ring::cut(device, survey.superblock(), end)?;
            outcome.repaired.push(Repair::Log(end.sequence));
        }
        Damage::None => {}
    }
    if survey.log.records > 0 {
        restore(device, survey, &mut outcome.repaired)?;
        outcome.refused = Some(Refusal::LogNotEmpty);
        return Ok(outcome);
    }
    if !survey.ownership_known {
        outcome.refused = Some(Refusal::OwnershipUnknown);
    }
    let mut draft = Draft::new(device, survey);
    draft.load_wrong_groups();
    match rewrite_contents(&mut draft, &mut outcome) {
        Err(Error::NoSpace) => {
            outcome.refused = Some(Refusal::NoFreeBlock);
            // The blocks written so far are free in the state that stays. Repairs that need no
            // block are made all the same.
            draft = Draft::new(device, survey);
            draft.load_wrong_groups();
        }
        done => done?,
    }
    if draft.has_changes() || survey.slots.damaged {
        draft.commit(&mut outcome.repaired)?;
    }
    Ok(outcome)
}

/// Rewrites the maps and entries that cannot stay as they are.
fn rewrite_contents(draft: &mut Draft<'_>, outcome: &mut Outcome) -> Result<()> {
    let survey = draft.survey;
    if survey.ownership_known {
        return rewrite::rewrite_entries(draft, &survey.entries, &mut outcome.repaired);
    }
    if survey.catalogue_known {
        let mended = give_up(draft, &survey.volumes)?;
        rewrite::rewrite_entries(draft, &mended, &mut outcome.repaired)?;
    }
    Ok(())
}

/// Rewrites lost bitmaps and superblocks as the last checkpoint wrote them, so that nothing changes
/// that a log yet to be replayed builds on. The digest tells whether the bitmaps that follow from
/// the trees are the lost ones.
fn restore(device: &dyn Device, survey: &Survey, repaired: &mut Vec<Repair>) -> Result<()> {
    let superblock = survey.superblock();
    let groups = 0..superblock.groups_initialized;
    let digests = groups.map(|group| group::digest(group, &survey.marks.bitmap(group)));
    let wrong = &survey.bitmaps.wrong;
    if !wrong.is_empty() && digests.fold(0, u64::wrapping_add) == superblock.bitmaps_digest {
        for group in wrong {
            let slots = read_group(device, superblock, *group);
            let slot = slots.current.map_or(0, |(slot, _)| 1 - slot);
            let bitmap = survey.marks.bitmap(*group);
            let uuid = &superblock.uuid;
            let bytes = group::encode(uuid, *group, superblock.generation, &bitmap);
            let place = superblock.layout.bitmap_slot(*group, slot);
            write_at(device, &bytes[..], place.offset_bytes())?;
            repaired.push(Repair::Restored { group: *group });
        }
    }
    for place in &survey.slots.lost {
        write_superblock(device, superblock, *place)?;
        repaired.push(Repair::Superblock);
    }
    device.flush()
}

/// A group of the next checkpoint.
struct DraftGroup {
    /// The slot that does not count now.
    slot: u8,
    old: Box<Bitmap>,
    new: Box<Bitmap>,
    /// True if the old bitmap could not be read.
    lost: bool,
}

/// Number of distances at which the two copies of a block may lie: the last one is a group.
const PAIR_DISTANCES: u8 = 16;

/// The next checkpoint, under construction.
pub(super) struct Draft<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) survey: &'a Survey,
    pub(super) superblock: Superblock,
    groups: BTreeMap<u64, DraftGroup>,
    /// Groups before this one have no free block.
    search_from: u64,
    /// Blocks before these have no free one at each distance.
    pairs_from: [u64; PAIR_DISTANCES as usize],
}

impl<'a> Draft<'a> {
    pub(super) fn new(device: &'a dyn Device, survey: &'a Survey) -> Self {
        let mut superblock = survey.superblock().clone();
        superblock.generation = superblock.generation.next();
        Self {
            device,
            survey,
            superblock,
            groups: BTreeMap::new(),
            search_from: 0,
            pairs_from: [0; PAIR_DISTANCES as usize],
        }
    }

    const fn layout(&self) -> Layout {
        self.superblock.layout
    }

    /// Returns the generation of the new checkpoint.
    pub(super) const fn generation(&self) -> Generation {
        self.superblock.generation
    }

    fn load_wrong_groups(&mut self) {
        let survey = self.survey;
        for group in &survey.bitmaps.wrong {
            self.load(*group);
        }
        if survey.bitmaps.stale {
            for group in 0..survey.superblock().groups_initialized {
                self.load(group);
            }
        }
    }

    /// Returns the state of a group now and in the next checkpoint.
    fn load(&mut self, group: u64) -> &mut DraftGroup {
        let (survey, device) = (self.survey, self.device);
        let blocks = self.superblock.layout.group_blocks(group);
        self.groups.entry(group).or_insert_with(|| {
            let now = survey.superblock();
            let reached = survey.marks.bitmap(group);
            if group >= now.groups_initialized {
                // Only its header would be in use.
                let old = whole(GROUP_HEADER_BLOCKS);
                return DraftGroup {
                    slot: 0,
                    old,
                    new: reached,
                    lost: false,
                };
            }
            let (slot, old, lost) = match read_group(device, now, group) {
                GroupSlots {
                    current: Some((slot, found)),
                    ..
                } if !survey.bitmaps.stale => (1 - slot, found.bitmap, false),
                GroupSlots {
                    current: Some((slot, _)),
                    ..
                } => (1 - slot, whole(blocks), true),
                // A block that is not known to be free is in use.
                _ => (0, whole(blocks), true),
            };
            let mut new = reached;
            if !survey.ownership_known {
                let known = whole(blocks);
                for ((new, old), known) in new.iter_mut().zip(old.iter()).zip(known.iter()) {
                    *new |= old & known;
                }
            }
            DraftGroup {
                slot,
                old,
                new,
                lost,
            }
        })
    }

    /// Writes a block of metadata to a place that is free, in as many copies as the pool keeps.
    /// Returns its pointer, which `pointer` makes from the first copy's address.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        pointer: impl FnOnce(BlockAddr) -> Pointer,
    ) -> Result<Pointer> {
        let pointer = match self.allocate_pair() {
            Some((addr, distance)) => pointer(addr).with_copy(distance),
            None => pointer(self.allocate()?),
        };
        for addr in pointer.places(self.layout().groups_start()) {
            write_at(self.device, bytes, addr.offset_bytes())?;
        }
        Ok(pointer)
    }

    /// Takes two free blocks for the two copies of a block, as far apart as can be; `None` if the
    /// pool keeps one copy, or no such two blocks are free.
    fn allocate_pair(&mut self) -> Option<(BlockAddr, u8)> {
        if self.superblock.metadata_copies < 2 {
            return None;
        }
        let layout = self.layout();
        let end = layout.group_start(layout.group_count());
        for distance in (0..PAIR_DISTANCES).rev() {
            let from = &mut self.pairs_from[usize::from(distance)];
            let mut next = (*from).max(layout.groups_start());
            while next < end {
                let addr = BlockAddr(next);
                next += 1;
                let copy = copy_of(addr, u32::from(distance), layout.groups_start());
                if let Some(copy) = copy.filter(|copy| *copy > addr)
                    && self.is_free(addr)
                    && self.is_free(copy)
                {
                    self.pairs_from[usize::from(distance)] = next;
                    self.set_used(addr);
                    self.set_used(copy);
                    return Some((addr, distance));
                }
            }
            self.pairs_from[usize::from(distance)] = end;
        }
        None
    }

    /// Returns true if a block is free in the old state and in the new one.
    fn is_free(&mut self, addr: BlockAddr) -> bool {
        let Some((group, index)) = self.layout().locate(addr) else {
            return false;
        };
        let (word, bit) = word_bit(index);
        let state = self.load(group);
        (state.old[word] | state.new[word]) & bit == 0
    }

    fn set_used(&mut self, addr: BlockAddr) {
        if let Some((group, index)) = self.layout().locate(addr) {
            let (word, bit) = word_bit(index);
            self.load(group).new[word] |= bit;
        }
    }

    /// Takes a block that is free in the old state and in the new one, for use in the new one.
    fn allocate(&mut self) -> Result<BlockAddr> {
        while self.search_from < self.layout().group_count() {
            let group = self.search_from;
            let (start, blocks) = (
                self.layout().group_start(group),
                self.layout().group_blocks(group),
            );
            let state = self.load(group);
            for index in 0..blocks {
                let (word, bit) = word_bit(index);
                if (state.old[word] | state.new[word]) & bit == 0 {
                    state.new[word] |= bit;
                    return Ok(BlockAddr(start + index));
                }
            }
            self.search_from += 1;
        }
        Err(Error::NoSpace)
    }

    /// Notes that nothing refers to a block in the next checkpoint, in any copy. If ownership is
    /// not known, it stays in use.
    pub(super) fn free(&mut self, pointer: Pointer) {
        if !self.survey.ownership_known {
            return;
        }
        for addr in pointer.places(self.layout().groups_start()) {
            if let Some((group, index)) = self.layout().locate(addr) {
                let (word, bit) = word_bit(index);
                self.load(group).new[word] &= !bit;
            }
        }
    }

    /// Returns the number of blocks that are free in the next checkpoint.
    pub(super) fn free_blocks(&mut self) -> u64 {
        self.settle_superblock();
        let used = self.superblock.used_blocks;
        self.layout().body_blocks().saturating_sub(used)
    }

    fn has_changes(&mut self) -> bool {
        self.settle_superblock();
        let (next, now) = (&self.superblock, self.survey.superblock());
        next.used_blocks != now.used_blocks
            || next.bitmaps_digest != now.bitmaps_digest
            || next.volume_count != now.volume_count
            || next.next_volume_id != now.next_volume_id
            || next.catalogue_root != now.catalogue_root
            || self
                .groups
                .iter()
                .any(|(group, state)| *group >= now.groups_initialized || state.is_changed())
    }

    /// Sets the counts of the next superblock.
    fn settle_superblock(&mut self) {
        let known = self.survey.ownership_known;
        if known {
            self.superblock.volume_count = self.survey.volumes.len() as u64;
        }
        self.superblock.next_volume_id = self.survey.next_volume_id;
        let initialized = self.survey.superblock().groups_initialized;
        let used_last = self
            .groups
            .iter()
            .filter(|(_, state)| used_in(&state.new) > 0);
        let end = used_last.map(|(group, _)| group + 1).max().unwrap_or(0);
        self.superblock.groups_initialized = initialized.max(end);
        let (mut used, mut digest) = (0, 0u64);
        let mut count = |group: u64, bitmap: &Bitmap| {
            used += used_in(bitmap);
            digest = digest.wrapping_add(group::digest(group, bitmap));
        };
        for group in 0..self.superblock.groups_initialized {
            match self.groups.get(&group) {
                Some(state) => count(group, &state.new),
                // A group that is not changed.
                None => {
                    let slots = read_group(self.device, self.survey.superblock(), group);
                    if let Some((_, slot)) = slots.current {
                        count(group, &slot.bitmap);
                    }
                }
            }
        }
        (self.superblock.used_blocks, self.superblock.bitmaps_digest) = (used, digest);
    }

    /// Writes the checkpoint.
    pub(super) fn commit(&mut self, repaired: &mut Vec<Repair>) -> Result<()> {
        let survey = self.survey;
        // Otherwise the new superblock's generation would make the slots that an unfinished
        // checkpoint left there count.
        for group in &survey.bitmaps.unfinished {
            self.load(*group);
        }
        let initialized = survey.superblock().groups_initialized;
        for group in initialized..self.superblock.groups_initialized {
            self.load(group);
        }
        self.settle_superblock();
        for (group, state) in &self.groups {
            if *group >= self.superblock.groups_initialized {
                continue;
            }
            let uuid = &self.superblock.uuid;
            let bytes = group::encode(uuid, *group, self.generation(), &state.new);
            let place = self.layout().bitmap_slot(*group, state.slot);
            write_at(self.device, &bytes[..], place.offset_bytes())?;
            if *group >= initialized || state.is_changed() {
                repaired.push(state.repair(*group));
            }
        }
        self.device.flush()?;
        let slot = 1 - survey.slots.slot;
        for copy in [false, true] {
            write_superblock(self.device, &self.superblock, SlotPlace { slot, copy })?;
        }
        self.device.flush()?;
        // The slot that counted until now is the older one from here on.
        for place in &survey.slots.lost {
            write_superblock(self.device, survey.superblock(), *place)?;
        }
        self.device.flush()?;
        repaired.push(Repair::Superblock);
        Ok(())
    }
}

fn write_superblock(device: &dyn Device, superblock: &Superblock, place: SlotPlace) -> Result<()> {
    let places = superblock.layout.superblock_slots(place.slot);
    let bytes = superblock.encode();
    debug_assert_eq!(bytes.len(), BLOCK_BYTES);
    let at = places[usize::from(place.copy)].offset_bytes();
    write_at(device, &bytes, at)
}

impl DraftGroup {
    fn is_changed(&self) -> bool {
        self.lost || self.old != self.new
    }

    fn repair(&self, group: u64) -> Repair {
        if self.lost {
            let (freed, marked) = (0, used_in(&self.new));
            return Repair::Bitmap {
                group,
                freed,
                marked,
            };
        }
        let count = |bits: fn(u64, u64) -> u64| {
            let pairs = self.old.iter().zip(self.new.iter());
            pairs
                .map(|(old, new)| u64::from(bits(*old, *new).count_ones()))
                .sum()
        };
        Repair::Bitmap {
            group,
            freed: count(|old, new| old & !new),
            marked: count(|old, new| new & !old),
        }
    }
}
