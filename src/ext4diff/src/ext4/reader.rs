//! An ext4 read directly from its blocks: geometry, blocks, inodes.
//!
//! This is not a driver: it mounts nothing and writes nothing. It knows the file systems that
//! cowshed creates and that the kernel and `resize2fs` make of them; anything else is
//! `Unsupported`, and the caller uses the kernel instead. It does not verify ext4's checksums: the
//! source has verified each block.
//!
//! # Invariants
//! - The bytes may be anything: every number that leads to a block or an inode is checked against
//!   the file system's size, and the number of blocks that are read is bounded by those that
//!   the source stores, so that nothing panics or runs for ever.
//! - The source does not change meanwhile.

use super::fault::{Fault, Result};
use super::inode::{INODE_BYTES, Inode, InodeKind};
use super::{BLOCK_BYTES, BLOCK_LEN, Block, INCOMPAT_RECOVER, Superblock, le16, le32};
use crate::source::BlockSource;
use cowshed_format::base::cancel;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// The root directory's inode.
pub const ROOT_INODE: u32 = 2;
/// The inode of the blocks that are reserved for more group descriptors.
pub(crate) const RESIZE_INODE: u32 = 7;
/// The journal's inode.
pub(crate) const JOURNAL_INODE: u32 = 8;

/// Number of cached blocks (8 MiB).
const CACHE_BLOCKS: usize = 2048;
/// The maximum average number of reads of each block that a source stores; beyond it the reader gives
/// up.
const READS_PER_BLOCK: u64 = 8;
/// The minimum number of reads that any source may take.
const READS_MIN: u64 = 1 << 16;
/// Inodes in one block of a table.
pub(crate) const INODES_PER_BLOCK: u32 = 16;

const COMPAT_KNOWN: u32 = 0x4 | 0x8 | 0x10 | 0x20; // has_journal, ext_attr, resize_inode, dir_index
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
// sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize, metadata_csum
const RO_COMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400;
/// `bg_flags`: the inode bitmap and table were never used.
const GROUP_INODE_UNINIT: u16 = 0x1;
/// `bg_flags`: the block bitmap was never written.
const GROUP_BLOCK_UNINIT: u16 = 0x2;
const REVISION_DYNAMIC: u32 = 1;
const DESCRIPTOR_BYTES_64BIT: u16 = 64;
const DESCRIPTOR_BYTES: u16 = 32;
/// Bits of one bitmap block.
const BITMAP_BITS: u32 = 32_768;

/// The geometry that must be equal for two file systems to be compared number by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    uuid: [u8; 16],
    blocks_per_group: u32,
    inodes_per_group: u32,
}

/// A file system that is being read.
pub struct FileSystem<'v> {
    source: &'v dyn BlockSource,
    layout: Layout,
    blocks: u64,
    groups: u32,
    /// All group descriptors.
    descriptors: Vec<u8>,
    descriptor_len: usize,
    reserved_descriptor_blocks: u64,
    cache: RefCell<HashMap<u64, Rc<Block>>>,
    reads_left: Cell<u64>,
}

/// The places of a group's own blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The block with the bitmap of the blocks.
    pub block_bitmap: u64,
    /// The block with the bitmap of the inodes.
    pub inode_bitmap: u64,
    /// The blocks of the table of inodes.
    pub inode_table: Range<u64>,
    /// Number of inodes of the table that were ever used; the rest of the table is undefined.
    pub used_inodes: u32,
    /// True if only the group's own blocks are allocated in it.
    pub is_block_bitmap_unused: bool,
}

impl<'v> FileSystem<'v> {
    /// Reads the superblock and the group descriptors.
    ///
    /// # Errors
    /// The reason why the file system cannot be read, or not with certainty.
    pub fn open(source: &'v dyn BlockSource) -> Result<Self> {
        let superblock =
            Superblock::read(source)?.ok_or(Fault::Unsupported("a format other than ext4"))?;
        if !super::is_settled(source)? {
            return Err(Fault::Unsupported("a journal that waits to be replayed"));
        }
        check_features(&superblock)?;
        let layout = layout(&superblock)?;
        let blocks = superblock.size_bytes() / BLOCK_BYTES;
        if blocks == 0 || blocks > source.size_bytes() / BLOCK_BYTES || blocks > 1 << 32 {
            return Err(Fault::Corrupt("it is larger than its volume"));
        }
        let groups = blocks.div_ceil(u64::from(layout.blocks_per_group));
        let inodes = groups.checked_mul(u64::from(layout.inodes_per_group));
        if inodes != Some(u64::from(superblock.u32_at(0x0))) {
            return Err(Fault::Corrupt("its number of inodes"));
        }
        let groups = u32::try_from(groups).map_err(|_| Fault::Corrupt("its number of groups"))?;
        let descriptor_len = usize::from(descriptor_bytes(&superblock)?);
        let len = usize::try_from(groups).unwrap_or(usize::MAX) * descriptor_len;
        let stored_blocks = source.stored_bytes()? / BLOCK_BYTES;
        let mut file_system = Self {
            source,
            layout,
            blocks,
            groups,
            descriptors: vec![0; len],
            descriptor_len,
            reserved_descriptor_blocks: u64::from(superblock.u16_at(0xCE)),
            cache: RefCell::default(),
            reads_left: Cell::new(READS_MIN + READS_PER_BLOCK * stored_blocks),
        };
        if len as u64 > (blocks - 1).saturating_mul(BLOCK_BYTES) {
            return Err(Fault::Corrupt("its group descriptors"));
        }
        source.read_at(&mut file_system.descriptors, BLOCK_BYTES)?;
        Ok(file_system)
    }

