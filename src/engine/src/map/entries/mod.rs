//! The entries of a node in memory: one writer at a time, any number of readers, no lock.
//!
//! A sequence lock: the writer makes the version odd while it writes; a reader that sees an odd or
//! a changed version reads again. All cells are atomics, so a torn read is noticed and harmless.

#[cfg(feature = "loom")]
pub mod models;

use cowshed_format::Pointer;
use cowshed_format::node::{Entries, NODE_ENTRIES};
use sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use sync::spin_loop;

#[cfg(not(feature = "loom"))]
use cowshed_format::base::sync;

/// Loom's versions of the atomics.
#[cfg(feature = "loom")]
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic;
}

pub(super) struct SharedEntries {
    version: AtomicU32,
    words: [[AtomicU64; 2]; NODE_ENTRIES],
}

impl Default for SharedEntries {
    fn default() -> Self {
        Self {
            version: AtomicU32::new(0),
            words: std::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]),
        }
    }
}

impl SharedEntries {
    /// Reads entries `first..first + out.len()` as they were at one moment; `None` while a writer
    /// writes.
    pub(super) fn try_read(&self, first: usize, out: &mut [Pointer]) -> Option<()> {
        let version = self.version.load(Ordering::Acquire);
        if version & 1 != 0 {
            return None;
        }
        for (pointer, words) in out.iter_mut().zip(&self.words[first..]) {
            let [low, high] = words;
            *pointer =
                Pointer::from_words([low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)]);
        }
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(())
    }

    /// Reads as `try_read` does, but waits for the writer, which takes less than a microsecond.
    pub(super) fn read(&self, first: usize, out: &mut [Pointer]) {
        while self.try_read(first, out).is_none() {
            spin_loop();
        }
    }

    /// Reads one entry.
    pub(super) fn get(&self, index: usize) -> Pointer {
        let mut out = [Pointer::HOLE];
        self.read(index, &mut out);
        out[0]
    }

    /// Writes entries from `first` on. The caller is the node's one writer.
    pub(super) fn write(&self, first: usize, pointers: &[Pointer]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (words, pointer) in self.words[first..].iter().zip(pointers) {
            let [low, high] = pointer.words();
            words[0].store(low, Ordering::Relaxed);
            words[1].store(high, Ordering::Relaxed);
        }
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// Returns independent entries with the same values.
    pub(super) fn duplicate(&self) -> Self {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let word = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
            let words = self
                .words
                .each_ref()
                .map(|[low, high]| [word(low), word(high)]);
            fence(Ordering::Acquire);
            if version & 1 == 0 && self.version.load(Ordering::Relaxed) == version {
                return Self {
                    version: AtomicU32::new(0),
                    words,
                };
            }
            spin_loop();
        }
    }

    /// Returns a copy of all entries.
    pub(super) fn copy(&self) -> Box<Entries> {
        let mut out = Box::new([Pointer::HOLE; NODE_ENTRIES]);
        self.read(0, &mut *out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::{BlockAddr, Generation};
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_reader_never_sees_half_a_pointer() {
        let entries = SharedEntries::default();
        let stop = AtomicBool::new(false);
        let pointer = |n: u32| Pointer::data(BlockAddr(u64::from(n)), Generation(u64::from(n)), n);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..200_000 {
                    entries.write(8, &[pointer(n), pointer(n)]);
                }
                stop.store(true, Ordering::Relaxed);
            });
            while !stop.load(Ordering::Relaxed) {
                let mut out = [Pointer::HOLE; 2];
                entries.read(8, &mut out);
                assert_eq!(out[0], out[1]);
                if !out[0].is_hole() {
                    assert_eq!(out[0], pointer(out[0].crc()));
                }
            }
        });
    }
}
