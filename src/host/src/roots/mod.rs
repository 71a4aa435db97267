//! Roots: volumes whose file systems are shown to others, as a folder, a device or a file.
//!
//! Roots are not containers: they have no record here, and a root is identified by its volume. The
//! keeper of their records (the snapshotter) decides when one is shown and when it is released.
//! `seal` makes a frozen volume of a root, `overlay` shows overlays of a frozen volume, `usage`
//! reports the space that it takes, and `adopt` takes over those that a predecessor left. Beside
//! the mounts, roots use `layers`: a root is filled with a layer, and what it changed is written as
//! one. They use no images or containers.
//!
//! # Invariants
//! - A volume is mounted once, at `roots/<volume>` in the state folder, however many users it has
//!   there: they get bind mounts of that folder.
//! - A root that is released is no longer visible at once; its device is detached after its last
//!   user, and until then its volume stays.
//! - A root's lock is held while it is mounted, unmounted, sealed or released; a thread never holds
//!   two of them.

mod adopt;
mod layers;
mod overlay;
mod seal;
mod usage;

pub use layers::LayerOptions;
pub use seal::{QuiescedRoot, Sealed};

use crate::error::{Error, Result};
use crate::layers::Layers;
use crate::mounts::filesystem::{self, Access, Mode};
use crate::mounts::{Mounts, WORK_PREFIX, WorkVolumes, ext4, random_hex};
use cowshed_engine::{KeptByReader, Pool, Volume};
use cowshed_export::{AttachKind, ExportError};
use cowshed_format::base::{Name, VolumeId};
use cowshed_sys::mount::{self, FileSystem};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The suffix of the folder that records a device that was handed out.
const DEVICE_SUFFIX: &str = ".device";
/// The suffix of the folder that records a file that was handed out.
const FILE_SUFFIX: &str = ".file";
/// The prefix of the name of a root's volume.
const ROOT_PREFIX: &str = "snapshot/";

/// The purpose of a mounted root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootUse {
    /// To fill it with a layer: without protection against a crash, since it is discarded unless it
    /// is sealed.
    Fill,
    /// To run a container in it.
    Container,
    /// To read a frozen volume.
    View,
}

impl RootUse {
    const fn mode(self) -> Mode {
        match self {
            Self::Fill => Mode::Fill,
            Self::Container => Mode::Container,
            Self::View => Mode::Frozen,
        }
    }
}

/// The ways in which one volume is shown.
#[derive(Default)]
struct Root {
    mounted: Option<Mounted>,
    device: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Root {
    const fn is_shown(&self) -> bool {
        self.mounted.is_some() || self.device.is_some() || self.file.is_some()
    }
}

/// A mounted root.
struct Mounted {
    /// The number of the file system's device, which distinguishes a foreign mount from this one.
    number: u64,
    /// The purpose, unless a predecessor has mounted it.
    purpose: Option<RootUse>,
    /// Set for the lower layer of overlays: they share the pages of its file system, so the pool's
    /// need not stay in memory.
    kept: Option<KeptByReader>,
}

/// The roots of one pool that are shown on this host; thread safe.
pub struct Roots {
    mounts: Arc<Mounts>,
    layers: Arc<Layers>,
    table: Mutex<HashMap<VolumeId, Arc<Mutex<Root>>>>,
}

impl Roots {
    pub(crate) fn new(mounts: &Arc<Mounts>, layers: &Arc<Layers>) -> Self {
        Self {
            mounts: Arc::clone(mounts),
            layers: Arc::clone(layers),
            table: Mutex::default(),
        }
    }

    fn pool(&self) -> &Pool {
        self.mounts.pool()
    }

    fn of(&self, id: VolumeId) -> Arc<Mutex<Root>> {
        Arc::clone(self.table.lock().entry(id).or_default())
    }

    /// Forgets the roots that are not shown and that no thread uses.
    fn tidy(&self) {
        self.table
            .lock()
            .retain(|_, root| Arc::strong_count(root) > 1 || root.lock().is_shown());
    }

    fn ids(&self) -> Vec<VolumeId> {
        self.table.lock().keys().copied().collect()
    }

    /// Forgets the roots without unmounting them, for a successor to find.
    pub(crate) fn leave(&self) {
        self.table.lock().clear();
    }

    /// Returns the frozen empty file system of `size_bytes`, and creates it if there is none yet.
    ///
    /// # Errors
    /// `InvalidSize`, and any error of the pool and mkfs.
    pub fn empty(&self, size_bytes: u64) -> Result<Volume> {
        filesystem::template(self.pool(), size_bytes, &self.mounts.work_name()?)
    }

