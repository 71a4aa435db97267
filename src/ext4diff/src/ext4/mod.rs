//! The parts of ext4 that this crate reads. This file: whether a source of blocks is an ext4,
//! whether it is clean, and where its journal is. Its folder reads the rest, to compare two file
//! systems: `reader` reads blocks, groups and inodes; `inode`, `extents`, `directory` and
//! `attributes` one structure each. Writing is left to the kernel and to e2fsprogs.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/super.rst` and `journal.rst`. The bytes
//! may have been written by a container, so each field is checked before it is used.

mod attributes;
pub(crate) mod directory;
mod extents;
mod fault;
mod inode;
mod reader;

pub(crate) use directory::Listing;
pub use extents::{Extents, Run};
pub use fault::{Fault, Result as ReadResult};
pub use inode::{INODE_BYTES, Inode, InodeKind};
pub use reader::{FileSystem, Group, ROOT_INODE};
pub(crate) use reader::{INODES_PER_BLOCK, JOURNAL_INODE, RESIZE_INODE};

use crate::source::BlockSource;
use cowshed_format::base::Result;
use std::ops::Range;

/// Bytes of one block.
pub(crate) type Block = [u8; BLOCK_LEN];
/// `BLOCK_BYTES` as a length.
pub(crate) const BLOCK_LEN: usize = 4096;

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xEF53;
/// `EXT4_ERROR_FS` in `s_state`.
const STATE_ERRORS: u16 = 0x2;
const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
/// `s_jnl_backup_type` when `s_jnl_blocks` holds the journal inode's `i_block`.
const JOURNAL_BACKUP_BLOCKS: u8 = 1;
const BLOCK_BYTES: u64 = 4096;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Extents longer than this are unwritten ones.
const EXTENT_LEN_MAX: u16 = 32_768;
/// Extents that fit in an inode.
const INODE_EXTENTS_MAX: u16 = 4;
const JOURNAL_MAGIC: u32 = 0xC03B_3998;
const JOURNAL_SUPERBLOCK_V2: u32 = 4;

/// The superblock of an ext4 with 4 KiB blocks.
pub struct Superblock {
    bytes: [u8; SUPERBLOCK_BYTES],
}

/// A run of the journal's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct JournalRun {
    start: u64,
    blocks: u64,
}

impl Superblock {
    /// Reads the superblock; returns `None` if the source holds no ext4 with blocks of 4 KiB.
    ///
    /// # Errors
    /// The reason why the source cannot be read.
    pub fn read(source: &dyn BlockSource) -> Result<Option<Self>> {
        let end = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES as u64;
        if source.size_bytes() < end {
            return Ok(None);
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        source.read_at(&mut bytes, SUPERBLOCK_OFFSET)?;
        Ok(Self::parse(bytes))
    }

    fn parse(bytes: [u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let superblock = Self { bytes };
        let block_bytes = 1024_u64.checked_shl(superblock.u32_at(0x18))?;
        (superblock.u16_at(0x38) == MAGIC && block_bytes == BLOCK_BYTES).then_some(superblock)
    }

    /// Returns the size of the file system.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let mut blocks = u64::from(self.u32_at(0x4));
        if self.u32_at(0x60) & INCOMPAT_64BIT != 0 {
            blocks |= u64::from(self.u32_at(0x150)) << 32;
        }
        blocks.saturating_mul(BLOCK_BYTES)
    }

    /// Returns the number of inodes in use, including those that ext4 reserves for itself.
    #[must_use]
    pub fn used_inodes(&self) -> u64 {
        u64::from(self.u32_at(0x0).saturating_sub(self.u32_at(0x10)))
    }

    /// Returns the number of free blocks that the superblock states.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        let mut blocks = u64::from(self.u32_at(0xC));
        if self.u32_at(0x60) & INCOMPAT_64BIT != 0 {
            blocks |= u64::from(self.u32_at(0x158)) << 32;
        }
        blocks
    }

