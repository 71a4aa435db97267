//! Clearing away what a killed daemon left: its dead mount and the loop devices on its files.
//!
//! Touches only what is known to be cowshed's: a mount of its type whose server is dead, and loop
//! devices whose file lies in that mount.

use super::error::ExportError;
use super::fuse::FS_TYPE;
use super::holders::Holders;
use cowshed_sys::loop_device::{self, LoopDevice};
use cowshed_sys::mount;
use std::io;
use std::path::{Path, PathBuf};

/// The maximum number of stacked dead mounts that are cleared at once.
const STACKED_MAX: u32 = 64;

/// The result of a cleanup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Number of dead mounts that were removed.
    pub mounts: u32,
    /// The loop devices that were detached.
    pub detached: Vec<PathBuf>,
    /// The loop devices that are still in use. The kernel detaches each as soon as its last user is
    /// gone.
    pub busy: Vec<StaleDevice>,
}

/// A loop device of a dead daemon that someone still uses. All its I/O fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleDevice {
    /// The device.
    pub device: PathBuf,
    /// The users of the device.
    pub by: Holders,
}

/// Removes the dead mounts at `dir` and the loop devices on their files. Does nothing if there is
/// no such mount or `dir` does not exist.
///
/// # Errors
/// `Served` if a live cowshed is mounted there, `NotRoot`, and `Io`.
pub fn clean_stale(dir: &Path) -> Result<Cleaned, ExportError> {
    if !mount::is_root() {
        return Err(ExportError::NotRoot);
    }
    let mut cleaned = Cleaned::default();
    let dir = match mount::resolve(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        Err(error) => return Err(ExportError::io("resolve", dir)(error)),
    };
    for _ in 0..STACKED_MAX {
        let top = mount::mount_at(&dir).map_err(ExportError::io("read the mounts of", &dir))?;
        if top.is_none_or(|entry| entry.fs_type != FS_TYPE) {
            break;
        }
        if !mount::is_dead(&dir).map_err(ExportError::io("inspect", &dir))? {
            return Err(ExportError::Served { dir });
        }
        // Done before the unmount: afterwards the kernel no longer shows where the files were.
        detach_devices(&dir, &mut cleaned)?;
        mount::unmount_lazy(&dir).map_err(ExportError::io("unmount", &dir))?;
        cleaned.mounts += 1;
    }
    Ok(cleaned)
}

fn detach_devices(dir: &Path, cleaned: &mut Cleaned) -> Result<(), ExportError> {
    let attached = loop_device::attached();
    let attached = attached.map_err(ExportError::io("list", Path::new("/sys/block")))?;
    for (device, backing) in attached {
        if mount::lies_in(&backing, dir) {
            detach_or_leave(device, &|| is_in(device, dir), cleaned)?;
        }
    }
    Ok(())
}

/// Detaches a device whose file is dead, or has the kernel detach it when its last user is gone.
/// `is_it` returns true if the number still means that device.
pub(super) fn detach_or_leave(
    device: LoopDevice,
    is_it: &dyn Fn() -> io::Result<bool>,
    cleaned: &mut Cleaned,
) -> Result<(), ExportError> {
    let failed = |error| ExportError::io("detach", &device.path())(error);
    if !is_it().map_err(failed)? {
        return Ok(());
    }
    match detach_dead(device, is_it) {
        Ok(true) => cleaned.detached.push(device.path()),
        Ok(false) => {}
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            cleaned.busy.extend(leave_to_kernel(device, is_it)?);
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}

/// Returns true if the device still has a file in `dir`: another user may have got its number.
fn is_in(device: LoopDevice, dir: &Path) -> io::Result<bool> {
    Ok(device
        .backing_file()?
        .is_some_and(|backing| mount::lies_in(&backing, dir)))
}

/// Detaches without writing anything: the file behind the device is dead.
fn detach_dead(device: LoopDevice, is_it: &dyn Fn() -> io::Result<bool>) -> io::Result<bool> {
    let claim = device.claim()?;
    if !is_it()? {
        return Ok(false);
    }
    claim.detach()?;
    Ok(true)
}

/// Returns the users of a busy device, and has the kernel detach it when they are gone.
fn leave_to_kernel(
    device: LoopDevice,
    is_it: &dyn Fn() -> io::Result<bool>,
) -> Result<Option<StaleDevice>, ExportError> {
    let by = Holders::of_device(device);
    let detached = is_it().and_then(|is_it| {
        if is_it {
            device.detach_when_unused()?;
        }
        Ok(is_it)
    });
    match detached {
        Ok(true) => Ok(Some(StaleDevice {
            device: device.path(),
            by,
        })),
        Ok(false) => Ok(None),
        // Its last user has just closed it.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(ExportError::io("detach", &device.path())(error)),
    }
}
