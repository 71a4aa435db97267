//! Opening paths beneath a directory, as a process confined to it would.
//!
//! Every path goes through `openat2(2)` with `RESOLVE_IN_ROOT`: absolute symbolic links and `..`
//! are resolved against the given directory and cannot leave it, whatever the tree holds. Magic
//! links (`/proc/self/fd/N` and their like) are refused.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Number of retries of an `openat2` that raced with a rename elsewhere in the tree.
const RACE_RETRIES: u32 = 16;

/// Opens `path` beneath `root`, following symbolic links as if `root` were `/`.
///
/// # Errors
/// Errors of `openat2(2)`.
pub fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// Opens `path` beneath `root` without following any symbolic link, the last one included.
///
/// # Errors
/// `ELOOP` where a symbolic link is on the way; otherwise errors of `openat2(2)`.
pub fn open_plain(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    resolve(root, path, flags | OFlag::O_NOFOLLOW, beneath)
}

/// Returns the metadata of the object that `fd` refers to; `fd` may be opened with `O_PATH`.
///
/// # Errors
/// Errors of `fstatat(2)`.
pub fn stat_itself(fd: impl AsFd) -> Result<FileStat, Errno> {
    fstatat(fd, "", AtFlags::AT_EMPTY_PATH)
}

/// Opens the same object that `object`, opened with `O_PATH`, refers to, even if its name now leads
/// elsewhere: an object seen to be a file cannot turn out to be a device when it is opened.
///
/// # Errors
/// Errors of `open(2)`; `ENOENT` without `/proc`.
pub fn reopen(object: impl AsFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
    openat(
        AT_FDCWD,
        path.as_str(),
        flags | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// As [`reopen`], to read, without a change of the time of the last access where that is permitted:
/// for files of one's own, and for root.
///
/// # Errors
/// As [`reopen`].
pub fn reopen_to_read(object: impl AsFd) -> Result<OwnedFd, Errno> {
    match reopen(&object, OFlag::O_RDONLY | OFlag::O_NOATIME) {
        Err(Errno::EPERM) => reopen(&object, OFlag::O_RDONLY),
        opened => opened,
    }
}

fn resolve(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlag,
    within: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() {
        b".".as_slice()
    } else {
        path
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(within | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 0;
    loop {
        match openat2(root, OsStr::from_bytes(path), how) {
            // The kernel returns EAGAIN when a rename or mount elsewhere raced with a `..`.
            Err(Errno::EAGAIN | Errno::EINTR) if tries < RACE_RETRIES => tries += 1,
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{SFlag, makedev, mknod};
    use std::fs::{self, File};
    use std::io::Read;

    #[test]
    fn what_was_looked_at_is_opened_and_not_what_has_its_name_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let (file, device) = (folder.path().join("file"), folder.path().join("device"));
        fs::write(&file, "content").unwrap();
        mknod(&device, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
        let root = File::open(folder.path()).unwrap();
        let object = open_plain(root.as_fd(), b"file", OFlag::O_PATH).unwrap();
        fs::rename(&device, &file).unwrap();
        fs::write(folder.path().join("read"), "x").unwrap();
        let read = open_plain(root.as_fd(), b"read", OFlag::O_PATH).unwrap();
        let before = stat_itself(&read).unwrap();
        let mut text = String::new();
        File::from(reopen_to_read(&read).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        let after = stat_itself(&read).unwrap();
        assert_eq!(text, "x");
        assert_eq!(
            (before.st_atime, before.st_atime_nsec),
            (after.st_atime, after.st_atime_nsec)
        );
        text.clear();
        File::from(reopen(&object, OFlag::O_RDONLY).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
    }
}
