//! Finding the blocks that a removed volume's map leads to and none of its children's maps does.
//!
//! Nothing is changed here and no lock is needed, as long as the maps are those of one moment: a
//! child, or a branch of it, never comes to lead to a block of its parent that it did not lead to
//! at that moment, so an unreached block stays unreached. Nodes that cannot be read count as
//! reached.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::Generation;
use cowshed_format::node::{Entries, NODE_ENTRIES, entry_blocks};
use cowshed_format::{Pointer, PointerKind};
use std::ops::Range;
use std::sync::Arc;

/// Maximum number of nodes of the removed volume's map examined in one search, so that the caller
/// can stop in between.
const NODES_MAX: usize = 256;

/// A removed volume and its children.
pub(crate) struct Unreached<'a> {
    /// The store that nodes are read from.
    pub store: &'a NodeStore,
    /// The removed volume's map; no other thread changes it.
    pub root: &'a Root,
    /// Only blocks born later than this are searched for: the removed volume's branch, or 0 to find
    /// its ancestors' blocks as well.
    pub branch: Generation,
    /// The maps of all its children.
    pub children: &'a [Arc<Root>],
}

/// The result of a search.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Blocks that no child leads to, in order; no range crosses the boundary of a leaf.
    pub ranges: Vec<Range<u64>>,
    /// The number of leaves that they lie in.
    pub leaves: usize,
    /// The block at which the next search goes on; `None` when this one came to the end.
    pub next: Option<u64>,
}

impl Unreached<'_> {
    /// Searches from block `from` on, until blocks were found in `leaves` leaves.
    #[must_use]
    pub(crate) fn find(&self, from: u64, leaves: usize) -> Found {
        let height = self.root.height;
        let beside = |child: &Arc<Root>| {
            if child.height < height {
                return Some(Link::Hole);
            }
            child.leftmost(self.store, height).ok()
        };
        let Some(theirs) = self.children.iter().map(beside).collect::<Option<Vec<_>>>() else {
            return Found::default();
        };
        let mut search = Search {
            unreached: self,
            from,
            leaves,
            nodes: NODES_MAX,
            found: Found::default(),
        };
        search.visit(&self.root.link, &theirs, height, 0);
        search.found
    }
}

struct Search<'a> {
    unreached: &'a Unreached<'a>,
    from: u64,
    leaves: usize,
    nodes: usize,
    found: Found,
}

impl Search<'_> {
    /// Examines the subtree under `mine` at `level`, which starts at block `base`. `theirs` are the
    /// children's links at the same place.
    fn visit(&mut self, mine: &Link, theirs: &[Link], level: u8, base: u64) {
        let is_candidate = mine
            .birth()
            .is_some_and(|birth| birth > self.unreached.branch)
            && !matches!(mine, Link::Lost(_));
        let reaches = |link: &Link| link.same(mine) || matches!(link, Link::Lost(_));
        if !is_candidate
            || base + entry_blocks(level + 1) <= self.from
            || theirs.iter().any(reaches)
        {
            return;
        }
        if self.found.leaves == self.leaves || self.nodes == 0 {
            self.found.next.get_or_insert(base);
            return;
        }
        self.nodes -= 1;
        let store = self.unreached.store;
        let Ok(Some(entries)) = mine.entries(store, level) else {
            return;
        };
        let mut beside: Vec<(&Link, Box<Entries>)> = Vec::new();
        for link in theirs {
            match link.entries(store, level) {
                Ok(Some(entries)) => beside.push((link, entries)),
                Ok(None) => {}
                Err(_) => return,
            }
        }
        if level == 1 {
            self.look_at_leaf(&entries, &beside, base);
            return;
        }
        for index in 0..NODE_ENTRIES {
            if entries[index].is_hole() {
                continue;
            }
            let below: Vec<Link> = beside
                .iter()
                .filter(|(_, entries)| !entries[index].is_hole())
                .map(|(link, entries)| link.child(entries, index))
                .collect();
            let base = entry_base(base, level, index);
            self.visit(&mine.child(&entries, index), &below, level - 1, base);
            if self.found.next.is_some() {
                return;
            }
        }
    }

    fn look_at_leaf(&mut self, mine: &Entries, theirs: &[(&Link, Box<Entries>)], base: u64) {
        let before = self.found.ranges.len();
        let mut is_needed = false;
        for (block, index) in (base..).zip(0..NODE_ENTRIES) {
            let pointer = mine[index];
            let reaches = |other: &Pointer| *other == pointer || other.is_lost();
            if pointer.kind() != Some(PointerKind::Data)
                || pointer.birth() <= self.unreached.branch
                || theirs.iter().any(|(_, entries)| reaches(&entries[index]))
            {
                is_needed |= !pointer.is_hole();
                continue;
            }
            match self.found.ranges[before..].last_mut() {
                Some(range) if range.end == block => range.end += 1,
                _ => self.found.ranges.push(block..block + 1),
            }
        }
        if self.found.ranges.len() == before {
            return;
        }
        self.found.leaves += 1;
        if !is_needed {
            // The whole leaf is dropped, including its existing holes.
            self.found.ranges.truncate(before);
            self.found.ranges.push(base..base + entry_blocks(2));
        }
    }
}
