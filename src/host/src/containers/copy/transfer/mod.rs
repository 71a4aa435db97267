//! Copying objects from one directory into another with all their metadata.
//!
//! All accesses use descriptors of directories and single names, and follow no symbolic link, so
//! that a process that renames things meanwhile cannot redirect the copy.
//!
//! # Invariants
//! - Everything but directories is created anew, never written through an existing name. A file
//!   gets its name once it is complete: the object that it replaces stays until then.
//! - Devices, FIFOs and sockets are not replaced, except by an equal object below the target.
//! - An object is opened through the descriptor that was examined, whatever has its name by then.
//! - A directory's times are set after its content.

use super::CopyReport;
use crate::error::{Error, Result};
use crate::mounts::random_hex;
use cowshed_format::base::cancel;
use cowshed_sys::{beneath, extent, xattr};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The maximum depth of a tree: each level holds two descriptors.
const DEPTH_MAX: usize = 256;
/// Buffer for contents, in bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// The mode bits that chmod(2) accepts.
const PERMISSION_BITS: u32 = 0o7777;

/// A copy in progress.
pub(super) struct Transfer<'t> {
    /// The directory that everything is copied into.
    target: BorrowedFd<'t>,
    /// The path of the first copied name of each file with several names, by device and inode.
    first_names: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
    report: CopyReport,
}

/// An object to copy: its descriptor, opened with `O_PATH`, and its metadata.
struct Source {
    object: OwnedFd,
    stat: FileStat,
}

impl Source {
    fn of(object: OwnedFd) -> Result<Self, Errno> {
        let stat = beneath::stat_itself(&object)?;
        Ok(Self { object, stat })
    }

    fn kind(&self) -> SFlag {
        kind_of(&self.stat)
    }
}

/// The source and the target of one object.
struct Step<'s> {
    from: BorrowedFd<'s>,
    name: &'s OsStr,
    to: BorrowedFd<'s>,
    new_name: &'s OsStr,
    /// The path relative to the transfer's target.
    path: &'s Path,
    /// The path for messages.
    shown: &'s Path,
    depth: usize,
}

impl<'t> Transfer<'t> {
    pub(super) fn new(target: BorrowedFd<'t>) -> Self {
        Self {
            target,
            first_names: HashMap::new(),
            buffer: vec![0; BUFFER_BYTES],
            report: CopyReport::default(),
        }
    }

    pub(super) const fn report(&self) -> CopyReport {
        self.report
    }

    /// Copies the object `name` of the directory `from` to `new_name` in the target.
    pub(super) fn object(
        &mut self,
        from: BorrowedFd<'_>,
        name: &OsStr,
        new_name: &OsStr,
        shown: &Path,
    ) -> Result<()> {
        let (to, path) = (self.target, Path::new(new_name));
        self.step(&Step {
            from,
            name,
            to,
            new_name,
            path,
            shown,
            depth: 0,
        })
    }

    /// Copies everything in the directory `from` into `to`, the target, and its metadata onto it.
    pub(super) fn contents(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let here = OsStr::new(".");
        let shown = Path::new(".");
        let step = Step {
            from,
            name: here,
            to,
            new_name: here,
            path: Path::new(""),
            shown,
            depth: 0,
        };
        let source = step.source()?;
        self.children(&step, from, to)?;
        step.set_metadata(to, &source)
    }

    fn step(&mut self, step: &Step<'_>) -> Result<()> {
        cancel::check()?;
        let source = step.source()?;
        let kind = source.kind();
        if kind == SFlag::S_IFSOCK {
            // A socket means nothing without its process.
            return if step.depth == 0 {
                let path = step.shown.to_owned();
                Err(Error::CopySocket { path })
            } else {
                Ok(())
            };
        }
        if kind == SFlag::S_IFDIR {
            return self.directory(step, &source);
        }
        step.refuse_special(&source)?;
        self.report.objects += 1;
        if source.stat.st_nlink > 1 && self.link_to_first(step, &source.stat)? {
            return Ok(());
        }
        match kind {
            SFlag::S_IFREG => self.file(step, &source),
            SFlag::S_IFLNK => {
                let link = step.check("read the link", readlinkat(&source.object, ""))?;
                step.make_room()?;
                step.check(
                    "create",
                    symlinkat(link.as_os_str(), step.to, step.new_name),
                )?;
                step.finish(&source)
            }
            _ => {
                let mode = Mode::from_bits_truncate(0o600);
                step.make_room()?;
                step.check(
                    "create",
                    mknodat(step.to, step.new_name, kind, mode, source.stat.st_rdev),
                )?;
                step.finish(&source)
            }
        }
    }

