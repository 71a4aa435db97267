//! Parent directories: opened beneath the root, created if they are missing, cached for
//! neighbouring entries, and given their times back at the end.

use super::{split, time_spec};
use crate::error::{Error, HeaderFault, Printable, Result};
use crate::limits::{PATH_BYTES_MAX, SYMLINKS_MAX};
use crate::tarball::Time;
use cowshed_sys::{beneath, xattr};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, fchmod, futimens, mkdirat};
use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

/// The maximum number of directories that stay open: archives are in depth-first order, so a few
/// levels suffice.
const RECENT_MAX: usize = 16;
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
const OPEN_FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// An open directory of the tree.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
    /// True if objects created in it inherit an ACL.
    pub(super) has_default_acl: bool,
}

/// The times that a directory gets when the layer is complete.
struct Times {
    path: Vec<u8>,
    atime: Time,
    mtime: Time,
}

/// The directories of the tree that entries go into.
pub(super) struct Parents {
    /// `None` only while the file system grows.
    root: Option<OwnedFd>,
    /// The open directories, the most recently used last.
    recent: Vec<(Vec<u8>, Rc<Directory>)>,
    /// By inode, because symbolic links give one directory several paths.
    times: HashMap<u64, Times>,
}

impl Parents {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Some(root),
            recent: Vec::with_capacity(RECENT_MAX),
            times: HashMap::new(),
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        let root = self.root.as_ref();
        root.expect("entries are made while the root is open")
            .as_fd()
    }

    /// Closes everything; nothing can be created until the root is opened again.
    pub(super) fn close(&mut self) {
        self.recent.clear();
        self.root = None;
    }

    /// Continues in the same tree, whose inodes have kept their numbers.
    pub(super) fn reopen(&mut self, root: OwnedFd) {
        self.root = Some(root);
    }

    /// Returns the directory at `path`, or `None` if it does not exist.
    pub(super) fn open(&mut self, path: &[u8]) -> Result<Option<Rc<Directory>>> {
        if let Some(place) = self.recent.iter().rposition(|(known, _)| known == path) {
            // Keeps the used ones at the end; the first is dropped next.
            self.recent[place..].rotate_left(1);
            return Ok(self
                .recent
                .last()
                .map(|(_, directory)| Rc::clone(directory)));
        }
        match beneath::open_in_root(self.root(), path, OPEN_FLAGS) {
            Ok(fd) => {
                let stat = beneath::stat_itself(&fd)
                    .map_err(|errno| Error::entry("inspect", path, errno))?;
                let (atime, mtime) = (access_time(&stat), change_time(&stat));
                let path_of = || path.to_vec();
                self.times.entry(stat.st_ino).or_insert_with(|| Times {
                    path: path_of(),
                    atime,
                    mtime,
                });
                Ok(Some(self.remember(path, fd, stat.st_ino)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR) => Err(not_a_directory(path)),
            Err(errno) => Err(Error::entry("open the directory", path, errno)),
        }
    }

    /// Returns the directory at `path`; missing ones are created, with mode 0755 and this `time`.
    pub(super) fn open_or_make(&mut self, path: &[u8], time: Time) -> Result<Rc<Directory>> {
        if let Some(directory) = self.open(path)? {
            return Ok(directory);
        }
        self.make(path, time)?;
        self.open(path)?
            .ok_or_else(|| Error::entry("open the directory", path, Errno::ENOENT))
    }

    /// Records a directory that an entry described.
    pub(super) fn described(
        &mut self,
        path: &[u8],
        fd: OwnedFd,
        inode: u64,
        atime: Time,
        mtime: Time,
    ) {
        self.times.insert(
            inode,
            Times {
                path: path.to_vec(),
                atime,
                mtime,
            },
        );
        self.remember(path, fd, inode);
    }

    /// Drops the cached directories: an object was removed, and a path may now lead to another
    /// place.
    pub(super) fn forget(&mut self) {
        self.recent.clear();
    }

    /// Sets the times of every directory that was described or changed.
    pub(super) fn set_directory_times(&mut self) -> Result<()> {
        self.recent.clear();
        for (inode, times) in std::mem::take(&mut self.times) {
            let set = |fd: OwnedFd| {
                // The path of a directory that was removed later may now belong to another object.
                if beneath::stat_itself(&fd)?.st_ino == inode {
                    futimens(fd, &time_spec(times.atime), &time_spec(times.mtime))?;
                }
                Ok(())
            };
            match beneath::open_in_root(self.root(), &times.path, OPEN_FLAGS).and_then(set) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(Error::entry("set the times of", &times.path, errno)),
            }
        }
        Ok(())
    }

    fn remember(&mut self, path: &[u8], fd: OwnedFd, inode: u64) -> Rc<Directory> {
        let has_default_acl = has_default_acl(&fd);
        let directory = Rc::new(Directory {
            fd,
            inode,
            has_default_acl,
        });
        self.recent.retain(|(known, _)| known != path);
        if self.recent.len() == RECENT_MAX {
            self.recent.remove(0);
        }
        self.recent.push((path.to_vec(), Rc::clone(&directory)));
        directory
    }

    /// Creates the missing directories of `path`; a symbolic link on the way may lead to a place
    /// that is itself missing, as in a chroot.
    fn make(&mut self, path: &[u8], time: Time) -> Result<()> {
        let mut pending: Vec<Vec<u8>> = components(path);
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                done.truncate(split(&done).map_or(0, |(parent, _)| parent.len()));
                continue;
            }
            let next = join(&done, &name);
            if next.len() > PATH_BYTES_MAX {
                return Err(Error::entry(
                    "create the directory",
                    path,
                    Errno::ENAMETOOLONG,
                ));
            }
            match beneath::open_plain(self.root(), &next, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(_) => done = next,
                Err(Errno::ENOENT) => {
                    self.make_one(&done, &name, &next, time)?;
                    done = next;
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(Error::entry("create the directory", path, Errno::ELOOP));
                    }
                    let target = self
                        .link_target(&next)
                        .ok_or_else(|| not_a_directory(path))?;
                    if target.first() == Some(&b'/') {
                        done.clear();
                    }
                    pending.extend(components(&target));
                }
                Err(errno) => return Err(Error::entry("open the directory", path, errno)),
            }
        }
        Ok(())
    }

    fn make_one(&mut self, parent: &[u8], name: &[u8], path: &[u8], time: Time) -> Result<()> {
        // Opening the parent records its times before they change.
        let parent = self
            .open(parent)?
            .ok_or_else(|| Error::entry("open the directory", parent, Errno::ENOENT))?;
        let made = || -> Result<(OwnedFd, u64), Errno> {
            mkdirat(&parent.fd, OsStr::from_bytes(name), Mode::S_IRWXU)?;
            let fd = beneath::open_plain(self.root(), path, OPEN_FLAGS)?;
            // The mode must not depend on the process's umask.
            fchmod(&fd, Mode::from_bits_truncate(0o755))?;
            let inode = beneath::stat_itself(&fd)?.st_ino;
            Ok((fd, inode))
        };
        let (fd, inode) =
            made().map_err(|errno| Error::entry("create the directory", path, errno))?;
        self.described(path, fd, inode, time, time);
        Ok(())
    }

    fn link_target(&self, path: &[u8]) -> Option<Vec<u8>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let link = beneath::open_in_root(self.root(), path, flags).ok()?;
        let target = readlinkat(link.as_fd(), "").ok()?;
        Some(target.as_bytes().to_vec())
    }
}

/// Returns the components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(<[u8]>::to_vec).collect()
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

fn not_a_directory(path: &[u8]) -> Error {
    Error::Header {
        entry: Printable::from(path),
        fault: HeaderFault::Parent,
    }
}

fn access_time(stat: &FileStat) -> Time {
    time(stat.st_atime, stat.st_atime_nsec)
}

fn change_time(stat: &FileStat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

fn time(seconds: i64, nanoseconds: i64) -> Time {
    Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    }
}

fn has_default_acl(fd: &OwnedFd) -> bool {
    xattr::list(fd).is_ok_and(|names| names.iter().any(|name| name.as_c_str() == DEFAULT_ACL))
}
