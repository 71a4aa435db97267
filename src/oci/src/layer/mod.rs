//! Writing a layer: files, links, nodes and whiteouts as one tar stream.
//!
//! The caller chooses the paths and their order; one layer must not contain both a whiteout of a
//! name and an entry of the same name. The same objects in the same order give the same bytes:
//! names of users, access times and inode numbers are not stored. The format is ustar, with PAX
//! headers for data that does not fit ustar; every tool reads it.
//!
//! Holes are not read. The first [`PLAIN_HOLES_BYTES_MAX`] of a layer are written as zeros:
//! Docker's graph drivers and containers/storage unpack sparse entries, but cannot reproduce the
//! same tar when they save or push such a layer. A file whose holes would exceed that is written in
//! the sparse form of PAX (GNU tar's 1.0), since a file system may claim more zeros than can be
//! written.

mod packed;

pub(crate) use packed::Packed;

use super::compression::Compression;
use super::data_map::DataMap;
use super::digest::Digest;
use super::error::{Error, HeaderFault, Printable, Result};
use super::limits::{COPY_BUFFER_BYTES, PAX_BYTES_MAX, PLAIN_HOLES_BYTES_MAX};
use super::tarball::{HOST_XATTRS, RECORD_BYTES, Segment, Time, format_time, put_record};
use cowshed_format::base::cancel;
use cowshed_sys::{beneath, xattr};
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, major, minor};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use tar::{EntryType, Header};

/// The maximum value of an octal field of seven digits: owners.
const OWNER_MAX: u32 = 0o7_777_777;
/// The maximum value of an octal field of eleven digits: sizes and times.
const SIZE_MAX: u64 = 0o77_777_777_777;
/// The length of the field for names and link targets, in bytes.
const NAME_BYTES: usize = 100;
/// The unit of the blocks that stat(2) counts.
const STAT_BLOCK_BYTES: u64 = 512;
/// The source of the zeros that are written for holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// The prefix of the attributes in which `overlayfs` keeps its state.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// The digests and sizes of a finished layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// The digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// The size of the uncompressed tar stream.
    pub size_bytes: u64,
    /// The digest of the written bytes.
    pub blob_digest: Digest,
    /// The number of written bytes.
    pub blob_size_bytes: u64,
    /// The compression.
    pub compression: Compression,
}

/// The writer of one layer.
pub struct LayerWriter<W: Write> {
    out: Packed<W>,
    /// The latest modification time in the layer; later ones are replaced by it.
    latest: Option<Time>,
    /// The first name of every file that has several, by device and inode.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    /// Number of bytes of holes that may still be written as zeros.
    plain_holes_bytes: u64,
    /// True if names with a special meaning in a layer are ordinary names.
    any_names: bool,
    buffer: Vec<u8>,
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer that is written to `inner`.
    ///
    /// # Errors
    /// `Io` if the compressor cannot start.
    pub fn new(inner: W, compression: Compression) -> Result<Self> {
        Ok(Self {
            out: Packed::new(inner, compression)?,
            latest: None,
            first_names: HashMap::new(),
            plain_holes_bytes: PLAIN_HOLES_BYTES_MAX,
            any_names: false,
            buffer: vec![0; COPY_BUFFER_BYTES],
        })
    }

    /// Replaces modification times after `latest` by it, so that the same content gives the same
    /// layer whenever it was made (<https://reproducible-builds.org/docs/source-date-epoch/>).
    #[must_use]
    pub const fn not_after(mut self, latest: Option<Time>) -> Self {
        self.latest = latest;
        self
    }

    /// Writes a plain tar archive: a name that begins with `.wh.` removes nothing there.
    #[must_use]
    pub const fn with_any_names(mut self) -> Self {
        self.any_names = true;
        self
    }

