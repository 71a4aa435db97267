//! A volume's map: its root, which readers load without a lock.

use super::node::Node;
use super::store::NodeStore;
use cowshed_format::base::sync::{ArcSwap, Guard};
use cowshed_format::base::{Generation, Result};
use cowshed_format::node::{Entries, NODE_BITS, NODE_ENTRIES, height_for};
use cowshed_format::{Pointer, PointerKind};
use std::sync::Arc;

/// The target of a root or an entry.
#[derive(Clone)]
pub(crate) enum Link {
    /// Nothing.
    Hole,
    /// A data block (below a leaf) or a stored node.
    Stored(Pointer),
    /// A node in memory.
    Memory(Arc<Node>),
    /// A range that was given up in this generation, with the damaged node that led to it.
    Lost(Generation),
}

/// The top of a map.
#[derive(Clone)]
pub(crate) struct Root {
    /// The number of levels of nodes.
    pub height: u8,
    /// The top node.
    pub link: Link,
}

/// A map that one writer changes and any number of readers read.
pub(crate) struct Tree {
    root: ArcSwap<Root>,
}

impl Link {
    /// Returns the link of a stored pointer.
    #[must_use]
    pub(crate) fn of(pointer: Pointer) -> Self {
        if pointer.is_hole() {
            Self::Hole
        } else if pointer.is_lost() {
            Self::Lost(pointer.birth())
        } else {
            Self::Stored(pointer)
        }
    }

    /// Returns true if both lead to the same block or node.
    #[must_use]
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hole, Self::Hole) => true,
            (Self::Lost(a), Self::Lost(b)) => a == b,
            (Self::Stored(a), Self::Stored(b)) => a == b,
            (Self::Memory(a), Self::Memory(b)) => Arc::ptr_eq(a, b),
            (Self::Memory(node), Self::Stored(pointer))
            | (Self::Stored(pointer), Self::Memory(node)) => node.stored() == Some(*pointer),
            (Self::Hole | Self::Lost(_), _) | (_, Self::Hole | Self::Lost(_)) => false,
        }
    }

    /// Returns the birth of the block or node; `None` for a hole.
    #[must_use]
    pub(crate) fn birth(&self) -> Option<Generation> {
        match self {
            Self::Hole => None,
            Self::Stored(pointer) => Some(pointer.birth()),
            Self::Memory(node) => Some(node.birth()),
            Self::Lost(birth) => Some(*birth),
        }
    }

    /// Returns the entries of the node at `level` that this leads to; `None` for a hole.
    pub(super) fn entries(&self, store: &NodeStore, level: u8) -> Result<Option<Box<Entries>>> {
        Ok(match self {
            Self::Hole => None,
            Self::Stored(pointer) => Some(store.load(*pointer, level)?),
            Self::Memory(node) => Some(node.entries.copy()),
            Self::Lost(birth) => Some(Box::new([Pointer::lost(*birth); NODE_ENTRIES])),
        })
    }

    /// Returns the child under entry `index` of this node, whose entries were read as `entries`.
    pub(super) fn child(&self, entries: &Entries, index: usize) -> Self {
        let entry = entries[index];
        match (entry.kind(), self) {
            (Some(PointerKind::Unwritten), Self::Memory(node)) => child_in_memory(node, index),
            _ => Self::of(entry),
        }
    }
}

/// Returns the child of a memory node, which the checkpoint may be storing just now.
pub(super) fn child_in_memory(node: &Node, index: usize) -> Link {
    match &*node.child(index) {
        Some(child) => Link::Memory(Arc::clone(child)),
        None => Link::of(node.entries.get(index)),
    }
}

impl Root {
    /// Returns the empty map for a volume of `blocks` blocks.
    #[must_use]
    pub(crate) fn empty(blocks: u64) -> Self {
        Self {
            height: height_for(blocks),
            link: Link::Hole,
        }
    }

    /// Returns the number of blocks that the map reaches.
    #[must_use]
    pub(crate) const fn capacity(&self) -> u64 {
        1 << (NODE_BITS * self.height as u32)
    }

    /// Returns the link at `level` on the leftmost path, with which a lower map compares its root.
    pub(super) fn leftmost(&self, store: &NodeStore, level: u8) -> Result<Link> {
        let mut link = self.link.clone();
        for above in (level + 1..=self.height).rev() {
            let Some(entries) = link.entries(store, above)? else {
                return Ok(Link::Hole);
            };
            link = link.child(&entries, 0);
        }
        Ok(link)
    }
}

impl Tree {
    /// Returns a tree with this root.
    #[must_use]
    pub(crate) fn new(root: Root) -> Self {
        Self {
            root: ArcSwap::from_pointee(root),
        }
    }

    /// Returns the present root, for a short time.
    pub(crate) fn root(&self) -> Guard<Arc<Root>> {
        self.root.load()
    }

    /// Returns the present root, to keep.
    #[must_use]
    pub(crate) fn root_to_keep(&self) -> Arc<Root> {
        self.root.load_full()
    }

    /// Changes the root; the caller holds the volume's write lock.
    pub(crate) fn set_root(&self, root: Root) {
        self.root.store(Arc::new(root));
    }

    /// Puts `new` in place of `old`, unless a writer has changed the root meanwhile.
    pub(crate) fn replace_root(&self, old: &Arc<Root>, new: Root) {
        self.root.compare_and_swap(old, Arc::new(new));
    }
}

/// Returns the start of the block range of entry `index` of a node at `level` that starts at
/// `base`.
pub(super) const fn entry_base(base: u64, level: u8, index: usize) -> u64 {
    base + ((index as u64) << (NODE_BITS * (level as u32 - 1)))
}

const _: () = assert!(NODE_ENTRIES == 1 << NODE_BITS);
