//! Taking over the containers that a dead process left mounted.
//!
//! | folder | possible state |
//! |---|---|
//! | `mounts/<container>` | the container's volume attached, and mounted, here or elsewhere |
//! | `work/frozen-<container>` | the container's file system quiesced |
//!
//! A mounted container stays mounted.

use super::{ContainerMount, Containers};
use crate::error::Result;
use crate::mounts::{Found, device_of};
use crate::record;
use cowshed_sys::mount::MountEntry;
use std::fs;
use std::path::{Path, PathBuf};

impl Containers {
    /// Takes over the mounted containers; detaches those that were being mounted or unmounted.
    pub(crate) fn adopt(&self, found: &Found) -> Result<()> {
        for record in record::containers(self.pool())? {
            let Ok(volume) = record.volume(self.pool()) else {
                continue;
            };
            let own = self.dir().join(&record.id);
            if let Some(device) = device_of(&found.export, volume.id()) {
                match place_of(&found.mounts, &device, &own) {
                    Some(path) => {
                        self.mounts.thaw_noted(&record.id, &path);
                        tracing::info!(container = %record.name, path = %path.display(), "a container stays mounted");
                        let mount = ContainerMount { path, device };
                        self.mounted.lock().insert(record.id, mount);
                        continue;
                    }
                    None if own.exists() => self.mounts.let_go(&found.export, volume.id()),
                    // A user attached it, so it is not detached here.
                    None => {}
                }
            }
            // rmdir deliberately refuses a folder that is not empty.
            let _ = fs::remove_dir(own);
        }
        Ok(())
    }
}

/// Returns the mount point of the whole file system on `device`: `own` if it is mounted there, else
/// the first one. Bind mounts by others look the same, but come later.
fn place_of(mounts: &[MountEntry], device: &Path, own: &Path) -> Option<PathBuf> {
    let on_device =
        |entry: &&MountEntry| Path::new(&entry.source) == device && entry.root == Path::new("/");
    let mut all = mounts
        .iter()
        .filter(on_device)
        .map(|entry| &entry.mount_point);
    let found = all.clone().find(|path| *path == own).or_else(|| all.next());
    found.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn entry(mount_point: &str, source: &str, root: &str) -> MountEntry {
        MountEntry {
            id: 1,
            major: 7,
            minor: 0,
            root: root.into(),
            mount_point: mount_point.into(),
            fs_type: OsString::from("ext4"),
            source: source.into(),
        }
    }

    #[test]
    fn a_containers_place_is_its_own_folder_or_the_first_one() {
        let own = Path::new("/run/x/mounts/1");
        let mounts = [
            entry("/part", "/dev/loop1", "/etc"),
            entry("/srv/a", "/dev/loop1", "/"),
            entry("/srv/b", "/dev/loop1", "/"),
            entry("/other", "/dev/loop2", "/"),
        ];
        let place = |mounts: &[MountEntry]| place_of(mounts, Path::new("/dev/loop1"), own);
        assert_eq!(place(&mounts), Some("/srv/a".into()));
        let mut more = mounts.to_vec();
        more.push(entry("/run/x/mounts/1", "/dev/loop1", "/"));
        assert_eq!(place(&more), Some(own.into()));
        assert_eq!(place(&mounts[3..]), None);
    }
}