    /// Returns true if no journal is to be replayed and no deleted file to be released.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let orphan = self.u32_at(0xE8);
        !self.needs_replay() && orphan == 0
    }

    /// Returns true if the journal must be replayed.
    #[must_use]
    pub fn needs_replay(&self) -> bool {
        self.u32_at(0x60) & INCOMPAT_RECOVER != 0
    }

    /// Returns true if the kernel has found errors in the file system, or could not write data that
    /// it had to.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.u16_at(0x3A) & STATE_ERRORS != 0 || self.u32_at(0x194) != 0
    }

    /// Returns the journal's runs of blocks, if the superblock's copy of the journal inode is
    /// valid.
    fn journal_runs(&self) -> Option<Vec<JournalRun>> {
        let has_journal = self.u32_at(0x5C) & COMPAT_HAS_JOURNAL != 0;
        if !has_journal || self.bytes[0xFD] != JOURNAL_BACKUP_BLOCKS {
            return None;
        }
        let root = self.bytes.get(0x10C..0x10C + 60)?;
        let entries = le16(root, 2);
        let depth = le16(root, 6);
        if le16(root, 0) != EXTENT_MAGIC
            || depth != 0
            || !(1..=INODE_EXTENTS_MAX).contains(&entries)
        {
            return None;
        }
        let limit = self.size_bytes() / BLOCK_BYTES;
        let mut next_logical = 0_u64;
        let mut runs = Vec::new();
        for entry in root[12..].chunks_exact(12).take(usize::from(entries)) {
            let len = le16(entry, 4);
            let start = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
            let run = JournalRun {
                start,
                blocks: u64::from(len),
            };
            let in_order = u64::from(le32(entry, 0)) == next_logical;
            let inside = start > 0 && run.end()? <= limit;
            if !in_order || !inside || len == 0 || len > EXTENT_LEN_MAX {
                return None;
            }
            next_logical += run.blocks;
            runs.push(run);
        }
        Some(runs)
    }

    fn u16_at(&self, offset: usize) -> u16 {
        le16(&self.bytes, offset)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        le32(&self.bytes, offset)
    }

    fn bytes_at<const LEN: usize>(&self, offset: usize) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&self.bytes[offset..offset + LEN]);
        bytes
    }
}

impl JournalRun {
    fn end(self) -> Option<u64> {
        self.start.checked_add(self.blocks)
    }
}

fn le16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn le32(bytes: &[u8], offset: usize) -> u32 {
    u32::from(le16(bytes, offset)) | u32::from(le16(bytes, offset + 2)) << 16
}

/// Returns true if the file system needs no journal: either its superblock says that no journal is
/// to be replayed, or the journal is empty.
///
/// # Errors
/// The reason why the source cannot be read.
pub fn is_settled(source: &dyn BlockSource) -> Result<bool> {
    let Some(superblock) = Superblock::read(source)? else {
        return Ok(false);
    };
    Ok(!superblock.needs_replay() || empty_journal(source, &superblock)?.is_some())
}

/// Returns the journal's runs of blocks, if the journal is an ordinary and empty one.
fn empty_journal(
    source: &dyn BlockSource,
    superblock: &Superblock,
) -> Result<Option<Vec<JournalRun>>> {
    let inside = superblock.size_bytes() <= source.size_bytes();
    let Some(runs) = superblock.journal_runs().filter(|_| inside) else {
        return Ok(None);
    };
    let mut head = [0; 32];
    source.read_at(&mut head, runs[0].start * BLOCK_BYTES)?;
    Ok(is_empty_journal(&head).then_some(runs))
}

/// Returns the bytes of an empty journal except its superblock, in order. Returns none if the
/// file system is not clean, or the journal is not an ordinary one.
///
/// After a clean unmount the journal's `s_start` is zero and the rest of it is never read again, so
/// these bytes may become a hole.
///
/// # Errors
/// The reason why the source cannot be read.
pub fn unused_journal(source: &dyn BlockSource) -> Result<Vec<Range<u64>>> {
    let Some(superblock) = Superblock::read(source)?.filter(Superblock::is_clean) else {
        return Ok(Vec::new());
    };
    let Some(runs) = empty_journal(source, &superblock)? else {
        return Ok(Vec::new());
    };
    let mut unused = Vec::with_capacity(runs.len());
    for (index, run) in runs.iter().enumerate() {
        let kept = u64::from(index == 0);
        let start = (run.start + kept) * BLOCK_BYTES;
        let end = (run.start + run.blocks) * BLOCK_BYTES;
        if start < end {
            unused.push(start..end);
        }
    }
    Ok(unused)
}

