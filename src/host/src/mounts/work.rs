//! Volumes and mounts for the length of one operation.

use super::Mounts;
use super::filesystem::{Access, Mode};
use crate::error::{Error, Result};
use cowshed_engine::{Pool, Volume};
use cowshed_format::base::{self, Name, cancel};
use cowshed_sys::mount;
use rand::TryRngCore;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The prefix of the names of all temporary volumes of an operation.
pub(crate) const WORK_PREFIX: &str = "work/";

impl Mounts {
    /// Mounts `volume` in a new folder of the state folder, for the length of an operation.
    pub(crate) fn mount_for_work(&self, volume: &Volume, mode: Mode) -> Result<WorkMount<'_>> {
        // Named so that a successor can identify the volume.
        let name = format!("{}-{}", volume.id(), random_hex::<16>()?);
        let path = self.work_dir().join(name);
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        match self.attach_and_mount(volume, &path, mode, Access::FilesOnly) {
            Ok(_) => Ok(WorkMount {
                mounts: self,
                volume: volume.clone(),
                path,
                mounted: true,
            }),
            Err(error) => {
                // Nothing is mounted there; at worst an empty folder remains.
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// Returns a name for a temporary volume of an operation.
    pub(crate) fn work_name(&self) -> Result<Name> {
        Ok(Name::new(&format!("{WORK_PREFIX}{}", random_hex::<16>()?))?)
    }

    /// Returns a temporary clone of `below` whose file system has been grown.
    pub(crate) fn larger_copy(
        &self,
        below: &Volume,
        size_bytes: u64,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        let volume = self.pool.clone_volume(below, &self.work_name()?)?;
        work.push(volume.clone());
        self.pool.resize(&volume, size_bytes)?;
        self.grow(&volume)?;
        self.check_complete(&volume)?;
        Ok(volume)
    }

    /// Returns a frozen clone of `snapshot` with its journal replayed and deleted files released.
    pub(crate) fn settled_clone(
        &self,
        snapshot: &Volume,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        let copy = self.pool.clone_volume(snapshot, &self.work_name()?)?;
        work.push(copy.clone());
        self.mount_for_work(&copy, Mode::Settle)?.unmount()?;
        self.check_complete(&copy)?;
        self.pool.freeze(&copy)?;
        Ok(copy)
    }
}

/// A volume mounted for the length of an operation; dropping it unmounts it as far as possible.
pub(crate) struct WorkMount<'m> {
    mounts: &'m Mounts,
    volume: Volume,
    path: PathBuf,
    mounted: bool,
}

impl WorkMount<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and detaches; all written data is in the volume then.
    pub(crate) fn unmount(mut self) -> Result<()> {
        mount::sync_file_system(&self.path).map_err(Error::io("flush", &self.path))?;
        self.mounts.unmount_and_detach(&self.volume, &self.path)?;
        self.mounted = false;
        fs::remove_dir(&self.path).map_err(Error::io("remove the directory", &self.path))
    }
}

impl Drop for WorkMount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        cancel::never(|| self.mounts.abandon(&self.volume, &self.path));
    }
}

/// Volumes that are removed unless the operation that created them completes.
pub(crate) struct WorkVolumes<'m> {
    pool: &'m Pool,
    volumes: Vec<Volume>,
}

impl<'m> WorkVolumes<'m> {
    pub(crate) const fn new(pool: &'m Pool) -> Self {
        Self {
            pool,
            volumes: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, volume: Volume) {
        self.volumes.push(volume);
    }

    /// Takes over the volumes of another operation.
    pub(crate) fn take_from(&mut self, mut other: WorkVolumes<'_>) {
        self.volumes.append(&mut other.volumes);
    }

    /// Keeps one of them, for which the caller is responsible from now on.
    pub(crate) fn release(&mut self, volume: &Volume) {
        self.volumes.retain(|kept| kept.id() != volume.id());
    }

    /// Keeps all of them: they have their final names.
    pub(crate) fn keep(mut self) {
        self.volumes.clear();
    }

    /// Keeps those that have a name of their own; removes the others.
    pub(crate) fn keep_named(mut self) {
        self.volumes
            .retain(|volume| volume.name().as_str().starts_with(WORK_PREFIX));
    }
}

impl Drop for WorkVolumes<'_> {
    fn drop(&mut self) {
        // Newest first: each is a clone of the one before.
        for volume in self.volumes.drain(..).rev() {
            match cancel::never(|| self.pool.remove(&volume)) {
                Ok(()) | Err(base::Error::NoSuchVolume(_)) => {}
                Err(error) => {
                    tracing::warn!(
                        %error, volume = %volume.name(),
                        "cannot remove a temporary volume"
                    );
                }
            }
        }
    }
}

/// Returns `BYTES` random bytes in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0; BYTES];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::Io {
            action: "read random numbers from",
            path: "the kernel".into(),
            source: io::Error::other(error),
        })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
