//! The mounts of a pool's volumes on this host: the pool, its volumes as loop devices, and the
//! folder of this host for mounts.
//!
//! [`Mounts`] is the lowest part of this crate. It attaches and mounts any volume, takes snapshots
//! of mounted ones, and knows nothing of what the volumes are for: images, containers, roots and
//! data volumes are above it.
//!
//! - `work`: volumes and mounts for the length of one operation; `views`: frozen volumes, each
//!   mounted once for all its readers.
//! - `overlay`: overlay roots, with `lowers`: frozen volumes, each mounted once for all overlays
//!   over it.
//! - `filesystem`: making, mounting and growing an ext4; `ext4`: reading the one in a volume.
//! - `quiesce`: snapshots of mounted volumes, with `frozen` (one frozen file system) and `stacked`
//!   (which file systems lie on a volume).
//! - `refusals`: volumes that lost a write; `full`: why a write found no space.
//! - `adoption`: what a dead process left of its operations; `stale`: mounts that hang because
//!   nobody serves them.
//! - `locks`: a lock for each volume.
//!
//! # Invariants
//! - A volume whose name starts with `work/` belongs to an operation in progress; at the start
//!   there is none, so all such volumes are leftovers and are removed.
//! - A volume's own lock is held while a snapshot of it is taken, and by those above while they
//!   mount, unmount or remove it, if they mount it by its own name (data volumes).
//! - No lock of the pool is held while a file on a mounted volume is read or written: this process
//!   may be the one that serves that volume.

mod adoption;
pub(crate) mod ext4;
pub(crate) mod filesystem;
mod frozen;
mod full;
mod locks;
mod lowers;
pub(crate) mod overlay;
mod quiesce;
mod refusals;
mod stacked;
mod stale;
mod views;
mod work;

pub(crate) use adoption::{Found, device_of};
pub(crate) use frozen::{FrozenMount, thaw_at};
pub(crate) use locks::{Locks, hold};
pub use stale::clean_stale_mounts;
pub(crate) use work::{WORK_PREFIX, WorkVolumes, random_hex};

use crate::error::{Error, Result};
use cowshed_engine::{Pool, Volume};
use cowshed_export::{AttachKind, AttachOptions, DEVICES, Export, ExportError, ExportOptions};
use cowshed_format::base::VolumeId;
use cowshed_sys::mount::{self, MountEntry};
use filesystem::{Access, Mode};
use lowers::Lowers;
use parking_lot::Mutex;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use views::Views;

/// The sector size of file systems for programs in containers: direct I/O may be as small as a
/// disk's sectors. (The kernel offers no way for a loop device to state a preference for larger
/// I/O.)
const ROOT_SECTOR_BYTES: u32 = 512;

/// The volumes of one pool, attached and mounted on this host; thread safe.
pub struct Mounts {
    pool: Pool,
    state_dir: PathBuf,
    export: Mutex<Exported>,
    /// The locks of the volumes.
    locks: Locks<VolumeId>,
    views: Views,
    lowers: Lowers,
}

enum Exported {
    /// Mounted at the first use.
    NotYet,
    /// Owned by the mounts, which unmount it.
    Own(Arc<Export>),
    /// Owned by the caller.
    Lent(Arc<Export>),
}

impl Mounts {
    /// Resolves the state folder, which is created if there is none. Without an export of the
    /// caller, the volumes are exported at the first use.
    pub(crate) fn open(pool: Pool, state_dir: &Path, export: Option<Arc<Export>>) -> Result<Self> {
        fs::create_dir_all(state_dir).map_err(Error::io("create the directory", state_dir))?;
        let state_dir = mount::resolve(state_dir).map_err(Error::io("resolve", state_dir))?;
        Ok(Self {
            pool,
            state_dir,
            export: Mutex::new(export.map_or(Exported::NotYet, Exported::Lent)),
            locks: Locks::default(),
            views: Views::default(),
            lowers: Lowers::default(),
        })
    }

    /// Returns the pool.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the folder for mounts.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Returns the folder in which operations mount temporary volumes.
    pub(crate) fn work_dir(&self) -> PathBuf {
        self.state_dir.join("work")
    }

    fn files_dir(&self) -> PathBuf {
        self.state_dir.join("files")
    }

    /// Unmounts what an earlier process mounted in `folder`, which lies in the state folder.
    pub(crate) fn unmount_leftovers(&self, listed: &[MountEntry], folder: &Path) -> Result<()> {
        let inside = listed.iter().rev().map(|entry| &entry.mount_point);
        for path in inside.filter(|path| mount::lies_in(path, folder)) {
            mount::unmount_lazy(path).map_err(Error::io("unmount", path))?;
        }
        remove_empty_folders(folder);
        Ok(())
    }

