//! The presentation of a volume as a file: its name, inode number and attributes.
//!
//! A volume's name becomes a file name by writing `/` as `%2F`; `%` is in no volume's name, so
//! the way back is unambiguous. The inode number is the volume's id plus a constant, so it
//! survives renames, restarts and remounts.

use super::fuse::abi::{Attr, ROOT};
use super::target::TargetInfo;
use cowshed_format::base::{BLOCK_SHIFT, Name, VolumeId};
use std::ffi::OsStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The first inode number that a volume can have; the root directory is 1.
const INODE_BASE: u64 = 16;
/// The unit of `st_blocks`, whatever the block size is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// The longest file name: every byte of a volume's name but the first can become three.
pub(super) const FILE_NAME_BYTES_MAX: u32 = 1 + 3 * 254;
const _: () = assert!(FILE_NAME_BYTES_MAX as usize == 1 + 3 * (Name::MAX_BYTES - 1));
/// The block size that stat(2) and statfs(2) report.
pub(super) const BLOCK_SIZE: u32 = 1 << BLOCK_SHIFT;

/// The I/O size that programs should use (`st_blksize`): each call reaches this process.
const FILE_BLKSIZE: u32 = 256 << 10;

/// Returns the file name of a volume.
pub(super) fn file_name(name: &Name) -> String {
    name.as_str().replace('/', "%2F")
}

/// Returns the volume's name that a file name stands for; `None` if there is none.
pub(super) fn volume_name(file_name: &OsStr) -> Option<Name> {
    Name::new(&file_name.to_str()?.replace("%2F", "/")).ok()
}

/// Returns the inode number of a volume.
pub(super) const fn inode(id: VolumeId) -> u64 {
    id.0.wrapping_add(INODE_BASE)
}

/// Returns the volume that an inode number stands for; `None` for the root.
pub(super) fn volume_id(inode: u64) -> Option<VolumeId> {
    inode.checked_sub(INODE_BASE).map(VolumeId)
}

/// Returns the attributes of a volume's file.
pub(super) fn attributes(info: &TargetInfo) -> Attr {
    Attr {
        size: info.size_bytes,
        blocks: info.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
        mode: libc::S_IFREG | if info.is_read_only { 0o400 } else { 0o600 },
        nlink: 1,
        blksize: FILE_BLKSIZE,
        ..plain(inode(info.id), info.created)
    }
}

/// Returns the attributes of the one directory.
pub(super) fn root_attributes(mounted: SystemTime) -> Attr {
    Attr {
        mode: libc::S_IFDIR | 0o700,
        nlink: 2,
        ..plain(ROOT, mounted)
    }
}

/// Returns the attributes that all inodes share: root owns them, and all their times are the same.
fn plain(ino: u64, time: SystemTime) -> Attr {
    // Nothing here is older than the epoch; a wrong clock gives the epoch itself.
    let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
    Attr {
        ino,
        atime: seconds,
        mtime: seconds,
        ctime: seconds,
        atimensec: nanos,
        mtimensec: nanos,
        ctimensec: nanos,
        blksize: BLOCK_SIZE,
        ..Attr::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_way_to_a_file_name_and_back() {
        for text in ["a", "image/layer/1", "a//b", "a2F", "x:y@z"] {
            let name = Name::new(text).unwrap();
            let file = file_name(&name);
            assert!(!file.contains('/'), "{file}");
            assert_eq!(volume_name(OsStr::new(&file)), Some(name));
        }
    }

    #[test]
    fn a_file_name_that_no_volume_has_is_refused() {
        for text in ["a%2f", "a%20", "%", ".", "..", "", "a b"] {
            assert_eq!(volume_name(OsStr::new(text)), None, "{text:?}");
        }
    }

    #[test]
    fn the_longest_name_fits_the_announced_limit() {
        let name = Name::new(&format!("a{}", "/".repeat(Name::MAX_BYTES - 1))).unwrap();
        assert_eq!(file_name(&name).len(), FILE_NAME_BYTES_MAX as usize);
    }

    #[test]
    fn inodes_lead_back_to_their_volumes_and_never_to_the_root() {
        assert_eq!(volume_id(inode(VolumeId(0))), Some(VolumeId(0)));
        assert_eq!(volume_id(inode(VolumeId(77))), Some(VolumeId(77)));
        assert_eq!(volume_id(ROOT), None);
        assert_ne!(inode(VolumeId(0)), ROOT);
    }
}
