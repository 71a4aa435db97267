//! The volumes as files: the implementation of the requests.
//!
//! One flat directory with a file for each named volume. Volumes are created, renamed and removed
//! through the pool, not here.
//!
//! # Invariants
//! - The kernel never caches names and attributes (time to live zero), so renames, removals and
//!   resizes are seen at once. `readdirplus` would only fill that cache, so it is not implemented.
//! - The kernel does not cache data that can change either (direct I/O): when a write has returned,
//!   the pool has it. Only a shared mapping has pages in the kernel, which writes them out and
//!   drops them around direct reads and writes of the same file.
//! - A snapshot's data never changes, so the kernel caches it and reads ahead while it is open.
//! - While a volume is attached as a device that is not shared, nobody else can open its file for
//!   writing.

use super::abi::{Attr, AttrOut, EntryOut, InHeader, ROOT, SetattrIn, StatfsOut, fattr, fopen};
use super::dispatch::RequestServer;
use super::handover_state::Records;
use super::listings::{Listing, Listings};
use super::open_files::OpenFiles;
use crate::entry::{
    BLOCK_SIZE, FILE_NAME_BYTES_MAX, attributes, root_attributes, volume_id, volume_name,
};
use crate::file_io::{Answer, OpenFile, errno};
use crate::own_opens::OwnOpens;
use crate::target::{BlockTarget, Directory};
use libc::c_int;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

/// The minimum size of a volume with data: a block, and the map's path to it.
const VOLUME_BLOCKS_MIN: u64 = 4;
/// The mode bits that chmod(2) sets.
const PERMISSIONS: u32 = 0o7777;

/// The file system of volumes.
pub(crate) struct VolumeFiles {
    directory: Arc<dyn Directory>,
    records: Arc<Records>,
    open: OpenFiles,
    listings: Listings,
    own_opens: OwnOpens,
    mounted: SystemTime,
}

impl VolumeFiles {
    /// Creates the file system, with the open files that the handover state records.
    pub(crate) fn new(
        directory: Arc<dyn Directory>,
        own_opens: OwnOpens,
        records: Arc<Records>,
    ) -> Self {
        let open = OpenFiles::adopt(Arc::clone(&records), &*directory);
        Self {
            directory,
            records,
            open,
            listings: Listings::new(),
            own_opens,
            mounted: SystemTime::now(),
        }
    }

    fn target(&self, ino: u64) -> Answer<Arc<dyn BlockTarget>> {
        let id = volume_id(ino).ok_or(libc::EISDIR)?;
        self.directory.by_id(id).map_err(errno)
    }

    fn attributes_of(&self, ino: u64) -> Answer<Attr> {
        if ino == ROOT {
            return Ok(root_attributes(self.mounted));
        }
        Ok(attributes(&self.target(ino)?.info().map_err(errno)?))
    }

    pub(super) fn attributes_out(&self, ino: u64) -> Answer<AttrOut> {
        self.attributes_of(ino).map(attr_out)
    }

    pub(super) fn find(&self, parent: u64, name: &OsStr) -> Answer<EntryOut> {
        if parent != ROOT {
            return Err(libc::ENOTDIR);
        }
        let name = volume_name(name).ok_or(libc::ENOENT)?;
        let target = self.directory.by_name(&name).map_err(errno)?;
        let attr = attributes(&target.info().map_err(errno)?);
        Ok(EntryOut {
            nodeid: attr.ino,
            attr,
            // An inode number never stands for another volume, and nothing is cached.
            ..EntryOut::default()
        })
    }

    /// Refuses changes of size, owner and mode: a volume's size changes only through the pool, its
    /// owner and mode never. New times are accepted and ignored, so that copying tools do not fail.
    pub(super) fn refuse_change(&self, ino: u64, wanted: &SetattrIn) -> Answer<AttrOut> {
        let attr = self.attributes_of(ino)?;
        let asks = |field: u32| wanted.valid & field != 0;
        let changes = asks(fattr::MODE) && (wanted.mode ^ attr.mode) & PERMISSIONS != 0
            || asks(fattr::UID) && wanted.uid != attr.uid
            || asks(fattr::GID) && wanted.gid != attr.gid
            || asks(fattr::SIZE) && wanted.size != attr.size;
        if changes {
            Err(libc::EPERM)
        } else {
            Ok(attr_out(attr))
        }
    }

