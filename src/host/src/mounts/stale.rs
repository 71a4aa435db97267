//! Mounts that hang because the process that served their files was killed.

use super::listed_mounts;
use crate::error::{Error, Result};
use cowshed_sys::loop_device;
use cowshed_sys::mount::{self, MountEntry};
use std::io;
use std::path::{Path, PathBuf};

/// Unmounts the file systems that a killed process left mounted on loop devices over the volumes'
/// files in `files_dir`, and the overlays that have a layer in one of them, wherever they are
/// mounted; returns the mount points. Must be called before
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
    let mut dead = Vec::new();
    for (device, backing) in attached {
        if mount::lies_in(&backing, &files_dir) {
            let node = device.path();
            let numbers = device
                .device_numbers()
                .map_err(Error::io("inspect", &node))?;
            dead.push(numbers);
        }
    }
    // In reverse order, as mounts may be stacked.
    for entry in stale(&listed_mounts()?, &dead).into_iter().rev() {
        let path = &entry.mount_point;
        mount::unmount_lazy(path).map_err(Error::io("unmount", path))?;
        removed.push(path.clone());
    }
    Ok(removed)
}

/// Returns the mounts of the devices with these numbers, and those of overlayfs that have a layer in
/// one of them, in the order of mounting.
fn stale<'m>(mounts: &'m [MountEntry], dead: &[(u32, u32)]) -> Vec<&'m MountEntry> {
    let is_on_device = |entry: &MountEntry| dead.contains(&(entry.major, entry.minor));
    let is_layered = |entry: &MountEntry| {
        let folders = ["upperdir", "lowerdir"].map(|name| entry.option(name));
        entry.fs_type == "overlay"
            && folders.iter().flatten().any(|folder| {
                let mut on_device = mounts.iter().filter(|below| is_on_device(below));
                on_device.any(|below| mount::lies_in(Path::new(folder), &below.mount_point))
            })
    };
    let all = mounts.iter();
    all.filter(|entry| is_on_device(entry) || is_layered(entry))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(minor: u32, at: &str, fs_type: &str, options: &str) -> MountEntry {
        MountEntry {
            id: 1,
            major: 7,
            minor,
            root: "/".into(),
            mount_point: at.into(),
            fs_type: fs_type.into(),
            source: "x".into(),
            options: options.into(),
        }
    }

    #[test]
    fn an_overlay_over_a_dead_device_is_as_dead_as_the_device() {
        let on_both = "rw,lowerdir=/s/lower/1,upperdir=/s/own/2/upper,workdir=/s/own/2/work";
        let mounts = [
            entry(1, "/s/lower/1", "ext4", "ro"),
            entry(2, "/s/own/2", "ext4", "rw"),
            entry(3, "/s/own/20", "ext4", "rw"),
            entry(90, "/root", "overlay", on_both),
            entry(
                91,
                "/other",
                "overlay",
                "rw,lowerdir=/a,upperdir=/s/own/20/upper",
            ),
            entry(92, "/third", "tmpfs", on_both),
        ];
        let paths = |dead: &[(u32, u32)]| -> Vec<PathBuf> {
            let found = stale(&mounts, dead).into_iter();
            found.map(|entry| entry.mount_point.clone()).collect()
        };
        assert_eq!(
            paths(&[(7, 1)]),
            [Path::new("/s/lower/1"), Path::new("/root")]
        );
        assert_eq!(
            paths(&[(7, 2)]),
            [Path::new("/s/own/2"), Path::new("/root")]
        );
        assert!(paths(&[]).is_empty());
    }
}
