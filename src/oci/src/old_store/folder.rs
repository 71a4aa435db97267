//! The folder of an old store: documents and lists of names, read without following any symbolic link.

use crate::error::{Error, Printable, Result};
use crate::limits::{STORE_BYTES_MAX, STORE_NAMES_MAX};
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// The number of bytes of documents that may still be read from a store: some documents stay in memory,
/// and a list may name one many times. Clones are the same number.
#[derive(Clone)]
pub(crate) struct Budget(Arc<AtomicU64>);

impl Budget {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(STORE_BYTES_MAX)))
    }

    /// Counts a document, the file `name`, that has `len_bytes`.
    pub(crate) fn take(&self, name: &str, len_bytes: usize) -> Result<()> {
        cancel::check()?;
        let take = |left: u64| left.checked_sub(u64::try_from(len_bytes).ok()?);
        match self.0.fetch_update(Relaxed, Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(damaged(
                name,
                "the documents of the store are too large together",
            )),
        }
    }
}

/// A folder with an old store; clones are the same folder.
#[derive(Clone)]
pub(super) struct Folder {
    folder: Arc<OwnedFd>,
    budget: Budget,
}

impl Folder {
    pub(super) fn new(folder: OwnedFd) -> Self {
        Self {
            folder: Arc::new(folder),
            budget: Budget::new(),
        }
    }

    /// Returns what is left for documents of the store.
    pub(super) fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// Returns a descriptor of the folder.
    pub(super) fn to_owned_fd(&self) -> Result<OwnedFd> {
        let again = self.folder.try_clone();
        again.map_err(|source| Error::io("open the directory", source))
    }

    /// Returns the folder at `path`; `None` if there is none.
    pub(super) fn folder(&self, path: &str) -> Result<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let opened = self.open(path, flags)?;
        Ok(opened.map(|folder| Self {
            folder: Arc::new(folder),
            budget: self.budget.clone(),
        }))
    }

    /// Returns the regular file at `path`; `None` if there is none.
    pub(super) fn file(&self, path: &str) -> Result<Option<File>> {
        let Some(object) = self.open(path, OFlag::O_PATH)? else {
            return Ok(None);
        };
        let failed = |errno: Errno| Error::entry("open", path.as_bytes(), errno);
        let mode = beneath::stat_itself(&object).map_err(failed)?.st_mode;
        if mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(Error::StoreLink(Printable::from(path)));
        }
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(damaged(path, "it is not a regular file"));
        }
        let file = beneath::reopen_to_read(&object).map_err(failed)?;
        Ok(Some(file.into()))
    }

    /// Returns the bytes of the file at `path`, at most `bytes_max`; `None` if there is none.
    pub(super) fn document(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::entry("read", path.as_bytes(), source))?;
        let len = bytes.len() as u64;
        if len > bytes_max {
            return Err(damaged(path, "it is too large"));
        }
        self.budget.take(path, bytes.len())?;
        Ok(Some(bytes))
    }

    /// Returns the short text in the file at `path`, without the white space around it; `None` if
    /// there is none.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>> {
        const TEXT_BYTES_MAX: u64 = 4096;
        let Some(bytes) = self.document(path, TEXT_BYTES_MAX)? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged(path, "it is not text"))?;
        Ok(Some(text.trim().to_owned()))
    }

    /// Returns the JSON document at `path`; `None` if there is none.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<T>> {
        let Some(bytes) = self.document(path, bytes_max)? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|_| damaged(path, "it is not JSON of the expected form"))
    }

    /// Returns the names in the folder at `path`, sorted, without those that are not UTF-8, as no name
    /// of a store is; none if there is no such folder.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>> {
        let failed = |errno| Error::entry("read the directory", path.as_bytes(), errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Some(folder) = self.open(path, flags)? else {
            return Ok(Vec::new());
        };
        let mut listing = Dir::from_fd(folder).map_err(failed)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == STORE_NAMES_MAX {
                return Err(damaged(path, "it has too many entries"));
            }
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &str, flags: OFlag) -> Result<Option<OwnedFd>> {
        match beneath::open_plain(self.as_fd(), path.as_bytes(), flags) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(Errno::ELOOP) => Err(Error::StoreLink(Printable::from(path))),
            Err(errno) => Err(Error::entry("open", path.as_bytes(), errno)),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Returns the error that a file of the store is damaged.
pub(super) fn damaged(path: &str, fault: &'static str) -> Error {
    Error::StoreFile {
        file: Printable::from(path),
        fault,
    }
}

/// Returns the error that a file of the store is missing.
pub(super) fn missing(path: &str) -> Error {
    Error::NotInStore {
        file: Printable::from(path),
    }
}

/// Returns true if `name` is a name of a file in its folder and leads nowhere else.
pub(super) fn is_plain_name(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 255;
    let bytes = name.as_bytes();
    !matches!(name, "" | "." | "..")
        && bytes.len() <= NAME_BYTES_MAX
        && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
}
