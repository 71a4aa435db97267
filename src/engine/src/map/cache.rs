//! Copies of stored nodes, in fixed frames up to a byte limit.
//!
//! Set-associative: a node may be in any of the eight frames of one set. Frames are allocated when
//! first needed and never freed, so a reader may read one without owning it: it checks tag and
//! version before and after, and treats a frame that was given to another node meanwhile as a miss.

use cowshed_format::Pointer;
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use cowshed_format::node::{Entries, NODE_ENTRIES};
use std::sync::OnceLock;

const WAYS: usize = 8;
/// Cost of a frame with its share of a set and its slot, in bytes.
const FRAME_BYTES: u64 = 4096 + 64;
const FEWEST_SETS: usize = 4;

/// Identifies the node in each frame of a set. It takes two neighbouring cache lines, so that a
/// look-up waits for only one more, that of the entry.
#[repr(align(128))]
struct Set {
    /// Address and low birth bits of the node in each frame; zero for an empty frame.
    tags: [AtomicU64; WAYS],
    /// The high bits of the births.
    births: [AtomicU32; WAYS],
    /// Odd while a frame is being given to another node.
    versions: [AtomicU32; WAYS],
}

const _: () = assert!(WAYS * (size_of::<u64>() + 2 * size_of::<u32>()) == 128);

/// Selects the frame of a set to be replaced next.
struct Clock {
    /// One bit for each frame: set if it was read since the hand last passed.
    used: AtomicU8,
    hand: Mutex<u8>,
}

type Frame = [[AtomicU64; 2]; NODE_ENTRIES];

pub(super) struct NodeCache {
    sets: Box<[Set]>,
    clocks: Box<[Clock]>,
    frames: Box<[OnceLock<Box<Frame>>]>,
}

