//! The taken blocks, and the allocation of free ones.

use super::bitmap::{Bits, bits, bits_mut, first_clear_run, fresh};
use super::{BlockList, BlockRun, RUNS_AT_ONCE};
use cowshed_format::Layout;
use cowshed_format::base::BlockAddr;
use cowshed_format::base::background_yield;
use cowshed_format::base::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::sync::{Mutex, RwLock};
use cowshed_format::group::Bitmap;
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use std::ops::Range;

/// Two groups whose numbers of free blocks differ by less than this (8 MiB) count as even: data that
/// is written in sequence is not scattered over both.
const EVEN_BLOCKS: usize = 2048;

/// The purpose of a request for space. As space runs out, writes stop first, then creating, then
/// changing, then removing; reclaim and checkpoints come last of all. Each has a quarter of the
/// slop that those before it cannot use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Users' data.
    Write,
    /// New volumes, names and records.
    Create,
    /// Changes of existing things that mostly free space: discards, renames. If a snapshot keeps
    /// the blocks that a discard drops, the map's own change remains.
    Change,
    /// Removing.
    Remove,
}

/// The groups of a pool, as writers see them.
pub(crate) struct Space {
    layout: RwLock<Layout>,
    pub(super) groups: RwLock<Vec<Mutex<Group>>>,
    /// Number of copies in which metadata is written, 1 or 2.
    pub(super) copies: u8,
    /// The two neighbouring groups, counted in twos, from which metadata was last taken.
    pub(super) pair_hint: AtomicUsize,
    /// The group from which two blocks were last taken at each smaller distance.
    pub(super) near_hints: [AtomicUsize; 15],
    /// The distances, as bits, at which no two blocks are free as far as known.
    pub(super) no_pairs: AtomicU32,
    /// Number of blocks that are not taken.
    pub(super) free: AtomicU64,
    /// Number of blocks that are neither taken nor promised.
    spare: AtomicI64,
    slop: AtomicI64,
    /// The lowest group that may have a free block, apart from those kept for metadata.
    pub(super) hint: AtomicUsize,
    /// Locked while free blocks are hidden from writers.
    pub(super) hiding: Mutex<()>,
    /// Number of free blocks that are hidden from writers.
    hidden: AtomicU64,
}

pub(super) struct Group {
    /// The group's first block.
    pub(super) start: u64,
    /// The number of its blocks.
    pub(super) blocks: usize,
    pub(super) free: usize,
    /// The block at which the next small allocation starts its search.
    pub(super) cursor: usize,
    /// The block at which the next search for two blocks at a distance starts.
    pub(super) pair_cursor: usize,
    /// An upper bound of the length of its runs of free blocks, as far as known.
    pub(super) longest: usize,
    /// `None` for a group from which nothing was ever allocated.
    pub(super) taken: Option<Box<Bitmap>>,
    /// Freed blocks that the host still stores.
    pub(super) stale: Option<Box<Bitmap>>,
    /// True if it is not known which blocks are free: none is allocated, and none becomes free.
    closed: bool,
}

