//! The common base of all operations on images and containers: the pool, its volumes as loop
//! devices, and a folder of this host for mounts.
//!
//! # Invariants
//! - A volume whose name starts with `work/` belongs to an operation in progress; at the start
//!   there is none, so all such volumes are leftovers and are removed.
//! - A container's own lock is held while its volume is mounted, unmounted, compared or removed.
//! - The catalogue lock is held from reading records until the end of the transaction that relies
//!   on them, never while a file of a mounted volume is read or written.

use super::adoption::{VIEW_PREFIX, clean_stale_mounts};
use super::data_mounts::DataMount;
use super::diff::Comparing;
use super::error::{Error, Result};
use super::ext4;
use super::filesystem::{self, Access, Mode};
use super::roots::Roots;
use cowshed_engine::{Pool, Volume};
use cowshed_export::{AttachKind, AttachOptions, DEVICES, Export, ExportError, ExportOptions};
use cowshed_format::base::{self, Name, VolumeId, cancel};
use cowshed_sys::mount;
use parking_lot::{Mutex, MutexGuard};
use rand::TryRngCore;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The prefix of the names of all temporary volumes of an operation.
pub(super) const WORK_PREFIX: &str = "work/";
/// The interval at which a thread that waits for a lock checks for cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// The images and containers of one pool on this host; thread safe.
pub struct Host {
    pool: Pool,
    state_dir: PathBuf,
    export: Mutex<Exported>,
    /// The mounted containers, by id.
    pub(super) mounts: Mutex<BTreeMap<String, ContainerMount>>,
    /// The mounted data volumes.
    pub(super) data_mounts: Mutex<BTreeMap<VolumeId, DataMount>>,
    containers: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    views: Mutex<HashMap<VolumeId, Arc<View>>>,
    catalogue: Mutex<()>,
    pub(super) comparing: Comparing,
    pub(super) roots: Roots,
}

/// The mount of a container.
#[derive(Clone, Debug)]
pub(super) struct ContainerMount {
    pub path: PathBuf,
    pub device: PathBuf,
}

enum Exported {
    /// Mounted at the first use.
    NotYet,
    /// Owned by the host, which unmounts it.
    Own(Arc<Export>),
    /// Owned by the caller.
    Lent(Arc<Export>),
}

/// The sector size of container roots: direct I/O may be as small as a disk's sectors. (The kernel
/// offers no way for a loop device to state a preference for larger I/O.)
const ROOT_SECTOR_BYTES: u32 = 512;

