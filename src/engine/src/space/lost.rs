//! Groups whose bitmaps are lost or not to be trusted.

use super::Committed;
use super::bitmap::{bits, bits_mut, fresh};
use cowshed_format::Layout;
use cowshed_format::base::BlockAddr;
use cowshed_format::group::{self, Bitmap};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use std::collections::BTreeMap;

/// The blocks of lost groups that maps lead to.
pub(crate) struct Reached {
    layout: Layout,
    groups: BTreeMap<u64, Box<Bitmap>>,
}

impl Reached {
    /// Notes that a map leads to a block.
    pub(crate) fn mark(&mut self, addr: BlockAddr) {
        if let Some((group, index)) = self.layout.locate(addr)
            && let Some(bitmap) = self.groups.get_mut(&group)
        {
            let index = usize::try_from(index).expect("under 2^15");
            bits_mut(bitmap).set(index, true);
        }
    }
}

impl Committed {
    /// Returns the groups whose bitmaps are not known.
    pub(crate) fn lost(&self) -> impl Iterator<Item = u64> + '_ {
        let numbered = (0..).zip(&self.groups);
        numbered.filter_map(|(number, group)| group.lost.then_some(number))
    }

    /// Marks every block of each lost group as in use, to be written so.
    pub(super) fn close_lost(&mut self) {
        let lost: Vec<u64> = self.lost().collect();
        for number in lost {
            let blocks = usize::try_from(self.layout.group_blocks(number)).expect("under 2^16");
            let group = &mut self.groups[usize::try_from(number).expect("groups are in memory")];
            let bitmap = group.bitmap.get_or_insert_with(fresh);
            bits_mut(bitmap)[..blocks].fill(true);
            self.dirty.insert(number);
        }
    }

    /// Returns the lost groups, with nothing but their headers in use.
    #[must_use]
    pub(crate) fn nothing_reached(&self) -> Reached {
        Reached {
            layout: self.layout,
            groups: self.lost().map(|group| (group, fresh())).collect(),
        }
    }

    /// Puts bitmaps in place of the lost ones, if together with the others they have the digest
    /// `expected`. The next checkpoint writes them.
    #[must_use]
    pub(crate) fn restore(&mut self, reached: Reached, expected: u64) -> bool {
        let known = self.groups.iter().filter(|group| !group.lost);
        let digests = reached
            .groups
            .iter()
            .map(|(number, bitmap)| group::digest(*number, bitmap));
        let sum = known
            .map(|group| group.digest)
            .chain(digests)
            .fold(0, u64::wrapping_add);
        if sum != expected {
            return false;
        }
        for (number, bitmap) in reached.groups {
            let group = &mut self.groups[usize::try_from(number).expect("groups are in memory")];
            group.digest = group::digest(number, &bitmap);
            group.bitmap = Some(bitmap);
            group.lost = false;
            self.dirty.insert(number);
        }
        self.digest = expected;
        self.count_used();
        true
    }

    pub(super) fn count_used(&mut self) {
        let bitmaps = self.groups.iter().filter_map(|group| group.bitmap.as_ref());
        self.used_blocks = bitmaps
            .map(|bitmap| bits(bitmap).count_ones() as u64 - GROUP_HEADER_BLOCKS)
            .sum();
    }
}
