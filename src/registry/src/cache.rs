//! Blobs on their way: each in a file of its own, which a later fetch of the same blob continues.
//!
//! # Invariants
//! - A file is used by one fetch at a time: it is locked. A second fetch at the same time takes a
//!   file without a name.
//! - What is in a file is not trusted: who continues it verifies the whole blob.

use crate::download::Blob;
use crate::error::{Error, Result};
use cowshed_oci::Digest;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The age from which on a file is given up.
const OLD: Duration = Duration::from_secs(7 * 24 * 3600);

/// A folder for blobs on their way.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `None` if nothing outlives the fetch.
    folder: Option<PathBuf>,
}

/// The file of one blob.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) file: File,
    /// Its path, if a later fetch can continue it.
    path: Option<PathBuf>,
}

impl Cache {
    /// Returns the cache in `folder`, which only its owner can enter. If it cannot be made, nothing
    /// outlives the fetch.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let folder = made.is_ok().then(|| folder.to_owned());
        Self { folder }
    }

    /// Returns a cache from which nothing outlives the fetch.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self { folder: None }
    }

    /// Returns the folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// Checks that the folder has space for `blobs`, without what is there of them already.
    pub(crate) fn check_space(&self, blobs: &[Blob]) -> Result<()> {
        let folder = self.folder();
        let missing = |blob: &Blob| {
            let path = self
                .folder
                .as_ref()
                .map(|folder| folder.join(blob.digest.hex()));
            let here = path.and_then(|path| fs::symlink_metadata(path).ok());
            blob.size_bytes
                .saturating_sub(here.map_or(0, |found| found.len()))
        };
        let needed_bytes = blobs.iter().map(missing).fold(0, u64::saturating_add);
        // Where that cannot be told, writing will.
        let Ok(found) = statvfs(&folder) else {
            return Ok(());
        };
        let free_bytes = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(Error::NoSpace {
            folder,
            needed_bytes,
            free_bytes,
        })
    }

    /// Removes the files that nothing has continued for a week.
    pub fn sweep(&self) {
        let Some(entries) = self
            .folder
            .as_ref()
            .and_then(|path| fs::read_dir(path).ok())
        else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_ours = name
                .to_str()
                .is_some_and(|name| Digest::from_hex(name).is_some());
            let modified = entry.metadata().and_then(|found| found.modified());
            let is_old = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > OLD));
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_ours && is_file && is_old {
                let Ok(file) = File::open(entry.path()) else {
                    continue;
                };
                if file.try_lock().is_ok() {
                    // Whatever cannot be removed is tried again by the next fetch.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Opens the file of a blob.
    pub(crate) fn open(&self, digest: Digest) -> Result<Slot> {
        if let Some(folder) = &self.folder {
            let path = folder.join(digest.hex());
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            // What is not a file was not put there by a fetch.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            options.mode(0o600).custom_flags(flags.bits());
            if let Ok(file) = options.open(&path)
                && file.metadata().is_ok_and(|found| found.is_file())
                && file.try_lock().is_ok()
            {
                let path = Some(path);
                return Ok(Slot { file, path });
            }
        }
        let file = self.temporary_file()?;
        Ok(Slot { file, path: None })
    }

    /// Creates a file without a name in the folder.
    ///
    /// # Errors
    /// `Io` if that is not possible.
    pub fn temporary_file(&self) -> Result<File> {
        tempfile::tempfile_in(self.folder())
            .map_err(Error::io("create a temporary file for a layer"))
    }
}

impl Slot {
    /// Removes the file: its blob is not needed any more, or is none.
    pub(crate) fn remove(&self) {
        if let Some(path) = &self.path {
            // Otherwise it is removed once it is old.
            let _ = fs::remove_file(path);
        }
    }
}