/// Attaches a volume with a file system for programs in containers.
pub(super) fn attach_device(export: &Export, volume: &Volume, read_only: bool) -> Result<PathBuf> {
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

impl Host {
    /// Opens the images and containers of `pool`. Mounts and the volumes' files are in `state_dir`,
    /// which no other process may use meanwhile; leftovers of an earlier process there are removed.
    /// The volumes are exported there at the first use.
    ///
    /// # Errors
    /// If the folder cannot be created or leftovers cannot be removed.
    pub fn new(pool: Pool, state_dir: &Path) -> Result<Self> {
        Self::start(pool, state_dir, Exported::NotYet)
    }

    /// As `new`, with the export of a caller, who goes on using it and unmounts it in the end.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_export(pool: Pool, state_dir: &Path, export: Arc<Export>) -> Result<Self> {
        Self::start(pool, state_dir, Exported::Lent(export))
    }

    fn start(pool: Pool, state_dir: &Path, exported: Exported) -> Result<Self> {
        let host = Self::unclean(pool, state_dir, exported)?;
        host.clean_leftovers()?;
        Ok(host)
    }

    /// Creates a host that has not read the present mounts yet.
    pub(super) fn bare(pool: Pool, state_dir: &Path, export: Arc<Export>) -> Result<Self> {
        Self::unclean(pool, state_dir, Exported::Lent(export))
    }

    fn unclean(pool: Pool, state_dir: &Path, exported: Exported) -> Result<Self> {
        fs::create_dir_all(state_dir).map_err(Error::io("create the directory", state_dir))?;
        let state_dir = mount::resolve(state_dir).map_err(Error::io("resolve", state_dir))?;
        Ok(Self {
            pool,
            state_dir,
            export: Mutex::new(exported),
            mounts: Mutex::default(),
            data_mounts: Mutex::default(),
            containers: Mutex::default(),
            views: Mutex::default(),
            catalogue: Mutex::default(),
            comparing: Comparing::default(),
            roots: Roots::default(),
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

    /// Unmounts all containers, roots and data volumes and, if the host owns it, the export. The
    /// pool stays open.
    ///
    /// # Errors
    /// `MountBusy` and similar errors for the first mount that is in use; everything stays usable
    /// then, and closing can be retried.
    pub fn close(&self) -> Result<()> {
        // Runs even if the work was cancelled before: it cleans up after it.
        cancel::never(|| self.close_all())
    }

    fn close_all(&self) -> Result<()> {
        let closed = self.close_mounts();
        // All writes that could be refused were refused by then.
        self.keep_refusals();
        closed?;
        let mut exported = self.export.lock();
        if let Exported::Own(export) = &*exported {
            export.unmount()?;
            *exported = Exported::NotYet;
        }
        Ok(())
    }

    fn close_mounts(&self) -> Result<()> {
        self.close_roots()?;
        let mounted: Vec<String> = self.mounts.lock().keys().cloned().collect();
        for id in mounted {
            self.unmount_container(&id)?;
        }
        self.close_data()
    }

    /// Removes the leftovers of interrupted operations of an earlier process: their mounts in the
    /// state folder and their volumes in the pool.
    fn clean_leftovers(&self) -> Result<()> {
        let listed =
            mount::mounts().map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        let ours = |folder: &str| {
            let folder = self.state_dir.join(folder);
            let inside = listed.iter().rev().map(|entry| entry.mount_point.clone());
            inside
                .filter(move |path| mount::lies_in(path, &folder))
                .collect::<Vec<_>>()
        };
        for folder in ["mounts", "roots", "data", "work"] {
            for path in ours(folder) {
                mount::unmount_lazy(&path).map_err(Error::io("unmount", &path))?;
            }
            let folder = self.state_dir.join(folder);
            remove_empty_folders(&folder);
        }
        if self.pool.is_read_only() {
            return Ok(());
        }
        self.clean_data();
        self.tidy_refusals();
        let leftovers = self.pool.volumes();
        for left in leftovers
            .iter()
            .filter(|left| left.name.as_str().starts_with(WORK_PREFIX))
        {
            self.pool.remove(&self.pool.volume_by_id(left.id)?)?;
        }
        Ok(())
    }

    /// Returns the folder in which containers are mounted by default, each in its own folder.
    pub(super) fn mounts_dir(&self) -> PathBuf {
        self.state_dir.join("mounts")
    }

    /// Returns the folder in which operations mount temporary volumes.
    pub(super) fn work_dir(&self) -> PathBuf {
        self.state_dir.join("work")
    }

    fn files_dir(&self) -> PathBuf {
        self.state_dir.join("files")
    }

    /// Returns the export, and mounts it if it was not mounted.
    pub(super) fn export(&self) -> Result<Arc<Export>> {
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
    pub(super) fn present_export(&self) -> Option<Arc<Export>> {
        match &*self.export.lock() {
            Exported::NotYet => None,
            Exported::Own(export) | Exported::Lent(export) => Some(Arc::clone(export)),
        }
    }

    /// Returns the lock to hold from reading records until the end of the transaction that relies
    /// on them.
    pub(super) fn lock_catalogue(&self) -> MutexGuard<'_, ()> {
        self.catalogue.lock()
    }

    /// Returns the lock of one container: `let lock = …; let _held = lock.lock();`.
    pub(super) fn container_lock(&self, id: &str) -> Arc<Mutex<()>> {
        Arc::clone(self.containers.lock().entry(id.to_owned()).or_default())
    }

    /// Forgets the lock of an id unless a thread uses it.
    pub(super) fn forget_idle_lock(&self, id: &str) {
        let mut locks = self.containers.lock();
        if locks
            .get(id)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(id);
        }
    }

    pub(super) fn forget_container_lock(&self, id: &str) {
        self.containers.lock().remove(id);
    }

    /// Attaches `volume` and mounts its file system at `target`; returns the device.
    pub(super) fn attach_and_mount(
        &self,
        volume: &Volume,
        target: &Path,
        mode: Mode,
        access: Access,
    ) -> Result<PathBuf> {
        let export = self.export()?;
        let device = attach_device(&export, volume, mode.is_device_read_only())?;
        if let Err(error) = filesystem::mount(&device, target, mode, access) {
            // The first error is the one to report.
            let _ = export.detach(volume);
            return Err(error);
        }
        Ok(device)
    }

    /// Undoes `attach_and_mount`; all written data is on the pool's device afterwards.
    pub(super) fn unmount_and_detach(&self, volume: &Volume, target: &Path) -> Result<()> {
        filesystem::unmount(target)?;
        self.export()?.detach(volume)?;
        if !volume.is_frozen() {
            ext4::release_journal(volume)?;
        }
        Ok(())
    }

    /// Unmounts and detaches as far as possible, when written data no longer matters.
    fn abandon(&self, volume: &Volume, path: &Path) {
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

    /// Mounts `volume` in a new folder of the state folder, for the length of an operation.
    pub(super) fn mount_for_work(&self, volume: &Volume, mode: Mode) -> Result<WorkMount<'_>> {
        // Named so that a successor can identify the volume.
        let name = format!("{}-{}", volume.id(), random_hex::<16>()?);
        let path = self.work_dir().join(name);
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        match self.attach_and_mount(volume, &path, mode, Access::FilesOnly) {
            Ok(_) => Ok(WorkMount {
                host: self,
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

    /// Returns the tree of a frozen volume, shared by all its readers.
    pub(super) fn view(&self, volume: &Volume) -> Result<ViewGuard<'_>> {
        let id = volume.id();
        let view = Arc::clone(self.views.lock().entry(id).or_default());
        let mut mounted = view.mount.lock();
        if mounted.users == 0 {
            let path = self.work_dir().join(format!("{VIEW_PREFIX}{id}"));
            fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
            let mounting = self.attach_and_mount(volume, &path, Mode::Frozen, Access::FilesOnly);
            if let Err(error) = mounting {
                // Nothing is mounted there; at worst an empty folder remains.
                let _ = fs::remove_dir(&path);
                return Err(error);
            }
            mounted.path = path;
        }
        mounted.users += 1;
        let path = mounted.path.clone();
        drop(mounted);
        Ok(ViewGuard {
            host: self,
            volume: volume.clone(),
            view,
            path,
        })
    }

    /// Returns a name for a temporary volume of an operation.
    pub(super) fn work_name(&self) -> Result<Name> {
        Ok(Name::new(&format!("{WORK_PREFIX}{}", random_hex::<16>()?))?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "cannot unmount all containers");
        }
    }
}

/// A frozen volume's mount with its number of users.
#[derive(Default)]
struct View {
    mount: Mutex<ViewMount>,
}

#[derive(Default)]
struct ViewMount {
    users: usize,
    path: PathBuf,
}

/// A guard that keeps a view mounted.
pub(super) struct ViewGuard<'h> {
    host: &'h Host,
    volume: Volume,
    view: Arc<View>,
    path: PathBuf,
}

impl ViewGuard<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ViewGuard<'_> {
    fn drop(&mut self) {
        let mut mounted = self.view.mount.lock();
        mounted.users -= 1;
        if mounted.users > 0 {
            return;
        }
        self.host.abandon(&self.volume, &self.path);
        let mut views = self.host.views.lock();
        // The two owners are the list and this guard: no other thread is about to use the view.
        if Arc::strong_count(&self.view) == 2 {
            views.remove(&self.volume.id());
        }
    }
}

/// A volume mounted for the length of an operation; dropping it unmounts it as far as possible.
pub(super) struct WorkMount<'h> {
    host: &'h Host,
    volume: Volume,
    path: PathBuf,
    mounted: bool,
}

impl WorkMount<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and detaches; all written data is in the volume then.
    pub(super) fn unmount(mut self) -> Result<()> {
        mount::sync_file_system(&self.path).map_err(Error::io("flush", &self.path))?;
        self.host.unmount_and_detach(&self.volume, &self.path)?;
        self.mounted = false;
        fs::remove_dir(&self.path).map_err(Error::io("remove the directory", &self.path))
    }
}

