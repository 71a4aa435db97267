//! The device through which the kernel asks a FUSE server: `/dev/fuse`, and clones of it.
//!
//! Bytes only: what they mean is not known here.

use nix::errno::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

mod ioctl {
    nix::ioctl_read!(clone, 229, 0, u32);
}

/// Opens the device; it belongs to no mount yet.
///
/// # Errors
/// What open(2) answers.
pub fn open() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    Ok(file.into())
}

/// Another descriptor of the mount that `device` serves, with a list of requests of its own. When
/// the last copy of it is closed, the kernel ends the requests that were read from it.
///
/// # Errors
/// What open(2) and the ioctl `FUSE_DEV_IOC_CLONE` answer.
pub fn clone(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fresh = open()?;
    let mut number = u32::try_from(device.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open for the call, and the kernel only reads the u32, which
    // lives on this stack.
    unsafe { ioctl::clone(fresh.as_raw_fd(), &raw mut number) }?;
    Ok(fresh)
}

/// Waits for a request and reads it into `buf`, which the kernel wants to have room for any.
///
/// # Errors
/// ENODEV when the mount is gone, ENOENT when the request was taken back, EINTR.
pub fn read(device: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(device, buf)
}

/// Writes one whole message.
///
/// # Errors
/// ENOENT when nobody waits for this answer any more, ENODEV when the mount is gone, EINVAL when
/// the kernel does not take the message.
pub fn write(device: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    match nix::unistd::write(device, message) {
        Ok(written) if written == message.len() => Ok(()),
        Ok(_) => Err(Errno::EINVAL),
        Err(error) => Err(error),
    }
}
