//! The device through which the kernel sends requests to a FUSE server: `/dev/fuse`, and clones of
//! it.
//!
//! It moves bytes only and does not interpret them.

use nix::errno::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

mod ioctl {
    nix::ioctl_read!(clone, 229, 0, u32);
}

/// Opens the device, which belongs to no mount yet.
///
/// # Errors
/// Errors of open(2).
pub fn open() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    Ok(file.into())
}

/// Opens another descriptor of the mount that `device` serves, with its own list of requests. When
/// its last copy is closed, the kernel ends the requests that were read from it.
///
/// # Errors
/// Errors of open(2) and the ioctl `FUSE_DEV_IOC_CLONE`.
pub fn clone(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fresh = open()?;
    let mut number = u32::try_from(device.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open for the call, and the kernel only reads the u32, which
    // lives on this stack.
    unsafe { ioctl::clone(fresh.as_raw_fd(), &raw mut number) }?;
    Ok(fresh)
}

/// Waits for a request and reads it into `buf`; the kernel demands that `buf` can hold any request.
///
/// # Errors
/// ENODEV if the mount is gone, ENOENT if the request was withdrawn, EINTR.
pub fn read(device: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(device, buf)
}

/// Writes one whole message.
///
/// # Errors
/// ENOENT if the request no longer waits for this answer, ENODEV if the mount is gone, EINVAL if
/// the kernel rejects the message.
pub fn write(device: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    match nix::unistd::write(device, message) {
        Ok(written) if written == message.len() => Ok(()),
        Ok(_) => Err(Errno::EINVAL),
        Err(error) => Err(error),
    }
}
