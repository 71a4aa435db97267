//! Applying a layer: the entries of one tar stream are created beneath a root directory.
//!
//! Invariants:
//! - Nothing outside the root is touched. Parents are resolved with `RESOLVE_IN_ROOT`, last
//!   components are never followed, entries with `..` are refused, and absolute names are relative
//!   to the root.
//! - A whiteout or opaque marker removes only objects of lower layers, never those that this layer
//!   has added, in whatever order the entries come.
//! - A file is always created anew and never written through an existing name, so that a hard link
//!   of a lower layer keeps its content.
//! - The same layer on the same tree gives the same tree, times included: a directory that an entry
//!   describes gets that entry's times, and one that only had children changed keeps its own.
//!
//! - An object that cannot be created is an error, or is omitted and counted in
//!   [`Applied::dropped`].
//!
//! An error leaves the root half-changed; the caller discards the volume. Nothing is synced here.

mod acl;
mod attributes;
mod content;
mod create;
mod parents;
mod remove;
#[cfg(test)]
mod tests;

use super::dropped::{Dropped, Loss};
use super::error::{Error, HeaderFault, Printable, Result};
use super::limits::{COPY_BUFFER_BYTES, DEPTH_MAX, READ_BUFFER_BYTES};
use super::recipe::{Recorder, Recording};
use super::tarball::{Entry, Kind, TarReader, Time};
use cowshed_format::base::cancel;
use cowshed_sys::aligned::AlignedBuffer;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstatat};
use parents::{Directory, Parents};
use remove::Added;
use std::ffi::OsStr;
use std::io::{BufReader, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The prefix of the names that AUFS used for bookkeeping inside layers; they mean nothing to other
/// programs.
const AUFS_BOOKS: &[u8] = b".wh..wh.";

/// The options for applying an archive.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Refuse an archive without an end marker, which may have been cut short: for archives without
    /// a stated digest.
    pub require_end_marker: bool,
    /// The archive is not a layer: names that begin with `.wh.` are ordinary names, the content of
    /// an existing directory stays, and neither a directory nor a device, FIFO or socket is
    /// replaced by another kind of object.
    pub is_plain_tar: bool,
}

/// The result of applying a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Number of entries, including whiteouts.
    pub entries: u64,
    /// Bytes of file content that were written; holes are not counted.
    pub written_bytes: u64,
    /// The omitted data.
    pub dropped: Dropped,
}

/// Manages the free space of the file system below the root.
pub trait Room {
    /// Returns true if an entry fits whose content takes at most so many bytes. Otherwise,
    /// everything that is open in the file system is closed, and `make` is called.
    fn fits(&mut self, content_bytes: u64) -> bool;

    /// Makes space, if possible, and opens the root again.
    ///
    /// # Errors
    /// If there is no root any more.
    fn make(&mut self) -> Result<OwnedFd>;
}

/// The free space as it is, which never grows.
struct PresentRoom;

impl Room for PresentRoom {
    fn fits(&mut self, _: u64) -> bool {
        true
    }

    fn make(&mut self) -> Result<OwnedFd> {
        let error = std::io::ErrorKind::Unsupported.into();
        Err(Error::io("enlarge the file system", error))
    }
}

/// Applies the uncompressed tar stream `layer` onto the directory `root`.
///
/// # Errors
/// As [`apply_with`].
pub fn apply(root: BorrowedFd<'_>, layer: impl Read, options: ApplyOptions) -> Result<Applied> {
    let root = root
        .try_clone_to_owned()
        .map_err(|source| Error::io("open the root", source))?;
    apply_with(root, layer, options, &mut PresentRoom)
}

/// Applies the uncompressed tar stream `layer` onto the directory `root`; `room` manages the free
/// space of its file system.
///
/// # Errors
/// `Escapes` for an entry that would leave the root, `Header` and `Archive` for a bad stream,
/// `Unsupported` for an entry that makes no file here, `Attributes` for attributes that are too
/// large, `Entry` with the host's errno (`ENOSPC` for a full volume) if an entry could not be
/// created, and any error of this crate that `layer` itself returns, such as `DigestMismatch`.
pub fn apply_with(
    root: OwnedFd,
    layer: impl Read,
    options: ApplyOptions,
    room: &mut dyn Room,
) -> Result<Applied> {
    apply_to(root, layer, options, room, None)
}

/// As [`apply_with`], and records the recipe of the stream.
///
/// # Errors
/// As [`apply_with`]. An error of recording is known at its end.
pub fn apply_recording(
    root: OwnedFd,
    layer: impl Read,
    options: ApplyOptions,
    room: &mut dyn Room,
    recorder: &mut Recorder<'_>,
) -> Result<Applied> {
    apply_to(root, layer, options, room, Some(recorder))
}

