//! Memory that outlives a process: words in a memfd, mapped by every holder of its descriptor.
//!
//! # Invariants
//! - The length never changes (sealed) and every page is allocated, so no access meets SIGBUS.
//! - The memory is accessed as atomic words only, so processes and threads may share it.

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::slice;
use std::sync::atomic::AtomicU64;

/// Returns the seals that fix the length; an adopted descriptor must have all of them.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Shared words, initially zero. Only the mapping: it stays when the memfd is closed, and may be
/// dropped by a thread with another descriptor table.
pub struct SharedWords {
    mapping: MmapRaw,
}

impl SharedWords {
    /// Makes `count` words; also returns their memfd, to be handed to another process. `/proc`
    /// shows `name`.
    ///
    /// # Errors
    /// Errors of memfd_create(2), fallocate(2), fcntl(2) and mmap(2).
    pub fn create(name: &CStr, count: usize) -> io::Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let descriptor = memfd_create(name, flags)?;
        let bytes = i64::try_from(len_bytes(count)?).map_err(io::Error::other)?;
        fallocate(&descriptor, FallocateFlags::empty(), 0, bytes)?;
        fcntl(&descriptor, FcntlArg::F_ADD_SEALS(seals()))?;
        Ok((Self::map(descriptor.as_fd(), count)?, descriptor))
    }

    /// Maps the words that another process made.
    ///
    /// # Errors
    /// `InvalidData` if it is not a memfd of `count` words made by `create`; also errors of
    /// mmap(2).
    pub fn adopt(descriptor: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let found = fcntl(descriptor, FcntlArg::F_GET_SEALS).map_err(|_| wrong())?;
        if !SealFlag::from_bits_retain(found).contains(seals()) {
            return Err(wrong());
        }
        let stat = nix::sys::stat::fstat(descriptor)?;
        if u64::try_from(stat.st_size) != Ok(len_bytes(count)? as u64) {
            return Err(wrong());
        }
        Self::map(descriptor, count)
    }

    fn map(descriptor: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let mapping = MmapOptions::new()
            .len(len_bytes(count)?)
            .map_raw(descriptor.as_raw_fd())?;
        Ok(Self { mapping })
    }

    /// Returns the words.
    pub fn words(&self) -> &[AtomicU64] {
        let count = self.mapping.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping starts at a page, has room for `count` words, is readable and
        // writable and lives as long as `self`; the file behind it can neither shrink nor miss a
        // page. Every bit pattern is a u64, and all access, here and in other processes, is
        // through atomics.
        unsafe { slice::from_raw_parts(self.mapping.as_mut_ptr().cast::<AtomicU64>(), count) }
    }
}

fn len_bytes(count: usize) -> io::Result<usize> {
    count
        .checked_mul(size_of::<AtomicU64>())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn words_are_the_same_memory_for_everyone_who_maps_them() {
        let (first, memfd) = SharedWords::create(c"cowshed-test", 1024).unwrap();
        assert!(first.words().iter().all(|word| word.load(SeqCst) == 0));
        first.words()[1023].store(7, SeqCst);
        let second = SharedWords::adopt(memfd.as_fd(), 1024).unwrap();
        drop(memfd);
        assert_eq!(second.words()[1023].load(SeqCst), 7);
        second.words()[0].store(9, SeqCst);
        drop(second);
        assert_eq!(first.words()[0].load(SeqCst), 9);
    }

    #[test]
    fn what_create_did_not_make_is_refused() {
        let (_first, memfd) = SharedWords::create(c"cowshed-test", 16).unwrap();
        assert!(SharedWords::adopt(memfd.as_fd(), 17).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(128).unwrap();
        assert!(SharedWords::adopt(file.as_fd(), 16).is_err());
    }
}