    /// Creates a hard link if another name of the file was copied before.
    fn link_to_first(&mut self, step: &Step<'_>, stat: &FileStat) -> Result<bool> {
        let inode = (stat.st_dev, stat.st_ino);
        let Some(first) = self.first_names.get(&inode) else {
            self.first_names.insert(inode, step.path.to_owned());
            return Ok(false);
        };
        let bytes = first.as_os_str().as_bytes();
        let object = step.check(
            "find",
            beneath::open_plain(self.target, bytes, OFlag::O_PATH),
        )?;
        let path = proc_path(&object);
        step.make_room()?;
        let flag = LinkatFlags::AT_SYMLINK_FOLLOW;
        let here = nix::fcntl::AT_FDCWD;
        step.check("link", linkat(here, &path, step.to, step.new_name, flag))?;
        Ok(true)
    }

    fn directory(&mut self, step: &Step<'_>, source: &Source) -> Result<()> {
        if step.depth >= DEPTH_MAX {
            return step.check("copy", Err(Errno::ENAMETOOLONG));
        }
        match mkdirat(step.to, step.new_name, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return step.check("create", Err(errno)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let to = match openat(step.to, step.new_name, flags, Mode::empty()) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(Error::NotADirectory {
                    path: step.path.to_owned(),
                });
            }
            opened => step.check("open", opened)?,
        };
        let from = step.check("open", openat(&source.object, ".", flags, Mode::empty()))?;
        self.report.objects += 1;
        self.children(step, from.as_fd(), to.as_fd())?;
        step.set_metadata(to.as_fd(), source)
    }

    fn children(
        &mut self,
        step: &Step<'_>,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> Result<()> {
        for name in step.check("list", names(from))? {
            self.step(&Step {
                from,
                name: &name,
                to,
                new_name: &name,
                path: &step.path.join(&name),
                shown: &step.shown.join(&name),
                depth: step.depth + 1,
            })?;
        }
        Ok(())
    }

    fn file(&mut self, step: &Step<'_>, source: &Source) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY;
        let from = File::from(step.check("open", beneath::reopen(&source.object, flags))?);
        let part = PartFile::make(step)?;
        self.copy_content(&from, &part.file)
            .map_err(Error::io("copy", step.shown))?;
        step.set_metadata(part.file.as_fd(), source)?;
        part.take_name(step, source)
    }

    /// Copies the data and preserves the holes.
    fn copy_content(&mut self, from: &File, to: &File) -> io::Result<()> {
        let end = from.metadata()?.len();
        let mut at = 0;
        while let Some(data) = extent::next_data(from, at, end)? {
            at = data.start;
            while at < data.end {
                cancel::check()?;
                let want = usize::try_from(data.end - at)
                    .unwrap_or(BUFFER_BYTES)
                    .min(BUFFER_BYTES);
                let len = from.read_at(&mut self.buffer[..want], at)?;
                if len == 0 {
                    return to.set_len(at);
                }
                to.write_all_at(&self.buffer[..len], at)?;
                let len = u64::try_from(len).map_err(io::Error::other)?;
                self.report.copied_bytes += len;
                at += len;
            }
        }
        to.set_len(end)
    }
}

