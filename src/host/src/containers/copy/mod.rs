//! Copying between this host and a container, as `docker cp --archive` does.
//!
//! A path in a container is resolved as the container sees it: absolute symbolic links and `..`
//! stay within its root, also while its processes rename things. A container that is not mounted
//! is mounted for the length of the copy.
//!
//! The place of the copy:
//! - if the target is an existing directory: inside it under the source's name, or the source's
//!   contents if the source ends in `/.`;
//! - otherwise: the target itself is replaced, except that a directory cannot replace a file.
//!   Devices, FIFOs and sockets are not replaced, as with `docker cp`.
//!
//! A symbolic link at the end of the source is copied as a link unless the options say to follow it
//! ([`CopyOptions`]); one at the end of the target is followed.

mod streams;
mod transfer;

use super::Containers;
use crate::error::{Error, Result};
use crate::mounts::filesystem::Mode;
use crate::mounts::hold;
use crate::record::{self, RootKind};
use cowshed_sys::beneath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use transfer::Transfer;

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySide {
    /// A path of this host; a relative one starts at this process's directory.
    Host(PathBuf),
    /// A path in a container, relative to its root.
    Container {
        /// The container's name or id.
        container: String,
        /// The path.
        path: PathBuf,
    },
}

/// The options of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Copies the object that a symbolic link at the end of the source leads to, and not the link.
    pub follow_link: bool,
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Number of files, directories and other objects that were created or replaced.
    pub objects: u64,
    /// Bytes of content that were copied; holes are not counted.
    pub copied_bytes: u64,
}

impl CopySide {
    /// Parses `CONTAINER:PATH`, or else a path of this host: one that starts with `/` or `.`, or
    /// has no colon.
    #[must_use]
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let is_path = bytes.starts_with(b"/") || bytes.starts_with(b".");
        let colon = bytes
            .iter()
            .position(|byte| *byte == b':')
            .filter(|at| !is_path && *at > 0);
        let container = colon.and_then(|at| str::from_utf8(&bytes[..at]).ok());
        match (container, colon) {
            (Some(container), Some(at)) => Self::Container {
                container: container.to_owned(),
                path: OsStr::from_bytes(&bytes[at + 1..]).into(),
            },
            _ => Self::Host(text.into()),
        }
    }
}

impl Containers {
    /// Copies a file or a directory with everything in it: modes, owners, times, extended
    /// attributes, links and holes.
    ///
    /// # Errors
    /// `CopySides` unless exactly one side is a container; `NotADirectory`, `CopyTarget`,
    /// `CopySocket`; any error of the host. Whole files of a tree that were copied before an error
    /// stay.
    pub fn copy(&self, from: &CopySide, to: &CopySide) -> Result<CopyReport> {
        self.copy_with(from, to, CopyOptions::default())
    }

    /// As `copy`, with options.
    ///
    /// # Errors
    /// As `copy`.
    pub fn copy_with(
        &self,
        from: &CopySide,
        to: &CopySide,
        options: CopyOptions,
    ) -> Result<CopyReport> {
        let container = match (from, to) {
            (CopySide::Container { container, .. }, CopySide::Host(_))
            | (CopySide::Host(_), CopySide::Container { container, .. }) => container,
            _ => return Err(Error::CopySides),
        };
        self.within(container, |root| copy_within(from, to, root, options))
    }

    /// Runs `work` with the container's root, which is mounted for that if it is not.
    pub(super) fn within<T>(
        &self,
        container: &str,
        work: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        if let Some(path) = self.mounted_at(&record)? {
            return work(&path);
        }
        let volume = record.volume(self.pool())?;
        let done = match record.root {
            RootKind::Block => {
                let mounted = self.mounts.mount_for_work(&volume, Mode::Container)?;
                let done = work(mounted.path())?;
                mounted.unmount()?;
                done
            }
            RootKind::Overlay => {
                let lower = self.image_top(&record)?;
                let mounted = self.mounts.overlay_for_work(&lower, &volume)?;
                let done = work(mounted.path())?;
                mounted.unmount()?;
                done
            }
        };
        self.pool().flush()?;
        Ok(done)
    }
}

