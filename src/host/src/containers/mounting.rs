//! Mounting and unmounting the roots of containers.
//!
//! A block root is the container's volume, mounted at its place. For an overlay root the image's top
//! layer is mounted once for all containers of the image (`mounts::lowers`) and the container's own
//! volume at `own/<container>`; the overlay of both is mounted at the container's place.
//!
//! # Invariants
//! - Wherever a container is mounted, its folder in `mounts` tells a successor that it is.
//! - An overlay is mounted last and unmounted first; its lower layer has a user from before it is
//!   mounted until its own volume is detached.

use super::{Containers, MountedContainer};
use crate::error::{Error, Result};
use crate::mounts::filesystem::{self, Access, Mode};
use crate::mounts::{device_of, hold, overlay};
use crate::record::{self, ContainerRecord, RootKind};
use cowshed_engine::Volume;
use cowshed_export::ExportError;
use cowshed_sys::mount;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The mount of a container.
#[derive(Clone)]
pub(super) struct ContainerMount {
    pub(super) path: PathBuf,
    /// The source that the table of mounts shows: the device, or the name of the overlay.
    pub(super) source: PathBuf,
    /// The lower layer of an overlay root.
    pub(super) lower: Option<Volume>,
}

/// Returns the source of a container's overlay in the table of mounts, by which it is found.
pub(super) fn overlay_source(id: &str) -> OsString {
    format!("cowshed-{id}").into()
}

