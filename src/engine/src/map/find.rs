//! Finding the next mapped block, or the next hole.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::{CorruptKind, Error, Result};
use cowshed_format::node::{NODE_ENTRIES, entry_blocks, slot};
use std::ops::Range;

/// Maximum number of damaged nodes and blocks to go around: a map in which there are more is not to
/// be used.
pub(crate) const DAMAGED_MAX: usize = 4096;

/// The kind of block to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// A mapped block.
    Data,
    /// A block that is not mapped.
    Hole,
}

/// Returns the first block at or after `from` of the kind `sought`; `None` if there is none below
/// the map's capacity (everything beyond it is a hole).
///
/// # Errors
/// `Corrupt` or `Io` when a node cannot be read.
pub(crate) fn find(
    store: &NodeStore,
    root: &Root,
    from: u64,
    sought: Sought,
) -> Result<Option<u64>> {
    if from >= root.capacity() {
        return Ok((sought == Sought::Hole).then_some(from));
    }
    find_in(store, &root.link, root.height, 0, from, sought, None)
}

/// Returns the first mapped block at or after `from`, and adds to `damaged` the ranges on the way
/// to it that nodes with a wrong checksum cover; in what they cover, nothing is found.
///
/// # Errors
/// `Corrupt` when the top node is damaged, there are more than 4,096 such nodes, one covers what
/// lies behind 2^32 blocks, or one breaks the format; `Io`.
pub(crate) fn find_beside_damage(
    store: &NodeStore,
    root: &Root,
    from: u64,
    damaged: &mut Vec<Range<u64>>,
) -> Result<Option<u64>> {
    if from >= root.capacity() {
        return Ok(None);
    }
    root.link.entries(store, root.height)?;
    let (link, height) = (&root.link, root.height);
    find_in(store, link, height, 0, from, Sought::Data, Some(damaged))
}

fn find_in(
    store: &NodeStore,
    link: &Link,
    level: u8,
    base: u64,
    from: u64,
    sought: Sought,
    mut damaged: Option<&mut Vec<Range<u64>>>,
) -> Result<Option<u64>> {
    if matches!(link, Link::Lost(_)) {
        return Ok((sought == Sought::Data).then_some(from.max(base)));
    }
    let entries = match (link.entries(store, level), &mut damaged) {
        (Err(Error::Corrupt(CorruptKind::NodeChecksum(_))), Some(damaged)) => {
            // A node that verifies at a second read is not damaged.
            match link.entries(store, level) {
                Err(error @ Error::Corrupt(CorruptKind::NodeChecksum(_))) => {
                    let end = base + entry_blocks(level) * NODE_ENTRIES as u64;
                    if damaged.len() >= DAMAGED_MAX || end >= u64::from(u32::MAX) {
                        return Err(error);
                    }
                    damaged.push(base..end);
                    return Ok(None);
                }
                entries => entries?,
            }
        }
        (entries, _) => entries?,
    };
    let Some(entries) = entries else {
        return Ok((sought == Sought::Hole).then_some(from.max(base)));
    };
    let first = if from > base { slot(from, level) } else { 0 };
    for index in first..entries.len() {
        let child_base = entry_base(base, level, index);
        let at = from.max(child_base);
        // A lost range is no hole, as a whole.
        let ends = level == 1 || entries[index].is_lost();
        let found = match (entries[index].is_hole(), sought) {
            (true, Sought::Data) => None,
            (true, Sought::Hole) => Some(at),
            (false, Sought::Data) if ends => Some(at),
            (false, Sought::Hole) if ends => None,
            (false, _) => {
                let child = link.child(&entries, index);
                let damaged = damaged.as_deref_mut();
                find_in(store, &child, level - 1, child_base, at, sought, damaged)?
            }
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    debug_assert!(entry_blocks(level) > 0);
    Ok(None)
}
