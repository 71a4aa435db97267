//! The inodes that differ.

use super::Sides;
use crate::ext4::{
    FileSystem, Group, INODES_PER_BLOCK, Inode, JOURNAL_INODE, RESIZE_INODE, ReadResult,
};
use std::iter;
use std::ops::Range;

/// The numbers of the inodes that differ, sorted.
pub struct ChangedInodes {
    numbers: Vec<u32>,
    /// Number of those that were found only by their content.
    pub found_by_content: usize,
}

impl ChangedInodes {
    /// Finds them.
    ///
    /// # Errors
    /// The reason why the file systems must be compared in another way.
    pub fn between(sides: &Sides<'_>) -> ReadResult<Self> {
        let mut changed = Self {
            numbers: differing(sides)?,
            found_by_content: 0,
        };
        let unexplained = unexplained(sides, &changed.numbers)?;
        if !unexplained.is_empty() {
            let owners = owners(sides, &changed, &unexplained)?;
            changed.found_by_content = owners.len();
            changed.numbers.extend(owners);
            changed.numbers.sort_unstable();
        }
        Ok(changed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub(super) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.numbers.binary_search(&number).is_ok()
    }
}

/// Returns the inodes that are not the same in every bit.
fn differing(sides: &Sides<'_>) -> ReadResult<Vec<u32>> {
    let mut numbers = Vec::new();
    for group in 0..sides.base.groups().max(sides.now.groups()) {
        let first = group * sides.now.inodes_per_group();
        for indices in candidates(sides, group)? {
            for index in indices {
                let number = first + index + 1;
                let (old, new) = (sides.base.inode(number)?, sides.now.inode(number)?);
                if !old.is_identical(&new) {
                    numbers.push(number);
                }
            }
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Returns the index ranges in a group's table at which inodes may differ.
fn candidates(sides: &Sides<'_>, group: u32) -> ReadResult<Vec<Range<u32>>> {
    let (old, new) = (sides.base.group(group)?, sides.now.group(group)?);
    let used = |group: &Option<Group>| group.as_ref().map_or(0, |group| group.used_inodes);
    let (old_used, new_used) = (used(&old), used(&new));
    let (least, most) = (old_used.min(new_used), old_used.max(new_used));
    let table = match (old, new) {
        (Some(old), Some(new)) if old.inode_table == new.inode_table => new.inode_table,
        _ => return Ok(iter::once(0..most).collect()),
    };
    let place = |block: u64| {
        let index = u32::try_from(block - table.start).unwrap_or(u32::MAX);
        index.saturating_mul(INODES_PER_BLOCK).min(most)
    };
    let blocks = sides.blocks.within(table.clone());
    let mut places: Vec<Range<u32>> = blocks
        .map(|blocks| place(blocks.start)..place(blocks.end))
        .collect();
    // Inodes that came into use no longer have the content that their unused bytes had.
    places.push(least..most);
    Ok(places)
}

/// Returns the changed blocks in use that belong to no inode known to have changed.
fn unexplained(sides: &Sides<'_>, differing: &[u32]) -> ReadResult<Vec<u64>> {
    let now = &sides.now;
    let mut accounted: Vec<Range<u64>> = Vec::new();
    accounted.push(now.blocks()..u64::MAX);
    for number in 0..now.groups() {
        accounted.push(now.copies(number));
        if let Some(group) = now.group(number)? {
            accounted.push(one(group.block_bitmap));
            accounted.push(one(group.inode_bitmap));
            accounted.push(group.inode_table);
        }
    }
    accounted.push(one(now.inode(RESIZE_INODE)?.double_indirect_block()));
    accounted.extend(owned(now, &now.inode(JOURNAL_INODE)?)?);
    for number in differing.iter().filter(|number| **number != RESIZE_INODE) {
        // A block of attributes may be shared, and contains the number of inodes that share it.
        accounted.extend(sides.base.inode(*number)?.attribute_block().map(one));
        let inode = now.inode(*number)?;
        // An inode that is no longer in use may contain anything.
        if inode.is_live() {
            accounted.extend(owned(now, &inode)?);
        } else if let Ok(owned) = owned(now, &inode) {
            accounted.extend(owned);
        }
    }
    let mut unexplained = Vec::new();
    for block in sides.blocks.without(accounted).into_iter().flatten() {
        if !now.is_free(block)? {
            unexplained.push(block);
        }
    }
    Ok(unexplained)
}

const fn one(block: u64) -> Range<u64> {
    block..block.saturating_add(1)
}

/// Returns all blocks that an inode refers to.
fn owned(file_system: &FileSystem<'_>, inode: &Inode) -> ReadResult<Vec<Range<u64>>> {
    let extents = file_system.extents(inode)?;
    let mut owned: Vec<Range<u64>> = extents
        .runs
        .iter()
        .map(|run| run.physical..run.physical + run.blocks)
        .collect();
    owned.extend(extents.nodes.into_iter().map(one));
    owned.extend(inode.attribute_block().map(one));
    Ok(owned)
}

/// Returns the inodes not known to have changed that refer to one of `blocks`, which are sorted: a
/// pass over all inodes.
fn owners(sides: &Sides<'_>, known: &ChangedInodes, blocks: &[u64]) -> ReadResult<Vec<u32>> {
    let now = &sides.now;
    let mut owners = Vec::new();
    for group in 0..now.groups() {
        let used = now.group(group)?.map_or(0, |group| group.used_inodes);
        let first = group * now.inodes_per_group() + 1;
        for number in first..first + used {
            let inode = now.inode(number)?;
            if !inode.is_live() || number == RESIZE_INODE || known.contains(number) {
                continue;
            }
            let refers = owned(now, &inode)?.into_iter().any(|range| {
                let next = blocks.partition_point(|block| *block < range.start);
                blocks.get(next).is_some_and(|block| *block < range.end)
            });
            if refers {
                owners.push(number);
            }
        }
    }
    Ok(owners)
}