    /// Removes the volumes of interrupted operations of an earlier process.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        let leftovers = self.pool.volumes();
        for left in leftovers
            .iter()
            .filter(|left| left.name.as_str().starts_with(WORK_PREFIX))
        {
            self.pool.remove(&self.pool.volume_by_id(left.id)?)?;
        }
        Ok(())
    }

    /// Unmounts what is left of the lower layers, and the export, unless it is a caller's.
    pub(crate) fn close(&self) -> Result<()> {
        self.close_lowers()?;
        let mut exported = self.export.lock();
        if let Exported::Own(export) = &*exported {
            export.unmount()?;
            *exported = Exported::NotYet;
        }
        Ok(())
    }

    /// Returns the lock of one volume: `let lock = …; let _held = lock.lock();`.
    pub(crate) fn volume_lock(&self, id: VolumeId) -> Arc<Mutex<()>> {
        self.locks.of(&id)
    }

    /// Runs `work` with the volume's lock held.
    pub(crate) fn with_volume_lock<T>(&self, id: VolumeId, work: impl FnOnce() -> T) -> T {
        let lock = self.volume_lock(id);
        let held = lock.lock();
        let done = work();
        drop(held);
        drop(lock);
        self.locks.forget_idle(&id);
        done
    }

    /// Forgets the lock of a volume that was removed.
    pub(crate) fn forget_volume_lock(&self, id: VolumeId) {
        self.locks.forget(&id);
    }

    /// Returns the export, and mounts it if it was not mounted.
    pub(crate) fn export(&self) -> Result<Arc<Export>> {
        let mut exported = self.export.lock();
        if let Exported::Own(export) | Exported::Lent(export) = &*exported {
            return Ok(Arc::clone(export));
        }
        let dir = self.files_dir();
        clean_stale_mounts(&dir)?;
        let export = Arc::new(Export::mount(
            self.pool.clone(),
            &dir,
            ExportOptions::default(),
        )?);
        export.note_devices_in(self.state_dir.join(DEVICES));
        *exported = Exported::Own(Arc::clone(&export));
        Ok(export)
    }

    /// Returns the export, if there is one.
    pub(crate) fn present_export(&self) -> Option<Arc<Export>> {
        match &*self.export.lock() {
            Exported::NotYet => None,
            Exported::Own(export) | Exported::Lent(export) => Some(Arc::clone(export)),
        }
    }

    /// Attaches a volume with a file system for programs in containers.
    pub(crate) fn attach_device(&self, volume: &Volume, read_only: bool) -> Result<PathBuf> {
        let export = self.export()?;
        let options = AttachOptions {
            read_only,
            sector_bytes: Some(ROOT_SECTOR_BYTES),
            ..AttachOptions::default()
        };
        match export.attach(volume, AttachKind::Loop, options) {
            Ok(attached) => Ok(attached.path),
            // A user, or an earlier cowshed, has attached it with larger sectors.
            Err(ExportError::OtherSectors { .. }) => Ok(export.attach_loop(volume, read_only)?),
            Err(error) => Err(error.into()),
        }
    }

    /// Attaches `volume` and mounts its file system at `target`; returns the device.
    pub(crate) fn attach_and_mount(
        &self,
        volume: &Volume,
        target: &Path,
        mode: Mode,
        access: Access,
    ) -> Result<PathBuf> {
        let export = self.export()?;
        let device = self.attach_device(volume, mode.is_device_read_only())?;
        if let Err(error) = filesystem::mount(&device, target, mode, access) {
            // A device to which writes have failed (of the journal's replay, in a full pool) reports
            // that once, and can be detached after that. The first error is the one to report.
            let _ = export.detach(volume).or_else(|_| export.detach(volume));
            return Err(error);
        }
        Ok(device)
    }

    /// Undoes `attach_and_mount`; all written data is on the pool's device afterwards.
    pub(crate) fn unmount_and_detach(&self, volume: &Volume, target: &Path) -> Result<()> {
        filesystem::unmount(target)?;
        self.export()?.detach(volume)?;
        if !volume.is_frozen() {
            ext4::release_journal(volume)?;
        }
        Ok(())
    }

    /// Unmounts and detaches as far as possible, when written data no longer matters.
    pub(crate) fn abandon(&self, volume: &Volume, path: &Path) {
        if let Err(error) = filesystem::unmount(path) {
            tracing::warn!(
                %error, path = %path.display(),
                "a mount is in use, and ends with its last user"
            );
            // This removes at least the path; the device is detached after its last user.
            let _ = mount::unmount_lazy(path);
        }
        // A device to which writes have failed reports that once, and can be detached after that.
        let detach = || self.export().and_then(|export| Ok(export.detach(volume)?));
        if let Err(error) = detach().or_else(|_| detach()) {
            tracing::warn!(%error, volume = %volume.name(), "cannot detach a volume");
        }
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(path);
    }

    /// Makes the file system in a volume, which is not mounted, as large as the volume.
    pub(crate) fn grow(&self, volume: &Volume) -> Result<()> {
        let export = self.export()?;
        let device = export.attach_loop(volume, false)?;
        let grown = filesystem::grow(&device);
        let detached = export.detach(volume);
        grown?;
        Ok(detached?)
    }
}

/// Returns the mounts that this process sees.
pub(crate) fn listed_mounts() -> Result<Vec<MountEntry>> {
    mount::mounts().map_err(Error::io("read", Path::new("/proc/self/mountinfo")))
}

/// Removes the empty folders in `folder`; anything else stays where it is.
pub(crate) fn remove_empty_folders(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        // rmdir deliberately refuses a folder that is not empty.
        let _ = fs::remove_dir(entry.path());
    }
}
