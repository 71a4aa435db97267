//! Properties of this process that the host shows.

use std::ffi::CStr;

/// Sets the name under which lists of processes show this process; the kernel takes 15 bytes.
/// Otherwise a process that was started through a descriptor is shown by the descriptor's number.
pub fn set_name(name: &CStr) {
    // The name affects only displays.
    let _ = nix::sys::prctl::set_name(name);
}