impl Drop for WorkMount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        cancel::never(|| self.host.abandon(&self.volume, &self.path));
    }
}

/// Volumes that are removed unless the operation that created them completes.
pub(super) struct WorkVolumes<'h> {
    pool: &'h Pool,
    volumes: Vec<Volume>,
}

impl<'h> WorkVolumes<'h> {
    pub(super) const fn new(pool: &'h Pool) -> Self {
        Self {
            pool,
            volumes: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, volume: Volume) {
        self.volumes.push(volume);
    }

    /// Keeps all of them: they have their final names.
    pub(super) fn keep(mut self) {
        self.volumes.clear();
    }

    /// Keeps those that have a name of their own; removes the others.
    pub(super) fn keep_named(mut self) {
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

/// Waits for `lock`, which another command may hold for long, until the work is cancelled.
pub(super) fn hold(lock: &Mutex<()>) -> Result<MutexGuard<'_, ()>> {
    loop {
        cancel::check()?;
        if let Some(held) = lock.try_lock_for(CANCEL_POLL) {
            return Ok(held);
        }
    }
}

/// Returns `BYTES` random bytes in hexadecimal.
pub(super) fn random_hex<const BYTES: usize>() -> Result<String> {
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

/// Removes the empty folders in `folder`; anything else stays where it is.
pub(super) fn remove_empty_folders(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        // rmdir deliberately refuses a folder that is not empty.
        let _ = fs::remove_dir(entry.path());
    }
}
