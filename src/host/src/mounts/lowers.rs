//! Frozen volumes that are the lower layers of overlay roots, each mounted once for all of them.
//!
//! A lower layer is mounted at `lower/<volume>` for its first user and unmounted with the last one.
//! The table of users is not stored: a successor counts the mounted overlays that it finds.
//! Containers use this; a root of containerd has its lower layer among the roots, where its Views
//! are, too.
//!
//! # Invariants
//! - The folder is made before the volume is attached, and removed after it is detached.
//! - A lower layer with users is attached, also if somebody has unmounted its folder.

use super::adoption::{Found, device_of};
use super::filesystem::{Access, Mode};
use super::{Mounts, filesystem};
use crate::error::{Error, Result};
use cowshed_engine::{KeptByReader, Volume};
use cowshed_export::ExportError;
use cowshed_format::base::VolumeId;
use cowshed_sys::mount;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The lower layers that are mounted.
pub(super) type Lowers = Mutex<BTreeMap<VolumeId, Arc<Mutex<Lower>>>>;

/// A mounted lower layer.
#[derive(Default)]
pub(super) struct Lower {
    users: usize,
    /// The volume's device, while it is attached.
    device: Option<PathBuf>,
    /// All overlays share the pages of its file system, so the pool's need not stay in memory.
    kept: Option<KeptByReader>,
}

impl Mounts {
    /// Mounts a frozen volume as a lower layer unless it is mounted, counts one more user, and
    /// returns the mount point.
    pub(crate) fn hold_lower(&self, volume: &Volume) -> Result<PathBuf> {
        let lower = Arc::clone(self.lowers.lock().entry(volume.id()).or_default());
        let mut lower = lower.lock();
        let path = self.lower_path(volume.id());
        if let Some(device) = &lower.device {
            if !is_mounted(&path, device)? {
                // Somebody has unmounted it; the overlays over it go on.
                fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
                filesystem::mount(device, &path, Mode::Frozen, Access::FilesOnly)?;
            }
        } else {
            fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
            let device = self
                .attach_and_mount(volume, &path, Mode::Frozen, Access::FilesOnly)
                .inspect_err(|_| {
                    // Nothing is mounted there; at worst an empty folder remains.
                    let _ = fs::remove_dir(&path);
                })?;
            lower.device = Some(device);
            lower.kept = Some(volume.kept_by_reader());
        }
        lower.users += 1;
        Ok(path)
    }

    /// Counts one user less, and unmounts the lower layer with the last one. If that fails because
    /// it is in use, it stays mounted until its next last user goes, or this host is closed.
    pub(crate) fn release_lower(&self, volume: &Volume) {
        let Some(lower) = self.lowers.lock().get(&volume.id()).cloned() else {
            return;
        };
        {
            let mut lower = lower.lock();
            lower.users = lower.users.saturating_sub(1);
            if lower.users > 0 {
                return;
            }
            if let Err(error) = self.unmount_lower(volume, &mut lower) {
                tracing::warn!(
                    %error, volume = %volume.name(),
                    "cannot unmount a lower layer without users"
                );
                return;
            }
        }
        let mut lowers = self.lowers.lock();
        // The two owners are the table and this thread: no other is about to use it.
        if Arc::strong_count(&lower) == 2 {
            lowers.remove(&volume.id());
        }
    }

    fn unmount_lower(&self, volume: &Volume, lower: &mut Lower) -> Result<()> {
        let Some(device) = &lower.device else {
            return Ok(());
        };
        let path = self.lower_path(volume.id());
        if is_mounted(&path, device)? {
            filesystem::unmount(&path)?;
        }
        match self.export()?.detach(volume) {
            Ok(()) | Err(ExportError::NotAttached(_)) => {}
            Err(error) => return Err(error.into()),
        }
        lower.device = None;
        lower.kept = None;
        let _ = fs::remove_dir(&path);
        Ok(())
    }

    /// Counts a user of a lower layer that a predecessor had mounted.
    pub(crate) fn adopt_lower(&self, found: &Found, volume: &Volume) {
        let lower = Arc::clone(self.lowers.lock().entry(volume.id()).or_default());
        let mut lower = lower.lock();
        lower.device = device_of(&found.export, volume.id());
        lower.kept = Some(volume.kept_by_reader());
        lower.users += 1;
    }

    /// Unmounts the lower layers that a predecessor had mounted and that have no users.
    pub(super) fn drop_unused_lowers(&self, found: &Found) {
        for entry in fs::read_dir(self.lower_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let id = VolumeId(id);
            if self.lowers.lock().contains_key(&id) {
                continue;
            }
            let path = entry.path();
            if found.mounts.iter().any(|entry| entry.mount_point == path)
                && let Err(error) = filesystem::unmount(&path)
            {
                tracing::warn!(%error, "a lower layer is in use, and ends with its last user");
                let _ = mount::unmount_lazy(&path);
            }
            self.let_go(&found.export, id);
            if device_of(&found.export, id).is_none() {
                let _ = fs::remove_dir(&path);
            }
        }
    }

    /// Unmounts the lower layers without users that were in use before.
    pub(super) fn close_lowers(&self) -> Result<()> {
        let all: Vec<_> = self.lowers.lock().clone().into_iter().collect();
        let mut first_error = None;
        for (id, lower) in all {
            let mut lower = lower.lock();
            if lower.users > 0 || lower.device.is_none() {
                continue;
            }
            let volume = self.pool.volume_by_id(id).map_err(Error::from);
            if let Err(error) = volume.and_then(|volume| self.unmount_lower(&volume, &mut lower)) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Forgets the lower layers without unmounting them, for a successor to find.
    pub(crate) fn leave(&self) {
        self.lowers.lock().clear();
    }

    /// Returns the folder in which lower layers are mounted.
    pub(crate) fn lower_dir(&self) -> PathBuf {
        self.state_dir.join("lower")
    }

    fn lower_path(&self, id: VolumeId) -> PathBuf {
        self.lower_dir().join(id.to_string())
    }
}

fn is_mounted(path: &Path, device: &Path) -> Result<bool> {
    let found = mount::mount_at(path);
    let found = found.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    Ok(found.is_some_and(|entry| Path::new(&entry.source) == device))
}
