//! Taking over from a process that died while it served the volumes, and whose mounts still exist.
//!
//! The host's list of mounts and the export's attachments show what is mounted; folders in the
//! state folder record the operations in progress. Each folder is made before the first step and
//! removed after the last:
//!
//! | folder | possible state |
//! |---|---|
//! | `mounts/<container>` | the container's volume attached, and mounted, here or elsewhere |
//! | `work/<volume>-<random>`, `work/view-<volume>` | that volume attached, and mounted here |
//! | `work/frozen-<container>` | the container's file system quiesced |
//! | `work/still-<volume>-<device>` | a file system on that volume quiesced |
//! | `data/<volume>` | that data volume attached, and mounted here |
//! | `roots/<volume>` | that volume attached, and mounted here |
//! | `roots/<volume>.device`, `roots/<volume>.file` | that volume handed out as a device or file |
//!
//! A mounted container or root stays mounted, and so does a data volume that has users. Everything
//! else was interrupted, and is undone.

use super::error::{Error, Result};
use super::filesystem;
use super::host::{ContainerMount, Host, WORK_PREFIX, remove_empty_folders};
use super::record;
use cowshed_engine::Pool;
use cowshed_export::{AttachKind, Attachment, Export};
use cowshed_format::base::VolumeId;
use cowshed_sys::loop_device;
use cowshed_sys::mount::{self, MountEntry};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The prefix of the name of a view's folder; the volume's id follows.
pub(super) const VIEW_PREFIX: &str = "view-";
/// The prefix of the name of a folder that records a quiesced file system.
const FROZEN_PREFIX: &str = "frozen-";

impl Host {
    /// As `with_export`, for a successor of a process that died: `export` shows the volumes where
    /// that process did. Containers stay mounted; interrupted operations are undone, and what
    /// cannot be undone is left and logged.
    ///
    /// # Errors
    /// If the folder or the list of mounts cannot be read.
    pub fn resume(pool: Pool, state_dir: &Path, export: Arc<Export>) -> Result<Self> {
        let host = Self::bare(pool, state_dir, export)?;
        host.adopt()?;
        Ok(host)
    }

    /// Forgets the mounts without unmounting them, for a successor to find.
    pub fn leave(&self) {
        self.mounts.lock().clear();
        self.data_mounts.lock().clear();
        self.roots.clear();
    }

    fn adopt(&self) -> Result<()> {
        let mounts = mount::mounts();
        let mounts = mounts.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        let export = self.export()?;
        self.thaw_quiesced(&mounts, &export);
        self.undo_work(&mounts, &export);
        self.adopt_data(&mounts, &export);
        for record in record::containers(self.pool())? {
            let Ok(volume) = record.volume(self.pool()) else {
                continue;
            };
            let own = self.mounts_dir().join(&record.id);
            if let Some(device) = device_of(&export, volume.id()) {
                match place_of(&mounts, &device, &own) {
                    Some(path) => {
                        self.thaw(&record.id, &path);
                        tracing::info!(
                            container = %record.name, path = %path.display(),
                            "a container stays mounted"
                        );
                        self.remember(record.id, path, device);
                        continue;
                    }
                    None if own.exists() => self.let_go(&export, volume.id()),
                    // A user attached it, so it is not detached here.
                    None => {}
                }
            }
            // rmdir deliberately refuses a folder that is not empty.
            let _ = fs::remove_dir(own);
        }
        self.adopt_roots(&mounts, &export);
        self.remove_work_volumes(&export);
        self.tidy_refusals();
        remove_empty_folders(&self.work_dir());
        Ok(())
    }

    fn remember(&self, id: String, path: PathBuf, device: PathBuf) {
        let mount = ContainerMount { path, device };
        self.mounts.lock().insert(id, mount);
    }

