//! The volumes as files: the answers to FUSE requests.
//!
//! One flat directory with a file for each named volume. Not a place to create, rename or remove
//! volumes: that is the pool's, and such requests answer EPERM.
//!
//! # Invariants
//! - Any thread may serve any request, and no handler waits for another request of the same
//!   mount. No lock of the export is taken here other than those of the handle tables, which
//!   are held for a look-up only.
//! - Names and attributes are never cached by the kernel (time to live zero), so renames,
//!   removals and resizes are seen at once. `readdirplus` would only fill that cache, so it is
//!   left out.
//! - Data is never cached by the kernel either (direct I/O): when a write has returned, the pool
//!   has it.

use super::entry::{
    BLOCK_SIZE, FILE_NAME_BYTES_MAX, attributes, file_name, inode, root_attributes, volume_id,
    volume_name,
};
use super::file_io::{Answer, OpenFile, errno};
use super::handles::Handles;
use super::own_opens::OwnOpens;
use super::target::{BlockTarget, Directory};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The most bytes in one read or write request; the kernel's limit without tuning.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// How many requests the kernel keeps in flight for readahead and asynchronous direct I/O.
const BACKGROUND_MAX: u16 = 256;
/// Nothing is cached.
const TIME_TO_LIVE: Duration = Duration::ZERO;
/// A volume's inode never stands for another one.
const INODE_GENERATION: Generation = Generation(0);

thread_local! {
    /// Where a thread reads to before it answers; it grows to the largest request and stays.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One line of the directory, as it was when the directory was opened.
struct DirectoryLine {
    inode: INodeNo,
    kind: FileType,
    name: String,
}

/// The file system of volumes.
pub(super) struct VolumeFiles {
    directory: Arc<dyn Directory>,
    files: Handles<OpenFile>,
    listings: Handles<Vec<DirectoryLine>>,
    own_opens: OwnOpens,
    mounted: SystemTime,
}

impl VolumeFiles {
    pub(super) fn new(directory: Arc<dyn Directory>, own_opens: OwnOpens) -> Self {
        Self {
            directory,
            files: Handles::new(),
            listings: Handles::new(),
            own_opens,
            mounted: SystemTime::now(),
        }
    }

    fn target(&self, ino: INodeNo) -> Answer<Arc<dyn BlockTarget>> {
        let id = volume_id(ino).ok_or(libc::EISDIR)?;
        self.directory.by_id(id).map_err(errno)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<OpenFile>> {
        self.files.get(handle.0).ok_or(libc::EBADF)
    }

    fn attributes_of(&self, ino: INodeNo) -> Answer<FileAttr> {
        if ino == INodeNo::ROOT {
            return Ok(root_attributes(self.mounted));
        }
        Ok(attributes(&self.target(ino)?.info().map_err(errno)?))
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        if parent != INodeNo::ROOT {
            return Err(libc::ENOTDIR);
        }
        let name = volume_name(name).ok_or(libc::ENOENT)?;
        let target = self.directory.by_name(&name).map_err(errno)?;
        Ok(attributes(&target.info().map_err(errno)?))
    }

    fn open_file(&self, opener: u32, ino: INodeNo, flags: OpenFlags) -> Answer<u64> {
        let target = self.target(ino)?;
        let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let is_held = self.own_opens.contains(opener, target.id());
        Ok(self
            .files
            .insert(OpenFile::open(target, for_writing, is_held)?))
    }

    /// Volumes change their size through the pool only, and their owner and mode never.
    fn refuse_change(
        &self,
        ino: INodeNo,
        mode: Option<u32>,
        owners: [Option<u32>; 2],
        size: Option<u64>,
    ) -> Answer<FileAttr> {
        let attr = self.attributes_of(ino)?;
        let same = mode.is_none_or(|mode| mode & 0o7777 == u32::from(attr.perm))
            && owners.into_iter().flatten().all(|owner| owner == 0)
            && size.is_none_or(|size| size == attr.size);
        if same { Ok(attr) } else { Err(libc::EPERM) }
    }

    fn list(&self) -> Vec<DirectoryLine> {
        let dot = |name: &str| DirectoryLine {
            inode: INodeNo::ROOT,
            kind: FileType::Directory,
            name: name.to_owned(),
        };
        let volumes = self.directory.list().into_iter().map(|info| DirectoryLine {
            inode: inode(info.id),
            kind: FileType::RegularFile,
            name: file_name(&info.name),
        });
        [dot("."), dot("..")].into_iter().chain(volumes).collect()
    }
}

/// Answers with the attributes or the errno.
fn reply_attributes(answer: Answer<FileAttr>, reply: ReplyAttr) {
    match answer {
        Ok(attr) => reply.attr(&TIME_TO_LIVE, &attr),
        Err(code) => reply.error(Errno::from_i32(code)),
    }
}

fn reply_empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(Errno::from_i32(code)),
    }
}

