//! The mounts of data volumes and their users.
//!
//! A data volume is mounted for its first user and unmounted with the last one. In the state
//! folder, `data/<volume>` is its mount point, and the file `data/<volume>.users` lists its users.
//! A successor of this process finds both; after a reboot both are gone, as the mount is.
//!
//! # Invariants
//! - The folder is made before the volume is attached, and removed after it is detached.
//! - The list of users is written before a new user gets the mount point, and before the mount is
//!   removed with the last user. So a volume that is found mounted without users was being mounted
//!   or unmounted.
//! - A user is counted once, however often he makes the same request.

use super::DataVolumes;
use crate::error::{Error, Result};
use crate::mounts::filesystem::{self, Access, Mode};
use crate::mounts::{Found, device_of};
use cowshed_engine::Volume;
use cowshed_format::base::VolumeId;
use cowshed_sys::mount::{self, MountEntry};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The suffix of the file with a mount's users.
const USERS_SUFFIX: &str = ".users";
/// The maximum length of a user's name, in bytes; Docker's have 64.
const USER_BYTES_MAX: usize = 256;
/// The maximum number of users of one data volume.
const USERS_MAX: usize = 4096;

/// The mount of a data volume, and its users.
#[derive(Clone, Debug, Default)]
pub(super) struct DataMount {
    path: PathBuf,
    device: PathBuf,
    users: BTreeSet<String>,
}

impl DataVolumes {
    /// Mounts the data volume `name` for `user`, and returns the mount point. An existing mount is
    /// shared; a repeated request of a user changes nothing.
    ///
    /// # Errors
    /// `NotFound`, `DataVolumeUser`, `NoFileSystem`, and any error of the host.
    pub fn mount(&self, name: &str, user: &str) -> Result<PathBuf> {
        let refused = |why| Error::DataVolumeUser {
            name: name.into(),
            why,
        };
        if user.is_empty() || user.len() > USER_BYTES_MAX || user.contains(char::is_control) {
            return Err(refused("an ID is 1 to 256 bytes of text"));
        }
        let volume = self.known(name)?;
        let lock = self.mounts.volume_lock(volume.id());
        let _held = lock.lock();
        let mut mount = match self.known_mount(volume.id()) {
            Some(known) => self.mount_again(&volume, known)?,
            None => self.mount_first(&volume)?,
        };
        if mount.users.len() >= USERS_MAX && !mount.users.contains(user) {
            return Err(refused("it has the maximum number of users"));
        }
        mount.users.insert(user.to_owned());
        let path = mount.path.clone();
        let written = self.write_users(volume.id(), &mount.users);
        if written.is_err() {
            mount.users.remove(user);
        }
        self.mounted.lock().insert(volume.id(), mount);
        written.map(|()| path)
    }

    /// Ends `user`'s use of the data volume `name`, and unmounts it if that was the last user.
    /// Everything written is durable then. Does nothing if `user` does not use the volume.
    ///
    /// # Errors
    /// `NotFound`, and any error of the host.
    pub fn unmount(&self, name: &str, user: &str) -> Result<()> {
        let volume = self.known(name)?;
        let lock = self.mounts.volume_lock(volume.id());
        let _held = lock.lock();
        let Some(mut mount) = self.known_mount(volume.id()) else {
            return Ok(());
        };
        if mount.users.remove(user) {
            self.write_users(volume.id(), &mount.users)?;
            self.mounted.lock().insert(volume.id(), mount.clone());
        }
        if !mount.users.is_empty() {
            return Ok(());
        }
        if is_mounted(&mount)? {
            let synced = mount::sync_file_system(&mount.path);
            synced.map_err(Error::io("flush", &mount.path))?;
        }
        if let Err(error) = self.unmount_last(&volume) {
            // Somebody else still uses the mount. It is unmounted when the next user has finished.
            tracing::warn!(
                %error, volume = %volume.name(),
                "cannot unmount a data volume without users"
            );
        }
        Ok(self.pool().flush()?)
    }

    /// Unmounts the data volume if it has no users.
    ///
    /// # Errors
    /// `DataVolumeInUse`, `MountBusy`.
    pub(super) fn release_unused(&self, name: &str, volume: &Volume) -> Result<()> {
        match self.known_mount(volume.id()) {
            Some(mount) if !mount.users.is_empty() => Err(Error::DataVolumeInUse {
                name: name.into(),
                users: mount.users.len(),
            }),
            Some(_) => self.unmount_last(volume),
            None => Ok(()),
        }
    }

    /// Forgets the mounts without unmounting them, for a successor to find.
    pub(crate) fn leave(&self) {
        self.mounted.lock().clear();
    }

    /// Unmounts all data volumes.
    pub(crate) fn close(&self) -> Result<()> {
        let mounted: Vec<VolumeId> = self.mounted.lock().keys().copied().collect();
        for id in mounted {
            let lock = self.mounts.volume_lock(id);
            let _held = lock.lock();
            self.unmount_last(&self.pool().volume_by_id(id)?)?;
        }
        Ok(())
    }

    /// Returns the mount point of the volume as a data volume, as far as it is known without asking
    /// the kernel.
    pub(super) fn path_of(&self, id: VolumeId) -> Option<PathBuf> {
        let mounts = self.mounted.lock();
        mounts.get(&id).map(|mount| mount.path.clone())
    }

