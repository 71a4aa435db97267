//! A set of places of blocks, visited in their order.

use super::BlockRun;
use super::bitmap::first_set_run;
use bitvec::order::Lsb0;
use bitvec::vec::BitVec;
use cowshed_format::base::BlockAddr;
use std::collections::BTreeMap;

/// Number of blocks in a piece: 4 KiB of bits.
const PIECE_BLOCKS: u64 = 1 << 15;

/// A set of places: a bitmap of the pieces in which there are any.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pieces: BTreeMap<u64, BitVec<u64, Lsb0>>,
}

impl Places {
    /// Adds a run.
    pub(crate) fn add(&mut self, run: BlockRun) {
        let (mut at, end) = (run.start.0, run.start.0 + u64::from(run.count));
        while at < end {
            let number = at / PIECE_BLOCKS;
            let piece_start = number * PIECE_BLOCKS;
            let until = end.min(piece_start + PIECE_BLOCKS);
            let empty = || BitVec::repeat(false, index(PIECE_BLOCKS));
            let piece = self.pieces.entry(number).or_insert_with(empty);
            piece[index(at - piece_start)..index(until - piece_start)].fill(true);
            at = until;
        }
    }

    /// Returns true if a place is in the set.
    pub(crate) fn has(&self, place: BlockAddr) -> bool {
        let piece = self.pieces.get(&(place.0 / PIECE_BLOCKS));
        piece.is_some_and(|piece| piece[index(place.0 % PIECE_BLOCKS)])
    }

    /// Removes a place.
    pub(crate) fn remove(&mut self, place: BlockAddr) {
        if let Some(piece) = self.pieces.get_mut(&(place.0 / PIECE_BLOCKS)) {
            piece.set(index(place.0 % PIECE_BLOCKS), false);
        }
    }

    /// Returns the number of places.
    #[must_use]
    pub(crate) fn count(&self) -> u64 {
        self.pieces
            .values()
            .map(|piece| piece.count_ones() as u64)
            .sum()
    }

    /// Returns the places in their order, neighbours of a piece as one run.
    pub(crate) fn runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        self.pieces.iter().flat_map(|(number, piece)| {
            let mut from = 0;
            std::iter::from_fn(move || {
                let found = first_set_run(piece, from)?;
                from = found.end;
                Some(BlockRun {
                    start: BlockAddr(number * PIECE_BLOCKS + found.start as u64),
                    count: u32::try_from(found.len()).expect("a piece has 2^15 blocks"),
                })
            })
        })
    }
}

fn index(blocks: u64) -> usize {
    usize::try_from(blocks).expect("a piece has 2^15 blocks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_joined_and_in_order() {
        let run = |start, count| BlockRun {
            start: BlockAddr(start),
            count,
        };
        let mut places = Places::default();
        for added in [
            run(70_000, 5),
            run(3, 1),
            run(32_760, 20),
            run(2, 1),
            run(70_003, 9),
        ] {
            places.add(added);
        }
        let found: Vec<_> = places.runs().collect();
        // A run ends with its piece.
        assert_eq!(
            found,
            [run(2, 2), run(32_760, 8), run(32_768, 12), run(70_000, 12)]
        );
        assert_eq!(places.count(), 34);
        places.remove(BlockAddr(32_768));
        places.remove(BlockAddr(1_000_000));
        let has = [2, 3, 4, 32_767, 32_768, 32_769, 1_000_000];
        let has = has.map(|place| places.has(BlockAddr(place)));
        assert_eq!(has, [true, true, false, true, false, true, false]);
        assert_eq!(places.count(), 33);
    }
}
