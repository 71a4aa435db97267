//! Telling a store that a program uses from one that nobody does, and keeping it so while it is read.
//!
//! Locks are taken as their program takes them to read: with flock(2) on the databases of Docker and
//! containerd, with fcntl(2) on the lock files of containers/storage. A program that starts meanwhile
//! waits for them or fails. They change nothing in the store.

use super::folder::Folder;
use crate::error::{Error, Printable, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use std::fs::File;

/// Locks on an old store, until they are dropped.
#[derive(Default)]
pub(super) struct Locks {
    databases: Vec<Flock<File>>,
    lock_files: Vec<File>,
}

impl Locks {
    /// Locks a database that `user` locks as long as it runs; returns false if there is none.
    pub(super) fn database(
        &mut self,
        store: &Folder,
        path: &str,
        user: &'static str,
    ) -> Result<bool> {
        let Some(file) = store.file(path)? else {
            return Ok(false);
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => self.databases.push(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Err(in_use(path, user)),
            Err((_, errno)) => return Err(Error::entry("lock", path.as_bytes(), errno)),
        }
        Ok(true)
    }

    /// Locks a lock file that `user` locks while it changes the store; does nothing if there is none.
    pub(super) fn lock_file(
        &mut self,
        store: &Folder,
        path: &str,
        user: &'static str,
    ) -> Result<()> {
        let Some(file) = store.file(path)? else {
            return Ok(());
        };
        let failed = |errno: Errno| Error::entry("lock", path.as_bytes(), errno);
        let kind =
            |kind: libc::c_int| libc::c_short::try_from(kind).map_err(|_| failed(Errno::EINVAL));
        let whole = libc::flock {
            l_type: kind(libc::F_RDLCK)?,
            l_whence: kind(libc::SEEK_SET)?,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => self.lock_files.push(file),
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(in_use(path, user)),
            Err(errno) => return Err(failed(errno)),
        }
        Ok(())
    }
}

fn in_use(path: &str, user: &'static str) -> Error {
    Error::StoreInUse {
        user,
        file: Printable::from(path),
    }
}
