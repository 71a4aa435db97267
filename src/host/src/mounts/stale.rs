//! Mounts that hang because the process that served their files was killed.

use crate::error::{Error, Result};
use cowshed_sys::loop_device;
use cowshed_sys::mount::{self, MountEntry};
use std::io;
use std::path::{Path, PathBuf};

/// Unmounts the file systems that a killed process left mounted on loop devices over the volumes'
/// files in `files_dir`, wherever they are mounted; returns the mount points. Must be called before
/// the volumes are exported there again. Does nothing while a live process serves the files.
///
/// # Errors
/// If the lists of mounts and loop devices cannot be read, or a mount cannot be removed.
pub fn clean_stale_mounts(files_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let files_dir = match mount::resolve(files_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        resolved => resolved.map_err(Error::io("resolve", files_dir))?,
    };
    if !mount::is_dead(&files_dir).map_err(Error::io("inspect", &files_dir))? {
        return Ok(removed);
    }
    let attached = loop_device::attached().map_err(Error::io("list", Path::new("/sys/block")))?;
    for (device, backing) in attached {
        if !mount::lies_in(&backing, &files_dir) {
            continue;
        }
        let node = device.path();
        let numbers = device
            .device_numbers()
            .map_err(Error::io("inspect", &node))?;
        let mounts = mount::mounts().map_err(Error::io("read the mounts of", &node))?;
        let on_device = |entry: &&MountEntry| (entry.major, entry.minor) == numbers;
        // In reverse order, as mounts may be stacked.
        for entry in mounts.iter().rev().filter(on_device) {
            let path = &entry.mount_point;
            mount::unmount_lazy(path).map_err(Error::io("unmount", path))?;
            removed.push(path.clone());
        }
    }
    Ok(removed)
}
