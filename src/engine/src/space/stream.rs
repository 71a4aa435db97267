//! A run of blocks reserved for one stream of writes, so that data written in sequence is stored in
//! sequence and streams do not mix.

use super::{BlockRun, Demand, Space};
use cowshed_format::base::BlockAddr;

/// Length of the first run that a stream takes, in blocks; each next one is twice as long.
const FIRST_RUN_BLOCKS: u32 = 16;
/// Maximum length of a run that a stream takes, in blocks (1 MiB).
const LONGEST_RUN_BLOCKS: u32 = 256;

/// Writes of at least this many blocks (64 KiB) look for runs of at least this many.
const LONG_BLOCKS: u32 = 16;

/// The blocks that a stream has reserved.
#[derive(Debug)]
pub(crate) struct Stream {
    next: u64,
    left: u32,
    ahead: u32,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            next: 0,
            left: 0,
            ahead: FIRST_RUN_BLOCKS,
        }
    }
}

impl Stream {
    /// Takes up to `most` adjacent blocks; `None` when the pool is full for writes.
    pub(crate) fn take(&mut self, space: &Space, most: u32) -> Option<BlockRun> {
        if self.left == 0 {
            // A large write looks for adjacent space; a small one takes the first space there is,
            // which the host is most likely to have at hand.
            let least = if most >= LONG_BLOCKS { LONG_BLOCKS } else { 1 };
            let run = space.allocate(self.ahead.max(most), least, Demand::Write)?;
            (self.next, self.left) = (run.start.0, run.count);
            self.ahead = (self.ahead * 2).min(LONGEST_RUN_BLOCKS);
        }
        let count = most.min(self.left);
        let run = BlockRun {
            start: BlockAddr(self.next),
            count,
        };
        self.next += u64::from(count);
        self.left -= count;
        Some(run)
    }

    /// Returns the reserved blocks that were not used.
    pub(crate) fn release(&mut self, space: &Space) {
        if self.left > 0 {
            space.give_back(BlockRun {
                start: BlockAddr(self.next),
                count: self.left,
            });
        }
        *self = Self::default();
    }
}
