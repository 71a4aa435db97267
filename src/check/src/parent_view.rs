//! The parent's side of a walk: the contents of another tree at the same place.
//!
//! It marks nothing and reports nothing: errors in the other tree are found by that tree's own
//! walk, and make the comparison unknown here.

use super::walk::{Tree, Walker};
use cowshed_format::Pointer;
use cowshed_format::node::{Entries, NODE_ENTRIES};

/// The contents of another tree at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParentView {
    /// A pointer, and the level of its target. If the place has a higher level, the pointer is at
    /// the left edge below it: the other tree is less tall.
    Known(Pointer, u8),
    /// The other tree could not be read.
    Unknown,
}

/// The entries of a node of the parent.
pub(super) enum ParentEntries {
    /// A node's, with their level.
    Node(Box<Entries>, u8),
    /// All entries are the same, except that `first` is entry 0.
    Sparse {
        /// The first entry.
        first: ParentView,
        /// The other entries.
        others: ParentView,
    },
}

impl ParentView {
    /// Nothing: a hole, or no other tree.
    pub(super) const ABSENT: Self = Self::Known(Pointer::HOLE, 0);

    pub(super) const fn of(pointer: Pointer, level: u8) -> Self {
        Self::Known(pointer, level)
    }

    /// Returns the pointer at a place of `level`: a hole if the other tree has none, `None` if that
    /// is not known.
    pub(super) fn here(self, level: u8) -> Option<Pointer> {
        match self {
            Self::Known(pointer, at) if at == level => Some(pointer),
            Self::Known(..) => Some(Pointer::HOLE),
            Self::Unknown => None,
        }
    }
}

impl ParentEntries {
    pub(super) fn entry(&self, index: usize) -> ParentView {
        match self {
            Self::Node(entries, level) => ParentView::of(entries[index], *level),
            Self::Sparse { first, .. } if index == 0 => *first,
            Self::Sparse { others, .. } => *others,
        }
    }
}

impl Walker<'_> {
    /// Returns the other tree as seen from a tree of `height`, and the number of blocks that it
    /// maps beyond that tree's reach (0 unless `counted`).
    pub(super) fn beside(
        &mut self,
        tree: Option<Tree>,
        height: u8,
        counted: bool,
    ) -> (ParentView, Option<i64>) {
        let Some(Tree {
            root,
            height: mut level,
        }) = tree
        else {
            return (ParentView::ABSENT, Some(0));
        };
        let (mut parent_view, mut outside) = (ParentView::of(root, level), Some(0));
        while level > height {
            let entries = self.expand(parent_view, level);
            for index in 1..NODE_ENTRIES {
                if counted {
                    let count = self.count(entries.entry(index));
                    outside = outside.zip(count).map(|(sum, count)| sum + count);
                }
            }
            parent_view = entries.entry(0);
            level -= 1;
        }
        (parent_view, outside)
    }

    /// Returns the entries below the parent's view at a place of `level`.
    pub(super) fn expand(&self, parent_view: ParentView, level: u8) -> ParentEntries {
        let same = |first, others| ParentEntries::Sparse { first, others };
        match parent_view {
            ParentView::Unknown => same(ParentView::Unknown, ParentView::Unknown),
            ParentView::Known(pointer, _) if pointer.is_hole() => {
                same(ParentView::ABSENT, ParentView::ABSENT)
            }
            ParentView::Known(pointer, at) if at == level && pointer.is_lost() => {
                let below = ParentView::of(pointer, level - 1);
                same(below, below)
            }
            ParentView::Known(pointer, at) if at == level => match self.read_node(pointer, level) {
                Ok(entries) => ParentEntries::Node(entries, level - 1),
                Err(_) => same(ParentView::Unknown, ParentView::Unknown),
            },
            ParentView::Known(..) => same(parent_view, ParentView::ABSENT),
        }
    }

    /// Returns the number of data blocks that the parent's view maps; `None` if it cannot be read,
    /// or if the walk has counted more than the pool has, as in a tree that leads into itself.
    pub(super) fn count(&mut self, parent_view: ParentView) -> Option<i64> {
        match parent_view {
            ParentView::Unknown => None,
            ParentView::Known(pointer, _) if pointer.is_hole() || pointer.is_lost() => Some(0),
            ParentView::Known(_, 0) => Some(1),
            ParentView::Known(pointer, level) => self.count_node(pointer, level),
        }
    }

    fn count_node(&mut self, pointer: Pointer, level: u8) -> Option<i64> {
        self.count_budget = self.count_budget.checked_sub(1)?;
        let entries = self.read_node(pointer, level).ok()?;
        let mut used = entries
            .iter()
            .filter(|entry| !entry.is_hole() && !entry.is_lost());
        if level > 1 {
            return used.try_fold(0, |sum, entry| {
                Some(sum + self.count_node(*entry, level - 1)?)
            });
        }
        let count = used.count();
        self.count_budget = self.count_budget.checked_sub(u64::try_from(count).ok()?)?;
        i64::try_from(count).ok()
    }
}