impl Step<'_> {
    fn check<T>(&self, action: &'static str, answer: Result<T, Errno>) -> Result<T> {
        answer.map_err(|errno| Error::io(action, self.shown)(errno.into()))
    }

    fn source(&self) -> Result<Source> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let object = self.check("find", openat(self.from, self.name, flags, Mode::empty()))?;
        self.check("inspect", Source::of(object))
    }

    /// Refuses to replace an object that is neither a directory nor a file nor a link. Below the
    /// target, an equal device or a FIFO may be replaced, so that a tree can be copied again.
    fn refuse_special(&self, source: &Source) -> Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let found = match fstatat(self.to, self.new_name, flags) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return self.check("inspect", Err(errno)),
        };
        let what = match kind_of(&found) {
            SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
            SFlag::S_IFIFO => "a FIFO",
            SFlag::S_IFSOCK => "a socket",
            _ => return Ok(()),
        };
        let is_same = kind_of(&found) == source.kind() && found.st_rdev == source.stat.st_rdev;
        if self.depth > 0 && is_same {
            return Ok(());
        }
        let path = self.path.to_owned();
        Err(Error::CopyTarget { path, what })
    }

    /// Removes the object with the new name, unless it is a directory.
    fn make_room(&self) -> Result<()> {
        match unlinkat(self.to, self.new_name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => self.check("replace", Err(errno)),
        }
    }

    /// Sets the metadata of an object that was created without a descriptor.
    fn finish(&self, source: &Source) -> Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = self.check("open", openat(self.to, self.new_name, flags, Mode::empty()))?;
        self.set_metadata(made.as_fd(), source)
    }

    /// Gives `made` the owner, mode, attributes and times of the source.
    fn set_metadata(&self, made: BorrowedFd<'_>, source: &Source) -> Result<()> {
        let stat = &source.stat;
        let owner = (
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        );
        self.check(
            "set the owner of",
            fchownat(made, "", owner.0, owner.1, AtFlags::AT_EMPTY_PATH),
        )?;
        let path = proc_path(&made);
        let is_link = source.kind() == SFlag::S_IFLNK;
        if !is_link {
            // After the owner, since changing the owner clears setuid bits.
            let mode = Permissions::from_mode(stat.st_mode & PERMISSION_BITS);
            fs::set_permissions(&path, mode).map_err(Error::io("set the mode of", self.shown))?;
        }
        copy_xattrs(&source.object, made)
            .map_err(Error::io("copy the attributes of", self.shown))?;
        let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        let times = if is_link {
            let flag = UtimensatFlags::NoFollowSymlink;
            utimensat(self.to, self.new_name, &accessed, &modified, flag)
        } else {
            let flag = UtimensatFlags::FollowSymlink;
            utimensat(nix::fcntl::AT_FDCWD, &path, &accessed, &modified, flag)
        };
        self.check("set the times of", times)
    }
}

fn copy_xattrs(source: &OwnedFd, made: BorrowedFd<'_>) -> io::Result<()> {
    for name in xattr::list(source)? {
        match xattr::set(made, &name, &xattr::get(source, &name)?) {
            // The target's file system does not support such attributes.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            answer => answer?,
        }
    }
    Ok(())
}

/// A file in the target's directory that gets its name only once it is complete; removed if it does
/// not.
struct PartFile<'s> {
    file: File,
    directory: BorrowedFd<'s>,
    name: String,
    is_named: bool,
}

impl<'s> PartFile<'s> {
    fn make(step: &Step<'s>) -> Result<Self> {
        let name = format!(".cowshed-cp-{}", random_hex::<8>()?);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let made = openat(step.to, name.as_str(), flags, mode);
        Ok(Self {
            file: step.check("create", made)?.into(),
            directory: step.to,
            name,
            is_named: false,
        })
    }

    /// Replaces the object with the name, which was not a special file when it was last examined.
    fn take_name(mut self, step: &Step<'_>, source: &Source) -> Result<()> {
        step.refuse_special(source)?;
        let name = self.name.as_str();
        let renamed = renameat(self.directory, name, self.directory, step.new_name);
        step.check("replace", renamed)?;
        self.is_named = true;
        Ok(())
    }
}

impl Drop for PartFile<'_> {
    fn drop(&mut self) {
        if !self.is_named {
            // The copy's own error is returned; a failure to remove the file adds nothing to it.
            let _ = unlinkat(
                self.directory,
                self.name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Returns the names in a directory, without `.` and `..`.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Dir::from_fd(openat(directory, ".", flags, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns a path to the very object that the descriptor refers to.
fn proc_path(object: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", object.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests;
