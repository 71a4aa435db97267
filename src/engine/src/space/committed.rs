//! The bitmaps of the state that the next checkpoint writes.

use super::bitmap::{bits, bits_mut, fresh};
use super::{BlockList, BlockRun, RUNS_AT_ONCE};
use cowshed_format::base::background_yield;
use cowshed_format::base::{BlockAddr, CorruptKind, Error, Generation, Result};
use cowshed_format::device::Device;
use cowshed_format::group::{self, Bitmap, SLOT_BYTES};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use cowshed_format::{Layout, Superblock};
use std::collections::BTreeSet;

/// Bitmaps that match the pool's state, and which of them differ from those on disk.
pub(crate) struct Committed {
    uuid: [u8; 16],
    pub(super) layout: Layout,
    pub(super) groups: Vec<CommittedGroup>,
    /// Groups from this one on have never been written and are free throughout.
    initialized: u64,
    pub(super) used_blocks: u64,
    pub(super) dirty: BTreeSet<u64>,
    /// The sum of the groups' digests, as of the last `write`.
    pub(super) digest: u64,
}

pub(super) struct CommittedGroup {
    pub(super) bitmap: Option<Box<Bitmap>>,
    /// The slot that holds the bitmap of the last checkpoint.
    slot: u8,
    /// The bitmap's part of the digest; 0 for a group that has no bitmap on disk.
    pub(super) digest: u64,
    /// True if the bitmap was lost or is not to be trusted: every block counts as in use, and stays
    /// so.
    pub(super) lost: bool,
}

impl CommittedGroup {
    const fn unwritten() -> Self {
        Self {
            bitmap: None,
            slot: 1,
            digest: 0,
            lost: false,
        }
    }
}

impl Committed {
    /// Reads the bitmaps that `superblock` relies on. If one is lost, every block of its group
    /// counts as in use: otherwise blocks could be allocated that are in use.
    ///
    /// # Errors
    /// `Io` when a missing slot could not be read: it may be readable another time.
    pub(crate) fn load(device: &dyn Device, superblock: &Superblock) -> Result<Self> {
        let layout = superblock.layout;
        let mut committed = Self {
            uuid: superblock.uuid,
            layout,
            groups: Vec::new(),
            initialized: superblock.groups_initialized,
            used_blocks: 0,
            dirty: BTreeSet::new(),
            digest: 0,
        };
        let mut failure = None;
        for number in 0..layout.group_count() {
            if number >= superblock.groups_initialized {
                committed.groups.push(CommittedGroup::unwritten());
                continue;
            }
            let (group, unfinished) = load_group(device, superblock, number, &mut failure)?;
            if unfinished {
                committed.dirty.insert(number);
            }
            committed.digest = committed.digest.wrapping_add(group.digest);
            committed.groups.push(group);
        }
        let lost = committed.lost().next().is_some();
        if !lost && committed.digest != superblock.bitmaps_digest {
            if let Some(error) = failure {
                return Err(error);
            }
            tracing::debug!("a bitmap is out of date");
            for group in &mut committed.groups {
                group.lost = group.bitmap.is_some();
            }
        }
        committed.close_lost();
        committed.count_used();
        Ok(committed)
    }

    /// Returns the digest of the bitmaps as last written, for the superblock.
    #[must_use]
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// Returns the bitmap of a group; `None` if it is free throughout.
    #[must_use]
    pub(crate) fn bitmap(&self, group: u64) -> Option<&Bitmap> {
        self.groups[usize::try_from(group).ok()?].bitmap.as_deref()
    }

    /// Returns true if a block is in use, and the bitmap that says so can be trusted.
    #[must_use]
    pub(crate) fn is_used(&self, addr: BlockAddr) -> bool {
        let Some((number, index)) = self.layout.locate(addr) else {
            return false;
        };
        let group = &self.groups[usize::try_from(number).expect("groups are in memory")];
        let index = usize::try_from(index).expect("under 2^15");
        let is_set = |bitmap: &Bitmap| bits(bitmap)[index];
        !group.lost && group.bitmap.as_deref().is_some_and(is_set)
    }

    /// Returns true if a bitmap on disk must be written anew.
    #[must_use]
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Returns the number of blocks in use, without the groups' own headers.
    #[must_use]
    pub(crate) const fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// Returns the number of groups that have bitmaps on disk once the next `write` is durable.
    #[must_use]
    pub(crate) fn initialized(&self) -> u64 {
        self.dirty
            .last()
            .map_or(self.initialized, |last| self.initialized.max(last + 1))
    }

