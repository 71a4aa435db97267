//! The blocks that the walk has reached: two bits for each block of the groups that it touched.
//!
//! # Invariants
//! - `owned` is set once for each block, by its one owner; a second owner gets `false`.
//! - `loose` is set for blocks that something refers to without a proved right to them. They count
//!   as in use, so that no repair frees them.

use cowshed_format::Layout;
use cowshed_format::base::BlockAddr;
use cowshed_format::group::{BITMAP_WORDS, Bitmap};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use std::collections::BTreeMap;

struct GroupMarks {
    owned: Bitmap,
    loose: Bitmap,
}

/// The blocks that were reached.
pub(super) struct Marks {
    layout: Layout,
    groups: BTreeMap<u64, Box<GroupMarks>>,
    count: u64,
}

impl Marks {
    pub(super) const fn new(layout: Layout) -> Self {
        Self {
            layout,
            groups: BTreeMap::new(),
            count: 0,
        }
    }

    /// Returns the number of blocks reached.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the last group with a reached block.
    pub(super) fn last_group(&self) -> Option<u64> {
        self.groups.last_key_value().map(|(group, _)| *group)
    }

    /// Marks `addr` as owned; returns false if it has an owner already or cannot have one.
    pub(super) fn claim(&mut self, addr: BlockAddr) -> bool {
        self.set(addr, true)
    }

    /// Marks `addr` as referred to; returns false if it was reached before.
    pub(super) fn touch(&mut self, addr: BlockAddr) -> bool {
        self.set(addr, false)
    }

    /// Returns true if something refers to `addr` without a proved right to it.
    pub(super) fn is_touched(&self, addr: BlockAddr) -> bool {
        let Some((group, index)) = self.layout.locate(addr) else {
            return false;
        };
        let (word, bit) = word_bit(index);
        let marks = self.groups.get(&group);
        marks.is_some_and(|marks| marks.loose[word] & bit != 0)
    }

    fn set(&mut self, addr: BlockAddr, own: bool) -> bool {
        let Some((group, index)) = self.layout.locate(addr) else {
            return false;
        };
        let marks = self.groups.entry(group).or_insert_with(|| {
            Box::new(GroupMarks {
                owned: [0; BITMAP_WORDS],
                loose: [0; BITMAP_WORDS],
            })
        });
        let (word, bit) = word_bit(index);
        let reached = (marks.owned[word] | marks.loose[word]) & bit != 0;
        let fresh = if own {
            marks.owned[word] & bit == 0
        } else {
            !reached
        };
        if own {
            marks.owned[word] |= bit;
        } else if fresh {
            marks.loose[word] |= bit;
        }
        self.count += u64::from(!reached);
        fresh
    }

    /// Returns the bitmap that `group` should have.
    pub(super) fn bitmap(&self, group: u64) -> Box<Bitmap> {
        let mut bitmap = Box::new([0; BITMAP_WORDS]);
        if let Some(marks) = self.groups.get(&group) {
            let both = marks.owned.iter().zip(&marks.loose);
            for (word, (owned, loose)) in bitmap.iter_mut().zip(both) {
                *word = owned | loose;
            }
        }
        bitmap[0] |= (1 << GROUP_HEADER_BLOCKS) - 1;
        bitmap
    }
}

/// Returns the word and the bit of a group's block.
pub(super) fn word_bit(index: u64) -> (usize, u64) {
    let word = usize::try_from(index / 64).expect("a group has 32,768 blocks");
    (word, 1 << (index % 64))
}

/// Returns the number of blocks in use according to a bitmap, without the group's header.
pub(super) fn used_in(bitmap: &Bitmap) -> u64 {
    let set: u64 = bitmap.iter().map(|word| u64::from(word.count_ones())).sum();
    let header = bitmap[0] & ((1 << GROUP_HEADER_BLOCKS) - 1);
    set - u64::from(header.count_ones())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_owner_and_any_number_of_visitors() {
        let layout = Layout::new(1 << 16, 64).unwrap();
        let addr = BlockAddr(layout.group_start(1) + 70);
        let mut marks = Marks::new(layout);
        assert!(marks.touch(addr));
        assert!(!marks.touch(addr));
        assert!(marks.claim(addr), "a visitor does not own it");
        assert!(!marks.claim(addr));
        assert!(!marks.touch(addr));
        assert!(!marks.claim(BlockAddr(layout.group_start(1))));
        assert_eq!((marks.count(), marks.last_group()), (1, Some(1)));
        let bitmap = marks.bitmap(1);
        assert_eq!((bitmap[0], bitmap[1]), (0b1111, 1 << 6));
        assert_eq!(used_in(&bitmap), 1);
    }
}
