//! Opening the file or block device of a pool, and locking it.
//!
//! Nothing is inspected or changed before the lock is held.

use super::ahead::Ahead;
use super::{Direct, FileDevice, Host, aliases, host_len_bytes};
use crate::base::{BLOCK_BYTES, Error, Result};
use cowshed_sys::{aligned, geometry};
use parking_lot::Mutex;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

/// Number of attempts to take a lock. Some locks are held for a moment only: by udev, which probes
/// a block device whenever a writer has closed it, and by a killed process whose child was about to
/// execute another program and still has the file open.
const LOCK_TRIES: u32 = 30;
/// Time to wait between attempts.
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// Options for opening a pool's file or block device.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// True if data bypasses the host's page cache (O_DIRECT).
    pub direct: bool,
    /// True if nothing may be written; other readers are admitted.
    pub read_only: bool,
}

impl FileDevice {
    /// Opens and locks the regular file or block device at `path`.
    ///
    /// # Errors
    /// `InUse` when another process has it open; `Io` when it cannot be opened, is neither, or
    /// cannot do direct I/O although `options` ask for it.
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> Result<Self> {
        let path = path.as_ref();
        let host = Host::of(&fs::metadata(path).map_err(opening)?)?;
        let buffered = open_locked(path, host, options.read_only)?;
        Self::from_locked(path, buffered, host, options)
    }

    /// Returns the pool in `locked`, which `lock_pool` returned here or in the process that started
    /// this one. The lock belongs to the open file, not to the process, so it is already held.
    ///
    /// # Errors
    /// `Io` when it is neither a regular file nor a block device, or cannot do direct I/O although
    /// `options` ask for it.
    pub fn on_locked(locked: File, options: FileOptions) -> Result<Self> {
        let host = Host::of(&locked.metadata().map_err(opening)?)?;
        // The path through the descriptor leads to the same file, whatever is at the original path
        // now.
        let path = format!("/proc/self/fd/{}", locked.as_raw_fd());
        Self::from_locked(Path::new(&path), locked, host, options)
    }

    /// Returns a device for reading the same file by direct I/O, unless this one uses that itself or
    /// the host has none.
    pub(super) fn beside_cache(&self) -> Option<Self> {
        if self.direct.is_some() {
            return None;
        }
        let path = format!("/proc/self/fd/{}", self.buffered.as_raw_fd());
        let options = FileOptions {
            direct: true,
            read_only: true,
        };
        let buffered = self.buffered.try_clone().ok()?;
        Self::from_locked(Path::new(&path), buffered, self.host, options).ok()
    }

    pub(super) fn from_locked(
        path: &Path,
        buffered: File,
        host: Host,
        options: FileOptions,
    ) -> Result<Self> {
        Ok(Opened::of(path, &buffered, host, options)?.into_device(buffered))
    }
}

/// Opens and locks the regular file or block device at `path` for reading and writing. The lock is
/// held as long as any process has a descriptor of this open file.
///
/// # Errors
/// As `FileDevice::open`.
pub fn lock_pool(path: &Path) -> Result<File> {
    let host = Host::of(&fs::metadata(path).map_err(opening)?)?;
    open_locked(path, host, false)
}

/// The parts of a device other than its locked file.
struct Opened {
    direct: Option<Direct>,
    host: Host,
    read_only: bool,
    len_bytes: u64,
}

impl Opened {
    fn of(path: &Path, buffered: &File, host: Host, options: FileOptions) -> Result<Self> {
        let direct = options
            .direct
            .then(|| open_direct(path, buffered, options.read_only))
            .transpose()?;
        Ok(Self {
            direct,
            host,
            read_only: options.read_only,
            len_bytes: host_len_bytes(buffered, host).map_err(opening)?,
        })
    }

