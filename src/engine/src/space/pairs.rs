//! Allocation of the two blocks that a block of metadata is written to.
//!
//! A pointer has one address; that of the second copy follows from it: counted from the first
//! group, the two differ in one bit (`cowshed_format::pointer::copy_of`). So two blocks at such a
//! distance must be free at the same time. The farthest distance is a group, 128 MiB: the copies
//! lie at the same place of two neighbouring groups. Where no such pair is free, as in a pool of
//! one group, nearer distances inside a group are tried; if there is no pair at all, there is only
//! one copy. To keep pairs free, users' data goes to other groups than the next
//! metadata as long as there is space elsewhere, and then to whichever of the two has more.

use super::Space;
use super::bitmap::{bits_mut, fresh};
use super::groups::Group;
use cowshed_format::base::BlockAddr;
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::Ordering;
use cowshed_format::group::{BITMAP_WORDS, Bitmap};
use cowshed_format::layout::GROUP_BLOCKS;

/// The distance between the copies of a block in neighbouring groups, as a power of two.
const GROUP_DISTANCE: u8 = 15;
/// The distance, as a power of two, between the same bits of two words of a bitmap.
const WORD_DISTANCE: u8 = 6;
/// The bits of a word whose number lacks a power of two, for each of them.
const LOWER_BITS: [u64; WORD_DISTANCE as usize] = [
    0x5555_5555_5555_5555,
    0x3333_3333_3333_3333,
    0x0f0f_0f0f_0f0f_0f0f,
    0x00ff_00ff_00ff_00ff,
    0x0000_ffff_0000_ffff,
    0x0000_0000_ffff_ffff,
];
const _: () = assert!(GROUP_BLOCKS == 1 << GROUP_DISTANCE);

/// The place of a block of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The first copy's address.
    pub addr: BlockAddr,
    /// The distance of the second copy, if there is one.
    pub distance: Option<u8>,
}

impl Space {
    /// Returns the two groups that metadata is written to next, and others only at last.
    pub(super) fn kept_for_metadata(&self) -> std::ops::Range<usize> {
        if self.copies < 2 {
            return 0..0;
        }
        let first = 2 * self.pair_hint.load(Ordering::Relaxed);
        first..first + 2
    }

    /// Allocates a place for a block of metadata that was promised before; `None` only when
    /// promises were broken. If the pool keeps two copies and no two blocks at any distance are
    /// free, the place has one.
    #[must_use]
    pub(crate) fn allocate_promised(&self) -> Option<Place> {
        if self.copies > 1
            && let Some(place) = self.take_pair()
        {
            return Some(place);
        }
        let addr = self.take(1, 1)?.start;
        let distance = None;
        Some(Place { addr, distance })
    }

    fn take_pair(&self) -> Option<Place> {
        let groups = self.groups.read();
        for distance in (0..=GROUP_DISTANCE).rev() {
            if self.no_pairs.load(Ordering::Relaxed) & 1 << distance != 0 {
                continue;
            }
            let found = if distance == GROUP_DISTANCE {
                self.take_from_two(&groups)
            } else {
                self.take_from_one(&groups, distance)
            };
            if let Some(addr) = found {
                self.free.fetch_sub(2, Ordering::AcqRel);
                let distance = Some(distance);
                return Some(Place { addr, distance });
            }
            // Blocks that are freed just now may have made pairs: then the next copies lie nearer
            // than they could, until more blocks are freed.
            self.no_pairs.fetch_or(1 << distance, Ordering::Relaxed);
        }
        None
    }

    /// Takes two blocks of one group.
    fn take_from_one(&self, groups: &[Mutex<Group>], distance: u8) -> Option<BlockAddr> {
        let last = &self.near_hints[usize::from(distance)];
        let hint = last.load(Ordering::Relaxed).min(groups.len());
        (hint..groups.len()).chain(0..hint).find_map(|number| {
            let addr = groups[number].lock().take_pair(distance)?;
            last.store(number, Ordering::Relaxed);
            Some(addr)
        })
    }