    pub(crate) const fn source(&self) -> &'v dyn BlockSource {
        self.source
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the number of block groups.
    #[must_use]
    pub const fn groups(&self) -> u32 {
        self.groups
    }

    pub(crate) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns the number of inodes in the table of each group.
    #[must_use]
    pub const fn inodes_per_group(&self) -> u32 {
        self.layout.inodes_per_group
    }

    /// Returns the group that a block lies in.
    pub(crate) fn group_of_block(&self, block: u64) -> u32 {
        u32::try_from(block / u64::from(self.layout.blocks_per_group)).unwrap_or(u32::MAX)
    }

    /// Returns a group's first block.
    pub(crate) fn first_block(&self, group: u32) -> u64 {
        u64::from(group) * u64::from(self.layout.blocks_per_group)
    }

    /// Returns the blocks of a group's copy of the superblock and the descriptors, with those
    /// reserved for more descriptors.
    pub(crate) fn copies(&self, group: u32) -> Range<u64> {
        let first = self.first_block(group);
        if !has_copies(group) {
            return first..first;
        }
        let descriptor_blocks = (self.descriptors.len() as u64).div_ceil(BLOCK_BYTES);
        first..first + 1 + descriptor_blocks + self.reserved_descriptor_blocks
    }

    /// Returns a group's descriptor; `None` past the last.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn group(&self, group: u32) -> Result<Option<Group>> {
        if group >= self.groups {
            return Ok(None);
        }
        let start = usize::try_from(group).unwrap_or(usize::MAX) * self.descriptor_len;
        let bytes = &self.descriptors[start..start + self.descriptor_len];
        let wide = self.descriptor_len >= usize::from(DESCRIPTOR_BYTES_64BIT);
        let number = |low: usize, high: usize| {
            let high = if wide { le32(bytes, high) } else { 0 };
            u64::from(high) << 32 | u64::from(le32(bytes, low))
        };
        let high_unused = if wide { le16(bytes, 0x32) } else { 0 };
        let unused = u32::from(high_unused) << 16 | u32::from(le16(bytes, 0x1C));
        let flags = le16(bytes, 0x12);
        let table = number(0x8, 0x28);
        let table_blocks = u64::from(self.layout.inodes_per_group / INODES_PER_BLOCK);
        let group = Group {
            block_bitmap: number(0x0, 0x20),
            inode_bitmap: number(0x4, 0x24),
            inode_table: table..table.saturating_add(table_blocks),
            used_inodes: if flags & GROUP_INODE_UNINIT == 0 {
                self.layout.inodes_per_group.saturating_sub(unused)
            } else {
                0
            },
            is_block_bitmap_unused: flags & GROUP_BLOCK_UNINIT != 0,
        };
        let inside = |block: u64| (1..self.blocks).contains(&block);
        let sound = inside(group.block_bitmap)
            && inside(group.inode_bitmap)
            && inside(table)
            && group.inode_table.end <= self.blocks;
        sound
            .then_some(Some(group))
            .ok_or(Fault::Corrupt("a group descriptor"))
    }

    /// Returns true if `block` is free.
    pub(crate) fn is_free(&self, block: u64) -> Result<bool> {
        let Some(group) = self.group(self.group_of_block(block))? else {
            return Ok(true);
        };
        if group.is_block_bitmap_unused {
            return Ok(true);
        }
        let bitmap = self.block(group.block_bitmap)?;
        let bit = usize::try_from(block % u64::from(self.layout.blocks_per_group)).unwrap_or(0);
        Ok(bitmap[bit / 8] & 1 << (bit % 8) == 0)
    }

    /// Returns a block's bytes.
    pub(crate) fn block(&self, number: u64) -> Result<Rc<Block>> {
        cancel::check()?;
        if let Some(found) = self.cache.borrow().get(&number) {
            return Ok(Rc::clone(found));
        }
        self.check(&(number..number.saturating_add(1)))?;
        let mut block = Rc::new([0; BLOCK_LEN]);
        if let Some(bytes) = Rc::get_mut(&mut block) {
            self.source.read_at(bytes, number * BLOCK_BYTES)?;
        }
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= CACHE_BLOCKS {
            cache.clear();
        }
        cache.insert(number, Rc::clone(&block));
        Ok(block)
    }

    /// Fills `buf`, whole blocks, from the block `first` on.
    pub(crate) fn read_run(&self, first: u64, buf: &mut [u8]) -> Result<()> {
        cancel::check()?;
        let blocks = buf.len() as u64 / BLOCK_BYTES;
        self.check(&(first..first.saturating_add(blocks)))?;
        Ok(self.source.read_at(buf, first * BLOCK_BYTES)?)
    }

    /// Returns the number of blocks that may still be read.
    #[must_use]
    pub fn reads_left(&self) -> u64 {
        self.reads_left.get()
    }

    /// Returns an error if a directory or file has more blocks than may still be read.
    pub(super) fn check_len(&self, blocks: u64) -> Result<()> {
        if blocks > self.reads_left.get() {
            return Err(Fault::Endless);
        }
        Ok(())
    }

    /// Counts a read, which must lie inside the file system.
    fn check(&self, blocks: &Range<u64>) -> Result<()> {
        if blocks.end > self.blocks {
            return Err(Fault::Corrupt("a block number"));
        }
        let left = self.reads_left.get();
        let left = left.checked_sub(blocks.end.saturating_sub(blocks.start));
        self.reads_left.set(left.ok_or(Fault::Endless)?);
        Ok(())
    }

    /// Returns an inode that exists but may be unused.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        let Some(index) = number.checked_sub(1) else {
            return Ok(Inode::unused(number));
        };
        let group = self.group(index / self.layout.inodes_per_group)?;
        let index = index % self.layout.inodes_per_group;
        let Some(group) = group.filter(|group| index < group.used_inodes) else {
            return Ok(Inode::unused(number));
        };
        let block = self.block(group.inode_table.start + u64::from(index / INODES_PER_BLOCK))?;
        Ok(Inode::in_block(number, &block, index % INODES_PER_BLOCK))
    }

    /// Returns an inode that a directory entry names.
    ///
    /// # Errors
    /// The reason why it cannot be read; `Corrupt` if it is not in use.
    pub fn live_inode(&self, number: u32) -> Result<Inode> {
        let inode = self.inode(number)?;
        inode.check_known()?;
        if inode.is_live() && inode.kind() != InodeKind::Unknown {
            Ok(inode)
        } else {
            Err(Fault::Corrupt("a name of an inode that is not in use"))
        }
    }
}

