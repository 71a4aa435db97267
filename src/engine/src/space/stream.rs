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
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            next: 0,
            left: 0,
            ahead: FIRST_RUN_BLOCKS,
            unflushed: 0,
            small_flushes: 0,
        }
    }
}

impl Stream {
    /// Takes up to `most` adjacent blocks; `None` when the pool is full for writes. Where a flush
    /// follows each few of them, `prepare` gets each reserved run before the first of it is taken.
    pub(crate) fn take(
        &mut self,
        space: &Space,
        most: u32,
        prepare: impl FnOnce(BlockRun),
    ) -> Option<BlockRun> {
        if self.left == 0 {
            // A large write looks for adjacent space; a small one takes the first space there is,
            // which the host is most likely to have at hand.
            let least = if most >= LONG_BLOCKS { LONG_BLOCKS } else { 1 };
            let is_flushed_often = self.is_flushed_often();
            if is_flushed_often {
                self.ahead = LONGEST_RUN_BLOCKS;
            }
            let run = space.allocate(self.ahead.max(most), least, Demand::Write)?;
            (self.next, self.left) = (run.start.0, run.count);
            self.ahead = (self.ahead * 2).min(LONGEST_RUN_BLOCKS);
            if is_flushed_often {
                prepare(run);
            }
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

    /// Notes that a flush begins.
    pub(crate) fn note_flush(&mut self) {
        self.small_flushes = match std::mem::take(&mut self.unflushed) {
            0 => self.small_flushes,
            1..=SMALL_FLUSH_BLOCKS => self.small_flushes.saturating_add(1),
            _ => 0,
        };
    }

    const fn is_flushed_often(&self) -> bool {
        self.small_flushes >= SMALL_FLUSHES && self.unflushed <= SMALL_FLUSH_BLOCKS
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

    fn space() -> Space {
        Space::new(Layout::new(70_000, 16).unwrap(), 1, |_| None)
    }

    /// Takes blocks one by one, and returns the runs that were prepared.
    fn take(stream: &mut Stream, space: &Space, blocks: u32) -> Vec<BlockRun> {
        let mut prepared = Vec::new();
        for _ in 0..blocks {
            let before = prepared.len();
            let run = stream.take(space, 1, |run| prepared.push(run)).unwrap();
            let now = prepared[before..].first();
            assert!(now.is_none_or(|now: &BlockRun| now.start == run.start));
        }
        prepared
    }

    #[test]
    fn runs_are_prepared_once_flushes_follow_few_writes_each() {
        let (space, mut stream) = (space(), Stream::default());
        for _ in 0..SMALL_FLUSHES {
            assert_eq!(take(&mut stream, &space, 3), []);
            stream.note_flush();
            // One that has nothing to do changes nothing.
            stream.note_flush();
        }
        stream.release(&space);
        let prepared = take(&mut stream, &space, 1);
        assert_eq!(prepared.len(), 1);
        assert_eq!(prepared[0].count, LONGEST_RUN_BLOCKS);
        // Once for each run.
        assert_eq!(take(&mut stream, &space, 20), []);
    }

    #[test]
    fn no_run_is_prepared_for_large_flushes_or_many_writes_without_one() {
        let (space, mut stream) = (space(), Stream::default());
        for _ in 0..SMALL_FLUSHES {
            take(&mut stream, &space, 1);
            stream.note_flush();
        }
        stream.release(&space);
        assert_eq!(take(&mut stream, &space, 600).len(), 1);
        stream.note_flush();
        stream.release(&space);
        assert_eq!(take(&mut stream, &space, 1), []);
    }
}
