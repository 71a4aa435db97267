//! Removing objects: whole trees, or only the objects of lower layers.

use super::parents::Directory;
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
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

/// The objects that this layer has added, as (directory's inode, name) pairs.
///
/// By inode and not by path, because symbolic links give one object several paths. For each pair
/// 128 bits of keyed hashes are kept, so that a layer with millions of entries costs little memory;
/// the keys are random, so no image can force a collision.
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

/// A directory that is being emptied; an open directory may be below it.
struct Level {
    name: Vec<u8>,
    inode: u64,
    /// The names in it that are still to be processed.
    left: Vec<Vec<u8>>,
    /// True if this layer has added it.
    is_ours: bool,
}

/// Removes `name` from `parent`, with everything in it; succeeds if it does not exist.
pub(super) fn remove_all(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(parent, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => clear(parent, name, None),
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes `name` from `parent`, except for objects that this layer has added.
pub(super) fn remove_lower(parent: &Directory, name: &[u8], added: &Added) -> Result<(), Errno> {
    let is_ours = added.contains(parent.inode, name);
    let fd = parent.fd.as_fd();
    match open_directory(fd, name) {
        Ok(_) => clear(fd, name, Some((added, is_ours))),
        Err(Errno::ENOTDIR | Errno::ELOOP) if is_ours => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            unlinkat(fd, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir)
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes everything in `directory` that this layer has not added.
pub(super) fn clear_lower(directory: &Directory, added: &Added) -> Result<(), Errno> {
    for name in names(directory)? {
        // The caller detects the cancellation.
        cancel::check().map_err(|_| Errno::ECANCELED)?;
        remove_lower(directory, &name, added)?;
    }
    Ok(())
}

/// Removes the directory `name` from `parent`, with everything in it that `added` does not keep.
///
/// One descriptor is open however deep the tree is: the way up uses `..`, since nobody else moves
/// anything here.
fn clear(parent: BorrowedFd<'_>, name: &[u8], keep: Option<(&Added, bool)>) -> Result<(), Errno> {
    let mut here = open_directory(parent, name)?;
    let is_ours = keep.is_some_and(|(_, is_ours)| is_ours);
    let mut levels = vec![level(&here, name, is_ours)?];
    while let Some(top) = levels.last_mut() {
        cancel::check().map_err(|_| Errno::ECANCELED)?;
        let Some(child) = top.left.pop() else {
            let above = if levels.len() > 1 {
                Some(open_directory(here.fd.as_fd(), b"..")?)
            } else {
                None
            };
            let fd = above.as_ref().map_or(parent, |above| above.fd.as_fd());
            if let Some(done) = levels.pop()
                && !done.is_ours
            {
                remove_emptied(fd, &done.name, keep.is_some())?;
            }
            if let Some(above) = above {
                here = above;
            }
            continue;
        };
        let is_ours = keep.is_some_and(|(added, _)| added.contains(top.inode, &child));
        match open_directory(here.fd.as_fd(), &child) {
            Ok(below) => {
                levels.push(level(&below, &child, is_ours)?);
                here = below;
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) if is_ours => {}
            Err(Errno::ENOTDIR | Errno::ELOOP) => unlinkat(
                here.fd.as_fd(),
                OsStr::from_bytes(&child),
                UnlinkatFlags::NoRemoveDir,
            )?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn level(directory: &Directory, name: &[u8], is_ours: bool) -> Result<Level, Errno> {
    Ok(Level {
        name: name.to_vec(),
        inode: directory.inode,
        left: names(directory)?,
        is_ours,
    })
}

fn remove_emptied(parent: BorrowedFd<'_>, name: &[u8], may_stay: bool) -> Result<(), Errno> {
    match unlinkat(parent, OsStr::from_bytes(name), UnlinkatFlags::RemoveDir) {
        // It contains an object that this layer added.
        Err(Errno::ENOTEMPTY | Errno::EEXIST) if may_stay => Ok(()),
        answer => answer,
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Directory, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?;
    let inode = beneath::stat_itself(&fd)?.st_ino;
    // Nothing is created in a directory that is being emptied.
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