fn copy_within(
    from: &CopySide,
    to: &CopySide,
    container_root: &Path,
    options: CopyOptions,
) -> Result<CopyReport> {
    let from = Side::open(from, container_root)?;
    let to = Side::open(to, container_root)?;
    let source = from.source(options)?;
    let target = to.target(&from, &source)?;
    let mut transfer = Transfer::new(target.directory.as_fd());
    if target.is_content {
        let directory = open_at(&source, OFlag::O_DIRECTORY).map_err(from.failed("open"))?;
        transfer.contents(directory.as_fd(), target.directory.as_fd())?;
    } else {
        transfer.object(
            source.directory.as_fd(),
            &source.name,
            &target.name,
            &from.path,
        )?;
    }
    Ok(transfer.report())
}

/// A side of a copy with the root of its path.
pub(super) struct Side {
    root: OwnedFd,
    in_container: bool,
    path: PathBuf,
}

/// An object: its directory and its name there.
pub(super) struct Place {
    pub directory: OwnedFd,
    /// `.` stands for the directory itself.
    pub name: OsString,
}

struct Target {
    directory: OwnedFd,
    name: OsString,
    /// True if the source's contents go into `directory`, and not the source itself.
    is_content: bool,
}

impl Place {
    /// Returns the type of the object.
    pub(super) fn kind(&self) -> Result<SFlag, Errno> {
        type_of(&self.directory, &self.name)
    }
}

impl Side {
    pub(super) fn open(side: &CopySide, container_root: &Path) -> Result<Self> {
        let (root, path, in_container) = match side {
            CopySide::Host(path) if path.is_absolute() => (Path::new("/"), path, false),
            CopySide::Host(path) => (Path::new("."), path, false),
            CopySide::Container { path, .. } => (container_root, path, true),
        };
        let opened = File::open(root).map_err(Error::io("open", root))?;
        Ok(Self {
            root: opened.into(),
            in_container,
            path: path.clone(),
        })
    }

    /// Opens the directory `path` of this side, resolved as the user of this side sees it.
    pub(super) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() {
            b".".as_slice()
        } else {
            path
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        if self.in_container {
            beneath::open_in_root(self.root.as_fd(), path, flags)
        } else {
            nix::fcntl::openat(
                &self.root,
                OsStr::from_bytes(path),
                flags,
                nix::sys::stat::Mode::empty(),
            )
        }
    }

    pub(super) fn failed(&self, action: &'static str) -> impl FnOnce(Errno) -> Error {
        let path = self.path.clone();
        move |errno| Error::Io {
            action,
            path,
            source: errno.into(),
        }
    }

    fn place(&self) -> Result<Place> {
        let (parent, name) = split(self.path.as_os_str().as_bytes());
        let directory = self.directory(parent).map_err(|errno| Error::Io {
            action: "find the directory",
            path: Path::new(OsStr::from_bytes(parent)).to_owned(),
            source: errno.into(),
        })?;
        Ok(Place {
            directory,
            name: OsStr::from_bytes(name).into(),
        })
    }

    /// Returns the object to copy, which must exist.
    pub(super) fn source(&self, options: CopyOptions) -> Result<Place> {
        let mut place = self.place()?;
        let bytes = self.path.as_os_str().as_bytes();
        if bytes.ends_with(b"/") || is_dot(place.name.as_bytes()) {
            // The directory that the path leads to, following links.
            place.directory = self.directory(bytes).map_err(self.failed("find"))?;
            place.name = OsString::from(".");
        } else if options.follow_link {
            place = self.link_end(place)?;
        }
        type_of(&place.directory, &place.name).map_err(self.failed("find"))?;
        Ok(place)
    }

