//! The folder on this host in which an open pool has its mounts.
//!
//! Its name is the pool's uuid, so that the next process that opens the pool finds and removes what
//! a killed process left. A copy of a pool has the same uuid: the folder is locked, and a second
//! pool gets another folder.

use anyhow::Context;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The parent of the folders of all open pools.
const RUN_FOLDER: &str = "/run/cowshed";
/// The file that is locked.
const LOCK: &str = "lock";
/// Number of pools with the same uuid that can be open on one host.
const COPIES_MAX: usize = 16;

/// A locked state folder.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    lock: File,
    /// True if this process is to remove it.
    keeps: bool,
}

impl StateFolder {
    /// Takes the folder of the pool `uuid`.
    ///
    /// # Errors
    /// When it cannot be created, which needs the superuser, or too many open pools have that uuid.
    pub fn take(uuid: [u8; 16]) -> anyhow::Result<Self> {
        Self::take_in(Path::new(RUN_FOLDER), uuid)
    }

    fn take_in(run_folder: &Path, uuid: [u8; 16]) -> anyhow::Result<Self> {
        let name = dashed(uuid);
        for copy in 1..=COPIES_MAX {
            let name = if copy == 1 {
                name.clone()
            } else {
                format!("{name}.{copy}")
            };
            let path = run_folder.join(name);
            let what = || format!("create the directory {}", path.display());
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(what)?;
            if let Some(lock) = lock(&path.join(LOCK)).with_context(what)? {
                return Ok(Self {
                    path,
                    lock,
                    keeps: true,
                });
            }
        }
        anyhow::bail!("{COPIES_MAX} copies of this pool are open already; close one of them")
    }

    /// Returns the folders of pools that no process serves, left by processes that were killed.
    #[must_use]
    pub fn abandoned() -> Vec<Self> {
        Self::abandoned_in(Path::new(RUN_FOLDER))
    }

    fn abandoned_in(run_folder: &Path) -> Vec<Self> {
        let folders = fs::read_dir(run_folder).into_iter().flatten().flatten();
        let take = |path: PathBuf| {
            let file = path.join(LOCK);
            // A folder without a lock is not a pool's, or is being created.
            if !file.is_file() {
                return None;
            }
            let lock = lock(&file).ok()??;
            Some(Self {
                path,
                lock,
                keeps: true,
            })
        };
        folders.filter_map(|folder| take(folder.path())).collect()
    }

    /// Returns the folder that another process has taken, with its lock, which belongs to the open
    /// file: it is held as long as either process has the file open. Dropping the value does not
    /// remove the folder.
    #[must_use]
    pub const fn of_another(path: PathBuf, lock: File) -> Self {
        Self {
            path,
            lock,
            keeps: false,
        }
    }

    /// With `keep`, makes this process the one that removes the folder, once the process that was
    /// to do it is gone; without `keep`, leaves the folder to another process.
    pub const fn keep(&mut self, keep: bool) {
        self.keeps = keep;
    }

    /// Returns the lock, for another process.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        if !self.keeps {
            return;
        }
        // A folder that is not empty is still in use or not ours, and stays.
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_file(self.path.join(LOCK));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Locks the file at `path`; returns `None` if another process has it locked.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The previous owner may have removed the file between the two calls above.
        let ours = lock.metadata()?;
        match fs::metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) => {
                return Ok(Some(lock));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

/// Formats a uuid in the usual way.
fn dashed(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_an_open_pool_gets_a_folder_of_its_own() {
        let run = tempfile::tempdir().unwrap();
        let uuid = *b"0123456789abcdef";
        let first = StateFolder::take_in(run.path(), uuid).unwrap();
        let second = StateFolder::take_in(run.path(), uuid).unwrap();
        let name = "30313233-3435-3637-3839-616263646566";
        assert_eq!(first.path(), run.path().join(name));
        assert_eq!(second.path(), run.path().join(format!("{name}.2")));
        drop(first);
        assert!(
            !run.path().join(name).exists(),
            "an empty folder stays behind"
        );
        assert_eq!(
            StateFolder::take_in(run.path(), uuid).unwrap().path(),
            run.path().join(name)
        );
    }
}
