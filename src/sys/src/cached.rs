//! Reading what the host has in memory, without waiting for its disk.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Fills `buf` from `offset_bytes` with what the page cache has. Returns false if it has not all of
/// it, or the file's file system cannot tell.
#[must_use]
pub fn read_exact_at(file: &File, buf: &mut [u8], offset_bytes: u64) -> bool {
    let Ok(offset) = libc::off_t::try_from(offset_bytes) else {
        return false;
    };
    let piece = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: `piece` is one valid vector over `buf`, which nobody else uses during the call; the
    // kernel writes at most its length.
    let done = unsafe {
        let (descriptor, piece) = (file.as_raw_fd(), &raw const piece);
        libc::preadv2(descriptor, piece, 1, offset, libc::RWF_NOWAIT)
    };
    usize::try_from(done).is_ok_and(|done| done == buf.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_in_memory_is_read_and_nothing_beyond_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mut found = [0; 4096];
        // Not every file system can tell; then it says so.
        if read_exact_at(&file, &mut found, 4096) {
            assert_eq!(found, [7; 4096]);
        }
        assert!(!read_exact_at(&file, &mut found, 6000));
        assert!(!read_exact_at(&file, &mut found, u64::MAX));
    }
}
