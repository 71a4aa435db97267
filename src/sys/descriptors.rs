//! File descriptors sent through a unix socket (`SCM_RIGHTS`).

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`). There is always
/// room for all of them: those of a truncated list would be installed and never closed.
const DESCRIPTORS_MAX: usize = 253;

/// Sends `bytes`, or a part of them, with `descriptors`; answers how many bytes went.
///
/// # Errors
/// What the kernel says.
pub(crate) fn send(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let pieces = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &pieces, &rights, flags, None).map_err(io::Error::from)
}

/// Receives bytes into `buf` and the descriptors that came with them; answers how many bytes came.
/// The descriptors are closed on `exec`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn receive(socket: &UnixStream, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([libc::c_int; DESCRIPTORS_MAX]);
    let mut pieces = [IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nobody else
            // knows them, so each is owned by its `OwnedFd` alone.
            descriptors.extend(
                raw.into_iter()
                    .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }),
            );
        }
    }
    Ok((message.bytes, descriptors))
}