    /// Adds the groups that `layout` has beyond the present one.
    pub(crate) fn grow(&mut self, layout: Layout) {
        self.layout = layout;
        while (self.groups.len() as u64) < layout.group_count() {
            self.groups.push(CommittedGroup::unwritten());
        }
    }

    /// Marks blocks that have become part of the state.
    ///
    /// # Errors
    /// `UsedTwice` when one was part of it already; `PointerRange` outside the groups.
    pub(crate) fn mark(&mut self, list: &BlockList) -> Result<()> {
        self.set_all(list, true, CorruptKind::UsedTwice)
    }

    /// Clears blocks that have left the state.
    ///
    /// # Errors
    /// `FreedTwice` when one was not part of it; `PointerRange` outside the groups.
    pub(crate) fn clear(&mut self, list: &BlockList) -> Result<()> {
        self.set_all(list, false, CorruptKind::FreedTwice)
    }

    fn set_all(
        &mut self,
        list: &BlockList,
        used: bool,
        wrong: fn(BlockAddr) -> CorruptKind,
    ) -> Result<()> {
        for runs in list.runs().chunks(RUNS_AT_ONCE) {
            runs.iter()
                .try_for_each(|run| self.set(*run, used, wrong))?;
            background_yield::offer();
        }
        Ok(())
    }

    fn set(
        &mut self,
        run: BlockRun,
        used: bool,
        wrong: fn(BlockAddr) -> CorruptKind,
    ) -> Result<()> {
        for addr in (run.start.0..).take(run.count as usize).map(BlockAddr) {
            let (group, index) = self
                .layout
                .locate(addr)
                .ok_or(CorruptKind::PointerRange(addr))?;
            let number = usize::try_from(group).expect("groups are in memory");
            if self.groups[number].lost {
                continue;
            }
            let bitmap = self.groups[number].bitmap.get_or_insert_with(fresh);
            let index = usize::try_from(index).expect("under 2^15");
            if bits_mut(bitmap).replace(index, used) == used {
                return Err(wrong(addr).into());
            }
            self.used_blocks = if used {
                self.used_blocks + 1
            } else {
                self.used_blocks - 1
            };
            self.dirty.insert(group);
        }
        Ok(())
    }

    /// Writes the changed bitmaps, each into the slot that the last checkpoint does not use. Once
    /// the superblock of `generation` is durable, `settle` must follow.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub(crate) fn write(&mut self, device: &dyn Device, generation: Generation) -> Result<u64> {
        for group in self.initialized..self.initialized() {
            self.dirty.insert(group);
        }
        for number in &self.dirty {
            let group = &mut self.groups[usize::try_from(*number).expect("groups are in memory")];
            let bitmap = group.bitmap.get_or_insert_with(fresh);
            let digest = group::digest(*number, bitmap);
            self.digest = self.digest.wrapping_sub(group.digest).wrapping_add(digest);
            group.digest = digest;
            let bytes = group::encode(&self.uuid, *number, generation, bitmap);
            let at = self.layout.bitmap_slot(*number, group.slot ^ 1);
            device.write_at(&*bytes, at.offset_bytes())?;
        }
        Ok(self.dirty.len() as u64)
    }

    /// Reads the bitmaps that the last checkpoint uses, and makes the next one write the damaged
    /// ones anew. Returns their places.
    pub(crate) fn find_damaged(&mut self, device: &dyn Device) -> Vec<BlockAddr> {
        let mut damaged = Vec::new();
        for (number, group) in (0..self.initialized).zip(&self.groups) {
            let addr = self.layout.bitmap_slot(number, group.slot);
            let mut bytes = Box::new([0; SLOT_BYTES]);
            let is_right = |bytes: &[u8]| {
                let found = bytes.try_into().ok();
                let found = found.and_then(|bytes| group::decode(bytes, &self.uuid, number));
                let digest = found.map(|found| group::digest(number, &found.bitmap));
                digest == Some(group.digest)
            };
            let at = addr.offset_bytes();
            let read = device.read_accepted(&mut bytes[..], at, true, &is_right);
            if !read.is_ok_and(|is_right| is_right) {
                damaged.push(addr);
                self.dirty.insert(number);
            }
        }
        damaged
    }

    /// Notes that the checkpoint that wrote the bitmaps is durable.
    pub(crate) fn settle(&mut self) {
        self.initialized = self.initialized();
        for number in std::mem::take(&mut self.dirty) {
            let number = usize::try_from(number).expect("groups are in memory");
            self.groups[number].slot ^= 1;
        }
    }
}

