//! Settling a removed volume's blocks: those that its one child still has pass to the child, the
//! others are freed.

use super::ledger::Ledger;
use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::{Generation, Result};
use cowshed_format::node::{NODE_ENTRIES, entry_blocks, slot};

/// A removed volume that is being settled. The caller holds the child's write lock, if there is
/// a child.
pub(crate) struct Settling<'a> {
    /// The store that nodes are read from.
    pub store: &'a NodeStore,
    /// The removed volume's map; no thread changes it any more.
    pub root: &'a Root,
    /// The removed volume's branch: only blocks born later were its own.
    pub branch: Generation,
    /// The child's map.
    pub child: Option<&'a Root>,
    /// Memory nodes born later than this have never been seen by a checkpoint.
    pub limit: Generation,
    /// The account that freed blocks are added to.
    pub ledger: &'a mut Ledger,
}

/// The progress of a settling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Everything below this block is settled.
    pub below: u64,
    /// True if the whole map is settled.
    pub done: bool,
}

impl Settling<'_> {
    /// Settles from block `from` on, through about `leaves` leaves. Stops at leaf boundaries only.
    /// The returned progress holds even if a node could not be read: everything below it is in the
    /// ledger, and must not be settled again.
    pub(crate) fn advance(&mut self, from: u64, leaves: usize) -> (Settled, Result<()>) {
        let (mut below, mut left) = (from, leaves);
        let outcome = self.advance_to(&mut below, &mut left);
        let done = below >= self.root.capacity();
        (Settled { below, done }, outcome)
    }

    fn advance_to(&mut self, below: &mut u64, left: &mut usize) -> Result<()> {
        if *below >= self.root.capacity() {
            return Ok(());
        }
        let child = match self.child {
            Some(child) if child.height > self.root.height => {
                child.leftmost(self.store, self.root.height)?
            }
            Some(child) if child.height == self.root.height => child.link.clone(),
            // A child is never lower than its parent was: heights only grow.
            _ => Link::Hole,
        };
        let root = self.root.link.clone();
        self.visit(&root, &child, self.root.height, 0, below, left)
    }

    /// Settles the subtree under `mine` at `level`, from `below` on, and moves `below` past the
    /// settled part. The node itself is settled last, once `below` has reached its end.
    fn visit(
        &mut self,
        mine: &Link,
        theirs: &Link,
        level: u8,
        base: u64,
        below: &mut u64,
        left: &mut usize,
    ) -> Result<()> {
        let end = base + entry_blocks(level + 1);
        let own = mine.birth().is_some_and(|birth| birth > self.branch);
        if !own || mine.same(theirs) || matches!(mine, Link::Lost(_)) {
            *below = end;
            return Ok(());
        }
        let entries = mine
            .entries(self.store, level)?
            .expect("it has a birth, so it is no hole");
        let their_entries = theirs.entries(self.store, level)?;
        let first = if *below > base {
            slot(*below, level)
        } else {
            0
        };
        for index in first..NODE_ENTRIES {
            if entries[index].is_hole() && level > 1 {
                *below = entry_base(base, level, index + 1);
                continue;
            }
            let my_child = mine.child(&entries, index);
            let their_child = their_entries
                .as_ref()
                .map_or(Link::Hole, |entries| theirs.child(entries, index));
            if level == 1 {
                self.settle_data(&my_child, &their_child);
                continue;
            }
            if *left == 0 {
                return Ok(());
            }
            let child_base = entry_base(base, level, index);
            self.visit(&my_child, &their_child, level - 1, child_base, below, left)?;
            if *below < child_base + entry_blocks(level) {
                return Ok(());
            }
        }
        if level == 1 {
            *left -= 1;
        }
        *below = end;
        let groups_start = self.store.groups_start();
        self.ledger.drop_own_node(mine, self.limit, groups_start);
        Ok(())
    }

    fn settle_data(&mut self, mine: &Link, theirs: &Link) {
        if let Link::Stored(pointer) = mine
            && pointer.birth() > self.branch
            && !mine.same(theirs)
        {
            self.ledger.own -= 1;
            let groups_start = self.store.groups_start();
            self.ledger.freed.push_copies(*pointer, groups_start);
        }
    }
}
