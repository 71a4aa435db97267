//! Giving freed blocks back to the host, in batches and off the write path.

use super::Space;
use super::bitmap::{bits, bits_mut, first_clear_run, first_set_run, fresh};
use super::groups::Group;
use cowshed_format::base::cancel;
use cowshed_format::base::{BlockAddr, Result};
use cowshed_format::device::Device;
use std::ops::Range;

/// Minimum run that the background gives back. Shorter runs stay for the next writer: punching each
/// block that a random overwrite frees would cost more than it gives.
const WORTHWHILE_BLOCKS: usize = 16;

/// Maximum number of blocks (4 MiB) that are hidden from writers at a time.
const BATCH_BLOCKS: usize = 1024;

/// The free blocks to give back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those freed since they were last given back, where enough of them adjoin.
    Stale,
    /// All free blocks.
    All,
}

impl Space {
    /// Gives back recently freed blocks, in runs of 64 KiB and longer. Returns the number of bytes.
    ///
    /// # Errors
    /// As `Device::discard`.
    pub(crate) fn punch_stale(&self, device: &dyn Device) -> Result<u64> {
        self.punch(device, Which::Stale)
    }

    /// Gives back all free blocks. Returns the number of bytes.
    ///
    /// # Errors
    /// As `Device::discard`.
    pub(crate) fn punch_all(&self, device: &dyn Device) -> Result<u64> {
        self.punch(device, Which::All)
    }

    fn punch(&self, device: &dyn Device, which: Which) -> Result<u64> {
        let count = self.with_groups(<[_]>::len);
        let mut bytes = 0;
        let (mut number, mut from) = (0, 0);
        while number < count {
            cancel::check()?;
            // Hidden from writers while the host works on them; only a writer that finds no space
            // waits for it. Promised blocks must stay at hand, and so must those that writers take
            // next: so a pool in which hardly anything is free is not punched.
            let _hiding = self.hiding.lock();
            let Some(most) = self.reserve_for_hiding(BATCH_BLOCKS) else {
                return Ok(bytes);
            };
            let (at, (start, runs)) = self.with_groups(|groups| {
                let mut group = groups[number].lock();
                (number, (group.start, group.hide(which, from, most)))
            });
            let blocks = runs.iter().map(Range::len).sum::<usize>();
            self.hide(most, blocks);
            (number, from) = match runs.last() {
                Some(last) => (number, last.end),
                None => (number + 1, 0),
            };
            let outcome = runs.iter().try_for_each(|run| {
                let addr = BlockAddr(start + run.start as u64);
                device.discard(
                    addr.offset_bytes(),
                    BlockAddr(run.len() as u64).offset_bytes(),
                )
            });
            self.with_groups(|groups| groups[at].lock().show(&runs));
            self.show(blocks);
            outcome?;
            bytes += BlockAddr(blocks as u64).offset_bytes();
        }
        Ok(bytes)
    }
}

impl Group {
    /// Takes up to `most` blocks at or after `from`.
    fn hide(&mut self, which: Which, from: usize, most: usize) -> Vec<Range<usize>> {
        let mut runs = match which {
            Which::Stale => self.stale_runs(from),
            Which::All => self.free_runs(from),
        };
        let mut left = most;
        for run in &mut runs {
            run.end = run.end.min(run.start + left);
            left -= run.len();
        }
        runs.retain(|run| !run.is_empty());
        let taken = bits_mut(self.taken.get_or_insert_with(fresh));
        for run in &runs {
            taken[run.clone()].fill(true);
            self.free -= run.len();
            if let Some(stale) = &mut self.stale {
                bits_mut(stale)[run.clone()].fill(false);
            }
        }
        runs
    }

    fn show(&mut self, runs: &[Range<usize>]) {
        let taken = bits_mut(self.taken.get_or_insert_with(fresh));
        for run in runs {
            taken[run.clone()].fill(false);
            self.free += run.len();
            self.longest = self.blocks;
            self.cursor = self.cursor.min(run.start);
        }
    }

    fn stale_runs(&mut self, mut from: usize) -> Vec<Range<usize>> {
        let Some(stale) = &self.stale else {
            return Vec::new();
        };
        let mut runs = Vec::new();
        while let Some(run) = first_set_run(bits(stale), from) {
            from = run.end;
            if run.len() >= WORTHWHILE_BLOCKS {
                runs.push(run);
            }
        }
        runs
    }

    fn free_runs(&mut self, mut from: usize) -> Vec<Range<usize>> {
        let blocks = self.blocks;
        let taken = self.taken.get_or_insert_with(fresh);
        let bits = &bits(taken)[..blocks];
        let mut runs = Vec::new();
        while let Some(run) = first_clear_run(bits, from, blocks) {
            from = run.end;
            runs.push(run);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockList, Demand};
    use super::*;
    use cowshed_format::Layout;
    use cowshed_format::device::MemoryDevice;

    #[test]
    fn only_freed_runs_that_are_long_enough_go_back_to_the_host() {
        let device = MemoryDevice::recording(64 << 20);
        let layout = Layout::new(device.len_bytes() / 4096, 16).unwrap();
        let space = Space::new(layout, 1, |_| None);
        let run = space.allocate(100, 1, Demand::Write).unwrap();
        let free = space.free_blocks();
        let mut list = BlockList::default();
        list.push(BlockAddr(run.start.0 + 10), 20);
        list.push(BlockAddr(run.start.0 + 50), 3);
        space.free(&list);
        assert_eq!(space.punch_stale(&device).unwrap(), 20 << 12);
        assert_eq!(space.punch_stale(&device).unwrap(), 0);
        assert_eq!(space.free_blocks(), free + 23);
        assert_eq!(space.punch_all(&device).unwrap(), (free + 23) << 12);
        assert_eq!(space.free_blocks(), free + 23);
    }
}
