//! A node that has changed since it was stored.

use super::entries::SharedEntries;
use cowshed_format::Pointer;
use cowshed_format::base::Generation;
use cowshed_format::base::sync::atomic::{AtomicUsize, Ordering};
use cowshed_format::base::sync::{ArcSwapOption, Guard};
use cowshed_format::node::{Entries, NODE_ENTRIES};
use std::sync::{Arc, OnceLock};

type Children = [ArcSwapOption<Node>; NODE_ENTRIES];

/// A node in memory. The header of the module `map` says which threads may change it.
pub(crate) struct Node {
    birth: Generation,
    pub(super) entries: SharedEntries,
    /// The children that are memory nodes; set from the first such child on.
    children: OnceLock<Box<Children>>,
    /// The node's pointer, once a checkpoint has stored it.
    stored: OnceLock<Pointer>,
    live: Arc<AtomicUsize>,
}

impl Node {
    pub(super) fn new(birth: Generation, live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self {
            birth,
            entries: SharedEntries::default(),
            children: OnceLock::new(),
            stored: OnceLock::new(),
            live: Arc::clone(live),
        }
    }

    pub(super) fn with_entries(
        birth: Generation,
        entries: &Entries,
        live: &Arc<AtomicUsize>,
    ) -> Self {
        let node = Self::new(birth, live);
        node.entries.write(0, entries);
        node
    }

    /// Returns a copy with the birth `birth`; it shares the children.
    pub(super) fn copied(&self, birth: Generation) -> Self {
        let mut copy = Self::new(birth, &self.live);
        copy.entries = self.entries.duplicate();
        let Some(children) = self.children.get() else {
            return copy;
        };
        // The checkpoint may be storing children meanwhile: it first changes the entry and then
        // drops the child, so a child that is gone already has a stored entry.
        let share = |(index, child): (usize, &ArcSwapOption<Self>)| {
            let child = is_unwritten(copy.entries.get(index))
                .then(|| child.load_full())
                .flatten();
            if child.is_none() && is_unwritten(copy.entries.get(index)) {
                copy.entries.write(index, &[self.entries.get(index)]);
            }
            ArcSwapOption::new(child)
        };
        let shared: Box<[_]> = children.iter().enumerate().map(share).collect();
        let shared: Box<Children> = shared
            .try_into()
            .ok()
            .expect("as many as there are entries");
        copy.children = OnceLock::from(shared);
        copy
    }

    /// Returns the generation in which the node was made.
    #[must_use]
    pub(crate) const fn birth(&self) -> Generation {
        self.birth
    }

    /// Returns the node's pointer, once a checkpoint has stored it.
    #[must_use]
    pub(crate) fn stored(&self) -> Option<Pointer> {
        self.stored.get().copied()
    }

    pub(super) fn set_stored(&self, pointer: Pointer) {
        self.stored
            .set(pointer)
            .expect("one checkpoint at a time stores a node, and once");
    }

    pub(super) fn child(&self, index: usize) -> Guard<Option<Arc<Self>>> {
        match self.children.get() {
            Some(children) => children[index].load(),
            None => Guard::from_inner(None),
        }
    }

    pub(super) fn set_child(&self, index: usize, child: Option<Arc<Self>>) {
        let none = || Box::new([const { ArcSwapOption::const_empty() }; NODE_ENTRIES]);
        self.children.get_or_init(none)[index].store(child);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns true if the entry stands for a child that is a memory node.
pub(super) fn is_unwritten(pointer: Pointer) -> bool {
    pointer.kind() == Some(cowshed_format::PointerKind::Unwritten)
}