/// Returns true if `head`, the start of a journal's superblock (big-endian), says that the journal
/// is empty.
fn is_empty_journal(head: &[u8; 32]) -> bool {
    let field =
        |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    field(0) == JOURNAL_MAGIC && field(4) == JOURNAL_SUPERBLOCK_V2 && field(0x1C) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[0x4..0x8].copy_from_slice(&10_000_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x5C] = 4;
        bytes[0xFD] = JOURNAL_BACKUP_BLOCKS;
        bytes[0x10C..0x10E].copy_from_slice(&EXTENT_MAGIC.to_le_bytes());
        bytes[0x10E] = 2;
        put_extent(&mut bytes, 0, 0, 100, 500);
        put_extent(&mut bytes, 1, 100, 200, 9_800);
        bytes
    }

    fn put_extent(bytes: &mut [u8], index: usize, logical: u32, len: u16, start: u32) {
        let at = 0x118 + 12 * index;
        bytes[at..at + 4].copy_from_slice(&logical.to_le_bytes());
        bytes[at + 4..at + 6].copy_from_slice(&len.to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    }

    #[test]
    fn the_journal_is_found_through_the_superblock() {
        let parsed = Superblock::parse(superblock()).unwrap();
        assert_eq!(parsed.size_bytes(), 40_960_000);
        assert!(parsed.is_clean());
        let runs = [
            JournalRun {
                start: 500,
                blocks: 100,
            },
            JournalRun {
                start: 9_800,
                blocks: 200,
            },
        ];
        assert_eq!(parsed.journal_runs().unwrap(), runs);
    }

    #[test]
    fn journals_that_break_a_rule_are_left_alone() {
        let breaks: [fn(&mut [u8]); 8] = [
            |bytes| bytes[0x5C] = 0,
            |bytes| bytes[0xFD] = 0,
            |bytes| bytes[0x10C] = 0,
            |bytes| bytes[0x10E] = 5,
            |bytes| bytes[0x112] = 1,
            |bytes| put_extent(bytes, 1, 101, 200, 9_800),
            |bytes| put_extent(bytes, 1, 100, 201, 9_800),
            |bytes| put_extent(bytes, 0, 0, 0, 500),
        ];
        for (index, change) in breaks.iter().enumerate() {
            let mut bytes = superblock();
            change(&mut bytes);
            let parsed = Superblock::parse(bytes).unwrap();
            assert_eq!(parsed.journal_runs(), None, "rule {index}");
        }
    }

    #[test]
    fn a_pending_journal_or_orphan_is_not_clean() {
        for (offset, value) in [(0x60, 0x4), (0xE8, 12)] {
            let mut bytes = superblock();
            bytes[offset] = value;
            assert!(!Superblock::parse(bytes).unwrap().is_clean());
        }
    }

    #[test]
    fn errors_are_seen_in_the_state_and_in_their_count() {
        assert!(!Superblock::parse(superblock()).unwrap().has_errors());
        for (offset, value) in [(0x3A, 0x2), (0x194, 1)] {
            let mut bytes = superblock();
            bytes[offset] = value;
            assert!(Superblock::parse(bytes).unwrap().has_errors());
        }
    }

    #[test]
    fn only_a_journal_without_a_start_is_empty() {
        let mut head = [0; 32];
        head[..4].copy_from_slice(&JOURNAL_MAGIC.to_be_bytes());
        head[7] = 4;
        assert!(is_empty_journal(&head));
        head[0x1F] = 1;
        assert!(!is_empty_journal(&head));
    }

    #[test]
    fn other_bytes_are_no_ext4() {
        assert!(Superblock::parse([0; SUPERBLOCK_BYTES]).is_none());
        assert!(Superblock::parse([0xFF; SUPERBLOCK_BYTES]).is_none());
    }
}
