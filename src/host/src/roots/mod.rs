//! Roots: volumes whose file systems are shown to others, as a folder, a device or a file.
//!
//! Not containers: there is no record here, and a root goes by its volume. Whoever keeps records
//! of roots (the snapshotter) says when one is shown and when it is given up. `seal` makes a
//! frozen volume of a root, `usage` says what it takes, and `adopt` takes over what a predecessor
//! has left.
//!
//! # Invariants
//! - A volume is mounted once, at `roots/<volume>` in the state folder, however many look at it
//!   there: they get bind mounts of that folder.
//! - A root that is given up is out of sight at once; its device goes when its last user has gone,
//!   and until then its volume stays.
//! - A root's lock is held while it is mounted, unmounted, sealed or given up; never two of them.

mod adopt;
mod layers;
mod seal;
mod usage;

pub use layers::LayerOptions;
pub use seal::{QuiescedRoot, Sealed};

use super::error::{Error, Result};
use super::ext4;
use super::filesystem::{self, Access, Mode};
use super::host::{Host, WORK_PREFIX, WorkVolumes, attach_device, random_hex};
use cowshed_engine::Volume;
use cowshed_export::{AttachKind, ExportError};
use cowshed_format::base::{Name, VolumeId};
use cowshed_sys::mount::{self, FileSystem};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the name of the folder ends that tells of a device that was handed out.
const DEVICE_SUFFIX: &str = ".device";
/// How the name of the folder ends that tells of a file that was handed out.
const FILE_SUFFIX: &str = ".file";
/// How the name of a root's volume begins.
const ROOT_PREFIX: &str = "snapshot/";

/// What a root is mounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootUse {
    /// To fill it with a layer: all or nothing, since it is thrown away unless it is sealed.
    Fill,
    /// To run a container in it.
    Container,
    /// To look at a frozen volume.
    View,
}

impl RootUse {
    pub(super) const fn mode(self) -> Mode {
        match self {
            Self::Fill => Mode::Fill,
            Self::Container => Mode::Container,
            Self::View => Mode::Frozen,
        }
    }
}

/// What is shown of one volume.
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
    /// The number of the file system's device, by which a foreign mount is told from ours.
    number: u64,
    /// What it was mounted for, unless a predecessor has mounted it.
    purpose: Option<RootUse>,
}

/// All roots that are shown.
#[derive(Default)]
pub(super) struct Roots {
    table: Mutex<HashMap<VolumeId, Arc<Mutex<Root>>>>,
}

impl Roots {
    fn of(&self, id: VolumeId) -> Arc<Mutex<Root>> {
        Arc::clone(self.table.lock().entry(id).or_default())
    }

    /// Forgets the roots of which nothing is shown and which nobody works on.
    fn tidy(&self) {
        self.table
            .lock()
            .retain(|_, root| Arc::strong_count(root) > 1 || root.lock().is_shown());
    }

    fn ids(&self) -> Vec<VolumeId> {
        self.table.lock().keys().copied().collect()
    }

    pub(super) fn clear(&self) {
        self.table.lock().clear();
    }
}

impl Host {
    /// The frozen empty file system of `size_bytes`, made now if there is none yet.
    ///
    /// # Errors
    /// `InvalidSize`, and what the pool and mkfs answer.
    pub fn empty_root(&self, size_bytes: u64) -> Result<Volume> {
        filesystem::template(self.pool(), size_bytes, &self.work_name()?)
    }

    /// A volume with an empty file system of a size that is asked for once. Its name is one in
    /// work: until it is renamed, the next start removes it.
    ///
    /// # Errors
    /// As `empty_root`.
    pub fn fresh_root(&self, size_bytes: u64) -> Result<Volume> {
        filesystem::fresh(self.pool(), size_bytes, &self.work_name()?)
    }

