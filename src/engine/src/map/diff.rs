//! Comparing two maps: a walk that skips everything that they share.

use super::store::NodeStore;
use super::tree::{Link, Root, entry_base};
use cowshed_format::base::cancel;
use cowshed_format::base::{CorruptKind, Result};
use cowshed_format::node::{NODE_ENTRIES, entry_blocks};
use std::ops::Range;

/// Calls `visit(block, mapped_in_b)` for each block inside `window` whose pointer differs between
/// `a` and `b`, in order. It compares the blocks' places, not their contents.
///
/// # Errors
/// `Corrupt` or `Io` when a node cannot be read.
pub(crate) fn diff(
    store: &NodeStore,
    a: &Root,
    b: &Root,
    window: &Range<u64>,
    visit: &mut dyn FnMut(u64, bool),
) -> Result<()> {
    let height = a.height.max(b.height);
    let top = |root: &Root| Side {
        link: root.link.clone(),
        level: root.height,
    };
    let mut comparison = Comparison {
        store,
        window,
        visit,
    };
    comparison.compare(&top(a), &top(b), height, 0)
}

/// One map's side of a range: a link to a node at `level`. If `level` is lower than the range's,
/// that map is lower than the other, and all of it lies at the range's start.
struct Side {
    link: Link,
    level: u8,
}

struct Comparison<'a> {
    store: &'a NodeStore,
    window: &'a Range<u64>,
    visit: &'a mut dyn FnMut(u64, bool),
}

impl Comparison<'_> {
    /// Compares both sides of the range at `base` that a node at `level` covers.
    fn compare(&mut self, a: &Side, b: &Side, level: u8, base: u64) -> Result<()> {
        let same = a.link.same(&b.link) && (a.level == b.level || matches!(a.link, Link::Hole));
        let is_outside =
            base >= self.window.end || base + entry_blocks(level + 1) <= self.window.start;
        if same || is_outside {
            return Ok(());
        }
        if matches!(a.link, Link::Lost(_)) || matches!(b.link, Link::Lost(_)) {
            return Err(CorruptKind::LostRange.into());
        }
        cancel::check()?;
        if level == 0 {
            (self.visit)(base, !matches!(b.link, Link::Hole));
            return Ok(());
        }
        let (children_a, children_b) = (self.children(a, level)?, self.children(b, level)?);
        for (index, (a, b)) in children_a.iter().zip(&children_b).enumerate() {
            self.compare(a, b, level - 1, entry_base(base, level, index))?;
        }
        Ok(())
    }

    fn children(&self, side: &Side, level: u8) -> Result<Vec<Side>> {
        let hole = || Side {
            link: Link::Hole,
            level: level - 1,
        };
        let mut children: Vec<_> = (0..NODE_ENTRIES).map(|_| hole()).collect();
        if side.level < level {
            children[0] = Side {
                link: side.link.clone(),
                level: side.level,
            };
        } else if let Some(entries) = side.link.entries(self.store, level)? {
            for (index, child) in children.iter_mut().enumerate() {
                child.link = side.link.child(&entries, index);
            }
        }
        Ok(children)
    }
}
