//! Creating the file of a pool, or taking a block device for one.
//!
//! A request for several files is refused as a whole: first all of them are taken (`NewDevice`),
//! which changes nothing of what they hold, and then each gets its length.
//!
//! # Invariants
//! - A file is removed only by the call that made it, and while its lock is held.

use super::open::{lock, open_locked, opening};
use super::{FileDevice, FileOptions, Host, host_len_bytes};
use crate::base::{Error, Result};
use cowshed_sys::extent;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Options for creating a pool's file, or taking a block device.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateFile {
    /// True if the host allocates the whole length now, so that it cannot fill up later.
    pub preallocate: bool,
    /// True if data bypasses the host's page cache (O_DIRECT).
    pub direct: bool,
    /// True if the contents of a regular file are thrown away. A block device keeps its bytes
    /// either way.
    pub overwrite: bool,
}

/// A file or block device that is locked to become a pool's. Nothing of what it held is changed yet.
/// Dropping it removes the file if this made it, unless `keep` was called.
pub struct NewDevice {
    path: PathBuf,
    file: File,
    host: Host,
    len_bytes: u64,
    create: CreateFile,
    /// True if the file is removed on drop.
    removes: bool,
}

impl NewDevice {
    /// Locks the file or block device at `path`, or makes an empty file that its owner alone can
    /// read.
    ///
    /// # Errors
    /// As `FileDevice::open`; `DeviceNotEmpty` when there is a regular file with contents and
    /// `overwrite` is off; `BeyondDevice` when the block device is shorter than `len_bytes`.
    pub fn take(path: impl AsRef<Path>, len_bytes: u64, create: CreateFile) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let host = match fs::metadata(&path) {
            Ok(metadata) => Host::of(&metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::make(path, len_bytes, create);
            }
            Err(error) => return Err(opening(error)),
        };
        let file = open_locked(&path, host, false)?;
        let found_bytes = host_len_bytes(&file, host).map_err(opening)?;
        match host {
            Host::BlockDevice if found_bytes < len_bytes => {
                return Err(Error::BeyondDevice {
                    device_bytes: found_bytes,
                });
            }
            Host::RegularFile if found_bytes > 0 && !create.overwrite => {
                return Err(Error::DeviceNotEmpty { found: "data" });
            }
            Host::BlockDevice | Host::RegularFile => {}
        }
        Ok(Self {
            path,
            file,
            host,
            len_bytes,
            create,
            removes: false,
        })
    }

    fn make(path: PathBuf, len_bytes: u64, create: CreateFile) -> Result<Self> {
        let file = make_locked(&path)?;
        Ok(Self {
            path,
            file,
            host: Host::RegularFile,
            len_bytes,
            create,
            removes: true,
        })
    }

    /// Gives a regular file its length, durably, without anything that it held, and returns the
    /// device.
    ///
    /// # Errors
    /// `Io` when the host cannot hold or preallocate it; the file is left empty then.
    pub fn lay_out(&self) -> Result<FileDevice> {
        if self.host == Host::RegularFile {
            lay_out(
                &self.file,
                &self.path,
                self.len_bytes,
                self.create.preallocate,
            )?;
        }
        let options = FileOptions {
            direct: self.create.direct,
            read_only: false,
        };
        // The lock belongs to both descriptors.
        let file = self.file.try_clone().map_err(opening)?;
        FileDevice::from_locked(&self.path, file, self.host, options)
    }

    /// Lets the file stay.
    pub fn keep(mut self) {
        self.removes = false;
    }
}

impl Drop for NewDevice {
    fn drop(&mut self) {
        if self.removes {
            // The reason why it is not used is reported; a file that stays is not worth another
            // message.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl FileDevice {
    /// Creates a regular file of `len_bytes` at `path`, durable and readable by its owner alone,
    /// and locks it. If `path` is a block device, takes the whole device instead, which must be at
    /// least that long; the caller checks whether the device holds data.
    ///
    /// # Errors
    /// As `NewDevice::take` and `NewDevice::lay_out`. A file that this call made is then removed.
    pub fn create(path: impl AsRef<Path>, len_bytes: u64, create: CreateFile) -> Result<Self> {
        let new = NewDevice::take(path, len_bytes, create)?;
        let device = new.lay_out()?;
        new.keep();
        Ok(device)
    }
}

/// Makes an empty file that has its name only once it is locked. Where the host makes no files without
/// a name or does not name them later, another process can lock it first, and this one gets an error.
fn make_locked(path: &Path) -> Result<File> {
    let failed = |source| Error::io("create the pool", source);
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let nameless = options
        .clone()
        .custom_flags(libc::O_TMPFILE)
        .open(folder_of(path));
    match nameless {
        Ok(file) => {
            lock(&file, false)?;
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            match linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, follow) {
                Ok(()) => return Ok(file),
                Err(Errno::EEXIST) => return Err(failed(Errno::EEXIST.into())),
                Err(errno) => tracing::debug!(%errno, "a nameless file gets no name"),
            }
        }
        // A kernel or host without them takes the folder for the file.
        Err(error)
            if extent::is_unsupported(&error) || error.raw_os_error() == Some(libc::EISDIR) => {}
        Err(error) => return Err(failed(error)),
    }
    let file = options.create_new(true).open(path).map_err(failed)?;
    lock(&file, false)?;
    Ok(file)
}

/// Gives an empty or overwritten file its length, durably. On failure the file is left empty.
fn lay_out(file: &File, path: &Path, len_bytes: u64, preallocate: bool) -> Result<()> {
    let laid_out = file
        .set_len(0)
        .and_then(|()| file.set_len(len_bytes))
        .and_then(|()| {
            if preallocate && len_bytes > 0 {
                extent::allocate(file, 0, len_bytes)
            } else {
                Ok(())
            }
        })
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder_of(path));
    if laid_out.is_err() {
        // The first error tells the cause; at most an empty file is left.
        let _ = file.set_len(0);
    }
    laid_out.map_err(|source| Error::io("create the pool", source))
}

/// Makes the name of a new file durable.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