impl Containers {
    /// Mounts the container's root at `dir`, or in the state folder. A container that is mounted
    /// there already stays mounted.
    ///
    /// # Errors
    /// `NotFound`, `MountedElsewhere`, and any error of the host.
    pub fn mount(&self, container: &str, dir: Option<&Path>) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let dir = dir.map(|dir| mount::resolve(dir).map_err(Error::io("find the directory", dir)));
        let dir = dir.transpose()?;
        if let Some(path) = self.mounted_at(&record)? {
            return match dir {
                Some(dir) if dir != path => Err(Error::MountedElsewhere {
                    container: record.name.into(),
                    path,
                }),
                _ => Ok(MountedContainer { path }),
            };
        }
        let own = self.dir().join(&record.id);
        fs::create_dir_all(&own).map_err(Error::io("create the directory", &own))?;
        let path = dir.unwrap_or_else(|| own.clone());
        let mounted = match record.root {
            RootKind::Block => self.mount_block(&record, &path),
            RootKind::Overlay => self.mount_overlay(&record, &path),
        };
        let mounted = mounted.inspect_err(|_| {
            // Nothing is mounted there; at worst an empty folder remains.
            let _ = fs::remove_dir(&own);
        })?;
        self.mounted.lock().insert(record.id, mounted);
        Ok(MountedContainer { path })
    }

    fn mount_block(&self, record: &ContainerRecord, path: &Path) -> Result<ContainerMount> {
        let volume = record.volume(self.pool())?;
        let device =
            self.mounts
                .attach_and_mount(&volume, path, Mode::Container, Access::Programs)?;
        Ok(ContainerMount {
            path: path.to_owned(),
            source: device,
            lower: None,
        })
    }

    fn mount_overlay(&self, record: &ContainerRecord, path: &Path) -> Result<ContainerMount> {
        let volume = record.volume(self.pool())?;
        let lower = self.image_top(record)?;
        let below = self.mounts.hold_lower(&lower)?;
        let mounted = self.mount_over(record, &volume, &below, path);
        mounted.inspect_err(|_| self.mounts.release_lower(&lower))?;
        Ok(ContainerMount {
            path: path.to_owned(),
            source: overlay_source(&record.id).into(),
            lower: Some(lower),
        })
    }

    /// Mounts the own volume of an overlay root, and the overlay.
    fn mount_over(
        &self,
        record: &ContainerRecord,
        volume: &Volume,
        below: &Path,
        path: &Path,
    ) -> Result<()> {
        let own = self.own_path(&record.id);
        fs::create_dir_all(&own).map_err(Error::io("create the directory", &own))?;
        self.mounts
            .attach_and_mount(volume, &own, Mode::Container, Access::FilesOnly)
            .inspect_err(|_| {
                let _ = fs::remove_dir(&own);
            })?;
        let source = overlay_source(&record.id);
        overlay::prepare(below, &own)
            .and_then(|()| overlay::mount_overlay(&source, below, &own, path))
            .inspect_err(|_| self.mounts.abandon(volume, &own))
    }

    /// Returns the container's mount point, if it is mounted. Cleans up after a mount that somebody
    /// else has removed.
    pub(crate) fn mounted_at(&self, record: &ContainerRecord) -> Result<Option<PathBuf>> {
        let Some(known) = self.mounted.lock().get(&record.id).cloned() else {
            return Ok(None);
        };
        if is_at(&known.path, &known.source)? {
            return Ok(Some(known.path));
        }
        let volume = record.volume(self.pool())?;
        match known.lower {
            Some(lower) => self.end_overlay(&record.id, &volume, &lower)?,
            None => self.mounts.export()?.detach(&volume)?,
        }
        self.forget_mount(&record.id);
        Ok(None)
    }

    /// Unmounts the container. Data written to it is durable afterwards.
    ///
    /// # Errors
    /// `NotFound`, `NotMounted`, and `MountBusy` while a process uses it.
    pub fn unmount(&self, container: &str) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let Some(path) = self.mounted_at(&record)? else {
            return Err(Error::NotMounted(record.name.into()));
        };
        self.unmount_locked(&record.id, &record.volume(self.pool())?)?;
        self.pool().flush()?;
        Ok(MountedContainer { path })
    }

    pub(super) fn unmount_locked(&self, id: &str, volume: &Volume) -> Result<()> {
        let known = self.mounted.lock().get(id).cloned();
        let Some(known) = known else {
            return Ok(());
        };
        match known.lower {
            Some(lower) => {
                filesystem::unmount(&known.path)?;
                self.end_overlay(id, volume, &lower)?;
            }
            None => self.mounts.unmount_and_detach(volume, &known.path)?,
        }
        self.forget_mount(id);
        Ok(())
    }

    /// Unmounts and detaches what is below an overlay that is unmounted. If it fails, because
    /// somebody has the overlay mounted elsewhere, it can be repeated.
    fn end_overlay(&self, id: &str, volume: &Volume, lower: &Volume) -> Result<()> {
        let own = self.own_path(id);
        let export = self.mounts.export()?;
        if let Some(device) = device_of(&export, volume.id()) {
            if is_at(&own, &device)? {
                self.mounts.unmount_and_detach(volume, &own)?;
            } else {
                match export.detach(volume) {
                    Ok(()) | Err(ExportError::NotAttached(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.mounts.release_lower(lower);
        let _ = fs::remove_dir(&own);
        Ok(())
    }

    fn forget_mount(&self, id: &str) {
        self.mounted.lock().remove(id);
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(self.dir().join(id));
    }

    /// Returns a mount of the file system on the volume of a mounted container: its root, or what is
    /// below its overlay. That one is mounted again if somebody else has unmounted it.
    pub(super) fn file_system_of(
        &self,
        record: &ContainerRecord,
        root: PathBuf,
    ) -> Result<PathBuf> {
        if record.root == RootKind::Block {
            return Ok(root);
        }
        let own = self.own_path(&record.id);
        let volume = record.volume(self.pool())?;
        let device = device_of(&*self.mounts.export()?, volume.id());
        let device = device.ok_or_else(|| Error::NotMounted(record.name.as_str().into()))?;
        if !is_at(&own, &device)? {
            fs::create_dir_all(&own).map_err(Error::io("create the directory", &own))?;
            filesystem::mount(&device, &own, Mode::Container, Access::FilesOnly)?;
        }
        Ok(own)
    }

    /// Returns the folder in which the own volumes of overlay roots are mounted.
    pub(crate) fn own_dir(&self) -> PathBuf {
        self.mounts.state_dir().join("own")
    }

    pub(super) fn own_path(&self, id: &str) -> PathBuf {
        self.own_dir().join(id)
    }
}

/// Returns true if the topmost mount at `path` has this source.
fn is_at(path: &Path, source: &Path) -> Result<bool> {
    let found = mount::mount_at(path);
    let found = found.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    Ok(found.is_some_and(|entry| Path::new(&entry.source) == source))
}
