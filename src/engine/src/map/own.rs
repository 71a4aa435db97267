//! Walking everything that a map's volume owns, damaged or not, for a scrub.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::{BlockAddr, CorruptKind, Error, Generation};
use cowshed_format::node::{entry_blocks, slot};
use cowshed_format::{Pointer, PointerKind};
use std::ops::Range;

/// An item that the walk reached.
#[derive(Debug)]
pub(crate) enum Own {
    /// Neighbouring blocks of data that lie side by side, all below one leaf.
    Data(Range<u64>),
    /// A range whose node cannot be read, or breaks the format.
    Damaged(Range<u64>, Error),
    /// A range that was given up.
    Lost(Range<u64>),
}

/// Returns the first item at or after block `from` that was born after `branch`; `None` if there
/// are no more. Nodes are read through `store`, so a store with an empty cache reads them all.
#[must_use]
pub(crate) fn next_own(
    store: &NodeStore,
    root: &Root,
    from: u64,
    branch: Generation,
) -> Option<Own> {
    if from >= root.capacity() {
        return None;
    }
    let walk = Walk { store, branch };
    walk.next(&root.link, root.height, 0, from)
}

struct Walk<'a> {
    store: &'a NodeStore,
    branch: Generation,
}

impl Walk<'_> {
    fn next(&self, link: &Link, level: u8, base: u64, from: u64) -> Option<Own> {
        if link.birth().is_none_or(|birth| birth <= self.branch) {
            return None;
        }
        let rest = from.max(base)..base + entry_blocks(level + 1);
        if matches!(link, Link::Lost(_)) {
            return Some(Own::Lost(rest));
        }
        let entries = match link.entries(self.store, level) {
            Ok(entries) => entries?,
            Err(error) => return Some(Own::Damaged(rest, error)),
        };
        let first = if from > base { slot(from, level) } else { 0 };
        (first..entries.len()).find_map(|index| {
            let child_base = entry_base(base, level, index);
            let child = link.child(&entries, index);
            if level > 1 {
                return self.next(&child, level - 1, child_base, from.max(child_base));
            }
            let own = child.birth().is_some_and(|birth| birth > self.branch);
            own.then(|| match (child, self.run(&entries[index..])) {
                (Link::Lost(_), _) => Own::Lost(child_base..child_base + 1),
                // A cached node was verified for the level at which it was read first.
                (_, 0) => Own::Damaged(child_base..child_base + 1, ill_formed(link, index)),
                (_, run) => Own::Data(child_base..child_base + run),
            })
        })
    }

    /// Returns how many pointers from the first one on lead to neighbouring blocks of its own.
    fn run(&self, pointers: &[Pointer]) -> u64 {
        let first = pointers[0].addr().0;
        let joins = |(at, pointer): &(u64, &Pointer)| {
            let is_own = pointer.kind() == Some(PointerKind::Data) && pointer.birth() > self.branch;
            is_own && pointer.addr().0 == first + at
        };
        (0..).zip(pointers).take_while(joins).count() as u64
    }
}

/// Returns the error of an entry of the node that `link` leads to.
fn ill_formed(link: &Link, index: usize) -> Error {
    let node = match link {
        Link::Stored(pointer) => pointer.addr(),
        Link::Memory(_) | Link::Hole | Link::Lost(_) => BlockAddr(0),
    };
    let entry = u16::try_from(index).expect("a node has fewer entries");
    CorruptKind::NodeEntry { node, entry }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::Layout;
    use cowshed_format::device::MemoryDevice;
    use cowshed_format::node::NODE_ENTRIES;
    use std::sync::Arc;

    #[test]
    fn a_node_of_nodes_that_a_map_has_for_a_leaf_is_damage_and_no_empty_run() {
        let device = Arc::new(MemoryDevice::new(4 << 20));
        let layout = Layout::new(1024, 16).unwrap();
        let store = NodeStore::new(device, layout, 1 << 20);
        let birth = Generation(3);
        let mut entries = Box::new([Pointer::HOLE; NODE_ENTRIES]);
        entries[5] = Pointer::node(BlockAddr(70), birth, 1);
        let top = Pointer::node(BlockAddr(60), birth, 2);
        store.remember(top, &entries);
        let root = Root {
            height: 1,
            link: Link::Stored(top),
        };
        let Some(Own::Damaged(range, error)) = next_own(&store, &root, 0, Generation(0)) else {
            panic!("the entry is passed over");
        };
        assert_eq!(range, 5..6);
        let expected = CorruptKind::NodeEntry {
            node: BlockAddr(60),
            entry: 5,
        };
        assert!(matches!(error, Error::Corrupt(kind) if kind == expected));
        assert!(next_own(&store, &root, range.end, Generation(0)).is_none());
    }
}
