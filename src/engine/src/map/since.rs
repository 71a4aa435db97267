//! Finding what a map has that is younger than a branch: a walk that skips everything older.
//!
//! It needs no second map, so it works after the older state's blocks have been freed. Blocks and
//! nodes have births and holes have none: every hole of a younger node is included, whether or not
//! it was a hole before.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::cancel;
use cowshed_format::base::{CorruptKind, Generation, Result};
use cowshed_format::node::{NODE_ENTRIES, entry_blocks};
use std::ops::Range;

/// Calls `visit(blocks, mapped)` in order for the ranges inside `window` that may differ from the
/// state that the map had at `branch`: each block born later, and each hole of a node born later.
///
/// # Errors
/// `Corrupt` or `Io` when a node cannot be read.
pub(crate) fn since(
    store: &NodeStore,
    root: &Root,
    branch: Generation,
    window: Range<u64>,
    visit: &mut dyn FnMut(Range<u64>, bool),
) -> Result<()> {
    let mut walk = Walk {
        store,
        branch,
        window: window.start..window.end.min(root.capacity()),
        visit,
    };
    walk.node(&root.link, root.height, 0)
}

struct Walk<'a> {
    store: &'a NodeStore,
    branch: Generation,
    window: Range<u64>,
    visit: &'a mut dyn FnMut(Range<u64>, bool),
}

impl Walk<'_> {
    /// Walks what `link` leads to: a node at `level`, or a block if that is 0, at block `base`.
    fn node(&mut self, link: &Link, level: u8, base: u64) -> Result<()> {
        let end = base + entry_blocks(level + 1);
        let part = base.max(self.window.start)..end.min(self.window.end);
        if part.is_empty() {
            return Ok(());
        }
        match link.birth() {
            None => (self.visit)(part, false),
            _ if matches!(link, Link::Lost(_)) => return Err(CorruptKind::LostRange.into()),
            Some(birth) if birth <= self.branch => {}
            Some(_) if level == 0 => (self.visit)(part, true),
            Some(_) => {
                cancel::check()?;
                let Some(entries) = link.entries(self.store, level)? else {
                    return Ok(());
                };
                for index in 0..NODE_ENTRIES {
                    let child = link.child(&entries, index);
                    self.node(&child, level - 1, entry_base(base, level, index))?;
                }
            }
        }
        Ok(())
    }
}