    /// Creates a volume with an empty file system of a size that is used only once. Its name is
    /// temporary: until it is renamed, the next start removes it.
    ///
    /// # Errors
    /// As `empty`.
    pub fn fresh(&self, size_bytes: u64) -> Result<Volume> {
        filesystem::fresh(self.pool(), size_bytes, &self.mounts.work_name()?)
    }

    /// Creates a clone of `below` and grows its file system. Its name is temporary: until it is
    /// renamed, the next start removes it.
    ///
    /// # Errors
    /// `InvalidSize`, and any error of the pool and resize2fs.
    pub fn grown(&self, below: &Volume, size_bytes: u64) -> Result<Volume> {
        let mut work = WorkVolumes::new(self.pool());
        let grown = self.mounts.larger_copy(below, size_bytes, &mut work);
        let grown = grown.map_err(|error| self.mounts.explain(error))?;
        work.keep();
        Ok(grown)
    }

    /// Returns a new name for a root's volume.
    ///
    /// # Errors
    /// `Io` if there are no random numbers.
    pub fn new_name(&self) -> Result<Name> {
        Ok(Name::new(&format!("{ROOT_PREFIX}{}", random_hex::<16>()?))?)
    }

    /// Returns a new name for a temporary volume: the next start removes it.
    ///
    /// # Errors
    /// `Io` if there are no random numbers.
    pub fn passing_name(&self) -> Result<Name> {
        self.mounts.work_name()
    }

    /// Returns the temporary volumes.
    #[must_use]
    pub fn passing_volumes(&self) -> Vec<VolumeId> {
        let volumes = self.pool().volumes();
        let passing = volumes
            .iter()
            .filter(|volume| volume.name.as_str().starts_with(WORK_PREFIX));
        passing.map(|volume| volume.id).collect()
    }

    /// Mounts the volume's file system, unless it is mounted, and returns the mount point.
    ///
    /// # Errors
    /// Any error of the pool and the host.
    pub fn mount(&self, volume: &Volume, purpose: RootUse) -> Result<PathBuf> {
        let path = self.path(volume.id());
        let root = self.of(volume.id());
        let mut root = root.lock();
        if self.show_again(volume, &mut root)? {
            return Ok(path);
        }
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        // Nobody has the root yet, so no flush has promised durability to anybody.
        let paused = volume.pause_flushes();
        let mounted = self
            .mounts
            .attach_and_mount(volume, &path, purpose.mode(), Access::Programs)
            .and_then(|_| fs::metadata(&path).map_err(Error::io("inspect", &path)));
        drop(paused);
        match mounted {
            Ok(found) => {
                root.mounted = Some(Mounted {
                    number: found.dev(),
                    purpose: Some(purpose),
                    kept: None,
                });
                Ok(path)
            }
            Err(error) => {
                // Nothing is mounted there; at worst an empty folder remains.
                let _ = fs::remove_dir(&path);
                Err(self.mounts.explain(error))
            }
        }
    }

    /// Mounts a volume that was mounted before and no longer is, though its device may be in use:
    /// somebody else has unmounted it, or it was released and is still mounted in another mount
    /// namespace. Returns true if it is mounted.
    fn show_again(&self, volume: &Volume, root: &mut Root) -> Result<bool> {
        let path = self.path(volume.id());
        let Some(mounted) = &mut root.mounted else {
            return Ok(false);
        };
        if FileSystem::numbered(&path, mounted.number).is_ok() {
            return Ok(true);
        }
        let Some(device) = self.mounts.export()?.loop_device(volume.id()) else {
            // The device no longer belongs to this export.
            self.detach_loop(volume)?;
            root.mounted = None;
            return Ok(false);
        };
        let usual = if volume.is_frozen() {
            RootUse::View
        } else {
            RootUse::Container
        };
        let mode = mounted.purpose.unwrap_or(usual).mode();
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        filesystem::mount(&device, &path, mode, Access::Programs)?;
        let found = FileSystem::at(&path).map_err(Error::io("open", &path))?;
        mounted.number = found.number();
        tracing::debug!(volume = %volume.name(), "mounted a root again");
        Ok(true)
    }

