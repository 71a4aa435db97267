//! File descriptors that change hands: sent through a unix socket (`SCM_RIGHTS`), or left open for
//! a program that this process starts or becomes.
//!
//! Every descriptor of this program is closed on `exec`, except those that are left open on
//! purpose. `inherited` recognizes those, and knows thereby that nothing owns them yet.

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Maximum number of descriptors that the kernel lets one message carry (`SCM_MAX_FD`). Buffers
/// always hold that many: the descriptors of a truncated list would be installed and never closed.
const DESCRIPTORS_MAX: usize = 253;

/// Sends `bytes`, or a part of them, with `descriptors`; returns the number of bytes sent.
///
/// # Errors
/// Errors of the kernel.
pub fn send(
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

/// Receives bytes into `buf`, and the descriptors that came with them; returns the number of bytes
/// received. The descriptors are closed on `exec`.
///
/// # Errors
/// Errors of the kernel.
pub fn receive(socket: &UnixStream, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([libc::c_int; DESCRIPTORS_MAX]);
    let mut pieces = [IoSliceMut::new(buf)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else
            // knows them, so each is owned by its `OwnedFd` alone.
            descriptors.extend(
                raw.into_iter()
                    .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }),
            );
        }
    }
    Ok((message.bytes, descriptors))
}

/// Leaves `descriptor` open in the programs that this process starts or becomes from now on, or
/// closes it there. For single-threaded processes only: another thread might start a program
/// meanwhile.
///
/// # Errors
/// Errors of fcntl(2).
pub fn leave_open(descriptor: BorrowedFd<'_>, open: bool) -> io::Result<()> {
    let flags = if open {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags)).map(drop)?;
    Ok(())
}

/// Takes a descriptor that another program left open for this one, once.
///
/// `InvalidInput` for a standard stream, or for a descriptor that was not left open or is already
/// taken; EBADF if no descriptor has that number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    const STREAMS: i32 = 3;
    let refused = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor was not passed to this program",
        )
    };
    if number < STREAMS {
        return Err(refused());
    }
    // SAFETY: the borrow lives for the two calls below. They return EBADF for a number that is not
    // open, and change only the flag of one that is.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(descriptor, FcntlArg::F_GETFD)?;
    if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(refused());
    }
    leave_open(descriptor, false)?;
    // SAFETY: the descriptor is open and had no FD_CLOEXEC, which everything has that this process
    // has opened or taken: so no object in the process owns it, and since it has the flag now, none
    // will.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over the descriptors with these numbers, which the process was started with; from now on
/// they are closed on `exec`. The caller guarantees that nothing else in the process owns them.
///
/// # Errors
/// EBADF if one of them is not open; then none is taken.
pub fn inherit(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    for &number in numbers {
        // SAFETY: the number is borrowed for this call only, which returns EBADF where it is not
        // open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    // SAFETY: all of them are open, and the caller guarantees that nothing else owns them.
    let own = |&number: &RawFd| unsafe { OwnedFd::from_raw_fd(number) };
    Ok(numbers.iter().map(own).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, IntoRawFd};

    #[test]
    fn what_was_left_open_is_taken_once_and_nothing_else() {
        let file = File::open("/proc/self/exe").unwrap();
        let number = file.as_raw_fd();
        assert!(inherited(number).is_err(), "somebody owns it");
        leave_open(file.as_fd(), true).unwrap();
        // As after `exec`: open and owned by nothing.
        let number_again = file.into_raw_fd();
        assert_eq!(number, number_again);
        let taken = inherited(number).unwrap();
        assert!(inherited(number).is_err(), "it was taken twice");
        assert_eq!(taken.as_raw_fd(), number);
        assert!(inherited(0).is_err());
        assert!(inherited(1 << 20).is_err());
    }
}