const _: () = assert!(INODES_PER_BLOCK as usize * INODE_BYTES == BLOCK_LEN);

fn check_features(superblock: &Superblock) -> Result<()> {
    let (compat, incompat) = (superblock.u32_at(0x5C), superblock.u32_at(0x60));
    let needed = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS;
    let known = needed | INCOMPAT_64BIT | INCOMPAT_FLEX_BG | INCOMPAT_RECOVER;
    let all_known = compat & !COMPAT_KNOWN == 0
        && incompat & !known == 0
        && incompat & needed == needed
        && superblock.u32_at(0x64) & !RO_COMPAT_KNOWN == 0
        && superblock.u32_at(0x4C) == REVISION_DYNAMIC
        && usize::from(superblock.u16_at(0x58)) == INODE_BYTES
        && superblock.u32_at(0x14) == 0;
    all_known
        .then_some(())
        .ok_or(Fault::Unsupported("features that are not supported"))
}

fn layout(superblock: &Superblock) -> Result<Layout> {
    let layout = Layout {
        uuid: superblock.bytes_at(0x68),
        blocks_per_group: superblock.u32_at(0x20),
        inodes_per_group: superblock.u32_at(0x28),
    };
    let sound = layout.blocks_per_group == BITMAP_BITS
        && (1..=BITMAP_BITS).contains(&layout.inodes_per_group)
        && layout.inodes_per_group.is_multiple_of(INODES_PER_BLOCK);
    sound
        .then_some(layout)
        .ok_or(Fault::Unsupported("groups of an unusual size"))
}

fn descriptor_bytes(superblock: &Superblock) -> Result<u16> {
    if superblock.u32_at(0x60) & INCOMPAT_64BIT == 0 {
        return Ok(DESCRIPTOR_BYTES);
    }
    let bytes = superblock.u16_at(0xFE);
    (bytes == DESCRIPTOR_BYTES_64BIT)
        .then_some(bytes)
        .ok_or(Fault::Unsupported("unusual group descriptors"))
}

/// Returns true if the group has copies. With `sparse_super`: the groups 0 and 1 and the powers of
/// 3, 5 and 7.
fn has_copies(group: u32) -> bool {
    let is_power = |base: u32| {
        let mut rest = group;
        while rest.is_multiple_of(base) {
            rest /= base;
        }
        rest == 1
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_lie_in_the_groups_that_sparse_super_names() {
        let with_copies: Vec<u32> = (0..130).filter(|group| has_copies(*group)).collect();
        assert_eq!(with_copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }
}