    /// Makes the volume a block device, unless it is one, and returns its path. It is read-only if
    /// the volume is frozen.
    ///
    /// # Errors
    /// Any error of the pool and the host.
    pub fn attach(&self, volume: &Volume) -> Result<PathBuf> {
        let root = self.of(volume.id());
        let mut root = root.lock();
        if let Some(device) = &root.device {
            if self.mounts.export()?.loop_device(volume.id()).as_ref() == Some(device) {
                return Ok(device.clone());
            }
            // Somebody else has detached it, and its number may have another user by now.
            self.detach_loop(volume)?;
            root.device = None;
        }
        let note = self.note(volume.id(), DEVICE_SUFFIX);
        fs::create_dir_all(&note).map_err(Error::io("create the directory", &note))?;
        let device = self.mounts.attach_device(volume, volume.is_frozen())?;
        tracing::debug!(
            volume = %volume.name(), device = %device.display(),
            "attached a root as a loop device"
        );
        root.device = Some(device.clone());
        Ok(device)
    }

    /// Runs `work` while no other thread shows, seals or hides the root; `work` gets the root's
    /// purpose, if known.
    fn with_held<T>(&self, volume: &Volume, work: impl FnOnce(Option<RootUse>) -> T) -> T {
        let root = self.of(volume.id());
        let root = root.lock();
        work(root.mounted.as_ref().and_then(|mounted| mounted.purpose))
    }

    /// Attaches the volume's file for another program, and returns its path.
    ///
    /// # Errors
    /// Any error of the pool and the host.
    pub fn file(&self, volume: &Volume) -> Result<PathBuf> {
        let root = self.of(volume.id());
        let mut root = root.lock();
        // The path depends on the volume's name, which may have changed.
        if root.file.is_some() {
            return Ok(self.mounts.export()?.file_path(volume));
        }
        let note = self.note(volume.id(), FILE_SUFFIX);
        fs::create_dir_all(&note).map_err(Error::io("create the directory", &note))?;
        let file = self
            .mounts
            .export()?
            .attach_file(volume, volume.is_frozen())?;
        root.file = Some(file.clone());
        Ok(file)
    }

    /// Stops showing the volume in all ways, unless `is_wanted`, which is called while no other
    /// thread can show it, returns true. All written data is in the volume then.
    ///
    /// # Errors
    /// `Export` with `Busy` while it is in use; the caller should retry then.
    pub fn release(&self, volume: &Volume, is_wanted: &dyn Fn() -> bool) -> Result<()> {
        let id = volume.id();
        {
            let root = self.of(id);
            let mut root = root.lock();
            if is_wanted() {
                return Ok(());
            }
            self.hide(volume, &mut root)?;
        }
        self.tidy();
        Ok(())
    }

    /// Stops showing a volume whose data nobody needs.
    ///
    /// # Errors
    /// As `release`.
    pub fn discard(&self, volume: &Volume) -> Result<()> {
        let _paused = volume.pause_flushes();
        self.release(volume, &|| false)
    }

    fn hide(&self, volume: &Volume, root: &mut Root) -> Result<()> {
        let id = volume.id();
        let path = self.path(id);
        if root.mounted.is_some() {
            // Bind mounts of it go on; the device is busy then.
            if mount::unmount(&path).is_err() && mount::mount_at(&path).is_ok_and(|at| at.is_some())
            {
                mount::unmount_lazy(&path).map_err(Error::io("unmount", &path))?;
            }
            // While the file system is in use, its device is busy, and the caller retries this.
            self.detach_loop(volume)?;
            root.mounted = None;
            let _ = fs::remove_dir(&path);
        }
        if root.device.is_some() {
            self.detach_loop(volume)?;
            root.device = None;
            let _ = fs::remove_dir(self.note(id, DEVICE_SUFFIX));
        }
        if root.file.is_some() {
            let detached = self.mounts.export()?.detach_as(volume, AttachKind::File);
            not_attached_is_fine(detached)?;
            root.file = None;
            let _ = fs::remove_dir(self.note(id, FILE_SUFFIX));
        }
        Ok(())
    }

    fn detach_loop(&self, volume: &Volume) -> Result<()> {
        not_attached_is_fine(self.mounts.export()?.detach_as(volume, AttachKind::Loop))
    }

    /// Returns true if the only mount of a root that was mounted to be filled is this host's own:
    /// only then can another filler continue with it.
    ///
    /// # Errors
    /// If the list of mounts cannot be read.
    pub fn is_alone(&self, volume: &Volume) -> Result<bool> {
        let root = self.of(volume.id());
        let root = root.lock();
        let purpose = root.mounted.as_ref().and_then(|mounted| mounted.purpose);
        Ok(purpose == Some(RootUse::Fill) && is_alone(&root)?)
    }

