//! Properties of a file or a block device that the host reports: its length, and the alignment that
//! direct I/O requires.

use nix::errno::Errno;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

mod ioctl {
    // The number is made with `size_t`, but the kernel writes a u64.
    nix::ioctl_read_bad!(
        blkgetsize64,
        nix::request_code_read!(0x12, 114, size_of::<usize>()),
        u64
    );
}

/// The alignment that direct I/O on a file requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Buffers start at a multiple of this.
    pub memory_bytes: u32,
    /// Offsets and lengths are multiples of this.
    pub offset_bytes: u32,
}

/// Returns the length of a block device.
pub fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut len_bytes = 0_u64;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and BLKGETSIZE64 writes one
    // u64 through the pointer, which `len_bytes` has room for.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut len_bytes) }?;
    Ok(len_bytes)
}

/// Returns true if `file`, a regular file, lies on a file system that always overwrites allocated
/// space in place: then a store into a mapping of it never needs free space. Where files can share
/// extents (XFS, btrfs), any later copy of the file ends that. Returns false for file systems that
/// are not known here.
pub fn overwrites_in_place(file: &File) -> bool {
    fstatfs(file)
        .is_ok_and(|found| [EXT4_SUPER_MAGIC, TMPFS_MAGIC].contains(&found.filesystem_type()))
}

/// Returns true if `file`, a regular file, lies on a file system that has a record of its own to write
/// where data is written for the first time, and none where data is overwritten.
pub fn records_first_writes(file: &File) -> bool {
    fstatfs(file)
        .is_ok_and(|found| [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&found.filesystem_type()))
}

/// Returns the alignment that direct I/O on `file` requires: zeros if it cannot do any, `None` if
/// the host does not tell (before Linux 6.1, and some file systems).
pub fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, the path is an empty C
    // string, and `answer` has room for the one `statx` that the kernel fills.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    match Errno::result(status) {
        Ok(_) => {}
        Err(Errno::ENOSYS) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // SAFETY: `statx` is plain integers, for which zeros are a value, and the kernel has filled it.
    let answer = unsafe { answer.assume_init() };
    let known = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(known.then_some(DirectAlignment {
        memory_bytes: answer.stx_dio_mem_align,
        offset_bytes: answer.stx_dio_offset_align,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_file_is_no_block_device() {
        let file = tempfile::tempfile().unwrap();
        let error = block_device_bytes(&file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn stated_alignments_are_powers_of_two_or_none() {
        let file = tempfile::tempfile().unwrap();
        if let Some(alignment) = direct_alignment(&file).unwrap() {
            for bytes in [alignment.memory_bytes, alignment.offset_bytes] {
                assert!(bytes == 0 || bytes.is_power_of_two(), "{alignment:?}");
            }
        }
    }
}
