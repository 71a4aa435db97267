//! File descriptors that change hands: sent through a unix socket (`SCM_RIGHTS`), or left open
//! for the program that this process starts or becomes.
//!
//! Every descriptor of this program is closed on `exec` but those that are left open on purpose;
//! that is how `inherited` knows them, and that nobody owns them yet.

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`). There is always
/// room for all of them: those of a truncated list would be installed and never closed.
const DESCRIPTORS_MAX: usize = 253;

/// Sends `bytes`, or a part of them, with `descriptors`; answers how many bytes went.
///
/// # Errors
/// What the kernel says.
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

/// Receives bytes into `buf` and the descriptors that came with them; answers how many bytes came.
/// The descriptors are closed on `exec`.
///
/// # Errors
/// What the kernel says.
pub fn receive(socket: &UnixStream, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
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

/// Leaves `descriptor` open in the programs that this process starts or becomes from now on, or
/// closes it there. Only for a process of one thread: another one might start something else.
///
/// # Errors
/// What fcntl(2) answers.
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
/// # Errors
/// `InvalidInput` for a standard stream, or a descriptor that was not left open or is taken
/// already; EBADF when there is none of that number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    const STREAMS: i32 = 3;
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it was not left open for this");
    if number < STREAMS {
        return Err(refused());
    }
    // SAFETY: the borrow lives for the two calls below. A number that is not open makes them
    // answer EBADF, and they change nothing but the flag of one that is.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(descriptor, FcntlArg::F_GETFD)?;
    if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(refused());
    }
    leave_open(descriptor, false)?;
    // SAFETY: it is open, and without the flag, which everything has that this process has opened
    // or taken: so no object in it owns this descriptor, and now that it has the flag, none will.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes the descriptors with these numbers over, which the process was started with; from now on
/// they are closed on `exec`. The caller says by this that nothing else in the process owns them.
///
/// # Errors
/// EBADF when one of them is not open; then none is taken.
pub fn inherit(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    for &number in numbers {
        // SAFETY: it is borrowed for this call only, which answers EBADF where it is not open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    // SAFETY: all of them are open, and by the caller's word nobody else owns them.
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
        // As after `exec`: open, and nobody's.
        let number_again = file.into_raw_fd();
        assert_eq!(number, number_again);
        let taken = inherited(number).unwrap();
        assert!(inherited(number).is_err(), "it was taken twice");
        assert_eq!(taken.as_raw_fd(), number);
        assert!(inherited(0).is_err());
        assert!(inherited(1 << 20).is_err());
    }
}