    fn into_device(self, buffered: File) -> FileDevice {
        FileDevice {
            log: OnceLock::new(),
            direct: self.direct,
            buffered,
            host: self.host,
            read_only: self.read_only,
            len_bytes: AtomicU64::new(self.len_bytes),
            growing: Mutex::new(()),
            ahead: Ahead::default(),
            log_piece: AtomicU64::new(u64::MAX),
            log_pieces: AtomicU64::new(0),
        }
    }
}

impl Host {
    pub(super) fn of(metadata: &Metadata) -> Result<Self> {
        let kind = metadata.file_type();
        if kind.is_file() {
            Ok(Self::RegularFile)
        } else if kind.is_block_device() {
            Ok(Self::BlockDevice)
        } else {
            let what = "it is neither a regular file nor a block device";
            Err(opening(io::Error::new(io::ErrorKind::InvalidInput, what)))
        }
    }
}

pub(super) fn opening(source: io::Error) -> Error {
    Error::io("open the pool", source)
}

pub(super) fn open_locked(path: &Path, host: Host, read_only: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    if host == Host::BlockDevice && !read_only {
        // The kernel then refuses every other claim of the device, under any name: a mount, a
        // volume manager, another pool.
        options.custom_flags(libc::O_EXCL);
    }
    let file = options.open(path).map_err(|error| {
        if host == Host::BlockDevice && error.raw_os_error() == Some(libc::EBUSY) {
            Error::InUse
        } else {
            opening(error)
        }
    })?;
    lock(&file, read_only)?;
    let opened = file.metadata().map_err(opening)?;
    if Host::of(&opened)? != host {
        return Err(Error::InUse);
    }
    check_still_at(path, &opened)?;
    aliases::check_unlocked(&opened, read_only)?;
    Ok(file)
}

pub(super) fn lock(file: &File, read_only: bool) -> Result<()> {
    let mut tries = LOCK_TRIES;
    loop {
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        tries -= 1;
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if tries == 0 => return Err(Error::InUse),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_WAIT),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock the pool", source)),
        }
    }
}

/// Checks that `path` still names the opened file. Another process that held the lock may have
/// removed or replaced the file before this one got the lock, which would then guard a file that
/// nobody can find again.
fn check_still_at(path: &Path, opened: &Metadata) -> Result<()> {
    let named = fs::metadata(path).map_err(opening)?;
    if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) {
        Ok(())
    } else {
        Err(Error::InUse)
    }
}

fn open_direct(path: &Path, buffered: &File, read_only: bool) -> Result<Direct> {
    const ACTION: &str = "open the pool for direct I/O";
    let memory_align_bytes = match geometry::direct_alignment(buffered) {
        Ok(None) => Ok(aligned::ALIGN_BYTES),
        Ok(Some(asked)) => usable_alignment(asked),
        Err(error) => Err(error),
    }
    .map_err(|source| Error::io(ACTION, source))?;
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|source| Error::io(ACTION, source))?;
    let opened = file.metadata().map_err(opening)?;
    let locked = buffered.metadata().map_err(opening)?;
    if (opened.dev(), opened.ino()) != (locked.dev(), locked.ino()) {
        return Err(Error::InUse);
    }
    Ok(Direct {
        file,
        memory_align_bytes,
    })
}

/// Returns the alignment of memory, where the host's direct I/O can do single blocks.
pub(super) fn usable_alignment(asked: geometry::DirectAlignment) -> io::Result<usize> {
    let memory = usize::try_from(asked.memory_bytes).unwrap_or(usize::MAX);
    let offset = usize::try_from(asked.offset_bytes).unwrap_or(usize::MAX);
    let usable = (1..=aligned::ALIGN_BYTES).contains(&memory)
        && (1..=BLOCK_BYTES).contains(&offset)
        && BLOCK_BYTES.is_multiple_of(offset)
        && aligned::ALIGN_BYTES.is_multiple_of(memory);
    if usable {
        Ok(memory)
    } else {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the host does not support direct I/O of single blocks",
        ))
    }
}