    /// Returns the target of `source`, which is on the side `from`.
    fn target(&self, from: &Self, source: &Place) -> Result<Target> {
        let is_directory = type_of(&source.directory, &source.name)
            .map_err(from.failed("inspect"))?
            == SFlag::S_IFDIR;
        let bytes = self.path.as_os_str().as_bytes();
        match self.directory(bytes) {
            Ok(directory) => return from.enter(source, directory),
            Err(Errno::ENOENT) if !bytes.ends_with(b"/") || is_directory => {}
            Err(Errno::ENOTDIR) if !is_directory && !bytes.ends_with(b"/") => {}
            Err(Errno::ENOTDIR) => {
                return Err(Error::NotADirectory {
                    path: self.path.clone(),
                });
            }
            Err(errno) => return Err(self.failed("find")(errno)),
        }
        let mut place = self.place()?;
        // A symbolic link at the end is followed to the file that it names, whether or not that
        // file exists.
        if type_of(&place.directory, &place.name) == Ok(SFlag::S_IFLNK) && !is_directory {
            place = self.link_end(place)?;
        }
        Ok(Target {
            directory: place.directory,
            name: place.name,
            is_content: false,
        })
    }

    /// Returns the target if it is an existing directory; called on the source's side.
    fn enter(&self, source: &Place, directory: OwnedFd) -> Result<Target> {
        let (_, name) = split(trim_slashes(self.path.as_os_str().as_bytes()));
        let is_content = is_dot(name) || name.is_empty();
        debug_assert!(
            !is_content || is_dot(source.name.as_bytes()),
            "contents are of a directory"
        );
        Ok(Target {
            directory,
            name: OsStr::from_bytes(name).into(),
            is_content,
        })
    }

    /// Follows the link at `place`, a bounded number of times.
    fn link_end(&self, mut place: Place) -> Result<Place> {
        let mut path = self.path.clone();
        for _ in 0..LINKS_MAX {
            if type_of(&place.directory, &place.name) != Ok(SFlag::S_IFLNK) {
                return Ok(place);
            }
            let link = nix::fcntl::readlinkat(&place.directory, place.name.as_os_str())
                .map_err(self.failed("read the link"))?;
            let above = path.parent().unwrap_or(Path::new("")).to_owned();
            path = above.join(link);
            let next = Self {
                root: self.root.try_clone().map_err(clone_failed)?,
                path: path.clone(),
                ..*self
            };
            place = next.place()?;
        }
        Err(self.failed("find")(Errno::ELOOP))
    }
}

/// The maximum number of symbolic links at the end of a target that are followed, as in the kernel.
const LINKS_MAX: u32 = 40;

fn clone_failed(source: io::Error) -> Error {
    Error::Io {
        action: "duplicate",
        path: "the descriptor of a directory".into(),
        source,
    }
}

fn open_at(place: &Place, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(
        &place.directory,
        place.name.as_os_str(),
        flags,
        nix::sys::stat::Mode::empty(),
    )
}

fn type_of(directory: impl AsFd, name: &OsStr) -> Result<SFlag, Errno> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

pub(super) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn trim_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    path
}

/// Splits a path into its directory and its last name, without trailing slashes.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let trimmed = trim_slashes(path);
    match trimmed.iter().rposition(|byte| *byte == b'/') {
        // The slash stays: alone it is the root.
        Some(slash) => (&trimmed[..=slash], &trimmed[slash + 1..]),
        None if trimmed.is_empty() && !path.is_empty() => (b"/", b"."),
        None if trimmed.is_empty() => (b"", b"."),
        None => (b"", trimmed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_with_a_colon_before_any_slash_is_a_container() {
        let container = |container: &str, path: &str| CopySide::Container {
            container: container.to_owned(),
            path: path.into(),
        };
        let parse = |text: &str| CopySide::parse(OsStr::new(text));
        assert_eq!(parse("web:/etc/hosts"), container("web", "/etc/hosts"));
        assert_eq!(parse("web:"), container("web", ""));
        assert_eq!(parse("web:a:b"), container("web", "a:b"));
        for host in ["/a:b", "./a:b", "../a:b", "plain", ":x"] {
            assert_eq!(parse(host), CopySide::Host(host.into()));
        }
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let cases: [(&str, &str, &str); 8] = [
            ("a", "", "a"),
            ("/a", "/", "a"),
            ("/a/b//", "/a/", "b"),
            ("a/.", "a/", "."),
            ("/", "/", "."),
            ("", "", "."),
            ("..", "", ".."),
            ("//a", "//", "a"),
        ];
        for (path, directory, name) in cases {
            let expected = (directory.as_bytes(), name.as_bytes());
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
    }
}