impl NodeCache {
    /// Returns a cache that never takes more than `limit_bytes`, except that it has a few frames at
    /// least.
    pub(super) fn new(limit_bytes: u64) -> Self {
        let frames = usize::try_from(limit_bytes / FRAME_BYTES).unwrap_or(usize::MAX);
        let sets = (frames / WAYS).max(FEWEST_SETS);
        // With a power of two, a mask finds the set; rounded down, to keep to the limit.
        let sets = if sets.is_power_of_two() {
            sets
        } else {
            sets.next_power_of_two() / 2
        };
        let set = || Set {
            tags: [const { AtomicU64::new(0) }; WAYS],
            births: [const { AtomicU32::new(0) }; WAYS],
            versions: [const { AtomicU32::new(0) }; WAYS],
        };
        let clock = || Clock {
            used: AtomicU8::new(0),
            hand: Mutex::new(0),
        };
        Self {
            sets: (0..sets).map(|_| set()).collect(),
            clocks: (0..sets).map(|_| clock()).collect(),
            frames: (0..sets * WAYS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Returns the maximum number of bytes that the cache takes.
    #[cfg(test)]
    pub(super) fn limit_bytes(&self) -> u64 {
        self.frames.len() as u64 * FRAME_BYTES
    }

    fn set_of(&self, pointer: Pointer) -> usize {
        let hash = pointer.addr().0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(hash).expect("32 bits") & (self.sets.len() - 1)
    }

    /// Reads entries from `first` on of the node that `pointer` names; `None` on a miss.
    pub(super) fn read(&self, pointer: Pointer, first: usize, out: &mut [Pointer]) -> Option<()> {
        let number = self.set_of(pointer);
        let (set, tag) = (&self.sets[number], tag_of(pointer));
        let way = set
            .tags
            .iter()
            .position(|found| found.load(Ordering::Acquire) == tag)?;
        let version = set.versions[way].load(Ordering::Acquire);
        let other = set.births[way].load(Ordering::Relaxed) != birth_rest(pointer);
        if version & 1 != 0 || other {
            return None;
        }
        let frame = self.frames[number * WAYS + way].get()?;
        for (pointer, [low, high]) in out.iter_mut().zip(&frame[first..]) {
            let words = [low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)];
            *pointer = Pointer::from_words(words);
        }
        fence(Ordering::Acquire);
        // A frame that was reassigned meanwhile has another version, and one that was reassigned
        // back to the same node has the same entries.
        let same = set.versions[way].load(Ordering::Relaxed) == version;
        if !same || set.tags[way].load(Ordering::Relaxed) != tag {
            return None;
        }
        let (used, bit) = (&self.clocks[number].used, 1 << way);
        if used.load(Ordering::Relaxed) & bit == 0 {
            used.fetch_or(bit, Ordering::Relaxed);
        }
        Some(())
    }

    /// Returns a copy of the whole node; `None` on a miss.
    pub(super) fn copy(&self, pointer: Pointer) -> Option<Box<Entries>> {
        let mut out = Box::new([Pointer::HOLE; NODE_ENTRIES]);
        self.read(pointer, 0, &mut *out)?;
        Some(out)
    }

    /// Inserts a node, in place of one that was not read lately.
    pub(super) fn insert(&self, pointer: Pointer, entries: &Entries) {
        let number = self.set_of(pointer);
        let (set, clock, tag) = (&self.sets[number], &self.clocks[number], tag_of(pointer));
        let mut hand = clock.hand.lock();
        let same = |tag: &AtomicU64| tag.load(Ordering::Relaxed) & ADDR_MASK == tag_addr(pointer);
        let way = set
            .tags
            .iter()
            .position(same)
            .unwrap_or_else(|| clock.victim(set, &mut hand));
        let empty = || Box::new([const { [const { AtomicU64::new(0) }; 2] }; NODE_ENTRIES]);
        let frame = self.frames[number * WAYS + way].get_or_init(empty);
        // One writer at a time: the holder of the hand.
        let version = set.versions[way].load(Ordering::Relaxed);
        set.versions[way].store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        set.tags[way].store(0, Ordering::Relaxed);
        set.births[way].store(birth_rest(pointer), Ordering::Relaxed);
        for (words, entry) in frame.iter().zip(entries) {
            let [low, high] = entry.words();
            words[0].store(low, Ordering::Relaxed);
            words[1].store(high, Ordering::Relaxed);
        }
        set.versions[way].store(version.wrapping_add(2), Ordering::Release);
        set.tags[way].store(tag, Ordering::Release);
    }
}

impl Clock {
    fn victim(&self, set: &Set, hand: &mut u8) -> usize {
        if let Some(empty) = set
            .tags
            .iter()
            .position(|tag| tag.load(Ordering::Relaxed) == 0)
        {
            return empty;
        }
        for _ in 0..WAYS {
            let way = *hand;
            *hand = (way + 1) % 8;
            if self.used.fetch_and(!(1 << way), Ordering::Relaxed) & (1 << way) == 0 {
                return usize::from(way);
            }
        }
        usize::from(*hand)
    }
}

const ADDR_MASK: u64 = (1 << 40) - 1;

fn tag_addr(pointer: Pointer) -> u64 {
    pointer.addr().0 & ADDR_MASK
}

/// Returns the high 24 bits of the birth.
fn birth_rest(pointer: Pointer) -> u32 {
    u32::try_from(pointer.birth().0 >> 24).expect("a birth has 48 bits")
}

/// Returns the address and the low 24 bits of the birth. Address zero holds a superblock, never a
/// node.
fn tag_of(pointer: Pointer) -> u64 {
    tag_addr(pointer) | pointer.birth().0 << 40
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::{BlockAddr, Generation};

    fn node(addr: u64, birth: u64) -> (Pointer, Box<Entries>) {
        let data = Pointer::data(BlockAddr(addr + 1), Generation(birth), 7);
        (
            Pointer::node(BlockAddr(addr), Generation(birth), 0),
            Box::new([data; NODE_ENTRIES]),
        )
    }

    #[test]
    fn a_node_is_found_by_address_and_birth_only() {
        let cache = NodeCache::new(1 << 20);
        let (pointer, entries) = node(50, 3);
        assert!(cache.copy(pointer).is_none());
        cache.insert(pointer, &entries);
        assert_eq!(cache.copy(pointer), Some(entries));
        assert!(cache.copy(node(50, 4).0).is_none());
        let (newer, entries) = node(50, 4);
        cache.insert(newer, &entries);
        assert!(cache.copy(pointer).is_none());
        assert_eq!(cache.copy(newer), Some(entries));
    }

    #[test]
    fn the_limit_holds_whatever_is_put_in() {
        let cache = NodeCache::new(1 << 20);
        assert!(cache.limit_bytes() <= 1 << 20);
        for addr in 1..10_000 {
            let (pointer, entries) = node(addr, 1);
            cache.insert(pointer, &entries);
        }
        let made = cache
            .frames
            .iter()
            .filter(|frame| frame.get().is_some())
            .count();
        assert!(made as u64 * FRAME_BYTES <= 1 << 20);
    }

    #[test]
    fn readers_beside_eviction_never_see_another_nodes_entries() {
        let cache = NodeCache::new(64 << 10);
        std::thread::scope(|scope| {
            for seed in 0..2u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for turn in 0..200_000u64 {
                        let addr = 1 + (turn * 7 + seed * 13) % 200;
                        let (pointer, entries) = node(addr, 1);
                        let mut out = [Pointer::HOLE; 3];
                        match cache.read(pointer, 9, &mut out) {
                            Some(()) => assert_eq!(out, entries[9..12]),
                            None => cache.insert(pointer, &entries),
                        }
                    }
                });
            }
        });
    }
}
