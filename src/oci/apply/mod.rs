//! Applying a layer: the entries of one tar stream, made beneath a root directory.
//!
//! Invariants:
//! - Nothing outside the root is touched. Parents are resolved with `RESOLVE_IN_ROOT`, last
//!   components are never followed, entries with `..` are refused, and absolute names count from
//!   the root.
//! - A whiteout or opaque marker removes only what lower layers left, never what this layer has
//!   added, in whatever order the entries come.
//! - A file is always made anew and never written through an existing name, so that a hard link of
//!   a lower layer keeps its content.
//! - The same layer on the same tree gives the same tree, times included: a directory that an entry
//!   describes gets that entry's times, and one that only had children changed keeps its own.
//!
//! An error leaves the root half-changed; the caller discards the volume. Nothing is synced here.
//! ACLs come as the `system.posix_acl_*` attributes of layers; GNU tar's text form is passed over.

mod content;
mod create;
mod parents;
mod remove;
#[cfg(test)]
mod tests;

use super::error::{Error, HeaderFault, Printable, Result};
use super::limits::{COPY_BUFFER_BYTES, DEPTH_MAX, READ_BUFFER_BYTES};
use super::tarball::{Entry, Kind, TarReader, Time};
use crate::sys::aligned::AlignedBuffer;
use parents::{Directory, Parents};
use remove::Added;
use std::io::{BufReader, Read};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names with which AUFS kept books inside layers; they mean nothing to anyone else.
const AUFS_BOOKS: &[u8] = b".wh..wh.";

/// How strict to be about the archive's end.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Refuse an archive without an end marker, which may have been cut short: for archives whose
    /// digest nobody has stated.
    pub require_end_marker: bool,
}

/// What a layer brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Bytes of file content that were written; holes are not counted.
    pub written_bytes: u64,
    /// Extended attributes that the file system does not support and that were left out.
    pub unsupported_xattrs: u64,
}

/// Applies the uncompressed tar stream `layer` onto the directory `root`.
///
/// # Errors
/// `Escapes` for an entry that would leave the root, `Header` and `Archive` for a bad stream,
/// `Entry` with the host's errno (`ENOSPC` for a full volume) where an entry could not be made, and
/// whatever error of this room `layer` itself carries, such as `DigestMismatch`.
pub fn apply(root: BorrowedFd<'_>, layer: impl Read, options: ApplyOptions) -> Result<Applied> {
    let mut archive = TarReader::new(BufReader::with_capacity(READ_BUFFER_BYTES, layer));
    let mut applier = Applier {
        parents: Parents::new(root),
        added: Added::default(),
        buffer: AlignedBuffer::zeroed(COPY_BUFFER_BYTES),
        applied: Applied::default(),
    };
    while let Some(entry) = archive.next_entry()? {
        applier.entry(&entry, &mut archive)?;
        applier.applied.entries += 1;
    }
    if options.require_end_marker && !archive.saw_end_marker() {
        let entry = Printable::from("its end");
        return Err(Error::Header {
            entry,
            fault: HeaderFault::NoEnd,
        });
    }
    applier.parents.set_directory_times()?;
    Ok(applier.applied)
}

struct Applier<'root> {
    parents: Parents<'root>,
    added: Added,
    buffer: AlignedBuffer,
    applied: Applied,
}

/// Where an entry goes: its parent directory and its name there.
struct Place<'a> {
    parent: Rc<Directory>,
    name: &'a [u8],
    path: &'a [u8],
}

impl Applier<'_> {
    fn entry(&mut self, entry: &Entry, archive: &mut TarReader<impl Read>) -> Result<()> {
        let path = normalize(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            return self.root(entry);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden, &entry.path);
        }
        let parent = self.parents.open_or_make(parent, entry.mtime)?;
        let place = Place {
            parent,
            name,
            path: &path,
        };
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
            return remove::clear_lower(&parent, &self.added, 0)
                .map_err(|source| Error::entry("clear the folder of", entry, source));
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
                remove::remove_lower(&parent, hidden, &self.added, 0)
                    .map_err(|source| Error::entry("remove what is hidden by", entry, source))
            }
        }
    }
}

/// The path without empty and `.` components, counted from the root.
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

/// The parent and the last component of a normalized path; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

/// A time as the kernel takes it.
fn time_spec(time: Time) -> nix::sys::time::TimeSpec {
    nix::sys::time::TimeSpec::new(time.seconds, time.nanoseconds.into())
}
