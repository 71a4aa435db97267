//! Making a range of a map a hole.

use super::edit::{Edit, put_link};
use super::node::Node;
use super::tree::{Link, Root, child_in_memory, entry_base};
use cowshed_format::base::Result;
use cowshed_format::node::{NODE_ENTRIES, entry_blocks};
use cowshed_format::{Pointer, PointerKind};
use std::ops::Range;
use std::sync::Arc;

impl Edit<'_> {
    /// Makes the blocks of `range` holes. Whole subtrees are dropped at once; existing holes stay
    /// untouched.
    ///
    /// # Errors
    /// `Corrupt` or `Io` when a node cannot be read; a part of the range may then be holes.
    pub(crate) fn discard(&mut self, range: Range<u64>) -> Result<()> {
        let root = self.tree.root_to_keep();
        let range = range.start..range.end.min(root.capacity());
        if range.is_empty() || matches!(root.link, Link::Hole) {
            return Ok(());
        }
        if range == (0..root.capacity()) {
            self.drop_subtree(&root.link, root.height, 0)?;
            self.tree.set_root(Root {
                height: root.height,
                link: Link::Hole,
            });
            return Ok(());
        }
        if self.holds_data(&root.link, root.height, 0, &range)? {
            let top = self.top(range.start)?;
            self.discard_in(&top, root.height, 0, &range)?;
        }
        Ok(())
    }

    /// Returns true if the node at `level` maps anything in `range`.
    fn holds_data(&self, link: &Link, level: u8, base: u64, range: &Range<u64>) -> Result<bool> {
        if matches!(link, Link::Lost(_)) {
            return Ok(true);
        }
        let Some(entries) = self.entries(link, level)? else {
            return Ok(false);
        };
        for index in overlapped(base, level, range) {
            if entries[index].is_hole() {
                continue;
            }
            let child_base = entry_base(base, level, index);
            let child = || link.child(&entries, index);
            if level == 1 || self.holds_data(&child(), level - 1, child_base, range)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn discard_in(
        &mut self,
        node: &Arc<Node>,
        level: u8,
        base: u64,
        range: &Range<u64>,
    ) -> Result<()> {
        for index in overlapped(base, level, range) {
            let entry = node.entries.get(index);
            let child_base = entry_base(base, level, index);
            let covers = child_base..child_base + entry_blocks(level);
            if entry.is_hole() {
                continue;
            }
            if level == 1 {
                self.drop_old(child_base, entry);
                put_link(node, index, &Link::Hole);
                continue;
            }
            let link = match entry.kind() {
                Some(PointerKind::Unwritten) => child_in_memory(node, index),
                _ => Link::of(entry),
            };
            if range.start <= covers.start && covers.end <= range.end {
                self.drop_subtree(&link, level - 1, child_base)?;
                put_link(node, index, &Link::Hole);
                node.set_child(index, None);
            } else if self.holds_data(&link, level - 1, child_base, range)? {
                let child = self.child(node, level, child_base)?;
                self.discard_in(&child, level - 1, child_base, range)?;
            }
        }
        Ok(())
    }

    /// Accounts for a whole subtree that leaves the map; on an error, accounts for nothing, as the
    /// subtree stays.
    fn drop_subtree(&mut self, link: &Link, level: u8, base: u64) -> Result<()> {
        let before = std::mem::take(self.ledger);
        let outcome = self.drop_nodes(link, level, base);
        let dropped = std::mem::replace(self.ledger, before);
        if outcome.is_ok() {
            self.ledger.add(dropped);
        }
        outcome
    }

    fn drop_nodes(&mut self, link: &Link, level: u8, base: u64) -> Result<()> {
        if matches!(link, Link::Lost(_)) {
            return Ok(());
        }
        let Some(entries) = self.entries(link, level)? else {
            return Ok(());
        };
        for (index, entry) in entries.iter().enumerate() {
            if entry.is_hole() || entry.is_lost() {
                continue;
            }
            let child_base = entry_base(base, level, index);
            if level == 1 {
                self.drop_old(child_base, *entry);
            } else {
                self.drop_nodes(&link.child(&entries, index), level - 1, child_base)?;
            }
        }
        let birth = link.birth().expect("a link with entries is no hole");
        let end = base + entry_blocks(level + 1);
        let owner = self.ownership.of(birth, end);
        let groups_start = self.store.groups_start();
        self.ledger.drop_node(link, owner, self.limit, groups_start);
        Ok(())
    }
}

/// Returns the entries of a node at `level`, starting at `base`, whose ranges overlap `range`.
fn overlapped(base: u64, level: u8, range: &Range<u64>) -> Range<usize> {
    let span = entry_blocks(level);
    let most = NODE_ENTRIES as u64;
    let first = (range.start.saturating_sub(base) / span).min(most);
    let last = range.end.saturating_sub(base).div_ceil(span).min(most);
    let index = |number: u64| usize::try_from(number).expect("at most 256");
    index(first)..index(last)
}

const _: () = assert!(size_of::<Pointer>() == 16);
