//! Taking over the roots that a dead process left mounted or handed out.
//!
//! | folder | possible state |
//! |---|---|
//! | `roots/<volume>` | that volume attached, and mounted here |
//! | `roots/<volume>.device`, `roots/<volume>.file` | that volume handed out as a device or file |
//! | `work/frozen-root-<volume>` | the root's file system quiesced |

use super::{DEVICE_SUFFIX, FILE_SUFFIX, Mounted, Roots};
use crate::mounts::{Found, WORK_PREFIX, device_of};
use cowshed_engine::Volume;
use cowshed_export::{AttachKind, Export};
use cowshed_format::base::VolumeId;
use cowshed_sys::mount::{self, MountEntry};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl Roots {
    /// Takes over the shown roots. Temporary ones are unmounted; one that cannot be is left, with
    /// its volume.
    pub(crate) fn adopt(&self, found: &Found) {
        let (mounts, export) = (&found.mounts, &found.export);
        for id in self.noted_roots() {
            let path = self.path(id);
            let mounted = mounts.iter().rfind(|entry| entry.mount_point == path);
            let Ok(volume) = self.pool().volume_by_id(id) else {
                // The volume was removed while its folder still existed.
                self.forget_notes(id, mounted.is_some());
                continue;
            };
            self.adopt_root(&volume, mounted, export);
            if volume.name().as_str().starts_with(WORK_PREFIX)
                && let Err(error) = self.discard(&volume)
            {
                tracing::info!(
                    %error, volume = %volume.name(),
                    "a temporary root is in use, and is removed later"
                );
            }
        }
        self.tidy();
    }

    fn adopt_root(&self, volume: &Volume, mounted: Option<&MountEntry>, export: &Export) {
        let id = volume.id();
        let root = self.of(id);
        let mut root = root.lock();
        let device = device_of(export, id);
        let handed_out = self.note(id, DEVICE_SUFFIX).exists();
        match mounted {
            Some(entry) if device.as_deref() == Some(Path::new(&entry.source)) => {
                let path = &entry.mount_point;
                self.mounts.thaw_noted(&format!("root-{id}"), path);
                root.mounted = Some(Mounted {
                    number: libc::makedev(entry.major, entry.minor),
                    purpose: None,
                    kept: None,
                });
            }
            Some(entry) => {
                // The mounted device no longer belongs to the volume, so the mount cannot be used.
                let _ = mount::unmount_lazy(&entry.mount_point);
            }
            // Attached, but not mounted yet or no longer.
            None if device.is_some() && !handed_out => {
                self.mounts.let_go(export, id);
                // Mounted in another mount namespace: it is released when that mount is gone.
                root.mounted = number_of(export, id).map(|number| Mounted {
                    number,
                    purpose: None,
                    kept: None,
                });
            }
            None => {}
        }
        if handed_out {
            root.device = device_of(export, id);
        }
        let files = export.attachments();
        let file = files
            .into_iter()
            .find(|found| found.volume == id && found.kind == AttachKind::File);
        root.file = file.map(|found| found.path);
        if root.mounted.is_none() {
            let _ = fs::remove_dir(self.path(id));
        }
        for (suffix, is_shown) in [
            (DEVICE_SUFFIX, root.device.is_some()),
            (FILE_SUFFIX, root.file.is_some()),
        ] {
            if !is_shown {
                let _ = fs::remove_dir(self.note(id, suffix));
            }
        }
    }

    /// Returns the volumes that may be shown, according to the state folder.
    fn noted_roots(&self) -> BTreeSet<VolumeId> {
        let entries = fs::read_dir(self.dir());
        let names = entries.into_iter().flatten().flatten();
        names
            .filter_map(|entry| volume_of_note(entry.file_name().to_str()?))
            .collect()
    }

    fn forget_notes(&self, id: VolumeId, is_mounted: bool) {
        let path = self.path(id);
        if is_mounted {
            let _ = mount::unmount_lazy(&path);
        }
        for folder in [
            path,
            self.note(id, DEVICE_SUFFIX),
            self.note(id, FILE_SUFFIX),
        ] {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Returns the device number of the volume's loop device.
fn number_of(export: &Export, id: VolumeId) -> Option<u64> {
    let device = export.loop_device(id)?;
    fs::metadata(device).ok().map(|found| found.rdev())
}

fn volume_of_note(name: &str) -> Option<VolumeId> {
    let id = name
        .strip_suffix(DEVICE_SUFFIX)
        .or_else(|| name.strip_suffix(FILE_SUFFIX))
        .unwrap_or(name);
    id.parse().ok().map(VolumeId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_name_their_volume() {
        for (name, id) in [("7", 7), ("12.device", 12), ("40.file", 40)] {
            assert_eq!(volume_of_note(name), Some(VolumeId(id)));
        }
        assert_eq!(volume_of_note("lost+found"), None);
    }
}