impl Space {
    /// Returns the space of a pool in which `committed(group)` blocks are in use, and in which
    /// metadata is written in `copies` copies.
    #[must_use]
    pub(crate) fn new<'a>(
        layout: Layout,
        copies: u8,
        committed: impl Fn(u64) -> Option<&'a Bitmap>,
    ) -> Self {
        let groups: Vec<_> = (0..layout.group_count())
            .map(|group| Group::new(&layout, group, committed(group).map(|bits| Box::new(*bits))))
            .collect();
        let free = groups.iter().map(|group| group.free as u64).sum::<u64>();
        let space = Self {
            layout: RwLock::new(layout),
            groups: RwLock::new(groups.into_iter().map(Mutex::new).collect()),
            copies,
            pair_hint: AtomicUsize::new(0),
            near_hints: [const { AtomicUsize::new(0) }; 15],
            no_pairs: AtomicU32::new(0),
            free: AtomicU64::new(free),
            spare: AtomicI64::new(i64::try_from(free).expect("under 2^40 blocks")),
            slop: AtomicI64::new(0),
            hint: AtomicUsize::new(0),
            hiding: Mutex::new(()),
            hidden: AtomicU64::new(0),
        };
        space.set_slop(&layout);
        space
    }

    /// Closes a group whose blocks are all taken: nothing is allocated from it, whatever is freed.
    pub(crate) fn close_group(&self, group: u64) {
        let groups = self.groups.read();
        let mut group = groups[usize::try_from(group).expect("groups are in memory")].lock();
        assert!(group.free == 0, "a group that is closed has no free block");
        group.closed = true;
    }

    fn set_slop(&self, layout: &Layout) {
        let slop = layout.slop_blocks(self.copies);
        let slop = i64::try_from(slop).expect("under 2^40 blocks");
        self.slop.store(slop, Ordering::Relaxed);
    }

    /// Returns the places of the pool's parts.
    #[must_use]
    pub(crate) fn layout(&self) -> Layout {
        *self.layout.read()
    }

    /// Adds the blocks that `layout` has beyond the present one.
    pub(crate) fn grow(&self, layout: Layout) {
        let mut groups = self.groups.write();
        let mut added = 0;
        if let Some(last) = groups.last_mut() {
            let group = layout.group_count().min(groups_len(self)) - 1;
            let blocks = usize::try_from(layout.group_blocks(group)).expect("under 2^15");
            let last = last.get_mut();
            if last.closed {
                let old = last.blocks;
                bits_mut(last.taken_bits())[old..blocks].fill(true);
            } else {
                added += blocks - last.blocks;
                last.free += blocks - last.blocks;
            }
            last.blocks = blocks;
            last.longest = blocks;
        }
        for group in groups.len() as u64..layout.group_count() {
            let new = Group::new(&layout, group, None);
            added += new.free;
            groups.push(Mutex::new(new));
        }
        *self.layout.write() = layout;
        self.set_slop(&layout);
        self.hint.store(0, Ordering::Relaxed);
        self.pair_hint.store(0, Ordering::Relaxed);
        self.note_pairs();
        self.gain(added);
    }

    fn gain(&self, blocks: usize) {
        self.free.fetch_add(blocks as u64, Ordering::AcqRel);
        self.unreserve(blocks as u64);
    }

    /// Returns the number of blocks that are not taken.
    #[must_use]
    pub(crate) fn free_blocks(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Returns the number of free blocks that cannot be allocated just now, because the host is
    /// taking their space back.
    #[must_use]
    pub(crate) fn hidden_blocks(&self) -> u64 {
        self.hidden.load(Ordering::Relaxed)
    }

    /// Returns the number of blocks that users can still write: free, not promised, and beyond the
    /// slop.
    #[must_use]
    pub(crate) fn writable_blocks(&self) -> u64 {
        let spare = self.spare.load(Ordering::Relaxed) - self.slop.load(Ordering::Relaxed);
        u64::try_from(spare).unwrap_or(0)
    }

    /// Returns the number of blocks that `count` blocks of metadata take in all their copies.
    #[must_use]
    pub(crate) fn in_copies(&self, count: u64) -> u64 {
        count * u64::from(self.copies)
    }

    /// Promises the space for `count` blocks of metadata; `false` if there is not that much for
    /// this demand.
    #[must_use]
    pub(crate) fn promise(&self, count: u64, demand: Demand) -> bool {
        self.reserve(self.in_copies(count), demand)
    }

    /// Makes a promise that must be kept: a recovery finds the blocks that were promised before the
    /// crash.
    pub(crate) fn promise_again(&self, count: u64) {
        self.reserve_again(self.in_copies(count));
    }

    /// Takes back a promise.
    pub(crate) fn void_promise(&self, count: u64) {
        self.unreserve(self.in_copies(count));
    }

    /// Sets `blocks` blocks aside; `false` if there are not that many for this demand.
    #[must_use]
    pub(crate) fn reserve(&self, blocks: u64, demand: Demand) -> bool {
        let slop = self.slop.load(Ordering::Relaxed);
        let kept = match demand {
            Demand::Write => slop,
            Demand::Create => slop / 4 * 3,
            Demand::Change => slop / 2,
            Demand::Remove => slop / 4,
        };
        let wanted = i64::try_from(blocks).expect("under 2^40 blocks");
        if self.spare.fetch_sub(wanted, Ordering::AcqRel) - wanted >= kept {
            return true;
        }
        self.unreserve(blocks);
        false
    }

    /// Returns true if the part of the slop that even removing must not use has been touched.
    #[must_use]
    pub(crate) fn is_short(&self) -> bool {
        self.spare.load(Ordering::Relaxed) < self.slop.load(Ordering::Relaxed) / 4
    }

    /// Waits until the free blocks that are hidden from writers just now can be allocated again.
    pub(crate) fn await_hidden(&self) {
        drop(self.hiding.lock());
    }

    /// Sets blocks aside that must be there.
    pub(crate) fn reserve_again(&self, blocks: u64) {
        let wanted = i64::try_from(blocks).expect("under 2^40 blocks");
        self.spare.fetch_sub(wanted, Ordering::AcqRel);
    }

    /// Releases blocks that were set aside.
    pub(crate) fn unreserve(&self, blocks: u64) {
        let blocks = i64::try_from(blocks).expect("under 2^40 blocks");
        self.spare.fetch_add(blocks, Ordering::AcqRel);
    }

    /// Allocates up to `most` adjacent free blocks for users' data, and at least `least` if there
    /// is such a run; `None` when the pool is full for `demand`.
    #[must_use]
    pub(crate) fn allocate(&self, most: u32, least: u32, demand: Demand) -> Option<BlockRun> {
        let mut wanted = most;
        while !self.reserve(u64::from(wanted), demand) {
            // Near the end, the remaining blocks are handed out to the last one.
            if wanted == 1 {
                return None;
            }
            wanted = wanted.div_ceil(2);
        }
        let run = self
            .take(wanted, least.min(wanted))
            .or_else(|| self.take(wanted, 1));
        let Some(run) = run else {
            self.unreserve(u64::from(wanted));
            return None;
        };
        self.unreserve(u64::from(wanted - run.count));
        Some(run)
    }

    pub(super) fn take(&self, most: u32, least: u32) -> Option<BlockRun> {
        let groups = self.groups.read();
        let kept = self.kept_for_metadata();
        let [first, second] = [kept.start, kept.start + 1].map(|number| {
            let group = groups.get(number).filter(|_| kept.contains(&number));
            group.map_or(0, |group| group.lock().free)
        });
        let may_be_elsewhere = self.free_blocks() > (first + second) as u64;
        if may_be_elsewhere {
            let hint = self.hint.load(Ordering::Relaxed).min(groups.len());
            for number in (hint..groups.len()).chain(0..hint) {
                if kept.contains(&number) {
                    self.pass(number);
                } else if let Some(run) = self.take_from(&groups, number, most, least) {
                    return Some(run);
                }
            }
        }
        let mut order = [kept.start, kept.start + 1];
        if second / EVEN_BLOCKS > first / EVEN_BLOCKS {
            order.reverse();
        }
        let take = |number| self.take_from(&groups, number, most, least);
        let is_there = |number: &usize| kept.contains(number) && *number < groups.len();
        let run = order.into_iter().filter(is_there).find_map(take);
        if run.is_some() || may_be_elsewhere {
            return run;
        }
        // Others may have taken what was kept, while the counter still had it.
        (0..groups.len()).find_map(take)
    }

    fn take_from(
        &self,
        groups: &[Mutex<Group>],
        number: usize,
        most: u32,
        least: u32,
    ) -> Option<BlockRun> {
        let mut group = groups[number].lock();
        let run = group.take(most as usize, least as usize);
        if let Some(run) = run {
            self.free.fetch_sub(u64::from(run.count), Ordering::AcqRel);
        }
        if group.free == 0 {
            self.pass(number);
        }
        run
    }

    /// Lets the next search begin behind group `number`, if it would begin there. A later free may
    /// have lowered the hint meanwhile: it is only advanced from here.
    fn pass(&self, number: usize) {
        let next = number + 1;
        let _ = self
            .hint
            .compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Marks blocks that a log record refers to as taken; `false` if one of them already was taken
    /// or can hold no data.
    #[must_use]
    pub(crate) fn claim(&self, run: BlockRun) -> bool {
        let layout = self.layout();
        let groups = self.groups.read();
        for addr in run.start.0..run.start.0 + u64::from(run.count) {
            let Some((group, index)) = layout.locate(BlockAddr(addr)) else {
                return false;
            };
            let mut group = groups[usize::try_from(group).expect("groups are in memory")].lock();
            if group.closed {
                continue;
            }
            let index = usize::try_from(index).expect("under 2^15");
            if bits(group.taken_bits())[index] {
                return false;
            }
            bits_mut(group.taken_bits()).set(index, true);
            group.free -= 1;
            self.free.fetch_sub(1, Ordering::AcqRel);
            self.spare.fetch_sub(1, Ordering::AcqRel);
        }
        true
    }

    /// Returns blocks that were allocated and never became part of the pool's state.
    pub(crate) fn give_back(&self, run: BlockRun) {
        self.put(run, false);
    }

    /// Frees blocks that no durable state has any more.
    pub(crate) fn free(&self, list: &BlockList) {
        for runs in list.runs().chunks(RUNS_AT_ONCE) {
            runs.iter().for_each(|run| self.put(*run, true));
            background_yield::offer();
        }
    }

    fn put(&self, run: BlockRun, stale: bool) {
        let layout = self.layout();
        let groups = self.groups.read();
        let (mut next, end) = (run.start.0, run.start.0 + u64::from(run.count));
        while next < end {
            let (number, index) = layout
                .locate(BlockAddr(next))
                .expect("only data blocks are freed");
            let count = (layout.group_blocks(number) - index).min(end - next);
            let number = usize::try_from(number).expect("groups are in memory");
            let (first, len) = (index_of(index), index_of(count));
            next += count;
            let mut group = groups[number].lock();
            if group.closed {
                continue;
            }
            group.put(first..first + len, stale);
            drop(group);
            self.hint.fetch_min(number, Ordering::Relaxed);
            if stale {
                self.note_pairs();
            }
            self.gain(len);
        }
    }

    pub(super) fn with_groups<R>(&self, visit: impl FnOnce(&[Mutex<Group>]) -> R) -> R {
        visit(&self.groups.read())
    }

    /// Reserves up to `most` blocks to be hidden, and returns their number; `None` if writers would
    /// miss them.
    pub(super) fn reserve_for_hiding(&self, most: usize) -> Option<usize> {
        let slop = u64::try_from(self.slop.load(Ordering::Relaxed)).unwrap_or(0);
        let mut blocks = most;
        while !self.reserve(blocks as u64 + slop, Demand::Write) {
            if blocks == 1 {
                return None;
            }
            blocks /= 2;
        }
        self.unreserve(slop);
        Some(blocks)
    }

    /// Hides blocks, some of those reserved, from allocation while they are being discarded.
    pub(super) fn hide(&self, set_aside: usize, blocks: usize) {
        self.hidden.store(blocks as u64, Ordering::Relaxed);
        self.free.fetch_sub(blocks as u64, Ordering::AcqRel);
        self.unreserve((set_aside - blocks) as u64);
    }

    /// Makes hidden blocks visible again.
    pub(super) fn show(&self, blocks: usize) {
        self.hidden.store(0, Ordering::Relaxed);
        self.note_pairs();
        self.gain(blocks);
    }
}

fn groups_len(space: &Space) -> u64 {
    space.layout.read().group_count()
}

fn index_of(index: u64) -> usize {
    usize::try_from(index).expect("a group has under 2^16 blocks")
}

impl Group {
    fn new(layout: &Layout, group: u64, taken: Option<Box<Bitmap>>) -> Self {
        let blocks = index_of(layout.group_blocks(group));
        let used = match &taken {
            Some(taken) => bits(taken)[..blocks].count_ones(),
            None => index_of(GROUP_HEADER_BLOCKS),
        };
        Self {
            start: layout.group_start(group),
            blocks,
            free: blocks - used,
            cursor: index_of(GROUP_HEADER_BLOCKS),
            pair_cursor: 0,
            longest: blocks,
            taken,
            stale: None,
            closed: false,
        }
    }

    /// Returns true if it is not known which of its blocks are free.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    fn taken_bits(&mut self) -> &mut Bitmap {
        self.taken.get_or_insert_with(fresh)
    }

    fn take(&mut self, most: usize, least: usize) -> Option<BlockRun> {
        if self.free < least || self.longest < least {
            return None;
        }
        let (blocks, cursor) = (self.blocks, self.cursor);
        let taken = self.taken.get_or_insert_with(fresh);
        let bits = &mut bits_mut(taken)[..blocks];
        let Some(run) =
            find_run(bits, cursor, most, least).or_else(|| find_run(bits, 0, most, least))
        else {
            self.longest = least - 1;
            return None;
        };
        bits[run.clone()].fill(true);
        if let Some(stale) = &mut self.stale {
            bits_mut(stale)[run.clone()].fill(false);
        }
        self.free -= run.len();
        if least == 1 {
            self.cursor = run.end;
        }
        let start = BlockAddr(self.start + run.start as u64);
        Some(BlockRun {
            start,
            count: u32::try_from(run.len()).expect("under 2^16"),
        })
    }

    fn put(&mut self, range: Range<usize>, stale: bool) {
        let bits = bits_mut(self.taken_bits());
        assert!(
            bits[range.clone()].all(),
            "a block is freed that was not taken"
        );
        bits[range.clone()].fill(false);
        if stale {
            let bitmap = self.stale.get_or_insert_with(|| Box::new([0; _]));
            bits_mut(bitmap)[range.clone()].fill(true);
        }
        self.free += range.len();
        self.longest = self.blocks;
        self.cursor = self.cursor.min(range.start);
        self.pair_cursor = self.pair_cursor.min(range.start);
    }
}

