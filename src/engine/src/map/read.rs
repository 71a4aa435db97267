//! Looking pointers up, without a lock.

use super::node::Node;
use super::store::NodeStore;
use super::tree::{Link, Root, Tree};
use cowshed_format::base::sync::spin_loop;
use cowshed_format::base::{CorruptKind, Error, Result};
use cowshed_format::node::{NODE_ENTRIES, slot};
use cowshed_format::{Pointer, PointerKind};

impl Tree {
    /// Returns in `out` the pointers of the blocks from `first` on; holes beyond the map's reach.
    ///
    /// # Errors
    /// `Corrupt` when a node on the way is damaged, `Io`.
    pub(crate) fn read(&self, store: &NodeStore, first: u64, out: &mut [Pointer]) -> Result<()> {
        let mut next = first;
        let mut rest = out;
        while !rest.is_empty() {
            let in_leaf = NODE_ENTRIES - slot(next, 1);
            let (part, more) = rest.split_at_mut(in_leaf.min(rest.len()));
            self.read_in_leaf(store, next, part)?;
            next += part.len() as u64;
            rest = more;
        }
        Ok(())
    }

    /// Returns the result of `walk` on the present root. Repeats the walk if a node was freed and
    /// reused during it.
    ///
    /// # Errors
    /// As `walk`.
    pub(crate) fn walk<T>(&self, mut walk: impl FnMut(&Root) -> Result<T>) -> Result<T> {
        let mut last: Option<CorruptKind> = None;
        loop {
            match walk(&self.root_to_keep()) {
                Err(Error::Corrupt(kind)) if last != Some(kind) => last = Some(kind),
                outcome => return outcome,
            }
        }
    }

    fn read_in_leaf(&self, store: &NodeStore, first: u64, out: &mut [Pointer]) -> Result<()> {
        let mut last: Option<CorruptKind> = None;
        loop {
            match descend(store, &self.root(), first, out) {
                // A node that was freed and reused during the walk looks damaged: repeat. Real
                // damage is met twice in the same place.
                Err(Error::Corrupt(kind)) if last != Some(kind) => last = Some(kind),
                outcome => return outcome,
            }
        }
    }
}

fn descend(store: &NodeStore, root: &Root, first: u64, out: &mut [Pointer]) -> Result<()> {
    if first >= root.capacity() {
        out.fill(Pointer::HOLE);
        return Ok(());
    }
    match &root.link {
        Link::Hole => {
            out.fill(Pointer::HOLE);
            Ok(())
        }
        Link::Lost(birth) => {
            out.fill(Pointer::lost(*birth));
            Ok(())
        }
        Link::Stored(pointer) => descend_stored(store, *pointer, root.height, first, out),
        Link::Memory(node) => descend_memory(store, node, root.height, first, out),
    }
}

fn descend_memory(
    store: &NodeStore,
    node: &Node,
    level: u8,
    first: u64,
    out: &mut [Pointer],
) -> Result<()> {
    let index = slot(first, level);
    if level == 1 {
        node.entries.read(index, out);
        return Ok(());
    }
    loop {
        let entry = node.entries.get(index);
        match entry.kind() {
            Some(PointerKind::Unwritten) => {
                if let Some(child) = &*node.child(index) {
                    return descend_memory(store, child, level - 1, first, out);
                }
                // The checkpoint has just stored the child: its pointer is in the entry now.
                spin_loop();
            }
            Some(PointerKind::Node) => {
                return descend_stored(store, entry, level - 1, first, out);
            }
            // A hole, or lost: the same for everything below.
            _ => {
                out.fill(entry);
                return Ok(());
            }
        }
    }
}

fn descend_stored(
    store: &NodeStore,
    top: Pointer,
    height: u8,
    first: u64,
    out: &mut [Pointer],
) -> Result<()> {
    let mut pointer = top;
    for level in (2..=height).rev() {
        let mut entry = [Pointer::HOLE];
        store.read(pointer, level, slot(first, level), &mut entry)?;
        pointer = entry[0];
        if pointer.is_hole() || pointer.is_lost() {
            out.fill(pointer);
            return Ok(());
        }
    }
    store.read(pointer, 1, slot(first, 1), out)
}