    /// Writes the dirty data of the root to its volume, if it is mounted here.
    ///
    /// # Errors
    /// Any error of the host, including failures of earlier writes.
    pub fn sync(&self, volume: &Volume) -> Result<()> {
        let root = self.of(volume.id());
        let root = root.lock();
        if root.mounted.is_none() {
            return Ok(());
        }
        self.sync_locked(volume, &root).map(drop)
    }

    /// Writes out a mounted root, and returns its file system.
    fn sync_locked(&self, volume: &Volume, root: &Root) -> Result<FileSystem> {
        let path = self.path(volume.id());
        let number = root.mounted.as_ref().map_or(0, |mounted| mounted.number);
        let at = FileSystem::numbered(&path, number).map_err(Error::io("open", &path))?;
        // The host reports an error only once, and a repeated commit must not succeed.
        let synced = at.sync().inspect_err(|_| self.mounts.note_refusal(volume));
        synced
            .map_err(Error::io("flush", &path))
            .map_err(|error| self.mounts.explain(error))?;
        Ok(at)
    }

    /// Returns the volume of the root that is mounted at `source`, or that has the device or file
    /// there.
    #[must_use]
    pub fn at(&self, source: &Path) -> Option<VolumeId> {
        let name = source.strip_prefix(self.dir()).ok();
        if let Some(id) = name.and_then(|name| name.to_str()?.parse().ok()) {
            return Some(VolumeId(id));
        }
        let export = self.mounts.export().ok()?;
        let attached = export.attachments();
        let found = attached.iter().find(|attached| attached.path == source);
        found.map(|attached| attached.volume)
    }

    /// Unmounts all roots; all written data is in their volumes then.
    ///
    /// # Errors
    /// `Busy` for the first that is in use; the others are unmounted all the same.
    pub(crate) fn close(&self) -> Result<()> {
        let mut first = Ok(());
        for id in self.ids() {
            let Ok(volume) = self.pool().volume_by_id(id) else {
                continue;
            };
            let closed = self.close_root(&volume);
            if first.is_ok() {
                first = closed;
            }
        }
        self.tidy();
        first
    }

    fn close_root(&self, volume: &Volume) -> Result<()> {
        let root = self.of(volume.id());
        let mut root = root.lock();
        let was_mounted = root.mounted.is_some();
        if let Some(mounted) = &root.mounted
            && FileSystem::numbered(&self.path(volume.id()), mounted.number).is_ok()
        {
            // A bind mount keeps the file system in use; the data written so far is safe then.
            if let Err(error) = self.sync_locked(volume, &root) {
                // A file system with a fatal error fails this for ever. Its volume is recorded as
                // incomplete.
                tracing::error!(%error, volume = %volume.name(), "cannot flush all data of a root");
            }
        }
        self.hide(volume, &mut root)?;
        if was_mounted && !volume.is_frozen() {
            ext4::release_journal(volume)?;
        }
        Ok(())
    }

    /// Returns the mount points of the roots.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let ids = self.ids();
        ids.into_iter()
            .map(|id| self.path(id))
            .filter(|path| path.exists())
            .collect()
    }

    /// Returns the frozen volumes that are shown.
    #[must_use]
    pub fn frozen(&self) -> Vec<VolumeId> {
        let is_frozen = |id: &VolumeId| {
            let volume = self.pool().volume_by_id(*id);
            volume.is_ok_and(|volume| volume.is_frozen())
        };
        self.ids().into_iter().filter(is_frozen).collect()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.mounts.state_dir().join("roots")
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.dir().join(id.to_string())
    }

    /// Returns the folder that tells a successor that the volume was handed out in this way.
    fn note(&self, id: VolumeId, suffix: &str) -> PathBuf {
        self.dir().join(format!("{id}{suffix}"))
    }
}

/// Returns true if the root is mounted here, and not shown in any other way that this process can
/// see.
fn is_alone(root: &Root) -> Result<bool> {
    let Some(Mounted { number, .. }) = root.mounted else {
        return Ok(false);
    };
    let mounts = mount::mounts();
    let mounts = mounts.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    let (major, minor) = (libc::major(number), libc::minor(number));
    let of_it = mounts
        .iter()
        .filter(|entry| (entry.major, entry.minor) == (major, minor));
    Ok(root.device.is_none() && root.file.is_none() && of_it.count() == 1)
}

fn not_attached_is_fine(detached: Result<(), ExportError>) -> Result<()> {
    match detached {
        Ok(()) | Err(ExportError::NotAttached(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
