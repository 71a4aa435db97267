//! What the host has read ahead of readers that keep what they read, and stop somewhere.
//!
//! The host reads ahead of whoever reads in order. A file of an image ends, and the blocks behind it
//! in the pool are another file's, which may have been read before and will not be again: nobody
//! would forget them. So the places where readers were last are known here, and what lies behind one
//! that is left is to be forgotten.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;

/// The most that the host reads ahead.
const AHEAD_BYTES: u64 = 4 << 20;
/// Number of reads at other places after which a reader counts as stopped.
const READS: u64 = 16;

/// The places where readers were last.
#[derive(Default)]
pub(super) struct Ahead {
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// Number of reads so far.
    reads: u64,
    /// The ends of reads that no other one continued, and their numbers, in this order.
    ends: VecDeque<(u64, u64)>,
}

impl Ahead {
    /// Notes a read; returns a range to forget, if a reader has stopped before it.
    pub(super) fn read(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut last = self.last.lock();
        last.reads += 1;
        let reads = last.reads;
        let goes_on = |(end, _): &(u64, u64)| (*end..=*end + AHEAD_BYTES).contains(&range.start);
        if let Some(at) = last.ends.iter().position(goes_on) {
            last.ends.remove(at);
        }
        last.ends.push_back((range.end, reads));
        let &(end, number) = last.ends.front()?;
        if number + READS >= reads {
            return None;
        }
        last.ends.pop_front();
        Some(end..end + AHEAD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_a_reader_that_stopped_is_forgotten_and_nothing_before() {
        const FAR: u64 = 1 << 30;
        let ahead = Ahead::default();
        assert_eq!(ahead.read(FAR..FAR + 4096), None);
        // Two that go on are never forgotten, however much they read, and the one that stopped is
        // once.
        let mut forgotten = Vec::new();
        for at in 0..100 {
            forgotten.extend(ahead.read(at * 4096..(at + 1) * 4096));
            // A little is left out.
            let at = 2 * FAR + at * 8192;
            forgotten.extend(ahead.read(at..at + 4096));
        }
        assert_eq!(forgotten.pop(), Some(FAR + 4096..FAR + 4096 + AHEAD_BYTES));
        assert_eq!(forgotten, []);
    }
}