    /// A clone of `below` whose file system has been grown. Its name is one in work: until it is
    /// renamed, the next start removes it.
    ///
    /// # Errors
    /// `InvalidSize`, and what the pool and resize2fs answer.
    pub fn grown_root(&self, below: &Volume, size_bytes: u64) -> Result<Volume> {
        let mut work = WorkVolumes::new(self.pool());
        let grown = self.larger_copy(below, size_bytes, &mut work);
        let grown = grown.map_err(|error| self.explain(error))?;
        work.keep();
        Ok(grown)
    }

    /// A new name for a root's volume.
    ///
    /// # Errors
    /// `Io` without random numbers.
    pub fn root_name(&self) -> Result<Name> {
        Ok(Name::new(&format!("{ROOT_PREFIX}{}", random_hex::<16>()?))?)
    }

    /// A new name for a volume that nobody is to keep: the next start removes it.
    ///
    /// # Errors
    /// `Io` without random numbers.
    pub fn passing_name(&self) -> Result<Name> {
        self.work_name()
    }

    /// The volumes that nobody is to keep.
    #[must_use]
    pub fn passing_volumes(&self) -> Vec<VolumeId> {
        let volumes = self.pool().volumes();
        let passing = volumes
            .iter()
            .filter(|volume| volume.name.as_str().starts_with(WORK_PREFIX));
        passing.map(|volume| volume.id).collect()
    }

    /// Mounts the volume's file system, unless it is mounted, and answers where.
    ///
    /// # Errors
    /// What the pool and the host answer.
    pub fn mount_root(&self, volume: &Volume, purpose: RootUse) -> Result<PathBuf> {
        let path = self.root_path(volume.id());
        let root = self.roots.of(volume.id());
        let mut root = root.lock();
        if self.show_again(volume, &mut root)? {
            return Ok(path);
        }
        fs::create_dir_all(&path).map_err(Error::io("make the folder", &path))?;
        // Nobody has it yet who could be told that something is durable.
        let paused = volume.pause_flushes();
        let mounted = self
            .attach_and_mount(volume, &path, purpose.mode(), Access::Programs)
            .and_then(|_| fs::metadata(&path).map_err(Error::io("look at", &path)));
        drop(paused);
        match mounted {
            Ok(found) => {
                root.mounted = Some(Mounted {
                    number: found.dev(),
                    purpose: Some(purpose),
                });
                Ok(path)
            }
            Err(error) => {
                // Nothing is mounted there; at worst an empty folder stays.
                let _ = fs::remove_dir(&path);
                Err(self.explain(error))
            }
        }
    }

