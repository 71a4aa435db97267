//! The bitmaps of the state that the next checkpoint writes.

use super::bitmap::{bits, bits_mut, fresh};
use super::{BlockList, BlockRun};
use crate::base::{BlockAddr, CorruptKind, Generation, Result};
use crate::device::Device;
use crate::format::group::{self, Bitmap, SLOT_BYTES};
use crate::format::layout::GROUP_HEADER_BLOCKS;
use crate::format::{Layout, Superblock};
use std::collections::BTreeSet;

/// Bitmaps in step with the pool's state, and which of them differ from what is on disk.
pub struct Committed {
    uuid: [u8; 16],
    layout: Layout,
    groups: Vec<CommittedGroup>,
    /// Groups from here on have never been written and are free throughout.
    initialized: u64,
    used_blocks: u64,
    dirty: BTreeSet<u64>,
}

struct CommittedGroup {
    bitmap: Option<Box<Bitmap>>,
    /// The slot that the last checkpoint counts on.
    slot: u8,
}

impl Committed {
    /// Reads the bitmaps that `superblock` counts on.
    ///
    /// # Errors
    /// `GroupBitmap` when a group has no valid slot; `Io`.
    pub fn load(device: &dyn Device, superblock: &Superblock) -> Result<Self> {
        let layout = superblock.layout;
        let mut groups = Vec::new();
        let mut used_blocks = 0;
        let mut dirty = BTreeSet::new();
        for number in 0..layout.group_count() {
            if number >= superblock.groups_initialized {
                groups.push(CommittedGroup {
                    bitmap: None,
                    slot: 1,
                });
                continue;
            }
            let (group, unfinished) = load_group(device, superblock, number)?;
            if unfinished {
                dirty.insert(number);
            }
            let bitmap = group
                .bitmap
                .as_deref()
                .expect("a loaded group has a bitmap");
            used_blocks += bits(bitmap).count_ones() as u64 - GROUP_HEADER_BLOCKS;
            groups.push(group);
        }
        Ok(Self {
            uuid: superblock.uuid,
            layout,
            groups,
            initialized: superblock.groups_initialized,
            used_blocks,
            dirty,
        })
    }

    /// The bitmap of a group; `None` when it is free throughout.
    #[must_use]
    pub fn bitmap(&self, group: u64) -> Option<&Bitmap> {
        self.groups[usize::try_from(group).ok()?].bitmap.as_deref()
    }

    /// Whether a bitmap on disk must be written anew.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Blocks in use, without the groups' own headers.
    #[must_use]
    pub const fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// How many groups have bitmaps on disk once the next `write` is durable.
    #[must_use]
    pub fn initialized(&self) -> u64 {
        self.dirty
            .last()
            .map_or(self.initialized, |last| self.initialized.max(last + 1))
    }

    /// Takes in the groups that `layout` has beyond the present one.
    pub fn grow(&mut self, layout: Layout) {
        self.layout = layout;
        while (self.groups.len() as u64) < layout.group_count() {
            self.groups.push(CommittedGroup {
                bitmap: None,
                slot: 1,
            });
        }
    }

    /// Marks blocks that have become part of the state.
    ///
    /// # Errors
    /// `UsedTwice` when one was part of it already; `PointerRange` outside the groups.
    pub fn mark(&mut self, list: &BlockList) -> Result<()> {
        list.runs()
            .iter()
            .try_for_each(|run| self.set(*run, true, CorruptKind::UsedTwice))
    }

    /// Clears blocks that have left the state.
    ///
    /// # Errors
    /// `FreedTwice` when one was not part of it; `PointerRange` outside the groups.
    pub fn clear(&mut self, list: &BlockList) -> Result<()> {
        list.runs()
            .iter()
            .try_for_each(|run| self.set(*run, false, CorruptKind::FreedTwice))
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

    /// Writes the bitmaps that changed, each into the slot that the last checkpoint does not
    /// count on. Once the superblock of `generation` is durable, `settle` must follow.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub fn write(&mut self, device: &dyn Device, generation: Generation) -> Result<u64> {
        for group in self.initialized..self.initialized() {
            self.dirty.insert(group);
        }
        for number in &self.dirty {
            let group = &mut self.groups[usize::try_from(*number).expect("groups are in memory")];
            let bitmap = group.bitmap.get_or_insert_with(fresh);
            let bytes = group::encode(&self.uuid, *number, generation, bitmap);
            let at = self.layout.bitmap_slot(*number, group.slot ^ 1);
            device.write_at(&*bytes, at.offset_bytes())?;
        }
        Ok(self.dirty.len() as u64)
    }

    /// Notes that the checkpoint that wrote the bitmaps is durable.
    pub fn settle(&mut self) {
        self.initialized = self.initialized();
        for number in std::mem::take(&mut self.dirty) {
            let number = usize::try_from(number).expect("groups are in memory");
            self.groups[number].slot ^= 1;
        }
    }
}

/// A group's newest bitmap that the superblock counts on, and whether the other slot is one that
/// an unfinished checkpoint wrote: that must be overwritten before a superblock of its generation
/// is written.
fn load_group(
    device: &dyn Device,
    superblock: &Superblock,
    group: u64,
) -> Result<(CommittedGroup, bool)> {
    let mut bytes = vec![0; 2 * SLOT_BYTES];
    let at = superblock.layout.bitmap_slot(group, 0);
    device.read_at(&mut bytes, at.offset_bytes())?;
    let (slots, _) = bytes.as_chunks::<SLOT_BYTES>();
    let found = (0u8..)
        .zip(slots)
        .filter_map(|(slot, bytes)| Some((slot, group::decode(bytes, &superblock.uuid, group)?)));
    let (found, unfinished): (Vec<_>, Vec<_>) =
        found.partition(|(_, found)| found.generation <= superblock.generation);
    let newest = found.into_iter().max_by_key(|(_, found)| found.generation);
    let (slot, found) = newest.ok_or(CorruptKind::GroupBitmap(group))?;
    let blocks = usize::try_from(superblock.layout.group_blocks(group)).expect("under 2^15");
    let header = usize::try_from(GROUP_HEADER_BLOCKS).expect("four");
    if bits(&found.bitmap)[blocks..].any() || !bits(&found.bitmap)[..header].all() {
        return Err(CorruptKind::GroupBitmap(group).into());
    }
    Ok((
        CommittedGroup {
            bitmap: Some(found.bitmap),
            slot,
        },
        !unfinished.is_empty(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Sequence;
    use crate::device::MemoryDevice;
    use crate::format::Pointer;

    fn superblock(layout: Layout, groups_initialized: u64, generation: u64) -> Superblock {
        Superblock {
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
        let saved = superblock(layout, 3, 2);
        bitmaps.clear(&list(first, 1)).unwrap();
        bitmaps.write(&device, Generation(3)).unwrap();
        let mut old = Committed::load(&device, &saved).unwrap();
        assert_eq!(old.used_blocks(), 5);
        let new = Committed::load(&device, &superblock(layout, 3, 3)).unwrap();
        assert_eq!(new.used_blocks(), 4);
        // The next checkpoint, though it changes nothing here, voids what was not finished.
        old.write(&device, Generation(3)).unwrap();
        let again = Committed::load(&device, &superblock(layout, 3, 3)).unwrap();
        assert_eq!(again.used_blocks(), 5);
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