    /// Takes two blocks at the same place of two neighbouring groups.
    fn take_from_two(&self, groups: &[Mutex<Group>]) -> Option<BlockAddr> {
        let pairs = groups.len() / 2;
        let hint = self.pair_hint.load(Ordering::Relaxed);
        for pair in (hint..pairs).chain(0..hint.min(pairs)) {
            let [first, second] = &groups[2 * pair..2 * pair + 2] else {
                unreachable!("a slice of two")
            };
            let (mut first, mut second) = (first.lock(), second.lock());
            if let Some(addr) = take_same(&mut first, &mut second) {
                let before = self.pair_hint.swap(pair, Ordering::Relaxed);
                if before != pair {
                    // Data may have passed what is left there.
                    self.hint.fetch_min(2 * before, Ordering::Relaxed);
                }
                return Some(addr);
            }
        }
        None
    }

    /// Notes that blocks became free.
    pub(super) fn note_pairs(&self) {
        if self.no_pairs.load(Ordering::Relaxed) != 0 {
            self.no_pairs.store(0, Ordering::Relaxed);
        }
    }
}

/// Takes the first block that is free in both groups; returns that of `first`.
fn take_same(first: &mut Group, second: &mut Group) -> Option<BlockAddr> {
    if first.free == 0 || second.free == 0 {
        return None;
    }
    let blocks = first.blocks.min(second.blocks);
    let from = first.pair_cursor;
    let find = |from: usize, first: &Bitmap, second: &Bitmap| {
        first_free(from, blocks, |word| first[word] | second[word])
    };
    let lower = first.taken.get_or_insert_with(fresh);
    let upper = second.taken.get_or_insert_with(fresh);
    let index = find(from, lower, upper).or_else(|| find(0, lower, upper))?;
    first.set_taken(index);
    second.set_taken(index);
    first.pair_cursor = index + 1;
    Some(BlockAddr(first.start + index as u64))
}

impl Group {
    /// Takes two blocks of this group at `distance`; returns the lower one.
    fn take_pair(&mut self, distance: u8) -> Option<BlockAddr> {
        if self.free < 2 {
            return None;
        }
        let (blocks, from) = (self.blocks, self.pair_cursor);
        let taken = self.taken.get_or_insert_with(fresh);
        // Only the lower block of a pair is looked for.
        let at = |word: usize| {
            let Some(words) = distance.checked_sub(WORD_DISTANCE) else {
                let bits = taken[word] | beyond(word, blocks);
                return bits | bits >> (1 << distance) | !LOWER_BITS[usize::from(distance)];
            };
            let upper = word + (1 << words);
            if word & 1 << words != 0 || upper >= BITMAP_WORDS {
                return u64::MAX;
            }
            taken[word] | taken[upper] | beyond(upper, blocks)
        };
        let index = first_free(from, blocks, at).or_else(|| first_free(0, blocks, at))?;
        self.set_taken(index);
        self.set_taken(index + (1 << distance));
        self.pair_cursor = index + 1;
        Some(BlockAddr(self.start + index as u64))
    }

    /// Takes one free block.
    fn set_taken(&mut self, index: usize) {
        let taken = bits_mut(self.taken.get_or_insert_with(fresh));
        assert!(!taken.replace(index, true), "a block is taken twice");
        if let Some(stale) = &mut self.stale {
            bits_mut(stale).set(index, false);
        }
        self.free -= 1;
    }
}

/// Returns the bits of word `word` that lie beyond a group of `blocks` blocks.
const fn beyond(word: usize, blocks: usize) -> u64 {
    match blocks.saturating_sub(word * 64) {
        0 => u64::MAX,
        rest if rest >= 64 => 0,
        rest => u64::MAX << rest,
    }
}

