//! Snapshots of volumes that may be mounted: their file system is held still meanwhile, so that
//! the snapshot holds everything that was written, and needs no journal replayed.
//!
//! While it is held, the folder `work/still-<volume>` tells a successor of this process.

use super::adoption::place_of;
use super::diff::FrozenMount;
use super::error::{Error, Result};
use super::ext4::{self, Superblock};
use super::host::Host;
use crate::base::{Name, VolumeId};
use crate::export::Export;
use crate::pool::Volume;
use crate::sys::mount::{self, FileSystem, MountEntry};
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
        self.with_data_lock(volume.id(), || {
            let still = self.hold_in_sight(volume)?;
            if volume.is_held() {
                // What programs have written to shared mappings of its file.
                self.export()?.write_back(volume)?;
            }
            let snapshot = self.pool().snapshot(volume, name);
            drop(still);
            Ok(snapshot?)
        })
    }

    /// As `snapshot_volume`, but where the file system writes nothing just then, it is not held
    /// still: to hold it, the kernel waits for all processors, for tens of milliseconds on a busy
    /// host. The snapshot may say that its journal is to be replayed; there is nothing in it.
    pub(super) fn snapshot_passing(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        let passing = self.with_data_lock(volume.id(), || self.snapshot_checkpointed(volume, name));
        match passing? {
            Some(snapshot) => Ok(snapshot),
            None => self.snapshot_volume(volume, name),
        }
    }

    /// Writes out what is in memory of the volume's file system, has the kernel bring all that is
    /// in its journal to its place, and snapshots the volume, if nothing got into the journal
    /// meanwhile. The volume's lock is held.
    fn snapshot_checkpointed(&self, volume: &Volume, name: &Name) -> Result<Option<Volume>> {
        let Some((path, number)) = self.mounted_place(volume)? else {
            return Ok(None);
        };
        let at = FileSystem::numbered(&path, number).map_err(Error::io("open", &path))?;
        // Writes that had no room in the pool are told here, and by nothing later.
        let synced = at.sync().map_err(Error::io("write out", &path));
        synced.inspect_err(|_| self.note_refusal(volume))?;
        if let Err(error) = at.checkpoint() {
            tracing::debug!(%error, path = %path.display(), "its journal cannot be emptied");
            return Ok(None);
        }
        let snapshot = self.pool().snapshot(volume, name)?;
        let settled = ext4::is_settled(&snapshot);
        if matches!(settled, Ok(true)) {
            return Ok(Some(snapshot));
        }
        self.pool().remove(&snapshot)?;
        Ok(settled.map(|_| None)?)
    }

    /// As `snapshot_volume`, of a volume whose user may have it mounted out of this process's
    /// sight: then all of this host is written out.
    pub(super) fn snapshot_in_use(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        self.with_data_lock(volume.id(), || {
            let still = self.hold_in_sight(volume)?;
            if still.is_none() && volume.is_held() {
                // In another mount namespace. Nothing less reaches every file system there is.
                nix::unistd::sync();
            }
            let snapshot = self.pool().snapshot(volume, name);
            drop(still);
            Ok(snapshot?)
        })
    }

    /// Writes out what is in memory of the volume's file system and holds it still, where it is
    /// mounted in sight of this process, by whomever. The volume's lock is held.
    fn hold_in_sight(&self, volume: &Volume) -> Result<Option<FrozenMount>> {
        let Some((path, number)) = self.mounted_place(volume)? else {
            return Ok(None);
        };
        let at = FileSystem::numbered(&path, number).map_err(Error::io("open", &path))?;
        // Writes that had no room in the pool are told here, and by nothing later.
        let synced = at.sync().map_err(Error::io("write out", &path));
        synced.inspect_err(|_| self.note_refusal(volume))?;
        let still = FrozenMount::freeze(at, path, self.still_note(volume.id()))?;
        if Superblock::read(volume)?.is_some() {
            // The journal is empty while the file system is held, and never read.
            ext4::release_journal(volume)?;
        }
        Ok(Some(still))
    }

    /// Where the whole file system of the volume is mounted, wherever that is, and the number of
    /// its device.
    fn mounted_place(&self, volume: &Volume) -> Result<Option<(PathBuf, u64)>> {
        if !volume.is_held() {
            return Ok(None);
        }
        let devices = self.export()?.devices_over(volume);
        let mounts = mount::mounts();
        let mounts = mounts.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        let own = self.data_dir().join(volume.id().to_string());
        let place = |device: &PathBuf| {
            let path = place_of(&mounts, device, &own)?;
            let at = mounts.iter().rfind(|entry| entry.mount_point == path)?;
            let is_it = Path::new(&at.source) == device;
            is_it.then(|| (path, libc::makedev(at.major, at.minor)))
        };
        Ok(devices.iter().find_map(place))
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
            let volume = self.pool().volume_by_id(id);
            let devices = volume.map_or_else(|_| Vec::new(), |it| export.devices_over(&it));
            for path in devices
                .iter()
                .filter_map(|device| place_of(mounts, device, &own))
            {
                super::adoption::thaw_at(&path);
            }
            // An empty folder that stays does no harm.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
