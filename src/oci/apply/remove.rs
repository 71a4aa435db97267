//! Removing: whole trees, and only what lower layers left.

use super::parents::Directory;
use crate::oci::limits::DEPTH_MAX;
use crate::sys::beneath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// What this layer has added, as (directory's inode, name) pairs.
///
/// By inode and not by path, because symbolic links give one place several paths. Of each pair 128
/// bits of keyed hashes are kept, so that a layer with millions of entries costs little memory; the
/// keys are random, so no image can bring a collision about.
#[derive(Default)]
pub(super) struct Added {
    pairs: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Added {
    pub(super) fn insert(&mut self, directory: u64, name: &[u8]) {
        self.pairs.insert(self.hash(directory, name));
    }

    fn contains(&self, directory: u64, name: &[u8]) -> bool {
        self.pairs.contains(&self.hash(directory, name))
    }

    fn hash(&self, directory: u64, name: &[u8]) -> (u64, u64) {
        (
            self.keys.0.hash_one((directory, name)),
            self.keys.1.hash_one((directory, name)),
        )
    }
}

/// Removes `name` from `parent`, with everything in it; it is fine if nothing is there.
pub(super) fn remove_all(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), Errno> {
    let file = OsStr::from_bytes(name);
    match unlinkat(parent, file, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let directory = open_directory(parent, name)?;
    check_depth(depth)?;
    for child in names(&directory)? {
        remove_all(directory.fd.as_fd(), &child, depth + 1)?;
    }
    drop(directory);
    unlinkat(parent, file, UnlinkatFlags::RemoveDir)
}

/// Removes of `name` in `parent` what this layer has not added.
pub(super) fn remove_lower(
    parent: &Directory,
    name: &[u8],
    added: &Added,
    depth: usize,
) -> Result<(), Errno> {
    let ours = added.contains(parent.inode, name);
    let file = OsStr::from_bytes(name);
    match open_directory(parent.fd.as_fd(), name) {
        Ok(directory) => {
            clear_lower(&directory, added, depth + 1)?;
            drop(directory);
            if ours {
                return Ok(());
            }
            match unlinkat(&parent.fd, file, UnlinkatFlags::RemoveDir) {
                // Something that this layer added in it keeps it.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
                answer => answer,
            }
        }
        Err(Errno::ENOTDIR | Errno::ELOOP) if ours => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            unlinkat(&parent.fd, file, UnlinkatFlags::NoRemoveDir)
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Empties `directory` of everything that this layer has not added.
pub(super) fn clear_lower(directory: &Directory, added: &Added, depth: usize) -> Result<(), Errno> {
    check_depth(depth)?;
    names(directory)?
        .iter()
        .try_for_each(|name| remove_lower(directory, name, added, depth))
}

fn check_depth(depth: usize) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        Err(Errno::ENAMETOOLONG)
    } else {
        Ok(())
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Directory, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?;
    let inode = beneath::stat_itself(&fd)?.st_ino;
    // Nothing is made in a directory that is being emptied.
    Ok(Directory {
        fd,
        inode,
        has_default_acl: false,
    })
}

fn names(directory: &Directory) -> Result<Vec<Vec<u8>>, Errno> {
    // A second descriptor, because listing consumes its own and moves its position.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(&directory.fd, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}
