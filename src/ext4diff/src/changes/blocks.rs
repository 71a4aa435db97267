//! Sorted ranges of blocks: those that differ, and those that are accounted for.

use crate::ext4::BLOCK_LEN;
use std::ops::Range;

/// The blocks in which two file systems differ.
pub(super) struct ChangedBlocks {
    /// The ranges, sorted and not adjacent.
    ranges: Vec<Range<u64>>,
}

impl ChangedBlocks {
    /// Takes the ranges of bytes that differ.
    pub(super) fn of_bytes(differing: &[Range<u64>]) -> Self {
        let block = BLOCK_LEN as u64;
        let ranges = differing
            .iter()
            .map(|bytes| bytes.start / block..bytes.end.div_ceil(block));
        Self {
            ranges: merged(ranges.collect()),
        }
    }

    /// Returns the changed blocks in `range`.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self
            .ranges
            .partition_point(|known| known.end <= range.start);
        self.ranges[first..]
            .iter()
            .take_while(move |known| known.start < range.end)
            .map(move |known| known.start.max(range.start)..known.end.min(range.end))
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        self.within(block..block + 1).next().is_some()
    }

    /// Returns the changed blocks that are not in `accounted`.
    pub(super) fn without(&self, accounted: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let accounted = merged(accounted);
        let mut left = Vec::new();
        for range in &self.ranges {
            let mut at = range.start;
            let first = accounted.partition_point(|known| known.end <= at);
            for known in accounted[first..]
                .iter()
                .take_while(|known| known.start < range.end)
            {
                if at < known.start {
                    left.push(at..known.start);
                }
                at = known.end;
            }
            if at < range.end {
                left.push(at..range.end);
            }
        }
        left
    }
}

/// Sorts ranges and joins those that touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accounted_for_is_taken_out() {
        let changed = ChangedBlocks {
            ranges: merged(vec![10..20, 30..31, 19..22, 5..5]),
        };
        assert_eq!(changed.ranges, [10..22, 30..31]);
        assert_eq!(changed.within(21..31).collect::<Vec<_>>(), [21..22, 30..31]);
        assert!(changed.contains(30) && !changed.contains(22));
        assert_eq!(changed.without(vec![]), [10..22, 30..31]);
        assert_eq!(
            changed.without(vec![12..14, 0..11, 21..40]),
            [11..12, 14..21]
        );
    }
}