    /// Adds the object at `path` beneath `root` with all its metadata, but without the content of a
    /// directory. No symbolic link is followed. Returns true if it was stored: a socket is not, as
    /// it means nothing without its process.
    ///
    /// # Errors
    /// `Entry` if the object cannot be read, changes meanwhile, or the writer fails; `ReservedName`
    /// for a name that would be a whiteout; `Cancelled`.
    pub fn add(&mut self, root: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
        self.add_as(root, path, path)
    }

    /// As `add`, under another name.
    ///
    /// # Errors
    /// As `add`.
    pub fn add_as(&mut self, root: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<bool> {
        cancel::check()?;
        let read_failed = |source: io::Error| Error::entry("read", name, source);
        if !self.any_names && last_component(name).starts_with(b".wh.") {
            return Err(Error::ReservedName(Printable::from(name)));
        }
        let object = beneath::open_plain(root, path, OFlag::O_PATH)
            .map_err(|errno| read_failed(errno.into()))?;
        let stat = beneath::stat_itself(&object).map_err(|errno| read_failed(errno.into()))?;
        let Some(mut record) = Record::of(name, &stat) else {
            return Ok(false);
        };
        if let Some(latest) = self.latest {
            record.mtime = record.mtime.min(latest);
        }
        if record.kind != EntryType::Directory && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.first_names.get(&inode) {
                record.kind = EntryType::Link;
                record.link.clone_from(first);
                record.size_bytes = 0;
                self.header(&record)?;
                return Ok(true);
            }
            self.first_names.insert(inode, record.path.clone());
        }
        if record.kind == EntryType::Symlink {
            let target = readlinkat(object.as_fd(), "").map_err(|e| read_failed(e.into()))?;
            record.link = target.as_bytes().to_vec();
        }
        record.xattrs = image_xattrs(&object).map_err(read_failed)?;
        if record.kind == EntryType::Regular && record.size_bytes > 0 {
            let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY;
            let file = beneath::reopen(&object, flags).map_err(|e| read_failed(e.into()))?;
            // A file with all its blocks allocated has no holes.
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            let may_be_sparse = blocks.saturating_mul(STAT_BLOCK_BYTES) < record.size_bytes;
            self.file(&file.into(), record, may_be_sparse)?;
        } else {
            self.header(&record)?;
        }
        Ok(true)
    }

