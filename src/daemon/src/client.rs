//! The client's end: finds the daemon, sends it a command and waits for the exit status.

use super::protocol::{
    Answer, Message, ProtocolError, STREAMS, VERSION, receive_answer, send_request,
};
use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The result of looking for a daemon at a socket's path.
#[derive(Debug)]
pub enum Connection {
    /// A running daemon.
    Daemon(Client),
    /// No socket, or one left behind by a daemon that no longer runs.
    Nobody,
}

/// A connection to a daemon, for one command.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
}

impl Client {
    /// Looks for a daemon at the socket `path`.
    ///
    /// # Errors
    /// The kernel's error, for example that this user may not use the socket; and
    /// `PermissionDenied` when another user listens there: that user must not get the caller's
    /// streams.
    pub fn connect(path: &Path) -> io::Result<Connection> {
        match UnixStream::connect(path) {
            Ok(socket) => {
                check_owner(&socket)?;
                Ok(Connection::Daemon(Self { socket }))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(Connection::Nobody)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the process that listens, as this process sees it: the daemon, or the service manager
    /// that starts it. 0 for one that is out of sight.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn listener(&self) -> io::Result<u32> {
        let credentials = getsockopt(&self.socket, sockopt::PeerCredentials)?;
        Ok(u32::try_from(credentials.pid()).unwrap_or(0))
    }

    /// Runs a command in the daemon on `streams` and waits for it to end.
    ///
    /// # Errors
    /// Any `ProtocolError`, for example when the daemon stops in the middle of the command.
    pub fn run<T: Message>(
        &self,
        request: &T,
        streams: [BorrowedFd<'_>; STREAMS],
    ) -> Result<Answer, ProtocolError> {
        let sent = send_request(&self.socket, request, streams);
        // A daemon that refuses replies before it has read the whole request, so the sending fails.
        let version = sent.as_ref().map_or(VERSION, |version| *version);
        match (sent, receive_answer(&self.socket, version)) {
            (_, Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) | (Ok(_), Err(error)) => Err(error),
        }
    }
}

/// Returns an error unless the listener is the superuser or the caller: it gets the caller's
/// streams.
fn check_owner(socket: &UnixStream) -> io::Result<()> {
    let owner = getsockopt(socket, sockopt::PeerCredentials)?.uid();
    if owner == 0 || owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let what = format!("user {owner} listens there instead of root; nothing was sent");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}
