//! The layer that makes one tree of another: for drivers that keep the whole tree of each layer.
//!
//! An object is the same if all its metadata is, and its content too: a time alone does not tell,
//! since these drivers copy files with their times.

use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::limits::{COPY_BUFFER_BYTES, DEPTH_MAX};
use crate::tree::{add_tree, names};
use cowshed_format::base::cancel;
use cowshed_sys::{beneath, xattr};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::FileStat;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Adds what `tree` has that `below` has not or has otherwise, and whiteouts of what it lacks.
pub(super) fn add_difference<W: Write>(
    layer: &mut LayerWriter<W>,
    tree: BorrowedFd<'_>,
    below: BorrowedFd<'_>,
) -> Result<()> {
    let mut comparison = Comparison { layer, tree, below };
    comparison.directory(&mut Vec::new(), 0)
}

struct Comparison<'c, W: Write> {
    layer: &'c mut LayerWriter<W>,
    tree: BorrowedFd<'c>,
    below: BorrowedFd<'c>,
}

impl<W: Write> Comparison<'_, W> {
    /// Compares what both trees have in the directory `path`.
    fn directory(&mut self, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::entry(
                "read the directory",
                path,
                Errno::ENAMETOOLONG,
            ));
        }
        let mut both: BTreeMap<Vec<u8>, [Option<bool>; 2]> = BTreeMap::new();
        for (side, root) in [self.below, self.tree].into_iter().enumerate() {
            for (name, is_directory) in list(root, path)? {
                both.entry(name).or_default()[side] = Some(is_directory);
            }
        }
        let len = path.len();
        for (name, sides) in both {
            cancel::check()?;
            if len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            match sides {
                [Some(true), Some(true)] => {
                    if !self.is_same(path)? {
                        self.layer.add(self.tree, path)?;
                    }
                    self.directory(path, depth + 1)?;
                }
                [Some(false), Some(false)] => {
                    if !self.is_same(path)? {
                        self.layer.add(self.tree, path)?;
                    }
                }
                // An entry replaces an object of another kind.
                [_, Some(_)] => add_tree(self.layer, self.tree, path, path)?,
                [_, None] => self.layer.whiteout(path)?,
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// Returns true if both trees have the same object at `path`, whatever is in it if it is a
    /// directory.
    fn is_same(&self, path: &[u8]) -> Result<bool> {
        let failed = |source: io::Error| Error::entry("compare", path, source);
        let open = |root| {
            let object = beneath::open_plain(root, path, OFlag::O_PATH)?;
            let stat = beneath::stat_itself(&object)?;
            Ok((object, stat))
        };
        let of = |root| open(root).map_err(|errno: Errno| failed(errno.into()));
        let ((new, new_stat), (old, old_stat)) = (of(self.tree)?, of(self.below)?);
        if (new_stat.st_dev, new_stat.st_ino) == (old_stat.st_dev, old_stat.st_ino) {
            return Ok(true);
        }
        if metadata(&new_stat) != metadata(&old_stat)
            || attributes(&new).map_err(failed)? != attributes(&old).map_err(failed)?
        {
            return Ok(false);
        }
        match new_stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                let file = |object: &OwnedFd| -> io::Result<File> {
                    Ok(beneath::reopen_to_read(object)?.into())
                };
                let files = file(&new).and_then(|new| Ok((new, file(&old)?)));
                let (new, old) = files.map_err(failed)?;
                same_content(new, old).map_err(failed)
            }
            libc::S_IFLNK => {
                let target = |object: &OwnedFd| {
                    readlinkat(object.as_fd(), "").map_err(|errno| failed(errno.into()))
                };
                Ok(target(&new)? == target(&old)?)
            }
            _ => Ok(true),
        }
    }
}

fn list(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<(Vec<u8>, bool)>> {
    let failed = |errno| Error::entry("read the directory", path, errno);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let here = beneath::open_plain(root, path, flags).map_err(failed)?;
    names(&here).map_err(failed)
}

/// Returns the metadata that a layer holds.
fn metadata(stat: &FileStat) -> impl PartialEq + use<> {
    let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let size = (!is_directory).then_some(stat.st_size);
    let owner = (stat.st_uid, stat.st_gid);
    let time = (stat.st_mtime, stat.st_mtime_nsec);
    (stat.st_mode, owner, stat.st_rdev, size, time)
}

fn attributes(object: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr::list(object)? {
        let value = xattr::get(object, &name)?;
        found.push((name.into_bytes(), value));
    }
    found.sort();
    Ok(found)
}

fn same_content(mut one: File, mut other: File) -> io::Result<bool> {
    let (mut first, mut second) = (vec![0; COPY_BUFFER_BYTES], vec![0; COPY_BUFFER_BYTES]);
    loop {
        cancel::check()?;
        let len = one.read(&mut first)?;
        if len == 0 {
            return Ok(other.read(&mut second[..1])? == 0);
        }
        match other.read_exact(&mut second[..len]) {
            Ok(()) if first[..len] == second[..len] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
