//! Taking over the containers that a dead process left mounted.
//!
//! | folder | possible state |
//! |---|---|
//! | `mounts/<container>` | the container's volume attached, and its root mounted, here or elsewhere |
//! | `own/<container>` | the volume of an overlay root attached, and mounted here |
//! | `work/frozen-<container>` | the container's file system quiesced |
//!
//! A mounted container stays mounted.

use super::Containers;
use super::mounting::{ContainerMount, overlay_source};
use crate::error::Result;
use crate::mounts::{Found, device_of};
use crate::record::{self, ContainerRecord, RootKind};
use cowshed_engine::Volume;
use cowshed_sys::mount::{self, MountEntry};
use std::fs;
use std::path::{Path, PathBuf};

impl Containers {
    /// Takes over the mounted containers; detaches those that were being mounted or unmounted.
    pub(crate) fn adopt(&self, found: &Found) -> Result<()> {
        for record in record::containers(self.pool())? {
            let Ok(volume) = record.volume(self.pool()) else {
                continue;
            };
            let adopted = match record.root {
                RootKind::Block => self.adopt_block(found, &record, &volume),
                RootKind::Overlay => self.adopt_overlay(found, &record, &volume),
            };
            match adopted {
                Some(mount) => {
                    tracing::info!(container = %record.name, path = %mount.path.display(), "a container stays mounted");
                    self.mounted.lock().insert(record.id, mount);
                }
                // rmdir deliberately refuses a folder that is not empty.
                None => drop(fs::remove_dir(self.dir().join(&record.id))),
            }
        }
        Ok(())
    }

    fn adopt_block(
        &self,
        found: &Found,
        record: &ContainerRecord,
        volume: &Volume,
    ) -> Option<ContainerMount> {
        let own = self.dir().join(&record.id);
        let device = device_of(&found.export, volume.id())?;
        let Some(path) = place_of(&found.mounts, &device, &own) else {
            // If a user attached it, it is not detached here.
            if own.exists() {
                self.mounts.let_go(&found.export, volume.id());
            }
            return None;
        };
        self.mounts.thaw_noted(&record.id, &path);
        Some(ContainerMount {
            path,
            source: device,
            lower: None,
        })
    }

    fn adopt_overlay(
        &self,
        found: &Found,
        record: &ContainerRecord,
        volume: &Volume,
    ) -> Option<ContainerMount> {
        let own = self.own_path(&record.id);
        let is_own = |entry: &&MountEntry| entry.mount_point == own;
        let own_mount = found.mounts.iter().rfind(is_own);
        if own_mount.is_some() {
            self.mounts.thaw_noted(&record.id, &own);
        }
        let source = PathBuf::from(overlay_source(&record.id));
        let place = place_of(&found.mounts, &source, &self.dir().join(&record.id));
        let lower = self.image_top(record).ok();
        if let (Some(path), Some(lower)) = (place, &lower) {
            self.mounts.adopt_lower(found, lower);
            return Some(ContainerMount {
                path,
                source,
                lower: Some(lower.clone()),
            });
        }
        if own_mount.is_some() && mount::unmount(&own).is_err() {
            // This removes at least the path; the device is detached after its last user.
            let _ = mount::unmount_lazy(&own);
        }
        if own.exists() {
            self.mounts.let_go(&found.export, volume.id());
            if let (Some(_), Some(lower)) = (device_of(&found.export, volume.id()), lower) {
                // It is in use where this process does not see it, and no second overlay may be
                // mounted over the same folders.
                self.mounts.adopt_lower(found, &lower);
                return Some(ContainerMount {
                    path: self.dir().join(&record.id),
                    source,
                    lower: Some(lower),
                });
            }
            let _ = fs::remove_dir(&own);
        }
        None
    }
}

/// Returns the mount point of the whole file system whose source in the table is `device`, which may
/// be the name of an overlay: `own` if it is mounted there, else the first one. Bind mounts by others
/// look the same, but come later.
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
            options: OsString::new(),
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
