//! Finding the next mapped block, or the next hole.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::Result;
use cowshed_format::node::{entry_blocks, slot};

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
    find_in(store, &root.link, root.height, 0, from, sought)
}

fn find_in(
    store: &NodeStore,
    link: &Link,
    level: u8,
    base: u64,
    from: u64,
    sought: Sought,
) -> Result<Option<u64>> {
    if matches!(link, Link::Lost(_)) {
        return Ok((sought == Sought::Data).then_some(from.max(base)));
    }
    let Some(entries) = link.entries(store, level)? else {
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
                find_in(store, &child, level - 1, child_base, at, sought)?
            }
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    debug_assert!(entry_blocks(level) > 0);
    Ok(None)
}