    /// Opens the file; returns the handle and the flags of the reply.
    pub(super) fn open(&self, header: &InHeader, flags: c_int) -> Answer<(u64, u32)> {
        let target = self.target(header.nodeid)?;
        let for_writing = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let id = target.id();
        let is_held = self.own_opens.contains(header.pid, id);
        // Data that never changes may be cached. A device over the file has a cache of its own.
        let is_cached = !is_held && target.info().map_err(errno)?.is_read_only;
        let file = OpenFile::open(target, for_writing, is_held)?;
        let handle = self.open.insert(header, id, file)?;
        if for_writing && !is_held && self.records.is_exclusive(id) {
            self.open.remove(handle);
            return Err(libc::EBUSY);
        }
        let flags = if is_cached {
            fopen::NOFLUSH
        } else {
            // Without the second flag the kernel sends the writes of a file one after another; a
            // flush at each close would have nothing to do.
            fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES | fopen::NOFLUSH
        };
        Ok((handle, flags))
    }

    pub(super) fn release(&self, handle: u64) {
        self.open.remove(handle);
    }

    pub(super) fn read(&self, handle: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        self.open.get(handle)?.file()?.read(buf, offset)
    }

    pub(super) fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        durable: bool,
        server: &dyn RequestServer,
    ) -> Answer<usize> {
        let found = self.open.get(handle)?;
        let file = found.file()?;
        let written = file.write(data, offset, durable, server);
        written.inspect_err(|_| {
            if !server.begins_anew() {
                self.note_refusal(file);
            }
        })
    }

    /// Records that data written to the volume is lost. A file system on the volume gets the error
    /// at writeback, and reports it to its user at most once.
    fn note_refusal(&self, file: &OpenFile) {
        let is_there = |id| self.directory.by_id(id).is_ok();
        self.records.refuse(file.id(), is_there);
    }

    pub(super) fn fsync(&self, handle: u64) -> Answer<()> {
        self.open.get(handle)?.file()?.flush()
    }

    pub(super) fn fallocate(&self, handle: u64, offset: u64, len: u64, mode: c_int) -> Answer<()> {
        let found = self.open.get(handle)?;
        let file = found.file()?;
        let done = file.fallocate(offset, len, mode);
        // Zeros are data. A hole that could not be punched only means that its space is not freed.
        let writes = mode & libc::FALLOC_FL_ZERO_RANGE != 0;
        done.inspect_err(|_| {
            if writes {
                self.note_refusal(file);
            }
        })
    }

    pub(super) fn seek(&self, handle: u64, offset: i64, whence: c_int) -> Answer<i64> {
        self.open.get(handle)?.file()?.seek(offset, whence)
    }

    pub(super) fn open_directory(&self, ino: u64) -> Answer<u64> {
        if ino != ROOT {
            return Err(libc::ENOTDIR);
        }
        Ok(self.listings.open())
    }

    pub(super) fn read_directory(
        &self,
        ino: u64,
        handle: u64,
        cookie: u64,
        room: &mut [u8],
    ) -> Answer<usize> {
        if ino != ROOT {
            return Err(libc::ENOTDIR);
        }
        let make = || Listing::new(self.directory.list());
        let listing = self.listings.get(handle, cookie == 0, make);
        Ok(listing.page(cookie, room))
    }

    pub(super) fn release_directory(&self, handle: u64) {
        self.listings.close(handle);
    }

    pub(super) fn flush_all(&self) -> Answer<()> {
        self.directory.flush().map_err(errno)
    }

    /// Returns true if a write goes to the disk at once.
    pub(super) fn writes_wait(&self) -> bool {
        self.directory.writes_wait()
    }

    pub(super) fn space(&self) -> Answer<StatfsOut> {
        let space = self.directory.space().map_err(errno)?;
        let block = u64::from(BLOCK_SIZE);
        let free = space.free_bytes / block;
        // With zero left, monitoring tools would report a file system that can hold no more files.
        let more_files = free / VOLUME_BLOCKS_MIN;
        Ok(StatfsOut {
            blocks: space.size_bytes / block,
            bfree: free,
            bavail: free,
            files: space.targets.saturating_add(1 + more_files),
            ffree: more_files,
            bsize: BLOCK_SIZE,
            namelen: FILE_NAME_BYTES_MAX,
            frsize: BLOCK_SIZE,
            ..StatfsOut::default()
        })
    }
}

fn attr_out(attr: Attr) -> AttrOut {
    AttrOut {
        attr,
        ..AttrOut::default()
    }
}