impl Filesystem for VolumeFiles {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is a wish: an older kernel grants less, and works.
        for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            if let Err(missing) = config.add_capabilities(wish) {
                tracing::debug!(
                    ?missing,
                    "the kernel's FUSE lacks something that would be faster"
                );
            }
        }
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attr) => reply.entry(&TIME_TO_LIVE, &attr, INODE_GENERATION),
            Err(code) => reply.error(Errno::from_i32(code)),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply_attributes(self.attributes_of(ino), reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // New times are taken and forgotten, so that copying tools do not fail for them.
        reply_attributes(self.refuse_change(ino, mode, [uid, gid], size), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Without the second flag the kernel sends the writes of a file one after another; a
        // flush at each close would have nothing to do.
        let how = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        match self.open_file(request.pid(), ino, flags) {
            Ok(handle) => reply.opened(FileHandle(handle), how),
            Err(code) => reply.error(Errno::from_i32(code)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(code) => return reply.error(Errno::from_i32(code)),
        };
        READ_BUFFER.with_borrow_mut(|buffer| {
            let len = size.min(REQUEST_BYTES_MAX) as usize;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            match file.read(&mut buffer[..len], offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(code) => reply.error(Errno::from_i32(code)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & libc::O_DSYNC != 0;
        let answer = self
            .file(handle)
            .and_then(|file| file.write(data, offset, durable));
        match answer.and_then(|written| u32::try_from(written).map_err(|_| libc::EIO)) {
            Ok(written) => reply.written(written),
            Err(code) => reply.error(Errno::from_i32(code)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Sent at close by kernels that do not know FOPEN_NOFLUSH. Nothing waits here to be
        // written: close(2) does not promise durability, fsync(2) does.
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.file(handle).and_then(|file| file.flush()), reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let answer = self
            .file(handle)
            .and_then(|file| file.fallocate(offset, length, mode));
        reply_empty(answer, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.file(handle).and_then(|file| file.seek(offset, whence)) {
            Ok(found) => reply.offset(found),
            Err(code) => reply.error(Errno::from_i32(code)),
        }
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        // Listed once, so that paging through it neither skips nor repeats a name.
        reply.opened(
            FileHandle(self.listings.insert(self.list())),
            FopenFlags::empty(),
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(listing) = self.listings.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, line) in (offset.saturating_add(1)..).zip(listing.iter().skip(skipped)) {
            if reply.add(line.inode, next, line.kind, &line.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.remove(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.directory.flush().map_err(errno), reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let block = u64::from(BLOCK_SIZE);
        match self.directory.space() {
            Ok(space) => {
                let free = space.free_bytes / block;
                let files = space.targets.saturating_add(1);
                let (size, unit) = (space.size_bytes / block, BLOCK_SIZE);
                reply.statfs(size, free, free, files, 0, unit, FILE_NAME_BYTES_MAX, unit);
            }
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        }
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