    /// Unmounts and detaches the volumes of operations in progress.
    fn undo_work(&self, mounts: &[MountEntry], export: &Export) {
        let work = self.work_dir();
        let inside = mounts.iter().rev().map(|entry| &entry.mount_point);
        for path in inside.filter(|path| **path != work && mount::lies_in(path, &work)) {
            tracing::info!(
                path = %path.display(),
                "unmounting the file system of an interrupted operation"
            );
            if let Err(error) = filesystem::unmount(path) {
                tracing::warn!(
                    %error, path = %path.display(),
                    "a mount is in use, and ends with its last user"
                );
                // This removes at least the path; the device is detached after its last user.
                let _ = mount::unmount_lazy(path);
            }
        }
        for entry in fs::read_dir(&work).into_iter().flatten().flatten() {
            if let Some(volume) = entry.file_name().to_str().and_then(volume_of_folder) {
                self.let_go(export, volume);
            }
        }
    }

    fn remove_work_volumes(&self, export: &Export) {
        for left in self.pool().volumes() {
            if !left.name.as_str().starts_with(WORK_PREFIX) {
                continue;
            }
            self.let_go(export, left.id);
            let removed = self
                .pool()
                .volume_by_id(left.id)
                .and_then(|volume| self.pool().remove(&volume));
            if let Err(error) = removed {
                tracing::warn!(%error, volume = %left.name, "cannot remove a temporary volume");
            }
        }
    }

    /// Detaches the device of an interrupted operation, if there is one.
    pub(super) fn let_go(&self, export: &Export, id: VolumeId) {
        if device_of(export, id).is_none() {
            return;
        }
        let Ok(volume) = self.pool().volume_by_id(id) else {
            return;
        };
        // A device to which writes have failed reports that once, and can be detached after that.
        let detach = || export.detach_as(&volume, AttachKind::Loop);
        if let Err(error) = detach().or_else(|_| detach()) {
            tracing::warn!(%error, volume = %volume.name(), "cannot detach a volume");
        }
    }

    /// Returns the folder that records that the container's file system is quiesced.
    pub(super) fn frozen_note(&self, container: &str) -> PathBuf {
        self.work_dir().join(format!("{FROZEN_PREFIX}{container}"))
    }

    fn thaw(&self, container: &str, path: &Path) {
        let note = self.frozen_note(container);
        if !note.exists() {
            return;
        }
        thaw_at(path);
    }
}

/// Unmounts the containers that a killed process left mounted on loop devices over the volumes'
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

/// Thaws the file system at `path` if it is frozen.
pub(super) fn thaw_at(path: &Path) {
    match mount::thaw(path) {
        Ok(()) => tracing::info!(path = %path.display(), "thawed a file system"),
        // It was not frozen yet, or no longer.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => tracing::error!(%error, path = %path.display(), "cannot thaw a file system"),
    }
}

/// Returns the volume's loop device.
pub(super) fn device_of(export: &Export, id: VolumeId) -> Option<PathBuf> {
    let is_it =
        |attachment: &Attachment| attachment.volume == id && attachment.kind == AttachKind::Loop;
    let found = export.attachments().into_iter().find(is_it);
    found.map(|attachment| attachment.path)
}

/// Returns the mount point of the whole file system on `device`: `own` if it is mounted there, else
/// the first one. Bind mounts by others look the same, but come later.
pub(super) fn place_of(mounts: &[MountEntry], device: &Path, own: &Path) -> Option<PathBuf> {
    let on_device =
        |entry: &&MountEntry| Path::new(&entry.source) == device && entry.root == Path::new("/");
    let mut all = mounts
        .iter()
        .filter(on_device)
        .map(|entry| &entry.mount_point);
    let found = all.clone().find(|path| *path == own).or_else(|| all.next());
    found.cloned()
}

/// Returns the volume of an operation's folder.
fn volume_of_folder(name: &str) -> Option<VolumeId> {
    let id = match name.strip_prefix(VIEW_PREFIX) {
        Some(id) => id,
        None => name.split_once('-')?.0,
    };
    id.parse().ok().map(VolumeId)
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

    #[test]
    fn folders_in_work_name_their_volume() {
        assert_eq!(volume_of_folder("view-17"), Some(VolumeId(17)));
        assert_eq!(volume_of_folder("12-00ff"), Some(VolumeId(12)));
        assert_eq!(volume_of_folder("frozen-3b"), None);
        assert_eq!(volume_of_folder("00ff"), None);
    }
}
