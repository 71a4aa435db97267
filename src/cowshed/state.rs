//! The folder of this host in which an open pool has its mounts.
//!
//! It goes by the pool's uuid, so that whoever opens the pool next finds and clears what a killed
//! process left. A copy of a pool has the same uuid: the folder is locked, and a second pool gets
//! another one.

use anyhow::Context;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the folders of all open pools lie.
const RUN_FOLDER: &str = "/run/cowshed";
/// The file that is locked.
const LOCK: &str = "lock";
/// As many pools with one uuid can be open on one host.
const COPIES_MAX: usize = 16;

/// A locked state folder.
#[derive(Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    lock: File,
    /// Whether it is this one's to remove.
    keeps: bool,
}

impl StateFolder {
    /// Takes the folder of the pool `uuid`.
    ///
    /// # Errors
    /// When it cannot be made, which needs the superuser, or too many pools have that uuid.
    pub(super) fn take(uuid: [u8; 16]) -> anyhow::Result<Self> {
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
            let what = || format!("make the folder {}", path.display());
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

    /// The folders of pools that nobody serves, left by processes that were killed.
    pub(super) fn abandoned() -> Vec<Self> {
        Self::abandoned_in(Path::new(RUN_FOLDER))
    }

    fn abandoned_in(run_folder: &Path) -> Vec<Self> {
        let folders = fs::read_dir(run_folder).into_iter().flatten().flatten();
        let take = |path: PathBuf| {
            let file = path.join(LOCK);
            // What has no lock is not a pool's, or being made.
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

    /// The folder that another process has taken, with its lock, which goes with the open file:
    /// it is held as long as either has it. The folder stays when this is dropped.
    pub(super) const fn of_another(path: PathBuf, lock: File) -> Self {
        Self {
            path,
            lock,
            keeps: false,
        }
    }

    /// Makes the folder this one's to remove, when whoever was to do it is gone; or leaves it to
    /// another process.
    pub(super) const fn keep(&mut self, keep: bool) {
        self.keeps = keep;
    }

    /// The lock, for another process.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        if !self.keeps {
            return;
        }
        // What is not empty is still in use or not ours, and stays.
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_file(self.path.join(LOCK));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Locks the file at `path`; nothing if another process has it locked.
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
        // Whoever had it before may have removed it between the two calls above.
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

/// A uuid as it is usually written.
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
