//! Creating one entry of each kind, with its metadata.
//!
//! The order matters: content before owner (a write clears setuid and capabilities), owner before
//! mode (a change of owner clears setuid), mode before attributes (a change of mode rewrites an
//! ACL), times last.

use super::{Applier, Archive, Place, content, normalize, remove, split, time_spec};
use crate::error::{Error, HeaderFault, Printable, Result};
use crate::tarball::{Entry, HOST_XATTRS, Kind};
use cowshed_sys::{beneath, xattr};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

impl Applier {
    pub(super) fn file(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        archive: &mut Archive<'_, '_, impl Read>,
    ) -> Result<()> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = self.replacing(place, "create the file", |place| {
            openat(
                &place.parent.fd,
                OsStr::from_bytes(place.name),
                flags,
                private,
            )
            .map(File::from)
        })?;
        archive
            .inner_mut()
            .begin_content(place.path, &entry.segments);
        let written = content::write(&file, entry, archive, &mut self.buffer)?;
        archive.inner_mut().end_content();
        self.applied.written_bytes += written;
        Self::inherited(&file, place)?;
        self.metadata(&file, entry)?;
        futimens(
            &file,
            &time_spec(entry.atime.unwrap_or(entry.mtime)),
            &time_spec(entry.mtime),
        )
        .map_err(|errno| Error::entry("set the times of", place.path, errno))
    }

    pub(super) fn directory(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let name = OsStr::from_bytes(place.name);
        let make = |place: &Place<'_>| mkdirat(&place.parent.fd, name, Mode::S_IRWXU);
        let (made, existing) = match make(place) {
            Ok(()) => (true, Self::open_child(place)),
            Err(Errno::EEXIST) => (false, Self::open_child(place)),
            Err(errno) => return Err(Error::entry("create the directory", place.path, errno)),
        };
        let fd = match existing {
            Ok(fd) => {
                if made {
                    Self::inherited(&fd, place)?;
                } else if !self.is_plain_tar {
                    clear(&fd, place.path)?;
                }
                fd
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                self.replacing(place, "create the directory", make)?;
                let fd = Self::open_child(place)
                    .map_err(|errno| Error::entry("open the directory", place.path, errno))?;
                Self::inherited(&fd, place)?;
                fd
            }
            Err(errno) => return Err(Error::entry("open the directory", place.path, errno)),
        };
        self.finish_directory(place.path, fd, entry)
    }

    /// Applies the entry `./`: the metadata of the root itself.
    pub(super) fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            let path = Printable::from(&*entry.path);
            return Err(Error::Header {
                entry: path,
                fault: HeaderFault::Path,
            });
        }
        let fd = beneath::open_plain(
            self.parents.root(),
            b".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY,
        )
        .map_err(|errno| Error::entry("open the directory", b"/", errno))?;
        if !self.is_plain_tar {
            clear(&fd, b"/")?;
        }
        self.finish_directory(b"", fd, entry)
    }

    fn finish_directory(&mut self, path: &[u8], fd: OwnedFd, entry: &Entry) -> Result<()> {
        self.metadata(&fd, entry)?;
        let stat = beneath::stat_itself(&fd).map_err(|e| Error::entry("inspect", path, e))?;
        let atime = entry.atime.unwrap_or(entry.mtime);
        self.parents
            .described(path, fd, stat.st_ino, atime, entry.mtime);
        Ok(())
    }

    pub(super) fn hard_link(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let target = normalize(&entry.link)?;
        let failed = |errno| Error::entry("create the hard link", place.path, errno);
        let (directory, target_name) = split(&target).ok_or_else(|| failed(Errno::EISDIR))?;
        let directory = self
            .parents
            .open(directory)?
            .ok_or_else(|| failed(Errno::ENOENT))?;
        let target_name = OsStr::from_bytes(target_name);
        // Checked before anything is removed, because the target may be the entry itself.
        fstatat(&directory.fd, target_name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        if directory.inode == place.parent.inode && target_name.as_bytes() == place.name {
            return Ok(());
        }
        self.replacing(place, "create the hard link", |place| {
            let name = OsStr::from_bytes(place.name);
            linkat(
                &directory.fd,
                target_name,
                &place.parent.fd,
                name,
                AtFlags::empty(),
            )
        })
    }

    pub(super) fn symlink(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        self.replacing(place, "create the symbolic link", |place| {
            symlinkat(target, &place.parent.fd, OsStr::from_bytes(place.name))
        })?;
        self.metadata_by_name(place, entry)
    }

    pub(super) fn node(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let kind = match entry.kind {
            Kind::CharDevice => SFlag::S_IFCHR,
            Kind::BlockDevice => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let device = makedev(entry.device_major.into(), entry.device_minor.into());
        self.replacing(place, "create the node", |place| {
            let name = OsStr::from_bytes(place.name);
            mknodat(
                &place.parent.fd,
                name,
                kind,
                Mode::S_IRUSR | Mode::S_IWUSR,
                device,
            )
        })?;
        self.metadata_by_name(place, entry)
    }

    /// Calls `make`; if an object has the name already, removes it first.
    fn replacing<T>(
        &mut self,
        place: &Place<'_>,
        action: &'static str,
        make: impl Fn(&Place<'_>) -> Result<T, Errno>,
    ) -> Result<T> {
        let failed = |errno| Error::entry(action, place.path, errno);
        match make(place) {
            Err(Errno::EEXIST) => {
                // The removed object may be a directory or a link on the way to a cached directory.
                self.parents.forget();
                remove::remove_all(place.parent.fd.as_fd(), place.name).map_err(failed)?;
                make(place).map_err(failed)
            }
            answer => answer.map_err(failed),
        }
    }

    fn open_child(place: &Place<'_>) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(
            &place.parent.fd,
            OsStr::from_bytes(place.name),
            flags,
            Mode::empty(),
        )
    }

    /// Removes the ACL that a new object inherits from its parent's default ACL.
    fn inherited(fd: impl AsFd, place: &Place<'_>) -> Result<()> {
        if place.parent.has_default_acl {
            clear(fd, place.path)
        } else {
            Ok(())
        }
    }

    /// Sets owner, mode and attributes of an open file or directory.
    fn metadata(&mut self, fd: impl AsFd, entry: &Entry) -> Result<()> {
        fchown(
            &fd,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(|errno| Error::entry("set the owner of", &entry.path, errno))?;
        fchmod(&fd, Mode::from_bits_truncate(entry.mode))
            .map_err(|errno| Error::entry("set the mode of", &entry.path, errno))?;
        self.attributes(fd, entry)
    }

    /// Sets owner, mode, attributes and times of a symbolic link or node, which cannot be opened.
    fn metadata_by_name(&mut self, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let name = OsStr::from_bytes(place.name);
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(
            &place.parent.fd,
            name,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| Error::entry("set the owner of", place.path, errno))?;
        if entry.kind != Kind::Symlink {
            // It was just created under this name and is not a link, so following is harmless.
            let mode = Mode::from_bits_truncate(entry.mode);
            fchmodat(&place.parent.fd, name, mode, FchmodatFlags::FollowSymlink)
                .map_err(|errno| Error::entry("set the mode of", place.path, errno))?;
        }
        if entry.has_attributes() || place.parent.has_default_acl {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(&place.parent.fd, name, flags, Mode::empty())
                .map_err(|errno| Error::entry("open", place.path, errno))?;
            Self::inherited(&fd, place)?;
            self.attributes(&fd, entry)?;
        }
        let (atime, mtime) = (entry.atime.unwrap_or(entry.mtime), entry.mtime);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        utimensat(
            &place.parent.fd,
            name,
            &time_spec(atime),
            &time_spec(mtime),
            nofollow,
        )
        .map_err(|errno| Error::entry("set the times of", place.path, errno))
    }
}

/// Removes all attributes: an entry describes a directory completely, so the attributes that a
/// lower layer set on it are removed.
pub(super) fn clear(fd: impl AsFd, path: &[u8]) -> Result<()> {
    let failed = |source| Error::entry("clear the attributes of", path, source);
    for name in xattr::list(&fd).map_err(failed)? {
        if !HOST_XATTRS.contains(&name.as_bytes()) {
            xattr::remove(&fd, &name).map_err(failed)?;
        }
    }
    Ok(())
}
