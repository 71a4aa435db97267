//! Changing a map: nodes on the path are copied where others can reach them, and changed in place
//! where nothing else can.

use super::ledger::{Ledger, Ownership};
use super::node::Node;
use super::store::NodeStore;
use super::tree::{Link, Root, Tree, child_in_memory, entry_base};
use cowshed_format::base::{Error, Generation, Result};
use cowshed_format::node::{Entries, NODE_ENTRIES, entry_blocks, slot};
use cowshed_format::{Pointer, PointerKind};
use std::sync::Arc;

/// The right to change a volume's map; the caller holds the volume's write lock.
pub(crate) struct Edit<'a> {
    /// The store that nodes are read from.
    pub store: &'a NodeStore,
    /// The map.
    pub tree: &'a Tree,
    /// The birth of new nodes.
    pub generation: Generation,
    /// Nodes born later may be changed in place: the higher of the volume's branch and the last
    /// checkpoint's cut.
    pub limit: Generation,
    /// Tells which blocks the volume owns.
    pub ownership: Ownership,
    /// The account that changes are added to.
    pub ledger: &'a mut Ledger,
    /// True if a damaged node is given up, with everything below it, instead of being an error.
    pub gives_up: bool,
}

impl Edit<'_> {
    /// Makes the leaf of block `index` changeable in place. The map's contents stay.
    ///
    /// # Errors
    /// `Corrupt` or `Io` when a node on the way cannot be read.
    pub(crate) fn leaf(&mut self, index: u64) -> Result<Arc<Node>> {
        let mut node = self.top(index)?;
        let height = self.tree.root().height;
        for level in (2..=height).rev() {
            node = self.child(&node, level, index)?;
        }
        Ok(node)
    }

    /// Maps the blocks from `first` on to `pointers` (data or holes); they lie in `leaf`, which the
    /// method `leaf` has just returned for them.
    ///
    /// # Panics
    /// When the blocks do not lie in one leaf.
    pub(crate) fn set(&mut self, leaf: &Node, first: u64, pointers: &[Pointer]) {
        let index = slot(first, 1);
        assert!(
            index + pointers.len() <= NODE_ENTRIES,
            "the blocks lie in one leaf"
        );
        let mut old = [Pointer::HOLE; NODE_ENTRIES];
        let old = &mut old[..pointers.len()];
        leaf.entries.read(index, old);
        leaf.entries.write(index, pointers);
        for (block, (old, new)) in (first..).zip(old.iter().zip(pointers)) {
            self.drop_old(block, *old);
            if !new.is_hole() {
                let groups_start = self.store.groups_start();
                self.ledger.born.push_copies(*new, groups_start);
                self.ledger.own += 1;
                self.ledger.mapped += 1;
            }
        }
    }

    /// Accounts for the data pointer that block `block` had.
    pub(super) fn drop_old(&mut self, block: u64, old: Pointer) {
        if old.kind() == Some(PointerKind::Data) {
            let owner = self.ownership.of(old.birth(), block + 1);
            let groups_start = self.store.groups_start();
            self.ledger.drop_data(old, owner, groups_start);
        }
    }

    /// Returns the top node, changeable in place, of a map high enough for block `index`.
    pub(super) fn top(&mut self, index: u64) -> Result<Arc<Node>> {
        let root = self.tree.root_to_keep();
        if index >= root.capacity() {
            self.heighten(&root);
            return self.top(index);
        }
        let (node, new) = self.editable(&root.link, root.height, root.capacity())?;
        if new {
            let link = Link::Memory(Arc::clone(&node));
            self.tree.set_root(Root {
                height: root.height,
                link,
            });
        }
        Ok(node)
    }

    /// Puts a new top node above the present one.
    fn heighten(&mut self, root: &Root) {
        let height = root.height + 1;
        let link = match &root.link {
            Link::Hole => Link::Hole,
            below => {
                let top = Node::new(self.generation, &self.store.live);
                put_link(&top, 0, below);
                self.ledger.own += 1;
                self.ledger.promised += 1;
                Link::Memory(Arc::new(top))
            }
        };
        self.tree.set_root(Root { height, link });
    }

    /// Returns the child on the path to block `index` of the changeable node `parent` at `level`.
    pub(super) fn child(&mut self, parent: &Arc<Node>, level: u8, index: u64) -> Result<Arc<Node>> {
        let at = slot(index, level);
        let entry = parent.entries.get(at);
        let link = match entry.kind() {
            Some(PointerKind::Unwritten) => child_in_memory(parent, at),
            _ => Link::of(entry),
        };
        let span = entry_blocks(level);
        let end = entry_base(index / span * span, level, 1);
        let (child, new) = self.editable(&link, level - 1, end)?;
        if new {
            put_link(parent, at, &Link::Memory(Arc::clone(&child)));
        }
        Ok(child)
    }

    /// Returns the node at `level` that `link` leads to, changeable in place; its range ends at
    /// block `end`. Also returns true if it is a new node, which must replace the old one.
    fn editable(&mut self, link: &Link, level: u8, end: u64) -> Result<(Arc<Node>, bool)> {
        let live = &self.store.live;
        let copy = match link {
            Link::Memory(node) if node.birth() > self.limit => {
                return Ok((Arc::clone(node), false));
            }
            Link::Memory(node) => node.copied(self.generation),
            Link::Stored(pointer) => {
                let entries = self.load(*pointer, level)?;
                Node::with_entries(self.generation, &entries, live)
            }
            Link::Lost(birth) => {
                let entries = [Pointer::lost(*birth); NODE_ENTRIES];
                Node::with_entries(self.generation, &entries, live)
            }
            Link::Hole => Node::new(self.generation, live),
        };
        if let Some(birth) = link.birth() {
            let owner = self.ownership.of(birth, end);
            let groups_start = self.store.groups_start();
            self.ledger.drop_node(link, owner, self.limit, groups_start);
        }
        self.ledger.own += 1;
        self.ledger.promised += 1;
        Ok((Arc::new(copy), true))
    }

    /// Returns the entries of a stored node; lost ranges where it is damaged and to be given up.
    pub(super) fn load(&self, pointer: Pointer, level: u8) -> Result<Box<Entries>> {
        let outcome = self.store.load(pointer, level);
        if !self.gives_up || !matches!(outcome, Err(Error::Corrupt(_))) {
            return outcome;
        }
        // A node that verifies at a second read was not lost.
        match self.store.load(pointer, level) {
            Err(Error::Corrupt(kind)) => {
                tracing::error!(error = %kind, "a map node is damaged, and the blocks below it are lost");
                Ok(Box::new([Pointer::lost(self.generation); NODE_ENTRIES]))
            }
            outcome => outcome,
        }
    }

    /// Returns the same as `Link::entries`, but reads with `load`.
    pub(super) fn entries(&self, link: &Link, level: u8) -> Result<Option<Box<Entries>>> {
        match link {
            Link::Stored(pointer) => self.load(*pointer, level).map(Some),
            link => link.entries(self.store, level),
        }
    }
}

/// Makes entry `index` of a changeable node lead to `link`.
pub(super) fn put_link(node: &Node, index: usize, link: &Link) {
    match link {
        Link::Memory(child) => {
            node.set_child(index, Some(Arc::clone(child)));
            node.entries
                .write(index, &[Pointer::unwritten(child.birth())]);
        }
        Link::Stored(pointer) => node.entries.write(index, &[*pointer]),
        Link::Hole => node.entries.write(index, &[Pointer::HOLE]),
        Link::Lost(birth) => node.entries.write(index, &[Pointer::lost(*birth)]),
    }
}
