//! Walking what a map has of blocks and nodes that were born after a generation, one leaf at a time.
//!
//! A node is older than what it leads to only if no checkpoint came between, so for the generation
//! of a checkpoint everything below an older node is older, too.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::{Error, Generation};
use cowshed_format::node::{entry_blocks, slot};
use cowshed_format::{Pointer, PointerKind};

/// A node that could not be read.
#[derive(Debug)]
pub(crate) struct Unread {
    /// The reason.
    pub error: Error,
    /// The first block behind the node's range.
    pub end: u64,
}

/// Calls `visit` with the pointers of the nodes on the way to the first leaf at or after block
/// `from` that was born after `since`, of nodes without such a leaf before it, and of that leaf's
/// blocks that were. Returns the first block behind the leaf; `None` if there is none.
///
/// # Errors
/// `Unread` where a node cannot be read.
pub(crate) fn young_leaf(
    store: &NodeStore,
    root: &Root,
    from: u64,
    since: Generation,
    visit: &mut dyn FnMut(Pointer),
) -> Result<Option<u64>, Unread> {
    if from >= root.capacity() {
        return Ok(None);
    }
    let mut walk = Walk {
        store,
        since,
        visit,
    };
    walk.node(&root.link, root.height, 0, from)
}

struct Walk<'a> {
    store: &'a NodeStore,
    since: Generation,
    visit: &'a mut dyn FnMut(Pointer),
}

impl Walk<'_> {
    fn node(
        &mut self,
        link: &Link,
        level: u8,
        base: u64,
        from: u64,
    ) -> Result<Option<u64>, Unread> {
        let is_young = link.birth().is_some_and(|birth| birth > self.since);
        let stored = match link {
            _ if !is_young => return Ok(None),
            Link::Hole | Link::Lost(_) => return Ok(None),
            Link::Stored(pointer) => Some(*pointer),
            Link::Memory(node) => node.stored(),
        };
        if let Some(pointer) = stored {
            (self.visit)(pointer);
        }
        let end = base.saturating_add(entry_blocks(level + 1));
        let entries = link.entries(self.store, level);
        let Some(entries) = entries.map_err(|error| Unread { error, end })? else {
            return Ok(None);
        };
        if level == 1 {
            for entry in entries.iter() {
                if entry.kind() == Some(PointerKind::Data) && entry.birth() > self.since {
                    (self.visit)(*entry);
                }
            }
            return Ok(Some(end));
        }
        let first = if from > base { slot(from, level) } else { 0 };
        for index in first..entries.len() {
            let child_base = entry_base(base, level, index);
            let child = link.child(&entries, index);
            let next = self.node(&child, level - 1, child_base, from.max(child_base))?;
            if next.is_some() {
                return Ok(next);
            }
        }
        Ok(None)
    }
}