/// Returns the first block at or after `from`, of `blocks`, whose bit is clear in `taken(word)`.
fn first_free(from: usize, blocks: usize, taken: impl Fn(usize) -> u64) -> Option<usize> {
    let mut before = (1u64 << (from % 64)) - 1;
    for word in from / 64..blocks.div_ceil(64) {
        let free = !(taken(word) | beyond(word, blocks) | std::mem::take(&mut before));
        if free != 0 {
            return Some(word * 64 + free.trailing_zeros() as usize);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{BlockList, BlockRun, Demand};
    use super::*;
    use cowshed_format::Layout;
    use cowshed_format::pointer::copy_of;
    use std::collections::BTreeSet;

    fn space(blocks: u64) -> Space {
        Space::new(Layout::new(blocks, 16).unwrap(), 2, |_| None)
    }

    /// Takes places until none is left; asserts that no block is taken twice.
    fn take_all(space: &Space) -> Vec<Place> {
        let layout = space.layout();
        let (mut seen, mut places) = (BTreeSet::new(), Vec::new());
        while let Some(place) = space.allocate_promised() {
            let at = |distance: u8| {
                copy_of(place.addr, u32::from(distance), layout.groups_start()).unwrap()
            };
            let copy = place.distance.map(at);
            for addr in [Some(place.addr), copy].into_iter().flatten() {
                assert!(layout.locate(addr).is_some(), "{place:?}");
                assert!(seen.insert(addr), "{place:?}");
            }
            places.push(place);
        }
        assert_eq!(space.free_blocks(), 0);
        let singles = places.iter().filter(|place| place.distance.is_none());
        assert!(singles.count() < 8);
        places
    }

    #[test]
    fn copies_lie_a_group_apart_and_nearer_only_at_last() {
        // Two groups and a short third one.
        let space = space(2 * GROUP_BLOCKS + 1010);
        let free = space.free_blocks();
        let places = take_all(&space);
        let far = |place: &&Place| place.distance == Some(GROUP_DISTANCE);
        assert_eq!(places.iter().filter(far).count() as u64, GROUP_BLOCKS - 4);
        assert!(places.len() as u64 <= free / 2 + 4);
        let adjoin = |pair: &&[Place]| pair[0].addr.0 + 1 == pair[1].addr.0;
        assert!(places.windows(2).filter(adjoin).count() > 32_000);
    }

    #[test]
    fn a_pool_of_one_group_has_both_copies_in_it_far_apart() {
        let space = space(2000);
        let places = take_all(&space);
        assert_eq!(places[0].distance, Some(10));
        assert!(places[..500].iter().all(|place| place.distance >= Some(8)));
    }

    #[test]
    fn data_leaves_pairs_free_to_the_end() {
        for blocks in [
            2000,
            GROUP_BLOCKS + 3000,
            3 * GROUP_BLOCKS,
            4 * GROUP_BLOCKS + 1000,
        ] {
            let space = space(blocks);
            while space.promise(1, Demand::Write) {
                let _: Option<BlockRun> = space.allocate(100, 1, Demand::Write);
                let place = space.allocate_promised().unwrap();
                assert!(place.distance.is_some(), "{blocks}");
            }
            let left = space.free_blocks();
            let places = std::iter::from_fn(|| space.allocate_promised());
            let pairs = places.filter(|place| place.distance.is_some()).count();
            assert!(
                pairs as u64 * 2 > left / 4 * 3,
                "{blocks}: {pairs} of {left}"
            );
        }
    }

    #[test]
    fn where_no_two_blocks_make_a_pair_one_copy_is_better_than_none() {
        let space = space(2000);
        let taken: Vec<_> = std::iter::from_fn(|| space.allocate(1, 1, Demand::Remove)).collect();
        while space.allocate_promised().is_some() {}
        let mut list = BlockList::default();
        list.push(taken[5].start, 1);
        space.free(&list);
        let place = space.allocate_promised().unwrap();
        assert_eq!((place.addr, place.distance), (taken[5].start, None));
        // Freed blocks make pairs again.
        let other = copy_of(taken[5].start, 6, space.layout().groups_start()).unwrap();
        let mut list = BlockList::default();
        list.push(taken[5].start, 1);
        list.push(other, 1);
        space.free(&list);
        assert_eq!(space.allocate_promised().unwrap().distance, Some(6));
    }
}
