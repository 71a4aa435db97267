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

/// A flush is a small one if at most this many blocks were taken since the one before.
const SMALL_FLUSH_BLOCKS: u32 = 64;
/// Number of small flushes in a row after which the host is to store blocks before they are written.
const SMALL_FLUSHES: u8 = 4;
/// Maximum number of blocks of a run that the host stores ahead (256 KiB).
const AHEAD_BLOCKS: u64 = 64;
/// Such a run is no larger than this part of what can still be written.
const AHEAD_SHARE: u64 = 64;
/// Shorter runs are not worth it.
const AHEAD_BLOCKS_MIN: u64 = 4;

/// The blocks that a stream has reserved.
#[derive(Debug)]
pub(crate) struct Stream {
    next: u64,
    left: u32,
    ahead: u32,
    /// Number of blocks taken since the last flush.
    unflushed: u32,
    /// Number of small flushes in a row.
    small_flushes: u8,
    /// True while somebody prepares a run.
    is_preparing: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            next: 0,
            left: 0,
            ahead: FIRST_RUN_BLOCKS,
            unflushed: 0,
            small_flushes: 0,
            is_preparing: false,
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
        self.unflushed = self.unflushed.saturating_add(count);
        Some(run)
    }

    /// Returns a run for the next writes if a flush follows each few of them, and none is reserved.
    /// The caller has the host store it, without any lock, and then calls `put_prepared`.
    pub(crate) fn take_to_prepare(&mut self, space: &Space, most: u32) -> Option<BlockRun> {
        let is_flushed_often = self.small_flushes >= SMALL_FLUSHES
            && self.unflushed.saturating_add(most) <= SMALL_FLUSH_BLOCKS;
        if self.left > 0 || self.is_preparing || !is_flushed_often {
            return None;
        }
        let blocks = (space.writable_blocks() / AHEAD_SHARE).min(AHEAD_BLOCKS);
        if blocks < AHEAD_BLOCKS_MIN {
            return None;
        }
        let most = u32::try_from(blocks).expect("at most 64");
        let run = space.allocate(most, 1, Demand::Write)?;
        self.is_preparing = true;
        Some(run)
    }

    /// Reserves a run that was prepared, unless another one is reserved by now.
    pub(crate) fn put_prepared(&mut self, space: &Space, run: BlockRun) {
        self.is_preparing = false;
        if self.left == 0 {
            (self.next, self.left) = (run.start.0, run.count);
        } else {
            space.give_back(run);
        }
    }

    /// Notes that a flush begins.
    pub(crate) fn note_flush(&mut self) {
        self.small_flushes = match std::mem::take(&mut self.unflushed) {
            0 => self.small_flushes,
            1..=SMALL_FLUSH_BLOCKS => self.small_flushes.saturating_add(1),
            _ => 0,
        };
    }

    /// Returns the reserved blocks that were not used.
    pub(crate) fn release(&mut self, space: &Space) {
        if self.left > 0 {
            space.give_back(BlockRun {
                start: BlockAddr(self.next),
                count: self.left,
            });
        }
        self.left = 0;
        self.ahead = FIRST_RUN_BLOCKS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::Layout;

    fn space(blocks: u64) -> Space {
        Space::new(Layout::new(blocks, 16).unwrap(), 1, |_| None)
    }

    /// Returns a stream of which each few blocks were flushed.
    fn flushed_often(space: &Space) -> Stream {
        let mut stream = Stream::default();
        for _ in 0..SMALL_FLUSHES {
            assert_eq!(stream.take_to_prepare(space, 1), None);
            stream.take(space, 3).unwrap();
            stream.note_flush();
            // One that has nothing to do changes nothing.
            stream.note_flush();
        }
        stream.release(space);
        stream
    }

    #[test]
    fn a_run_is_prepared_once_flushes_follow_few_writes_each() {
        let space = space(70_000);
        let mut stream = flushed_often(&space);
        let run = stream.take_to_prepare(&space, 1).unwrap();
        assert_eq!(u64::from(run.count), AHEAD_BLOCKS);
        assert_eq!(stream.take_to_prepare(&space, 1), None, "one at a time");
        stream.put_prepared(&space, run);
        assert_eq!(stream.take_to_prepare(&space, 1), None, "it has one");
        assert_eq!(stream.take(&space, 1).unwrap().start, run.start);
    }

    #[test]
    fn a_prepared_run_goes_back_if_another_one_was_reserved_meanwhile() {
        let space = space(70_000);
        let mut stream = flushed_often(&space);
        let free = space.free_blocks();
        let run = stream.take_to_prepare(&space, 1).unwrap();
        let other = stream.take(&space, 1).unwrap();
        assert!(other.start >= run.end());
        stream.put_prepared(&space, run);
        stream.release(&space);
        assert_eq!(space.free_blocks(), free - 1);
    }

    #[test]
    fn no_run_is_prepared_for_large_writes_or_flushes_or_in_a_full_pool() {
        let large = space(70_000);
        let mut stream = flushed_often(&large);
        assert_eq!(stream.take_to_prepare(&large, SMALL_FLUSH_BLOCKS + 1), None);
        for _ in 0..SMALL_FLUSH_BLOCKS + 1 {
            stream.take(&large, 1).unwrap();
        }
        stream.release(&large);
        assert_eq!(stream.take_to_prepare(&large, 1), None);
        stream.note_flush();
        assert_eq!(stream.take_to_prepare(&large, 1), None);

        let small = space(2000);
        let mut stream = flushed_often(&small);
        while small.writable_blocks() >= AHEAD_BLOCKS_MIN * AHEAD_SHARE {
            small.allocate(1, 1, Demand::Write).unwrap();
        }
        assert_eq!(stream.take_to_prepare(&small, 1), None);
    }
}