    /// Marks `path` as removed from the layers below.
    ///
    /// # Errors
    /// `Entry` if the writer fails.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let name = last_component(path);
        let parent = &path[..path.len() - name.len()];
        let marker = [parent, b".wh.", name].concat();
        self.header(&Record::empty_file(marker))
    }

    /// Writes the end of the archive; returns the writer and the layer's summary.
    ///
    /// # Errors
    /// `Io` if the writer fails.
    pub fn finish(mut self) -> Result<(W, LayerSummary)> {
        let failed = |source| Error::io("write the layer", source);
        self.out.write_all(&[0; 2 * RECORD_BYTES]).map_err(failed)?;
        self.out.finish()
    }

    fn header(&mut self, record: &Record) -> Result<()> {
        let failed = |source| Error::entry("write to the layer", &record.path, source);
        let extended = record.extended();
        if !extended.is_empty() {
            let len = u64::try_from(extended.len()).unwrap_or(u64::MAX);
            if len > PAX_BYTES_MAX {
                let entry = Printable::from(&*record.path);
                return Err(Error::Header {
                    entry,
                    fault: HeaderFault::PaxSize,
                });
            }
            let name = [b"PaxHeaders.0/", last_component(&record.path)].concat();
            let announcement = Record {
                kind: EntryType::XHeader,
                size_bytes: len,
                ..Record::empty_file(name)
            };
            self.out
                .write_all(announcement.header().as_bytes())
                .map_err(failed)?;
            self.out.write_all(&extended).map_err(failed)?;
            self.padding(len).map_err(failed)?;
        }
        self.out
            .write_all(record.header().as_bytes())
            .map_err(failed)
    }

    /// Writes a file: its header and its content.
    fn file(&mut self, file: &File, mut record: Record, may_be_sparse: bool) -> Result<()> {
        let size_bytes = record.size_bytes;
        let map = if may_be_sparse {
            DataMap::of(file, size_bytes)
                .map_err(|source| Error::entry("find the holes of", &record.path, source))?
        } else {
            DataMap::dense(size_bytes)
        };
        let is_plain = map.hole_bytes() <= self.plain_holes_bytes;
        if is_plain {
            self.plain_holes_bytes -= map.hole_bytes();
            self.header(&record)?;
        } else {
            let mut text = map.to_pax();
            text.resize(text.len().next_multiple_of(RECORD_BYTES), 0);
            let text_bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
            record.sparse_size_bytes = Some(size_bytes);
            record.size_bytes = text_bytes.saturating_add(map.data_bytes());
            self.header(&record)?;
            self.write(&text, &record)?;
        }
        let mut at = 0;
        for segment in map.segments() {
            if is_plain {
                self.zeros(segment.offset_bytes - at, &record)?;
            }
            self.data(file, *segment, &record)?;
            at = segment.offset_bytes + segment.len_bytes;
        }
        if is_plain {
            self.zeros(size_bytes - at, &record)?;
        }
        self.padding(record.size_bytes)
            .map_err(|source| Error::entry("write to the layer", &record.path, source))
    }

    fn data(&mut self, file: &File, segment: Segment, record: &Record) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut at, mut left) = (segment.offset_bytes, segment.len_bytes);
        while left > 0 {
            cancel::check()?;
            let want = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let len = file
                .read_at(&mut buffer[..want], at)
                .map_err(|source| Error::entry("read", &record.path, source))?;
            if len == 0 {
                // The header is already written, and states more than the file has.
                let shrunk = io::Error::other("the file was truncated while it was read");
                return Err(Error::entry("read", &record.path, shrunk));
            }
            self.write(&buffer[..len], record)?;
            let len_bytes = u64::try_from(len).unwrap_or(left);
            (at, left) = (at + len_bytes, left - len_bytes);
        }
        self.buffer = buffer;
        Ok(())
    }

    fn zeros(&mut self, len_bytes: u64, record: &Record) -> Result<()> {
        let mut left = len_bytes;
        while left > 0 {
            cancel::check()?;
            let len = ZEROS.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.write(&ZEROS[..len], record)?;
            left -= u64::try_from(len).unwrap_or(left);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], record: &Record) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|source| Error::entry("write to the layer", &record.path, source))
    }

    fn padding(&mut self, len_bytes: u64) -> io::Result<()> {
        let record = u64::try_from(RECORD_BYTES).map_err(io::Error::other)?;
        let padding =
            usize::try_from(len_bytes.wrapping_neg() % record).map_err(io::Error::other)?;
        self.out.write_all(&[0; RECORD_BYTES][..padding])
    }
}

/// One entry before it is written.
struct Record {
    path: Vec<u8>,
    kind: EntryType,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Number of bytes that follow.
    size_bytes: u64,
    /// The size of a sparse file, if the bytes that follow are its map and data.
    sparse_size_bytes: Option<u64>,
    mtime: Time,
    link: Vec<u8>,
    device: Option<(u32, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Record {
    fn empty_file(path: Vec<u8>) -> Self {
        Self {
            path,
            kind: EntryType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            sparse_size_bytes: None,
            mtime: Time::default(),
            link: Vec::new(),
            device: None,
            xattrs: Vec::new(),
        }
    }

    /// Returns the record of an object; `None` if a layer cannot hold it.
    fn of(path: &[u8], stat: &FileStat) -> Option<Self> {
        let mut record = Self::empty_file(path.to_vec());
        record.kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => EntryType::Regular,
            SFlag::S_IFDIR => EntryType::Directory,
            SFlag::S_IFLNK => EntryType::Symlink,
            SFlag::S_IFCHR => EntryType::Char,
            SFlag::S_IFBLK => EntryType::Block,
            SFlag::S_IFIFO => EntryType::Fifo,
            _ => return None,
        };
        if record.kind == EntryType::Directory && !path.ends_with(b"/") {
            record.path.push(b'/');
        }
        if record.kind == EntryType::Regular {
            record.size_bytes = u64::try_from(stat.st_size).ok()?;
        }
        if matches!(record.kind, EntryType::Char | EntryType::Block) {
            let number = |part| u32::try_from(part).ok();
            record.device = Some((number(major(stat.st_rdev))?, number(minor(stat.st_rdev))?));
        }
        record.mode = stat.st_mode & 0o7777;
        (record.uid, record.gid) = (stat.st_uid, stat.st_gid);
        record.mtime = Time {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).ok()?,
        };
        Some(record)
    }

