//! Snapshots of volumes that may be mounted: their file system is held still meanwhile, so that
//! the snapshot holds everything that was written, and needs no journal replayed.
//!
//! While it is held, the folder `work/still-<volume>` tells a successor of this process.

use super::adoption::{device_of, place_of};
use super::diff::FrozenMount;
use super::error::{Error, Result};
use super::ext4::{self, Superblock};
use super::host::Host;
use crate::base::{Name, VolumeId};
use crate::export::Export;
use crate::pool::Volume;
use crate::sys::mount::{self, MountEntry};
use std::fs;
use std::path::{Path, PathBuf};

/// How the name of a folder begins that tells of a volume whose file system is held still.
const STILL_PREFIX: &str = "still-";

impl Host {
    /// Freezes what `volume` holds now under the name `name`, with all that was written to the
    /// file system on it, where it is attached as a loop device and mounted on this host.
    ///
    /// # Errors
    /// `Io` when the file system cannot be held still, and the pool's.
    pub fn snapshot_volume(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        let lock = self.data_lock(volume.id());
        let _held = lock.lock();
        let still = match self.mounted_place(volume.id())? {
            Some(path) => {
                // Writes that had no room in the pool are told here, and by nothing later.
                let synced = mount::sync_file_system(&path);
                synced.map_err(Error::io("write out", &path))?;
                Some(FrozenMount::freeze(path, self.still_note(volume.id()))?)
            }
            None => None,
        };
        if still.is_some() && Superblock::read(volume)?.is_some() {
            // The journal is empty while the file system is held, and never read.
            ext4::release_journal(volume)?;
        }
        let snapshot = self.pool().snapshot(volume, name);
        drop(still);
        Ok(snapshot?)
    }

    /// Where the whole file system of the volume is mounted, wherever that is.
    fn mounted_place(&self, id: VolumeId) -> Result<Option<PathBuf>> {
        let Some(device) = device_of(&*self.export()?, id) else {
            return Ok(None);
        };
        let mounts = mount::mounts();
        let mounts = mounts.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        Ok(place_of(
            &mounts,
            &device,
            &self.data_dir().join(id.to_string()),
        ))
    }

    fn still_note(&self, id: VolumeId) -> PathBuf {
        self.work_dir().join(format!("{STILL_PREFIX}{id}"))
    }

    /// Lets the file systems go on that a predecessor held.
    pub(super) fn thaw_still(&self, mounts: &[MountEntry], export: &Export) {
        for entry in fs::read_dir(self.work_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.strip_prefix(STILL_PREFIX));
            let Some(id) = id.and_then(|id| id.parse().ok()).map(VolumeId) else {
                continue;
            };
            let own = self.data_dir().join(id.to_string());
            let device = device_of(export, id);
            if let Some(path) = device.and_then(|device| place_of(mounts, &device, &own)) {
                super::adoption::thaw_at(&path);
            }
            // An empty folder that stays does no harm.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