    /// Returns the mount points of all data volumes.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let mounts = self.mounted.lock();
        mounts.values().map(|mount| mount.path.clone()).collect()
    }

    fn known_mount(&self, id: VolumeId) -> Option<DataMount> {
        self.mounted.lock().get(&id).cloned()
    }

    /// Mounts a volume that was mounted before and no longer is, though its device may be in use:
    /// somebody else has unmounted it, or has kept a mount of his own when the last user left.
    fn mount_again(&self, volume: &Volume, known: DataMount) -> Result<DataMount> {
        if is_mounted(&known)? {
            return Ok(known);
        }
        let device = device_of(&*self.mounts.export()?, volume.id());
        if device.is_none_or(|device| device != known.device) {
            self.mounted.lock().remove(&volume.id());
            return Ok(DataMount {
                users: known.users,
                ..self.mount_first(volume)?
            });
        }
        fs::create_dir_all(&known.path).map_err(Error::io("create the directory", &known.path))?;
        filesystem::mount(
            &known.device,
            &known.path,
            Mode::Container,
            Access::Programs,
        )?;
        Ok(known)
    }

    fn mount_first(&self, volume: &Volume) -> Result<DataMount> {
        let path = self.dir().join(volume.id().to_string());
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        let device = self
            .fit_file_system(volume)
            .and_then(|()| {
                self.mounts
                    .attach_and_mount(volume, &path, Mode::Container, Access::Programs)
            })
            .inspect_err(|_| self.forget_place(volume.id()))?;
        let mount = DataMount {
            path,
            device,
            users: BTreeSet::new(),
        };
        let mut mounts = self.mounted.lock();
        mounts.insert(volume.id(), mount.clone());
        Ok(mount)
    }

    /// Undoes `mount_first`; a failed call can be repeated.
    fn unmount_last(&self, volume: &Volume) -> Result<()> {
        let Some(known) = self.mounted.lock().get(&volume.id()).cloned() else {
            return Ok(());
        };
        if is_mounted(&known)? {
            self.mounts.unmount_and_detach(volume, &known.path)?;
        } else {
            self.mounts.export()?.detach(volume)?;
        }
        self.mounted.lock().remove(&volume.id());
        self.forget_place(volume.id());
        Ok(())
    }

    /// Returns the folder in which data volumes are mounted.
    pub(crate) fn dir(&self) -> PathBuf {
        self.mounts.state_dir().join("data")
    }

    fn users_file(&self, id: VolumeId) -> PathBuf {
        self.dir().join(format!("{id}{USERS_SUFFIX}"))
    }

    fn write_users(&self, id: VolumeId, users: &BTreeSet<String>) -> Result<()> {
        let path = self.users_file(id);
        let new = path.with_extension("new");
        let text = users.iter().map(|user| format!("{user}\n"));
        fs::write(&new, text.collect::<String>()).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("write", &path))
    }

    fn read_users(&self, id: VolumeId) -> BTreeSet<String> {
        // Without the file there are no users yet.
        let text = fs::read_to_string(self.users_file(id)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Removes the folder and the list of users of a volume that is not mounted.
    fn forget_place(&self, id: VolumeId) {
        let _ = fs::remove_file(self.users_file(id));
        // rmdir deliberately refuses a folder that is not empty.
        let _ = fs::remove_dir(self.dir().join(id.to_string()));
    }

    /// Takes over the data volumes that a predecessor had mounted. Unmounts those that it was
    /// mounting or unmounting.
    pub(crate) fn adopt(&self, found: &Found) {
        let (mounts, export) = (&found.mounts, &found.export);
        for id in self.folders() {
            let path = self.dir().join(id.to_string());
            let device = device_of(export, id);
            let known = DataMount {
                path,
                device: device.clone().unwrap_or_default(),
                users: self.read_users(id),
            };
            let is_mounted = device.is_some() && lies_on(mounts, &known);
            if is_mounted && !known.users.is_empty() {
                tracing::info!(path = %known.path.display(), "a data volume stays mounted");
                self.mounted.lock().insert(id, known);
                continue;
            }
            if is_mounted && let Err(error) = filesystem::unmount(&known.path) {
                tracing::warn!(
                    %error, path = %known.path.display(),
                    "cannot unmount a data volume without users"
                );
                self.mounted.lock().insert(id, known);
                continue;
            }
            self.mounts.let_go(export, id);
            if device_of(export, id).is_some() && known.path.exists() {
                // Somebody still uses the device; it is detached when the next user has finished.
                self.mounted.lock().insert(id, known);
                continue;
            }
            self.forget_place(id);
        }
    }

    /// Removes the leftovers of an earlier process, whose mounts are gone, from the folder.
    pub(crate) fn clean(&self) {
        for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            // One of the two removes a list, and the other an empty folder.
            let _ = fs::remove_file(entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }

    fn folders(&self) -> Vec<VolumeId> {
        let entries = fs::read_dir(self.dir()).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .filter_map(|name| Some(VolumeId(name.to_str()?.parse().ok()?)))
            .collect()
    }
}

fn lies_on(mounts: &[MountEntry], known: &DataMount) -> bool {
    let top = mounts.iter().rfind(|entry| entry.mount_point == known.path);
    top.is_some_and(|entry| Path::new(&entry.source) == known.device)
}

fn is_mounted(known: &DataMount) -> Result<bool> {
    let failed = |source: io::Error| Error::io("read", Path::new("/proc/self/mountinfo"))(source);
    Ok(lies_on(&mount::mounts().map_err(failed)?, known))
}