    /// Mounts what was mounted before and is not any more, though its device may be in use:
    /// somebody else has unmounted it, or it was given up and is still mounted in another mount
    /// namespace. Answers whether it is mounted.
    fn show_again(&self, volume: &Volume, root: &mut Root) -> Result<bool> {
        let path = self.root_path(volume.id());
        let Some(mounted) = &mut root.mounted else {
            return Ok(false);
        };
        if FileSystem::numbered(&path, mounted.number).is_ok() {
            return Ok(true);
        }
        let Some(device) = self.export()?.loop_device(volume.id()) else {
            // It is not ours any more.
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
        fs::create_dir_all(&path).map_err(Error::io("make the folder", &path))?;
        filesystem::mount(&device, &path, mode, Access::Programs)?;
        let found = FileSystem::at(&path).map_err(Error::io("open", &path))?;
        mounted.number = found.number();
        tracing::debug!(volume = %volume.name(), "mounted again");
        Ok(true)
    }

    /// Makes the volume a block device, unless it is one, and answers its path. It is read-only if
    /// the volume is frozen.
    ///
    /// # Errors
    /// What the pool and the host answer.
    pub fn attach_root(&self, volume: &Volume) -> Result<PathBuf> {
        let root = self.roots.of(volume.id());
        let mut root = root.lock();
        if let Some(device) = &root.device {
            if self.export()?.loop_device(volume.id()).as_ref() == Some(device) {
                return Ok(device.clone());
            }
            // Somebody else has detached it, and it may be another's by now.
            self.detach_loop(volume)?;
            root.device = None;
        }
        let note = self.note(volume.id(), DEVICE_SUFFIX);
        fs::create_dir_all(&note).map_err(Error::io("make the folder", &note))?;
        let export = self.export()?;
        let device = attach_device(&export, volume, volume.is_frozen())?;
        tracing::debug!(volume = %volume.name(), device = %device.display(), "handed out");
        root.device = Some(device.clone());
        Ok(device)
    }

    /// Does `work` while nobody shows, seals or hides the root; it is given what the root was
    /// mounted for, where that is known.
    pub(super) fn with_root_held<T>(
        &self,
        volume: &Volume,
        work: impl FnOnce(Option<RootUse>) -> T,
    ) -> T {
        let root = self.roots.of(volume.id());
        let root = root.lock();
        work(root.mounted.as_ref().and_then(|mounted| mounted.purpose))
    }

    /// Keeps the volume's file for somebody else to use, and answers its path.
    ///
    /// # Errors
    /// What the pool and the host answer.
    pub fn root_file(&self, volume: &Volume) -> Result<PathBuf> {
        let root = self.roots.of(volume.id());
        let mut root = root.lock();
        // Its path goes by its name, which may have changed.
        if root.file.is_some() {
            return Ok(self.export()?.file_path(volume));
        }
        let note = self.note(volume.id(), FILE_SUFFIX);
        fs::create_dir_all(&note).map_err(Error::io("make the folder", &note))?;
        let file = self.export()?.attach_file(volume, volume.is_frozen())?;
        root.file = Some(file.clone());
        Ok(file)
    }

    /// Takes everything that is shown of the volume back, unless `is_wanted` says that it is
    /// needed after all: asked when nobody else can show it. What is written is in the volume then.
    ///
    /// # Errors
    /// `Export` with `Busy` while somebody uses it; to be tried again then.
    pub fn release_root(&self, volume: &Volume, is_wanted: &dyn Fn() -> bool) -> Result<()> {
        let id = volume.id();
        {
            let root = self.roots.of(id);
            let mut root = root.lock();
            if is_wanted() {
                return Ok(());
            }
            self.hide(volume, &mut root)?;
        }
        self.roots.tidy();
        Ok(())
    }

    /// Takes everything back that is shown of a volume that nobody is to keep.
    ///
    /// # Errors
    /// As `release_root`.
    pub fn discard_root(&self, volume: &Volume) -> Result<()> {
        let _paused = volume.pause_flushes();
        self.release_root(volume, &|| false)
    }

    fn hide(&self, volume: &Volume, root: &mut Root) -> Result<()> {
        let id = volume.id();
        let path = self.root_path(id);
        if root.mounted.is_some() {
            // Whoever has a bind mount of it goes on; the device tells.
            if mount::unmount(&path).is_err() && mount::mount_at(&path).is_ok_and(|at| at.is_some())
            {
                mount::unmount_lazy(&path).map_err(Error::io("unmount", &path))?;
            }
            // While the file system lives on, its device is busy, and this is tried again.
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
            let detached = self.export()?.detach_as(volume, AttachKind::File);
            not_attached_is_fine(detached)?;
            root.file = None;
            let _ = fs::remove_dir(self.note(id, FILE_SUFFIX));
        }
        Ok(())
    }

    fn detach_loop(&self, volume: &Volume) -> Result<()> {
        not_attached_is_fine(self.export()?.detach_as(volume, AttachKind::Loop))
    }

    /// Whether nothing but our own mount shows the file system of a root that was mounted to be
    /// filled: only then can it be filled on by somebody else.
    ///
    /// # Errors
    /// When the list of mounts cannot be read.
    pub fn is_root_alone(&self, volume: &Volume) -> Result<bool> {
        let root = self.roots.of(volume.id());
        let root = root.lock();
        let purpose = root.mounted.as_ref().and_then(|mounted| mounted.purpose);
        Ok(purpose == Some(RootUse::Fill) && is_alone(&root)?)
    }

    /// Writes what is in memory of the root to its volume, where it is mounted here.
    ///
    /// # Errors
    /// What the host answers, failures of earlier writes included.
    pub fn sync_root(&self, volume: &Volume) -> Result<()> {
        let root = self.roots.of(volume.id());
        let root = root.lock();
        if root.mounted.is_none() {
            return Ok(());
        }
        self.sync_locked(volume, &root).map(drop)
    }

    /// Writes out a mounted root, and answers its file system.
    fn sync_locked(&self, volume: &Volume, root: &Root) -> Result<FileSystem> {
        let path = self.root_path(volume.id());
        let number = root.mounted.as_ref().map_or(0, |mounted| mounted.number);
        let at = FileSystem::numbered(&path, number).map_err(Error::io("open", &path))?;
        // The host tells this once; a commit that is tried again must not succeed.
        let synced = at.sync().inspect_err(|_| self.note_refusal(volume));
        synced
            .map_err(Error::io("write out", &path))
            .map_err(|error| self.explain(error))?;
        Ok(at)
    }

    /// The volume of the root that is mounted at `source`, or that has the device or file there.
    #[must_use]
    pub fn root_at(&self, source: &Path) -> Option<VolumeId> {
        let name = source.strip_prefix(self.roots_dir()).ok();
        if let Some(id) = name.and_then(|name| name.to_str()?.parse().ok()) {
            return Some(VolumeId(id));
        }
        let export = self.export().ok()?;
        let attached = export.attachments();
        let found = attached.iter().find(|attached| attached.path == source);
        found.map(|attached| attached.volume)
    }

    /// Unmounts all roots; what is written is in their volumes then.
    ///
    /// # Errors
    /// `Busy` for the first that is in use; the others are tried all the same.
    pub(super) fn close_roots(&self) -> Result<()> {
        let mut first = Ok(());
        for id in self.roots.ids() {
            let Ok(volume) = self.pool().volume_by_id(id) else {
                continue;
            };
            let closed = self.close_root(&volume);
            if first.is_ok() {
                first = closed;
            }
        }
        self.roots.tidy();
        first
    }

    fn close_root(&self, volume: &Volume) -> Result<()> {
        let root = self.roots.of(volume.id());
        let mut root = root.lock();
        let was_mounted = root.mounted.is_some();
        if let Some(mounted) = &root.mounted
            && FileSystem::numbered(&self.root_path(volume.id()), mounted.number).is_ok()
        {
            // Who has a bind mount keeps the file system; this much is safe then.
            if let Err(error) = self.sync_locked(volume, &root) {
                // A file system that has given up answers so for ever. That this one is incomplete
                // is remembered.
                tracing::error!(%error, volume = %volume.name(), "not all of it was written out");
            }
        }
        self.hide(volume, &mut root)?;
        if was_mounted && !volume.is_frozen() {
            ext4::release_journal(volume)?;
        }
        Ok(())
    }

    /// Where roots are mounted.
    #[must_use]
    pub fn root_paths(&self) -> Vec<PathBuf> {
        let ids = self.roots.ids();
        ids.into_iter()
            .map(|id| self.root_path(id))
            .filter(|path| path.exists())
            .collect()
    }

    pub(super) fn roots_dir(&self) -> PathBuf {
        self.state_dir().join("roots")
    }

    fn root_path(&self, id: VolumeId) -> PathBuf {
        self.roots_dir().join(id.to_string())
    }

    /// The folder that tells a successor that the volume was handed out in this way.
    fn note(&self, id: VolumeId, suffix: &str) -> PathBuf {
        self.roots_dir().join(format!("{id}{suffix}"))
    }
}

/// Whether the root is mounted here, and not shown in any other way that this process can see.
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
