//! Free space: allocation groups, runs, the reserve, and the bitmaps of checkpoints.
//!
//! Two views of the same groups are kept apart, which makes a crash harmless:
//!
//! - [`Space`] knows which blocks are *taken*: in use, on their way into use, or freed but still
//!   part of the last durable checkpoint. Writers allocate from it; it lives in memory only.
//! - [`Committed`] has the bitmaps *of the state that the next checkpoint writes*. Only the
//!   checkpoint uses it: it marks the blocks that became part of the state before its cut, and
//!   clears those that left it. A block that was allocated but never logged is in none of these.
//!
//! It knows nothing of volumes, maps or the log.
//!
//! # Invariants
//! - A committed block is taken. A block leaves `Space` only after a durable checkpoint without it.
//! - `spare` = free blocks − blocks promised to dirty nodes and catalogue, in all their copies;
//!   promised blocks can always be allocated, so a checkpoint never runs out of space.

mod bitmap;
mod committed;
mod groups;
mod lost;
mod pairs;
mod places;
mod punch;
mod stream;
mod taken;

pub(crate) use committed::Committed;
pub(crate) use groups::{Demand, Space};
pub(crate) use lost::Reached;
pub(crate) use pairs::Place;
pub(crate) use places::Places;
pub(crate) use stream::Stream;

use cowshed_format::Pointer;
use cowshed_format::base::BlockAddr;

/// Number of runs marked or freed before another thread may take its turn.
const RUNS_AT_ONCE: usize = 64;

/// Adjacent blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRun {
    /// The first block.
    pub start: BlockAddr,
    /// The number of blocks.
    pub count: u32,
}

impl BlockRun {
    /// Returns the first block behind it.
    #[must_use]
    pub(crate) const fn end(self) -> BlockAddr {
        BlockAddr(self.start.0 + self.count as u64)
    }

    /// Returns the part of it at or behind a block.
    #[must_use]
    pub(crate) fn behind(self, below: BlockAddr) -> Self {
        let before = below
            .0
            .saturating_sub(self.start.0)
            .min(u64::from(self.count));
        Self {
            start: BlockAddr(self.start.0 + before),
            count: self.count - u32::try_from(before).expect("at most its count"),
        }
    }
}

/// A list of blocks, kept as runs where they happen to be adjacent.
#[derive(Debug, Default)]
pub(crate) struct BlockList {
    runs: Vec<BlockRun>,
    blocks: u64,
}

impl BlockList {
    /// Adds a run.
    pub(crate) fn push(&mut self, start: BlockAddr, count: u32) {
        self.blocks += u64::from(count);
        // The two copies of blocks take turns.
        for last in self.runs.iter_mut().rev().take(2) {
            if last.start.0 + u64::from(last.count) == start.0
                && let Some(joined) = last.count.checked_add(count)
            {
                last.count = joined;
                return;
            }
        }
        self.runs.push(BlockRun { start, count });
    }

    /// Adds all copies of what `pointer` leads to, in a pool whose groups begin at block
    /// `groups_start`.
    pub(crate) fn push_copies(&mut self, pointer: Pointer, groups_start: u64) {
        for addr in pointer.places(groups_start) {
            self.push(addr, 1);
        }
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.blocks += other.blocks;
        self.runs.append(&mut other.runs);
        other.blocks = 0;
    }

    /// Returns the runs.
    #[must_use]
    pub(crate) fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    /// Returns the number of blocks.
    #[must_use]
    pub(crate) const fn blocks(&self) -> u64 {
        self.blocks
    }
}