/// Reads a group's newest bitmap that the superblock relies on, and checks whether an unfinished
/// checkpoint wrote the other slot, whole or in part: that slot must be overwritten before a
/// superblock of its generation is written. (Even a header alone would count together with its
/// bitmap block if a later checkpoint, itself unfinished, wrote only that block.)
fn load_group(
    device: &dyn Device,
    superblock: &Superblock,
    group: u64,
    failure: &mut Option<Error>,
) -> Result<(CommittedGroup, bool)> {
    let (mut newest, mut unfinished, mut failed) = (None, false, false);
    for slot in [0u8, 1] {
        let mut bytes = Box::new([0; SLOT_BYTES]);
        let at = superblock.layout.bitmap_slot(group, slot);
        let is_slot = |bytes: &[u8]| {
            let bytes = bytes.try_into();
            bytes.is_ok_and(|bytes| {
                group::decode(bytes, &superblock.uuid, group).is_some() || group::is_blank(bytes)
            })
        };
        let at = at.offset_bytes();
        if let Err(error) = device.read_accepted(&mut bytes[..], at, false, &is_slot) {
            (*failure, failed) = (Some(error), true);
            continue;
        }
        let Some(found) = group::decode(&bytes, &superblock.uuid, group) else {
            unfinished |= !group::is_blank(&bytes);
            continue;
        };
        if found.generation > superblock.generation {
            unfinished = true;
        } else if is_newer(&found, newest.as_ref()) {
            newest = Some((slot, found));
        }
    }
    let blocks = usize::try_from(superblock.layout.group_blocks(group)).expect("under 2^16");
    let header = usize::try_from(GROUP_HEADER_BLOCKS).expect("four");
    let sound = |bitmap: &Bitmap| !bits(bitmap)[blocks..].any() && bits(bitmap)[..header].all();
    // The contents of a slot that could not be read are unknown.
    unfinished |= failed;
    let loaded = match newest {
        Some((slot, found)) if sound(&found.bitmap) => CommittedGroup {
            digest: group::digest(group, &found.bitmap),
            bitmap: Some(found.bitmap),
            slot,
            lost: false,
        },
        _ => {
            if let Some(error) = failure.take_if(|_| failed) {
                return Err(error);
            }
            tracing::debug!("both bitmaps of allocation group {group} are unreadable");
            CommittedGroup {
                lost: true,
                ..CommittedGroup::unwritten()
            }
        }
    };
    Ok((loaded, unfinished))
}

