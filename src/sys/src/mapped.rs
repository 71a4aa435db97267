//! A shared mapping of a file's region, for stores only.
//!
//! It is no way to read the file: no code gets a reference into the mapping.
//!
//! # Invariants
//! - Every access to a page of the mapping holds that page's stripe lock, so stores from several
//!   threads never race, not even if they overlap.
//! - A store reaches the page cache at once: it survives the process. It is durable after the
//!   file's next `fdatasync`.
//! - The region must stay inside the file and allocated. Otherwise the host raises SIGBUS at a
//!   store, as it does for a page that it cannot read back.

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::ptr;

/// Number of locks per mapping; pages share them round-robin.
const STRIPES: usize = 64;
/// Bytes that one stripe covers at a time.
const STRIPE_BYTES: usize = 4096;

/// A mapped region of a file.
pub struct Mapped {
    mapping: MmapRaw,
    offset_bytes: u64,
    stripes: [Mutex<()>; STRIPES],
}

impl Mapped {
    /// Maps `len_bytes` of `file` from `offset_bytes`, shared and writable.
    pub fn new(file: &File, offset_bytes: u64, len_bytes: usize) -> io::Result<Self> {
        let mapping = MmapOptions::new()
            .offset(offset_bytes)
            .len(len_bytes)
            .map_raw(file)?;
        Ok(Self {
            mapping,
            offset_bytes,
            stripes: [const { Mutex::new(()) }; STRIPES],
        })
    }

    /// Returns the region's offset in the file and its length, in bytes.
    pub fn region(&self) -> (u64, u64) {
        (self.offset_bytes, self.mapping.len() as u64)
    }

    /// Copies `bytes` to `offset_bytes` from the region's start. Stores that overlap in time and
    /// place leave, in each page, the bytes of one of them.
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn store(&self, offset_bytes: usize, bytes: &[u8]) {
        let end = offset_bytes.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.mapping.len()),
            "a store outside the mapped region"
        );
        let mut at = offset_bytes;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = STRIPE_BYTES - at % STRIPE_BYTES;
            let (piece, after) = rest.split_at(room.min(rest.len()));
            let _stripe = self.stripes[at / STRIPE_BYTES % STRIPES].lock();
            // SAFETY: `at + piece.len()` is at most `end`, which was checked against the mapping's
            // length, and the mapping lives as long as `self`. The source cannot overlap it, since
            // no reference into the mapping is ever given out. No other thread accesses these
            // bytes now: they lie in one page, and its stripe is held.
            unsafe {
                ptr::copy_nonoverlapping(
                    piece.as_ptr(),
                    self.mapping.as_mut_ptr().add(at),
                    piece.len(),
                );
            }
            at += piece.len();
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file_of(len_bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len_bytes).unwrap();
        file
    }

    #[test]
    fn a_store_is_seen_by_reads_of_the_file_at_the_regions_offset() {
        let file = file_of(64 << 10);
        let mapped = Mapped::new(&file, 8192, 16 << 10).unwrap();
        let bytes: Vec<u8> = (0..9000_u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        mapped.store(4091, &bytes);
        let mut seen = vec![0; 9000 + 2];
        file.read_exact_at(&mut seen, 8192 + 4090).unwrap();
        assert_eq!(seen[1..9001], bytes);
        assert_eq!(
            (seen[0], seen[9001]),
            (0, 0),
            "bytes beside it were touched"
        );
    }

    #[test]
    fn a_store_may_fill_the_region_to_its_end() {
        let file = file_of(8192);
        let mapped = Mapped::new(&file, 4096, 4096).unwrap();
        mapped.store(4095, &[7]);
        mapped.store(4096, &[]);
        let mut seen = [0];
        file.read_exact_at(&mut seen, 8191).unwrap();
        assert_eq!(seen, [7]);
    }

    #[test]
    #[should_panic(expected = "outside the mapped region")]
    fn a_store_past_the_region_panics_before_it_writes() {
        let mapped = Mapped::new(&file_of(8192), 0, 4096).unwrap();
        mapped.store(4090, &[1; 7]);
    }

    #[test]
    #[should_panic(expected = "outside the mapped region")]
    fn an_offset_that_overflows_panics() {
        let mapped = Mapped::new(&file_of(4096), 0, 4096).unwrap();
        mapped.store(usize::MAX, &[1, 2]);
    }

    #[test]
    fn overlapping_stores_leave_whole_pages_of_one_writer() {
        let file = file_of(16 << 10);
        let mapped = Mapped::new(&file, 0, 16 << 10).unwrap();
        std::thread::scope(|scope| {
            for byte in 1..=4_u8 {
                let mapped = &mapped;
                scope.spawn(move || {
                    for _ in 0..200 {
                        mapped.store(0, &[byte; 16 << 10]);
                    }
                });
            }
        });
        let mut seen = vec![0; 16 << 10];
        file.read_exact_at(&mut seen, 0).unwrap();
        for page in seen.chunks(4096) {
            assert!(page[0] != 0 && page.iter().all(|byte| *byte == page[0]));
        }
    }
}
