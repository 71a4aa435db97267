//! Undoing the operations that a dead process had in progress, and that left mounts.
//!
//! The host's list of mounts and the export's attachments show what is mounted; folders in the
//! state folder record the operations in progress. Each folder is made before the first step and
//! removed after the last:
//!
//! | folder | possible state |
//! |---|---|
//! | `work/<volume>-<random>`, `work/view-<volume>` | that volume attached, and mounted here |
//! | `work/root-<random>` | an overlay root mounted here |
//! | `lower/<volume>` | that volume attached, and mounted here; it stays if an overlay that is adopted is over it |
//! | `work/frozen-<name>` | a file system quiesced, by whoever gives such names |
//! | `work/still-<volume>-<device>` | a file system on that volume quiesced |
//!
//! All of these were interrupted, and are undone. What stays mounted is adopted by those above.

use super::filesystem;
use super::views::VIEW_PREFIX;
use super::work::WORK_PREFIX;
use super::{Mounts, listed_mounts, remove_empty_folders, thaw_at};
use crate::error::Result;
use cowshed_export::{AttachKind, Attachment, Export};
use cowshed_format::base::VolumeId;
use cowshed_sys::mount::{self, MountEntry};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The prefix of the name of a folder that records a quiesced file system.
const FROZEN_PREFIX: &str = "frozen-";

/// The mounts and the export as a successor finds them.
pub(crate) struct Found {
    pub mounts: Vec<MountEntry>,
    pub export: Arc<Export>,
}

impl Mounts {
    /// Thaws what a predecessor froze, and undoes the mounts of its operations in progress.
    pub(crate) fn begin_adoption(&self) -> Result<Found> {
        let found = Found {
            mounts: listed_mounts()?,
            export: self.export()?,
        };
        self.thaw_quiesced(&found.mounts, &found.export);
        self.undo_work(&found.mounts, &found.export);
        Ok(found)
    }

    /// Unmounts unused lower layers and removes the volumes of the operations in progress, once
    /// everything else is adopted.
    pub(crate) fn end_adoption(&self, found: &Found) {
        self.drop_unused_lowers(found);
        self.remove_work_volumes(&found.export);
        self.tidy_refusals();
        remove_empty_folders(&self.work_dir());
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
    pub(crate) fn let_go(&self, export: &Export, id: VolumeId) {
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

    /// Returns the folder that records that the file system of this name is quiesced.
    pub(crate) fn frozen_note(&self, name: &str) -> PathBuf {
        self.work_dir().join(format!("{FROZEN_PREFIX}{name}"))
    }

    /// Thaws the file system of this name at `path`, if a predecessor froze it.
    pub(crate) fn thaw_noted(&self, name: &str, path: &Path) {
        // Without the note, the freeze was made by somebody else.
        if self.frozen_note(name).exists() {
            thaw_at(path);
        }
    }
}

/// Returns the volume's loop device.
pub(crate) fn device_of(export: &Export, id: VolumeId) -> Option<PathBuf> {
    let is_it =
        |attachment: &Attachment| attachment.volume == id && attachment.kind == AttachKind::Loop;
    let found = export.attachments().into_iter().find(is_it);
    found.map(|attachment| attachment.path)
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

    #[test]
    fn folders_in_work_name_their_volume() {
        assert_eq!(volume_of_folder("view-17"), Some(VolumeId(17)));
        assert_eq!(volume_of_folder("12-00ff"), Some(VolumeId(12)));
        assert_eq!(volume_of_folder("frozen-3b"), None);
        assert_eq!(volume_of_folder("00ff"), None);
    }
}