/// Returns the first run of at least `least` clear bits at or after `from`, cut to `most`.
fn find_run(bits: &Bits, from: usize, most: usize, least: usize) -> Option<Range<usize>> {
    let mut from = from;
    loop {
        let run = first_clear_run(bits, from, most)?;
        if run.len() >= least {
            return Some(run);
        }
        from = run.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(blocks: u64) -> Space {
        Space::new(Layout::new(blocks, 16).unwrap(), 1, |_| None)
    }

    #[test]
    fn everything_can_be_allocated_once_and_given_back() {
        let space = space(70_000);
        let free = space.free_blocks();
        let mut seen = std::collections::BTreeSet::new();
        let mut runs = Vec::new();
        while let Some(run) = space.allocate(100, 1, Demand::Remove) {
            for addr in run.start.0..run.start.0 + u64::from(run.count) {
                assert!(space.layout().locate(BlockAddr(addr)).is_some());
                assert!(seen.insert(addr), "block {addr} was handed out twice");
            }
            runs.push(run);
        }
        assert_eq!(space.free_blocks(), free - seen.len() as u64);
        runs.into_iter().for_each(|run| space.give_back(run));
        assert_eq!(space.free_blocks(), free);
    }

    #[test]
    fn as_space_runs_out_writes_stop_first_and_removing_last() {
        let space = space(2000);
        while space.allocate(1, 1, Demand::Write).is_some() {}
        assert!(space.reserve(1, Demand::Create));
        while space.reserve(1, Demand::Create) {}
        assert!(space.reserve(1, Demand::Change));
        while space.reserve(1, Demand::Change) {}
        assert!(!space.is_short());
        assert!(space.reserve(1, Demand::Remove));
        while space.reserve(1, Demand::Remove) {}
        space.reserve_again(1);
        assert!(space.is_short());
        assert!(space.allocate_promised().is_some());
    }

    #[test]
    fn growing_adds_the_rest_of_the_last_group_and_new_ones() {
        let space = space(2000);
        let before = space.free_blocks();
        let layout = Layout::new(100_000, 16).unwrap();
        space.grow(layout);
        let whole = Space::new(layout, 1, |_| None).free_blocks();
        assert!(before < whole);
        assert_eq!(space.free_blocks(), whole);
    }

    #[test]
    fn a_claimed_block_is_not_handed_out() {
        let space = space(2000);
        let run = BlockRun {
            start: BlockAddr(space.layout().group_start(0) + 4),
            count: 3,
        };
        assert!(space.claim(run));
        assert!(!space.claim(run));
        assert!(!space.claim(BlockRun {
            start: BlockAddr(3),
            count: 1
        }));
        assert_eq!(
            space.allocate(1, 1, Demand::Write).unwrap().start.0,
            run.start.0 + 3
        );
    }
}