fn apply_to(
    root: OwnedFd,
    layer: impl Read,
    options: ApplyOptions,
    room: &mut dyn Room,
    recorder: Option<&mut Recorder<'_>>,
) -> Result<Applied> {
    let layer = BufReader::with_capacity(READ_BUFFER_BYTES, layer);
    let mut archive = TarReader::new(Recording::new(layer, recorder));
    let mut applier = Applier {
        parents: Parents::new(root),
        added: Added::default(),
        buffer: AlignedBuffer::zeroed(COPY_BUFFER_BYTES),
        applied: Applied::default(),
        is_plain_tar: options.is_plain_tar,
    };
    while let Some(entry) = archive.next_entry()? {
        cancel::check()?;
        if !room.fits(entry.segments.iter().map(|part| part.len_bytes).sum()) {
            applier.parents.close();
            applier.parents.reopen(room.make()?);
        }
        applier.entry(&entry, &mut archive)?;
        applier.applied.entries += 1;
    }
    archive.read_rest()?;
    if options.require_end_marker && !archive.saw_end_marker() {
        let entry = Printable::from("its end");
        return Err(Error::Header {
            entry,
            fault: HeaderFault::NoEnd,
        });
    }
    applier.parents.set_directory_times()?;
    let mut applied = applier.applied;
    applied.dropped.add(archive.into_dropped());
    if options.require_end_marker && applied.entries == 0 {
        if applied.dropped.count(Loss::AfterEnd) > 0 {
            return Err(Error::NotAnImage("it begins with zeros"));
        }
        applied.dropped.note(Loss::Nothing, b"");
    }
    Ok(applied)
}

/// The archive that is applied.
type Archive<'r, 'w, R> = TarReader<Recording<'r, 'w, R>>;

struct Applier {
    parents: Parents,
    added: Added,
    buffer: AlignedBuffer,
    applied: Applied,
    is_plain_tar: bool,
}

/// The place of an entry: its parent directory and its name there.
struct Place<'a> {
    parent: Rc<Directory>,
    name: &'a [u8],
    path: &'a [u8],
}

impl Applier {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive<'_, '_, impl Read>) -> Result<()> {
        let path = normalize(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            return self.root(entry);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT)
            && !self.is_plain_tar
        {
            return self.whiteout(parent, name, hidden, &entry.path);
        }
        let parent = self.parents.open_or_make(parent, entry.mtime)?;
        let place = Place {
            parent,
            name,
            path: &path,
        };
        if self.is_plain_tar {
            refuse_in_the_way(&place, entry.kind)?;
        }
        match entry.kind {
            Kind::File => self.file(&place, entry, archive)?,
            Kind::Directory => self.directory(&place, entry)?,
            Kind::HardLink => self.hard_link(&place, entry)?,
            Kind::Symlink => self.symlink(&place, entry)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(&place, entry)?,
        }
        self.added.insert(place.parent.inode, name);
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], hidden: &[u8], entry: &[u8]) -> Result<()> {
        let Some(parent) = self.parents.open(parent)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.parents.forget();
            return remove::clear_lower(&parent, &self.added)
                .map_err(|source| Error::entry("clear the directory of", entry, source));
        }
        if name.starts_with(AUFS_BOOKS) {
            return Ok(());
        }
        match hidden {
            b"" => Err(Error::Header {
                entry: Printable::from(entry),
                fault: HeaderFault::Path,
            }),
            b"." | b".." => Err(Error::Escapes {
                entry: Printable::from(entry),
            }),
            _ => {
                self.parents.forget();
                remove::remove_lower(&parent, hidden, &self.added).map_err(|source| {
                    Error::entry("remove the entry that is deleted by", entry, source)
                })
            }
        }
    }
}

/// Refuses to replace an object by one of another kind if the object must not be lost.
fn refuse_in_the_way(place: &Place<'_>, kind: Kind) -> Result<()> {
    let name = OsStr::from_bytes(place.name);
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    let found = match fstatat(&place.parent.fd, name, flags) {
        Ok(found) => SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Error::entry("inspect", place.path, errno)),
    };
    let what = match (found, kind) {
        (SFlag::S_IFDIR, Kind::Directory)
        | (SFlag::S_IFCHR, Kind::CharDevice)
        | (SFlag::S_IFBLK, Kind::BlockDevice)
        | (SFlag::S_IFIFO, Kind::Fifo) => return Ok(()),
        (SFlag::S_IFDIR, _) => "a directory",
        (SFlag::S_IFCHR | SFlag::S_IFBLK, _) => "a device",
        (SFlag::S_IFIFO, _) => "a FIFO",
        (SFlag::S_IFSOCK, _) => "a socket",
        (_, Kind::Directory) => "not a directory",
        _ => return Ok(()),
    };
    let entry = Printable::from(place.path);
    Err(Error::InTheWay { entry, what })
}

/// Returns the path without empty and `.` components, relative to the root.
fn normalize(path: &[u8]) -> Result<Vec<u8>> {
    let mut normal = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => {
                return Err(Error::Escapes {
                    entry: Printable::from(path),
                });
            }
            _ => {}
        }
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(Error::Header {
                entry: Printable::from(path),
                fault: HeaderFault::Path,
            });
        }
        if !normal.is_empty() {
            normal.push(b'/');
        }
        normal.extend_from_slice(component);
    }
    Ok(normal)
}

/// Returns the parent and the last component of a normalized path; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

/// Returns a time in the kernel's form.
fn time_spec(time: Time) -> nix::sys::time::TimeSpec {
    nix::sys::time::TimeSpec::new(time.seconds, time.nanoseconds.into())
}
