//! What a change of a map does to blocks and counts.

use super::node::Node;
use super::tree::Link;
use crate::space::BlockList;
use cowshed_format::base::{BlockAddr, Generation};
use std::sync::Arc;

/// Which blocks a volume owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    /// Blocks born later are the volume's own.
    pub branch: Generation,
    /// What passes to the volume from a removed parent.
    pub inheritance: Option<Inheritance>,
}

/// A removed parent's blocks, of which those in the part that is settled belong to the child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inheritance {
    /// The parent's own branch: blocks born later were the parent's.
    pub branch: Generation,
    /// The settled part ends before this block.
    pub settled: u64,
}

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The volume's.
    Own,
    /// The volume's by inheritance; still in its removed parent's count.
    Inherited,
    /// An ancestor's.
    Foreign,
}

impl Ownership {
    /// Who owns a block or node born in `birth`, whose range ends at block `end`.
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
    /// Data blocks and stored nodes that left it.
    pub freed: BlockList,
    /// Memory nodes that left it and that a running checkpoint may yet store.
    pub replaced: Vec<Arc<Node>>,
    /// Change of the volume's own blocks, data and nodes.
    pub own: i64,
    /// Change of the own blocks of the removed parent that the volume inherits from.
    pub inherited: i64,
    /// Change of the data blocks that the volume maps.
    pub mapped: i64,
    /// Blocks and nodes of ancestors that left it.
    pub let_go: u64,
    /// New memory nodes: each was promised a block.
    pub promised: u64,
    /// Memory nodes that left before any checkpoint: their promises are void.
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

    /// A data block leaves the map.
    pub(super) fn drop_data(&mut self, addr: BlockAddr, owner: Owner) {
        self.mapped -= 1;
        self.drop_block(owner, |ledger| ledger.freed.push(addr, 1));
    }

    /// A node leaves the map. It can be changed in place when it was born after `limit`: then no
    /// checkpoint knows it.
    pub(super) fn drop_node(&mut self, link: &Link, owner: Owner, limit: Generation) {
        if matches!(link, Link::Hole | Link::Lost(_)) {
            return;
        }
        self.drop_block(owner, |ledger| match link {
            Link::Hole | Link::Lost(_) => {}
            Link::Stored(pointer) => ledger.freed.push(pointer.addr(), 1),
            Link::Memory(node) if node.birth() > limit => ledger.void += 1,
            Link::Memory(node) => ledger.replaced.push(Arc::clone(node)),
        });
    }

    /// A node of a removed volume, which no other volume has, is no longer needed.
    pub(super) fn drop_own_node(&mut self, link: &Link, limit: Generation) {
        self.drop_node(link, Owner::Own, limit);
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
