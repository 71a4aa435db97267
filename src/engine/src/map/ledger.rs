//! The effects of a map's change on blocks and counts.

use super::node::Node;
use super::tree::Link;
use crate::space::BlockList;
use cowshed_format::Pointer;
use cowshed_format::base::Generation;
use std::sync::Arc;

/// Tells which blocks a volume owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    /// Blocks born later than this are the volume's own.
    pub branch: Generation,
    /// The blocks that pass to the volume from a removed parent.
    pub inheritance: Option<Inheritance>,
}

/// A removed parent's blocks; those in the settled part belong to the child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inheritance {
    /// The parent's own branch: blocks born later were the parent's.
    pub branch: Generation,
    /// The settled part ends before this block.
    pub settled: u64,
}

/// The owner of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The volume.
    Own,
    /// The volume, by inheritance; still counted as its removed parent's.
    Inherited,
    /// An ancestor.
    Foreign,
}

impl Ownership {
    /// Returns the owner of a block or node born in `birth`, whose range ends at block `end`.
    pub(super) fn of(&self, birth: Generation, end: u64) -> Owner {
        if birth > self.branch {
            return Owner::Own;
        }
        match self.inheritance {
            Some(parent) if birth > parent.branch && end <= parent.settled => Owner::Inherited,
            _ => Owner::Foreign,
        }
    }
}

/// The account of changes since it was last taken.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Data blocks that became part of the map.
    pub born: BlockList,
    /// Data blocks and stored nodes that left the map.
    pub freed: BlockList,
    /// Memory nodes that left the map and that a running checkpoint may still store.
    pub replaced: Vec<Arc<Node>>,
    /// Change of the volume's own blocks, data and nodes.
    pub own: i64,
    /// Change of the own blocks of the removed parent that the volume inherits from.
    pub inherited: i64,
    /// Change of the data blocks that the volume maps.
    pub mapped: i64,
    /// Number of ancestors' blocks and nodes that left the map.
    pub let_go: u64,
    /// Number of new memory nodes: each was promised its space.
    pub promised: u64,
    /// Number of memory nodes that left the map before any checkpoint: their promises are void.
    pub void: u64,
}

impl Ledger {
    /// Adds the account of another change.
    pub(super) fn add(&mut self, mut other: Self) {
        self.born.append(&mut other.born);
        self.freed.append(&mut other.freed);
        self.replaced.append(&mut other.replaced);
        self.own += other.own;
        self.inherited += other.inherited;
        self.mapped += other.mapped;
        self.let_go += other.let_go;
        self.promised += other.promised;
        self.void += other.void;
    }

    /// Accounts for a data block that leaves the map.
    pub(super) fn drop_data(&mut self, pointer: Pointer, owner: Owner, groups_start: u64) {
        self.mapped -= 1;
        self.drop_block(owner, |ledger| {
            ledger.freed.push_copies(pointer, groups_start);
        });
    }

    /// Accounts for a node that leaves the map. A node born after `limit` can be changed in place:
    /// no checkpoint knows it.
    pub(super) fn drop_node(
        &mut self,
        link: &Link,
        owner: Owner,
        limit: Generation,
        groups_start: u64,
    ) {
        if matches!(link, Link::Hole | Link::Lost(_)) {
            return;
        }
        self.drop_block(owner, |ledger| match link {
            Link::Hole | Link::Lost(_) => {}
            Link::Stored(pointer) => ledger.freed.push_copies(*pointer, groups_start),
            Link::Memory(node) if node.birth() > limit => ledger.void += 1,
            Link::Memory(node) => ledger.replaced.push(Arc::clone(node)),
        });
    }

    /// Accounts for a node of a removed volume that no other volume has and that is no longer
    /// needed.
    pub(super) fn drop_own_node(&mut self, link: &Link, limit: Generation, groups_start: u64) {
        self.drop_node(link, Owner::Own, limit, groups_start);
    }

    fn drop_block(&mut self, owner: Owner, free: impl FnOnce(&mut Self)) {
        match owner {
            Owner::Own => self.own -= 1,
            Owner::Inherited => self.inherited -= 1,
            Owner::Foreign => {
                self.let_go += 1;
                return;
            }
        }
        free(self);
    }
}