    /// Returns the PAX records for data that does not fit the header, in a fixed order.
    fn extended(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut put = |key: &[u8], value: &[u8]| put_record(&mut records, key, value);
        if let Some(size_bytes) = self.sparse_size_bytes {
            put(b"GNU.sparse.major", b"1");
            put(b"GNU.sparse.minor", b"0");
            put(b"GNU.sparse.name", &self.path);
            put(b"GNU.sparse.realsize", size_bytes.to_string().as_bytes());
        } else if !fits(&self.path) {
            put(b"path", &self.path);
        }
        if !fits(&self.link) {
            put(b"linkpath", &self.link);
        }
        if self.size_bytes > SIZE_MAX {
            put(b"size", self.size_bytes.to_string().as_bytes());
        }
        if self.uid > OWNER_MAX {
            put(b"uid", self.uid.to_string().as_bytes());
        }
        if self.gid > OWNER_MAX {
            put(b"gid", self.gid.to_string().as_bytes());
        }
        if self.mtime.nanoseconds > 0 || self.header_seconds().is_none() {
            put(b"mtime", format_time(self.mtime).as_bytes());
        }
        for (name, value) in &self.xattrs {
            put(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        records
    }

    /// Returns the header, with zeros for the fields that the extended header states.
    fn header(&self) -> Header {
        let mut header = Header::new_ustar();
        if self.sparse_size_bytes.is_some() {
            // A reader that does not know the records must not take the map for the file.
            let name = [b"GNUSparseFile.0/", last_component(&self.path)].concat();
            put_name(&mut header.as_old_mut().name, &name);
        } else {
            put_name(&mut header.as_old_mut().name, &self.path);
        }
        put_name(&mut header.as_old_mut().linkname, &self.link);
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        let owner = |id| if id > OWNER_MAX { 0 } else { u64::from(id) };
        header.set_uid(owner(self.uid));
        header.set_gid(owner(self.gid));
        header.set_size(if self.size_bytes > SIZE_MAX {
            0
        } else {
            self.size_bytes
        });
        header.set_mtime(self.header_seconds().unwrap_or(0));
        if let (Some((major, minor)), Some(ustar)) = (self.device, header.as_ustar_mut()) {
            ustar.set_device_major(major);
            ustar.set_device_minor(minor);
        }
        header.set_cksum();
        header
    }

    fn header_seconds(&self) -> Option<u64> {
        u64::try_from(self.mtime.seconds)
            .ok()
            .filter(|seconds| *seconds <= SIZE_MAX)
    }
}

/// Returns true if every tool reads this name correctly from the header.
fn fits(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES && name.is_ascii()
}

fn put_name(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    let len = name.len().min(NAME_BYTES);
    field[..len].copy_from_slice(&name[..len]);
}

/// Returns the attributes that belong to the image, sorted by name.
fn image_xattrs(object: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = xattr::list(object)?;
    names.sort();
    let host = |name: &[u8]| HOST_XATTRS.contains(&name) || name.starts_with(OVERLAY_XATTRS);
    names
        .iter()
        .filter(|name| !host(name.as_bytes()))
        .map(|name| Ok((name.as_bytes().to_vec(), xattr::get(object, name)?)))
        .collect()
}

fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
