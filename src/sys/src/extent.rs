//! Operations on a file's extents on its host: allocate them, give them back, fill the gaps.
//!
//! Only `punch_hole` and `discard_device` change the contents of allocated bytes.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Number of zeros written at a time where a gap is filled.
const FILL_BYTES: usize = 64 << 10;

mod ioctl {
    nix::ioctl_write_ptr_bad!(
        blkdiscard,
        nix::request_code_none!(0x12, 119),
        [u64; 2] // the start and the length, in bytes
    );
    // The request number is made with the header's size alone, 32 bytes.
    nix::ioctl_readwrite_bad!(
        fiemap,
        nix::request_code_readwrite!(b'f', 11, 32),
        super::Fiemap
    );
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn fallocate_range(
    file: &File,
    mode: FallocateFlags,
    offset_bytes: u64,
    len_bytes: u64,
) -> io::Result<()> {
    let (offset, len) = (signed(offset_bytes)?, signed(len_bytes)?);
    loop {
        match fallocate(file, mode, offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Returns whether `error` says that the host has no such operation.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
    )
}

/// Allocates a range of a regular file. Its contents stay; former gaps read as zeros.
pub fn allocate(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    fallocate_range(file, FallocateFlags::empty(), offset_bytes, len_bytes)
}

/// Smallest number of bytes requested at a time where the host may not have all of them, and number
/// of steps otherwise. btrfs frees no part of such a step.
const STEP_BYTES: u64 = 256 << 10;
const STEPS: u64 = 16;

/// Allocates up to `len_bytes` behind the end `from` of a regular file, whose length stays. Returns
/// the number of bytes allocated there now, or `None` where the host cannot do that. A host short
/// of space allocates less.
pub fn allocate_behind(file: &File, from: u64, len_bytes: u64) -> io::Result<Option<u64>> {
    let mode = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Some hosts need free space even for a range that is already allocated.
    let mut held = allocated_run(file, from, len_bytes)?.min(len_bytes);
    while held < len_bytes {
        let step = (len_bytes / STEPS).max(STEP_BYTES).min(len_bytes - held);
        match fallocate_range(file, mode, from + held, step) {
            Ok(()) => held += step,
            Err(error) if is_unsupported(&error) => return Ok(None),
            Err(error) if is_full(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Some(held))
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)
    )
}

/// Returns the number of bytes from `from` on that are allocated without a gap, up to `len_bytes`
/// and `EXTENTS_MAX` extents; 0 where the host does not tell.
fn allocated_run(file: &File, from: u64, len_bytes: u64) -> io::Result<u64> {
    let mut map = Fiemap {
        start: from,
        length: len_bytes,
        flags: 0,
        mapped_extents: 0,
        extent_count: u32::try_from(EXTENTS_MAX).expect("few"),
        reserved: 0,
        extents: [FiemapExtent::default(); EXTENTS_MAX],
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and FS_IOC_FIEMAP reads the
    // header and writes at most `extent_count` extents behind it, for which `map` has room.
    match unsafe { ioctl::fiemap(file.as_raw_fd(), &raw mut map) } {
        Ok(_) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => return Ok(0),
        Err(errno) => return Err(errno.into()),
    }
    let count = usize::try_from(map.mapped_extents).unwrap_or(0);
    let mut end = from;
    for extent in map.extents.iter().take(count) {
        if extent.logical > end {
            break;
        }
        end = end.max(extent.logical.saturating_add(extent.length));
    }
    Ok(end - from)
}

/// Number of extents read in one call.
const EXTENTS_MAX: usize = 256;

/// `struct fiemap` of linux/fiemap.h.
#[repr(C)]
pub struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS_MAX],
}

/// `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Gives a range of a regular file back to its host; it reads as zeros and the length stays.
pub fn punch_hole(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate_range(file, mode, offset_bytes, len_bytes)
}

/// Makes the contents of `to` those of `from`, in the same blocks, which are copied once one of the
/// two is written to.
pub fn share(from: &File, to: &File) -> io::Result<()> {
    let source = libc::c_ulong::try_from(from.as_raw_fd())
        .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: both descriptors are open for as long as the files are borrowed, and FICLONE takes a
    // number, no pointer.
    unsafe { ioctl::ficlone(to.as_raw_fd(), source) }?;
    Ok(())
}

/// Tells a block device that a range is no longer used.
pub fn discard_device(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let range = [offset_bytes, len_bytes];
    loop {
        // SAFETY: the descriptor is open for as long as `file` is borrowed, and BLKDISCARD reads
        // two u64 from the pointer, which is what `range` is.
        match unsafe { ioctl::blkdiscard(file.as_raw_fd(), &raw const range) } {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes zeros into the gaps of a range, which must lie inside the file; allocated bytes stay as
/// they are. For hosts that cannot [`allocate`]. It moves the file's cursor.
pub fn fill_gaps(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let end = offset_bytes
        .checked_add(len_bytes)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
    let mut at = offset_bytes;
    while let Some(gap) = next_gap(file, at, end)? {
        write_zeros(file, gap.start, gap.end)?;
        at = gap.end;
    }
    Ok(())
}

/// Returns the next range of a regular file, between `at` and `end`, that the host does not store
/// or has only set aside. It moves the file's cursor.
pub fn next_gap(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let gap = seek(file, at, Whence::SeekHole)?.unwrap_or(end);
    if gap >= end {
        return Ok(None);
    }
    // Behind the last data there is a gap to the end of the file.
    let data = seek(file, gap, Whence::SeekData)?.unwrap_or(end);
    Ok(Some(gap..data.clamp(gap + 1, end)))
}

/// Returns the start of the next gap or data at or after `at`; `None` if there is none.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek(file, signed(at)?, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the next range of `file` between `at` and `end` that may hold data; `None` where only a
/// hole is left. On a file system that cannot tell holes, everything is data. It moves the file's
/// cursor.
pub fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match lseek(file, signed(at)?, Whence::SeekData) {
        Ok(start) => u64::try_from(start).unwrap_or(end),
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some(at..end)),
        Err(errno) => return Err(errno.into()),
    };
    if start >= end {
        return Ok(None);
    }
    if start < at {
        // A character device has no positions.
        return Ok(Some(at..end));
    }
    // The file may have been shortened meanwhile: the reader notices.
    let hole = seek(file, start, Whence::SeekHole)?.unwrap_or(end);
    Ok(Some(start..hole.clamp(start + 1, end)))
}

fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; FILL_BYTES];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(FILL_BYTES, |rest| rest.min(FILL_BYTES));
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    fn sparse_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        file
    }

    fn allocated(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Returns a file with two islands of data; the host holds nothing between and around them.
    fn with_islands() -> (File, Vec<u8>) {
        let file = sparse_file();
        file.write_all_at(&[5; 8192], 64 << 10).unwrap();
        file.write_all_at(&[6; 4096], 512 << 10).unwrap();
        let bytes = content(&file);
        (file, bytes)
    }

    #[test]
    fn allocating_keeps_what_is_there_and_takes_room() {
        let (file, before) = with_islands();
        allocate(&file, 0, MIB).unwrap();
        assert_eq!(content(&file), before);
        assert!(allocated(&file) >= MIB);
    }

    #[test]
    fn filling_gaps_keeps_what_is_there_and_takes_room_inside_the_range_only() {
        let (file, before) = with_islands();
        fill_gaps(&file, 32 << 10, 544 << 10).unwrap();
        assert_eq!(content(&file), before);
        let taken = allocated(&file);
        assert!((544 << 10..600 << 10).contains(&taken), "{taken}");
        fill_gaps(&file, 0, MIB).unwrap();
        assert_eq!(content(&file), before);
        assert!(allocated(&file) >= MIB);
    }

    #[test]
    fn a_punched_hole_reads_as_zeros_and_gives_room_back() {
        let file = sparse_file();
        file.write_all_at(&vec![3; usize::try_from(MIB).unwrap()], 0)
            .unwrap();
        let before = allocated(&file);
        punch_hole(&file, 4096, MIB / 2).unwrap();
        assert!(allocated(&file) <= before - MIB / 2);
        let bytes = content(&file);
        let hole = 4096..4096 + usize::try_from(MIB / 2).unwrap();
        assert!(bytes[hole.clone()].iter().all(|byte| *byte == 0));
        assert!(bytes[..hole.start].iter().all(|byte| *byte == 3));
        assert!(bytes[hole.end..].iter().all(|byte| *byte == 3));
        assert_eq!(file.metadata().unwrap().len(), MIB);
    }

    #[test]
    fn only_gaps_are_found_in_a_sparse_file() {
        let (file, _) = with_islands();
        assert_eq!(next_gap(&file, 0, MIB).unwrap(), Some(0..65536));
        assert_eq!(next_gap(&file, 65536, MIB).unwrap(), Some(73728..524_288));
        assert_eq!(next_gap(&file, 65536, 73728).unwrap(), None);
        assert_eq!(next_gap(&file, 70000, 80000).unwrap(), Some(73728..80000));
        assert_eq!(next_gap(&file, 528 << 10, MIB).unwrap(), Some(540_672..MIB));
        assert_eq!(next_gap(&file, MIB, MIB).unwrap(), None);
    }

    #[test]
    fn only_data_is_found_in_a_sparse_file() {
        let (file, _) = with_islands();
        assert_eq!(next_data(&file, 0, MIB).unwrap(), Some(65536..73728));
        assert_eq!(next_data(&file, 65540, 70000).unwrap(), Some(65540..70000));
        assert_eq!(next_data(&file, 0, 65536).unwrap(), None);
        assert_eq!(next_data(&file, 528 << 10, MIB).unwrap(), None);
        assert_eq!(next_data(&file, MIB, MIB).unwrap(), None);
        let device = File::open("/dev/zero").unwrap();
        assert_eq!(next_data(&device, 3, 9).unwrap(), Some(3..9));
    }

    #[test]
    fn space_behind_the_end_is_taken_once_and_freed_by_setting_the_length() {
        let file = sparse_file();
        for _ in 0..2 {
            assert_eq!(allocate_behind(&file, MIB, 4 * MIB).unwrap(), Some(4 * MIB));
            assert!((4 * MIB..5 * MIB).contains(&allocated(&file)));
        }
        assert_eq!(file.metadata().unwrap().len(), MIB);
        file.set_len(MIB).unwrap();
        assert!(allocated(&file) < MIB);
    }

    #[test]
    fn lengths_beyond_what_files_can_have_are_errors() {
        let file = sparse_file();
        let error = allocate(&file, 0, u64::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        let error = fill_gaps(&file, 4096, u64::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn a_regular_file_answers_a_device_discard_as_unsupported() {
        let error = discard_device(&sparse_file(), 0, 4096).unwrap_err();
        assert!(is_unsupported(&error), "{error}");
    }
}
