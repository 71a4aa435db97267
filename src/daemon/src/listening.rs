//! The socket that clients connect to, and its file: bound here, or taken from the process that
//! bound it.
//!
//! # Invariants
//! - Only the process that keeps the file removes it, and only while the file still belongs to this
//!   socket.
//! - Clients that connect while no process accepts wait in the kernel, as long as any process has
//!   the socket open.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// The file's device and inode, if this process is to remove it.
    kept: Option<(u64, u64)>,
}

impl Listening {
    /// Listens at `path` (mode 0600) and replaces a socket file that nobody listens on: the caller
    /// holds the pool's lock. Dropping the value removes the file.
    ///
    /// # Errors
    /// The kernel's error; `AddrInUse` when the path is not a socket or another process listens
    /// there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                if UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                fs::remove_file(path)?;
            }
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = listen(path)?;
        listener.set_nonblocking(true)?;
        let kept = Some(identity(path)?);
        let path = path.to_owned();
        Ok(Self {
            listener,
            path,
            kept,
        })
    }

    /// Takes a socket that another process listens on or has left behind. Its file stays.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a listening unix socket with a path; else the kernel's error.
    pub fn take(socket: OwnedFd) -> io::Result<Self> {
        let refused = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let listener = UnixListener::from(socket);
        let address = listener
            .local_addr()
            .map_err(|_| refused("it is not a unix socket"))?;
        if !getsockopt(&listener, sockopt::AcceptConn)? {
            return Err(refused("no process listens on it"));
        }
        let path = address
            .as_pathname()
            .ok_or_else(|| refused("it has no path"))?
            .to_owned();
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path,
            kept: None,
        })
    }

    /// Returns the path at which clients connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a duplicate of the socket, for another server.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn socket(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Returns true if dropping the value removes the file.
    #[must_use]
    pub const fn keeps_file(&self) -> bool {
        self.kept.is_some()
    }

    /// With `keep`, makes this process the one that removes the file, once the process that was to
    /// do it is gone; without `keep`, leaves the file to another process.
    pub fn keep_file(&mut self, keep: bool) {
        // If the file is missing, there is nothing to remove.
        self.kept = keep.then(|| identity(&self.path).ok()).flatten();
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(kept) = self.kept else { return };
        let ours = identity(&self.path).is_ok_and(|found| found == kept);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket's file");
        }
    }
}

/// Returns a socket that listens at `path`. The file has its mode from the start, because the
/// kernel gives it the socket's mode; changing the mode by name could affect a file that another
/// process has put there meanwhile.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_socket_that_is_taken_keeps_its_file_and_waiting_clients() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.sock");
        let mut first = Listening::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        first.keep_file(false);
        let descriptor = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        // No process accepts connections now.
        let _client = UnixStream::connect(&path).unwrap();
        let mut second = Listening::take(descriptor).unwrap();
        assert_eq!(second.path(), path);
        second.listener.accept().unwrap();
        second.keep_file(true);
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_nobody_listens_on_is_not_taken() {
        let (end, _other) = UnixStream::pair().unwrap();
        assert!(Listening::take(end.into()).is_err());
        let file = File::open("/dev/null").unwrap();
        assert!(Listening::take(file.into()).is_err());
    }
}
