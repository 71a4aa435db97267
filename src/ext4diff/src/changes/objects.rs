//! Comparing two objects, without their names and the entries of a directory.

use super::Sides;
use crate::ext4::{BLOCK_LEN, FileSystem, Inode, InodeKind, ReadResult, Run};
use std::ops::Range;

/// Number of blocks in one read (256 KiB).
const BATCH_BLOCKS: u64 = 64;

/// The stored blocks of a part of a file: the first block, or none for a hole.
type Stored = Option<u64>;

/// Returns true if two objects of the same kind are the same.
pub(super) fn is_same(sides: &Sides<'_>, old: &Inode, new: &Inode) -> ReadResult<bool> {
    if old.metadata()? != new.metadata()?
        || sides.base.attributes(old)? != sides.now.attributes(new)?
    {
        return Ok(false);
    }
    match new.kind() {
        InodeKind::Symlink => Ok(sides.base.link_target(old)? == sides.now.link_target(new)?),
        InodeKind::File => has_same_content(sides, old, new),
        _ => Ok(true),
    }
}

/// Compares two files of the same size, reading only blocks that differ or lie in different places.
fn has_same_content(sides: &Sides<'_>, old: &Inode, new: &Inode) -> ReadResult<bool> {
    let old_runs = sides.base.extents(old)?.runs;
    let new_runs = sides.now.extents(new)?.runs;
    let size_bytes = new.size_bytes();
    let end = size_bytes.div_ceil(BLOCK_LEN as u64);
    let mut at = 0;
    while at < end {
        let (old, old_end) = stored_at(&old_runs, at);
        let (new, new_end) = stored_at(&new_runs, at);
        let until = old_end.min(new_end).min(end);
        let blocks = until - at;
        let same = match (old, new) {
            (None, None) => true,
            (Some(old), Some(new)) if old == new => {
                let mut same = true;
                for changed in sides.blocks.within(old..old + blocks) {
                    let start = at + (changed.start - old);
                    let len = changed.end - changed.start;
                    let part = Part {
                        at: start..start + len,
                        size_bytes,
                    };
                    let stored = Some(changed.start);
                    same = same && part.is_same(sides, stored, stored)?;
                }
                same
            }
            _ => Part {
                at: at..until,
                size_bytes,
            }
            .is_same(sides, old, new)?,
        };
        if !same {
            return Ok(false);
        }
        at = until;
    }
    Ok(true)
}

/// Returns the storage of the block `at`, and the end of the range that is stored that way.
fn stored_at(runs: &[Run], at: u64) -> (Stored, u64) {
    let next = runs.partition_point(|run| run.logical + run.blocks <= at);
    match runs.get(next) {
        None => (None, u64::MAX),
        Some(run) if at < run.logical => (None, run.logical),
        Some(run) => {
            let physical = run.physical + (at - run.logical);
            let stored = (!run.is_unwritten).then_some(physical);
            (stored, run.logical + run.blocks)
        }
    }
}

/// A part of a file of this size.
struct Part {
    at: Range<u64>,
    size_bytes: u64,
}

impl Part {
    /// Reads both sides, each stored from the given block on.
    fn is_same(&self, sides: &Sides<'_>, old: Stored, new: Stored) -> ReadResult<bool> {
        let (mut old_bytes, mut new_bytes) = (Vec::new(), Vec::new());
        let mut done = 0;
        let blocks = self.at.end - self.at.start;
        while done < blocks {
            let count = (blocks - done).min(BATCH_BLOCKS);
            read(
                &sides.base,
                old.map(|first| first + done),
                count,
                &mut old_bytes,
            )?;
            read(
                &sides.now,
                new.map(|first| first + done),
                count,
                &mut new_bytes,
            )?;
            // The bytes behind the file's end do not belong to it.
            let start = (self.at.start + done) * BLOCK_LEN as u64;
            let inside = usize::try_from(self.size_bytes.saturating_sub(start));
            let inside = inside.unwrap_or(usize::MAX).min(old_bytes.len());
            if old_bytes[..inside] != new_bytes[..inside] {
                return Ok(false);
            }
            done += count;
        }
        Ok(true)
    }
}

fn read(from: &FileSystem<'_>, first: Stored, blocks: u64, into: &mut Vec<u8>) -> ReadResult<()> {
    let len = usize::try_from(blocks).unwrap_or(0) * BLOCK_LEN;
    into.clear();
    into.resize(len, 0);
    match first {
        Some(first) => from.read_run(first, into),
        None => Ok(()),
    }
}
