//! Everything that a map leads to, nodes included.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::{BlockAddr, Result};
use cowshed_format::node::entry_blocks;
use cowshed_format::{Pointer, PointerKind};
use std::collections::HashSet;

/// Calls `visit` with the pointer of each node and data block of a stored map, as far as it ends
/// behind block `settled`. A node in `seen` is left out with all below it; the others are added.
///
/// # Errors
/// `Corrupt` or `Io` when a node cannot be read.
pub(crate) fn reach(
    store: &NodeStore,
    root: &Root,
    settled: u64,
    seen: &mut HashSet<BlockAddr>,
    visit: &mut dyn FnMut(Pointer),
) -> Result<()> {
    let Link::Stored(pointer) = root.link else {
        return Ok(());
    };
    let mut reaching = Reaching {
        store,
        settled,
        seen,
        visit,
    };
    reaching.node(pointer, root.height, 0)
}

struct Reaching<'a> {
    store: &'a NodeStore,
    settled: u64,
    seen: &'a mut HashSet<BlockAddr>,
    visit: &'a mut dyn FnMut(Pointer),
}

impl Reaching<'_> {
    fn node(&mut self, pointer: Pointer, level: u8, base: u64) -> Result<()> {
        if base + entry_blocks(level + 1) <= self.settled {
            return Ok(());
        }
        // What another map has below a node that is settled in part is not all here.
        let is_whole = base >= self.settled;
        if is_whole && !self.seen.insert(pointer.addr()) {
            return Ok(());
        }
        (self.visit)(pointer);
        let entries = self.store.load(pointer, level)?;
        for (index, entry) in entries.iter().enumerate() {
            let first = entry_base(base, level, index);
            match entry.kind() {
                Some(PointerKind::Node) => self.node(*entry, level - 1, first)?,
                Some(PointerKind::Data) if first >= self.settled => (self.visit)(*entry),
                _ => {}
            }
        }
        Ok(())
    }
}
