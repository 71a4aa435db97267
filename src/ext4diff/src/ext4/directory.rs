//! The blocks of a directory and the entries in them.
//! Source: `Documentation/filesystems/ext4/directory.rst`.
//!
//! The nodes of a hash tree and the checksum at a block's end look like unused entries, so every
//! block is read as a list.

use super::fault::{Fault, Result};
use super::inode::Inode;
use super::reader::FileSystem;
use super::{BLOCK_BYTES, BLOCK_LEN, Block, le16, le32};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

/// An entry without its name.
const HEADER_BYTES: usize = 8;
/// The shortest entry.
const ENTRY_BYTES_MIN: usize = 12;
/// Number of blocks in one read (256 KiB).
const BATCH_BLOCKS: u64 = 64;

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'b> {
    pub inode: u32,
    pub name: &'b [u8],
    /// The inode's kind as the entry states it, if it does.
    pub file_type: u8,
}

/// Names in a directory and the inodes that they lead to.
pub(crate) type Listing = BTreeMap<Vec<u8>, u32>;

/// `file_type` of a directory.
pub(crate) const TYPE_DIRECTORY: u8 = 2;
/// `file_type` if none was stored.
pub(crate) const TYPE_UNKNOWN: u8 = 0;

impl FileSystem<'_> {
    /// Returns the names in a directory and the inodes that they lead to.
    ///
    /// # Errors
    /// The reason why it cannot be read; `Corrupt` if a name is there twice.
    pub fn listing(&self, directory: &Inode) -> Result<BTreeMap<Vec<u8>, u32>> {
        self.listing_of(&self.directory_blocks(directory)?)
    }

    /// Returns the names in some blocks of a directory.
    pub(crate) fn listing_of(&self, blocks: &[u64]) -> Result<Listing> {
        let mut listing = Listing::new();
        self.entries(blocks, &mut |_, entry| {
            match listing.entry(entry.name.to_vec()) {
                MapEntry::Vacant(vacant) => vacant.insert(entry.inode),
                MapEntry::Occupied(_) => return Err(Fault::Corrupt("a name that occurs twice")),
            };
            Ok(())
        })?;
        Ok(listing)
    }

    /// Returns the numbers of a directory's blocks in order; a hole is a fault.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub fn directory_blocks(&self, directory: &Inode) -> Result<Vec<u64>> {
        let extents = self.extents(directory)?;
        let blocks = directory.size_bytes() / BLOCK_BYTES;
        let sound = directory.size_bytes().is_multiple_of(BLOCK_BYTES) && blocks > 0;
        if !sound {
            return Err(Fault::Corrupt("the size of a directory"));
        }
        self.check_len(blocks)?;
        let mut numbers = Vec::new();
        for run in extents.runs {
            if run.logical >= blocks {
                break;
            }
            if run.is_unwritten || run.logical != numbers.len() as u64 {
                return Err(Fault::Corrupt("a hole in a directory"));
            }
            let len = run.blocks.min(blocks - run.logical);
            numbers.extend(run.physical..run.physical + len);
        }
        if numbers.len() as u64 == blocks {
            Ok(numbers)
        } else {
            Err(Fault::Corrupt("a hole in a directory"))
        }
    }

    /// Calls `visit(block number, entry)` for each entry in `blocks`, in their order.
    pub(crate) fn entries(
        &self,
        blocks: &[u64],
        visit: &mut dyn FnMut(u64, Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        let mut rest = blocks;
        while let Some(first) = rest.first().copied() {
            let run = (first..first + BATCH_BLOCKS)
                .zip(rest)
                .take_while(|(expected, block)| expected == *block)
                .count();
            buffer.resize(run * BLOCK_LEN, 0);
            self.read_run(first, &mut buffer)?;
            let (read, _) = buffer.as_chunks::<BLOCK_LEN>();
            for (block, number) in read.iter().zip(first..) {
                parse(block, &mut |entry| visit(number, entry))?;
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

/// Calls `visit` for each entry of a block, without `.` and `..`.
pub(crate) fn parse(block: &Block, visit: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
    let mut rest = block.as_slice();
    while !rest.is_empty() {
        let damaged = Fault::Corrupt("a directory entry");
        if rest.len() < HEADER_BYTES {
            return Err(damaged);
        }
        let len = usize::from(le16(rest, 4));
        let sound = len >= ENTRY_BYTES_MIN && len.is_multiple_of(4) && len <= rest.len();
        if !sound {
            return Err(damaged);
        }
        let (entry, after) = rest.split_at(len);
        rest = after;
        let inode = le32(entry, 0);
        if inode == 0 {
            continue;
        }
        let name = entry.get(HEADER_BYTES..HEADER_BYTES + usize::from(entry[6]));
        let name = name.filter(|name| !name.is_empty()).ok_or(damaged)?;
        if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(Fault::Corrupt("a name in a directory"));
        }
        if !matches!(name, b"." | b"..") {
            let file_type = entry[7];
            visit(Entry {
                inode,
                name,
                file_type,
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(block: &mut Block, at: usize, inode: u32, len: u16, name: &[u8]) {
        block[at..at + 4].copy_from_slice(&inode.to_le_bytes());
        block[at + 4..at + 6].copy_from_slice(&len.to_le_bytes());
        block[at + 6] = u8::try_from(name.len()).unwrap();
        block[at + 8..at + 8 + name.len()].copy_from_slice(name);
    }

    fn sound() -> Box<Block> {
        let mut block = Box::new([0; BLOCK_LEN]);
        put(&mut block, 0, 2, 12, b".");
        put(&mut block, 12, 2, 12, b"..");
        put(&mut block, 24, 0, 16, b"gone");
        put(&mut block, 40, 11, 4044, b"here");
        put(&mut block, 4084, 0, 12, b"");
        block
    }

    fn names(block: &Block) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        parse(block, &mut |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn entries_in_use_are_listed_without_dots() {
        assert_eq!(names(&sound()).unwrap(), [b"here"]);
    }

    #[test]
    fn entries_that_break_a_rule_are_refused() {
        let breaks: [fn(&mut Block); 6] = [
            |block| put(block, 40, 11, 0, b"here"),
            |block| put(block, 40, 11, 8, b""),
            |block| put(block, 40, 11, 4046, b"here"),
            |block| put(block, 40, 11, 4060, b"here"),
            |block| put(block, 40, 11, 12, b"too long"),
            |block| put(block, 40, 11, 4044, b"a/b"),
        ];
        for (index, change) in breaks.iter().enumerate() {
            let mut block = sound();
            change(&mut block);
            assert!(matches!(names(&block), Err(Fault::Corrupt(_))), "{index}");
        }
    }
}
