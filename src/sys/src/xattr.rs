//! Extended attributes of any object that a descriptor refers to, `O_PATH` descriptors included.
//!
//! The `f*xattr` calls refuse `O_PATH` descriptors, the only ones that symbolic links and device
//! nodes have; so the calls go through `/proc/self/fd/N`, which leads to the object itself and no
//! further. `/proc` must be mounted. Each call borrows the object until the kernel has returned: a
//! number whose descriptor is closed leads nowhere, or to another file.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Maximum number of bytes of all names of one object together: the kernel's `XATTR_LIST_MAX`.
pub const LIST_BYTES_MAX: usize = 65_536;
/// Maximum number of bytes of one value: the kernel's `XATTR_SIZE_MAX`.
pub const VALUE_BYTES_MAX: usize = 65_536;

/// Returns the names of all extended attributes of `object`, in the kernel's order.
///
/// # Errors
/// Errors of `listxattr(2)`; none for a file system without attributes, which returns an empty
/// list.
pub fn list(object: impl AsFd) -> io::Result<Vec<CString>> {
    let path = proc_path(&object)?;
    // Most objects have no attribute, so ask for the length before taking a buffer.
    // SAFETY: `path` is a live NUL-terminated string and a length of zero forbids any write.
    let needed = unsafe { libc::listxattr(path.as_ptr(), ptr::null_mut(), 0) };
    match usize::try_from(needed) {
        Ok(0) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(_) => return none_if_unsupported(io::Error::last_os_error()),
    }
    let mut names = vec![0_u8; LIST_BYTES_MAX];
    // SAFETY: `path` is a live NUL-terminated string; `names` is a live buffer of exactly the
    // length that is passed, and the kernel writes no more than that.
    let got = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    names.truncate(got);
    Ok(names
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

/// Returns the value of the attribute `name` of `object`.
///
/// # Errors
/// Errors of `getxattr(2)`; `ENODATA` where there is no such attribute.
pub fn get(object: impl AsFd, name: &CStr) -> io::Result<Vec<u8>> {
    let path = proc_path(&object)?;
    let mut value = vec![0_u8; VALUE_BYTES_MAX];
    // SAFETY: `path` and `name` are live NUL-terminated strings; `value` is a live buffer of
    // exactly the length that is passed, and the kernel writes no more than that.
    let got = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(got).map_err(|_| io::Error::last_os_error())?);
    value.shrink_to_fit();
    Ok(value)
}

/// Sets the attribute `name` of `object`, whether or not it exists.
///
/// # Errors
/// Errors of `setxattr(2)`.
pub fn set(object: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = proc_path(&object)?;
    // SAFETY: `path` and `name` are live NUL-terminated strings; `value` is live for the length
    // that is passed, and the kernel only reads it.
    let answer = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Removes the attribute `name` of `object`.
///
/// # Errors
/// Errors of `removexattr(2)`.
pub fn remove(object: impl AsFd, name: &CStr) -> io::Result<()> {
    let path = proc_path(&object)?;
    // SAFETY: `path` and `name` are live NUL-terminated strings that the kernel only reads.
    let answer = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn proc_path(object: &impl AsFd) -> io::Result<CString> {
    let number = object.as_fd().as_raw_fd();
    CString::new(format!("/proc/self/fd/{number}")).map_err(io::Error::from)
}

fn none_if_unsupported(error: io::Error) -> io::Result<Vec<CString>> {
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{AT_FDCWD, OFlag, openat};
    use nix::sys::stat::Mode;
    use std::os::unix::fs::symlink;

    #[test]
    fn attributes_of_a_symbolic_link_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("target"), b"x").unwrap();
        symlink("target", dir.path().join("link")).unwrap();
        let open = |name: &str| {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
            openat(AT_FDCWD, &dir.path().join(name), flags, Mode::empty()).unwrap()
        };
        set(open("link"), c"trusted.mark", b"of the \0 link").unwrap();
        assert_eq!(
            get(open("link"), c"trusted.mark").unwrap(),
            b"of the \0 link"
        );
        assert_eq!(list(open("target")).unwrap(), Vec::<CString>::new());
        remove(open("link"), c"trusted.mark").unwrap();
        assert_eq!(list(open("link")).unwrap(), Vec::<CString>::new());
    }
}