fn is_newer(found: &group::BitmapSlot, than: Option<&(u8, group::BitmapSlot)>) -> bool {
    than.is_none_or(|(_, than)| than.generation <= found.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::Pointer;
    use cowshed_format::base::Sequence;
    use cowshed_format::device::MemoryDevice;

    fn superblock(layout: Layout, groups_initialized: u64, generation: u64) -> Superblock {
        Superblock {
            version: cowshed_format::superblock::VERSION,
            clean: true,
            features: [0; 3],
            uuid: [1; 16],
            layout,
            groups_initialized,
            generation: Generation(generation),
            log_sequence: Sequence(1),
            log_offset: 0,
            log_salt: 0,
            catalogue_root: Pointer::HOLE,
            catalogue_height: 1,
            catalogue_blocks: 0,
            used_blocks: 0,
            volume_count: 0,
            next_volume_id: 1,
            created_ns: 0,
            bitmaps_digest: 0,
            metadata_copies: 1,
        }
    }

    fn list(start: u64, count: u32) -> BlockList {
        let mut list = BlockList::default();
        list.push(BlockAddr(start), count);
        list
    }

    #[test]
    fn an_unfinished_checkpoint_leaves_the_old_bitmaps_in_force() {
        let device = MemoryDevice::new(600 << 20);
        let layout = Layout::new(device.len_bytes() / 4096, 16).unwrap();
        let mut bitmaps = Committed::load(&device, &superblock(layout, 0, 1)).unwrap();
        let first = layout.group_start(2) + 10;
        bitmaps.mark(&list(first, 5)).unwrap();
        bitmaps.write(&device, Generation(2)).unwrap();
        assert_eq!(bitmaps.initialized(), 3);
        bitmaps.settle();
        let of = |bitmaps: &Committed, generation| Superblock {
            bitmaps_digest: bitmaps.digest(),
            ..superblock(layout, 3, generation)
        };
        let saved = of(&bitmaps, 2);
        bitmaps.clear(&list(first, 1)).unwrap();
        bitmaps.write(&device, Generation(3)).unwrap();
        let mut old = Committed::load(&device, &saved).unwrap();
        assert_eq!(old.used_blocks(), 5);
        let new = Committed::load(&device, &of(&bitmaps, 3)).unwrap();
        assert_eq!(new.used_blocks(), 4);
        // The next checkpoint, though it changes nothing here, voids the unfinished one.
        old.write(&device, Generation(3)).unwrap();
        let again = Committed::load(&device, &of(&old, 3)).unwrap();
        assert_eq!(again.used_blocks(), 5);
    }

    #[test]
    fn half_a_bitmap_of_an_unfinished_checkpoint_is_written_over() {
        let device = MemoryDevice::new(200 << 20);
        let layout = Layout::new(device.len_bytes() / 4096, 16).unwrap();
        let mut bitmaps = Committed::load(&device, &superblock(layout, 0, 1)).unwrap();
        let first = layout.group_start(0) + 10;
        bitmaps.mark(&list(first, 5)).unwrap();
        bitmaps.write(&device, Generation(2)).unwrap();
        bitmaps.settle();
        let now = Superblock {
            bitmaps_digest: bitmaps.digest(),
            ..superblock(layout, 1, 2)
        };
        assert!(!Committed::load(&device, &now).unwrap().is_dirty());
        bitmaps.clear(&list(first, 1)).unwrap();
        bitmaps.write(&device, Generation(3)).unwrap();
        // Of the slot, the header came through.
        let body = layout.bitmap_slot(0, 1).offset_bytes() + 4096;
        device.write_at(&[0; 4096], body).unwrap();
        let mut next = Committed::load(&device, &now).unwrap();
        assert!(next.is_dirty());
        next.write(&device, Generation(4)).unwrap();
        next.settle();
        let again = Superblock {
            bitmaps_digest: next.digest(),
            ..superblock(layout, 1, 4)
        };
        let again = Committed::load(&device, &again).unwrap();
        assert_eq!((again.used_blocks(), again.is_dirty()), (5, false));
    }

    #[test]
    fn where_a_bitmap_is_lost_or_old_nothing_counts_as_free() {
        let device = MemoryDevice::new(300 << 20);
        let layout = Layout::new(device.len_bytes() / 4096, 16).unwrap();
        let mut bitmaps = Committed::load(&device, &superblock(layout, 0, 1)).unwrap();
        let first = layout.group_start(1) + 10;
        bitmaps.mark(&list(first, 5)).unwrap();
        bitmaps.write(&device, Generation(2)).unwrap();
        bitmaps.settle();
        bitmaps.mark(&list(first + 5, 1)).unwrap();
        bitmaps.clear(&list(first, 1)).unwrap();
        bitmaps.write(&device, Generation(3)).unwrap();
        bitmaps.settle();
        let now = Superblock {
            bitmaps_digest: bitmaps.digest(),
            ..superblock(layout, 2, 3)
        };
        assert_eq!(Committed::load(&device, &now).unwrap().lost().count(), 0);
        // The newer slot of group 1: the older one has the same number of blocks in use.
        let (newer, older) = (layout.bitmap_slot(1, 1), layout.bitmap_slot(1, 0));
        device.write_at(&[0; 4096], newer.offset_bytes()).unwrap();
        let old = Committed::load(&device, &now).unwrap();
        assert_eq!(old.lost().collect::<Vec<_>>(), [0, 1]);
        device.write_at(&[0; 4096], older.offset_bytes()).unwrap();
        let mut lost = Committed::load(&device, &now).unwrap();
        assert_eq!(lost.lost().collect::<Vec<_>>(), [1]);
        // It stays so whatever is marked or cleared, and the next checkpoint writes that to disk.
        lost.clear(&list(first + 1, 1)).unwrap();
        lost.mark(&list(first + 1, 1)).unwrap();
        lost.write(&device, Generation(4)).unwrap();
        let next = Superblock {
            bitmaps_digest: lost.digest(),
            ..superblock(layout, 2, 4)
        };
        let again = Committed::load(&device, &next).unwrap();
        assert_eq!(again.lost().count(), 0);
        assert_eq!(
            again.used_blocks(),
            layout.group_blocks(1) - GROUP_HEADER_BLOCKS
        );
    }

    #[test]
    fn using_or_freeing_a_block_twice_is_damage() {
        let device = MemoryDevice::new(200 << 20);
        let layout = Layout::new(device.len_bytes() / 4096, 16).unwrap();
        let mut bitmaps = Committed::load(&device, &superblock(layout, 0, 1)).unwrap();
        let first = layout.group_start(0) + 10;
        bitmaps.mark(&list(first, 1)).unwrap();
        assert!(bitmaps.mark(&list(first, 1)).is_err());
        bitmaps.clear(&list(first, 1)).unwrap();
        assert!(bitmaps.clear(&list(first, 1)).is_err());
        assert!(bitmaps.mark(&list(3, 1)).is_err());
    }
}
