//! What a container changed in its image's root, seen at one instant even while it runs.
//!
//! A mounted container's file system is frozen for the moment in which a snapshot of its volume
//! is taken: everything written is on the volume then and the journal is empty. Two read-only
//! trees are compared after that, the snapshot's and the image's, while the container goes on.
//! Where the snapshot still needs its journal replayed or deleted files released, that is done on
//! a clone of it.

use super::error::{Error, Result};
use super::ext4::{self, Superblock};
use super::filesystem::Mode;
use super::host::{Host, ViewGuard, WorkMount, WorkVolumes};
use super::record::{self, ContainerRecord, ImageRecord};
use super::tree::{self, TreeChange, TreeChanges};
use crate::pool::Volume;
use crate::sys::mount;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ChangeKind {
    /// The container has it and the image has not.
    #[serde(rename = "A")]
    Added,
    /// Both have it, and it differs; or it is a directory above a change.
    #[serde(rename = "C")]
    Changed,
    /// The image has it and the container has not.
    #[serde(rename = "D")]
    Deleted,
}

/// One change of a container, as `docker diff` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContainerChange {
    /// What happened.
    pub kind: ChangeKind,
    /// To what, counted from the container's root.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Added => "A",
            Self::Changed => "C",
            Self::Deleted => "D",
        })
    }
}

/// JSON has no names that are not text.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// A container's tree as it was at one instant, beside its image's.
pub(super) struct Instant<'h> {
    /// The container's side. Dropped first: its volume is removed after that.
    pub mount: WorkMount<'h>,
    /// The image's side.
    pub base: ViewGuard<'h>,
    /// The container's side; has a name in work.
    pub volume: Volume,
    /// Removes that volume, and the snapshot that it may be a clone of.
    pub work: WorkVolumes<'h>,
}

impl Host {
    /// What the container changed, sorted by path; the root directory itself is not listed.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and what the pool and the host answer.
    pub fn diff_container(&self, container: &str) -> Result<Vec<ContainerChange>> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.container_lock(&record.id);
        let _held = lock.lock();
        if self.is_unchanged(&record)? {
            return Ok(Vec::new());
        }
        let instant = self.instant(&record)?;
        let changes = instant.changes()?;
        Ok(changes
            .into_iter()
            .filter_map(|(path, change)| listed(path.as_path(), change))
            .collect())
    }

    /// Whether the container's volume has not one block that differs from its image's, which
    /// costs nothing to know.
    fn is_unchanged(&self, record: &ContainerRecord) -> Result<bool> {
        if self.mounted_at(record)?.is_some() {
            return Ok(false);
        }
        let base = self.image_top(record)?;
        let volume = record.volume(self.pool())?;
        Ok(self.pool().diff(&base, &volume)?.is_empty())
    }

    /// Takes the container's tree as it is now. The container's lock must be held.
    pub(super) fn instant(&self, record: &ContainerRecord) -> Result<Instant<'_>> {
        let mut work = WorkVolumes::new(self.pool());
        let volume = record.volume(self.pool())?;
        let mut copy = self.snapshot_settled(record, &volume)?;
        work.push(copy.clone());
        let mut mode = Mode::Frozen;
        if !Superblock::read(&copy)?.is_some_and(|superblock| superblock.is_clean()) {
            copy = self.pool().clone_volume(&copy, &self.work_name()?)?;
            work.push(copy.clone());
            mode = Mode::Settle;
        }
        let base = self.view(&self.image_top(record)?)?;
        let mount = self.mount_for_work(&copy, mode)?;
        Ok(Instant {
            mount,
            base,
            volume: copy,
            work,
        })
    }

    /// A snapshot of the container's volume that holds all that was written to the container.
    fn snapshot_settled(&self, record: &ContainerRecord, volume: &Volume) -> Result<Volume> {
        let name = self.work_name()?;
        let frozen = match self.mounted_at(record)? {
            Some(path) => Some(FrozenMount::freeze(path)?),
            None => None,
        };
        if frozen.is_some() {
            // The journal is empty while the file system is frozen, and never read.
            ext4::release_journal(volume)?;
        }
        let snapshot = self.pool().snapshot(volume, &name);
        drop(frozen);
        Ok(snapshot?)
    }

    /// The volume of the top layer of the container's image.
    fn image_top(&self, record: &ContainerRecord) -> Result<Volume> {
        let image = self.image_of(record)?;
        let top = image.layers.last();
        let top = top.ok_or_else(|| Error::EmptyImage(record.image_name.as_str().into()))?;
        self.layer(top.chain_id)
    }

    pub(super) fn image_of(&self, record: &ContainerRecord) -> Result<ImageRecord> {
        let image = record::image(self.pool(), record.image)?;
        image.ok_or_else(|| Error::not_found(super::error::Kind::Image, &record.image.to_string()))
    }
}

impl Instant<'_> {
    /// What the container changed.
    pub(super) fn changes(&self) -> Result<TreeChanges> {
        tree::compare(self.base.path(), self.mount.path())
    }
}

fn listed(path: &Path, change: TreeChange) -> Option<ContainerChange> {
    if path.as_os_str().is_empty() {
        return None;
    }
    let kind = match change {
        TreeChange::Added => ChangeKind::Added,
        TreeChange::Changed => ChangeKind::Changed,
        TreeChange::Removed => ChangeKind::Deleted,
    };
    Some(ContainerChange {
        kind,
        path: Path::new("/").join(path),
    })
}

/// A frozen file system, which goes on when this is dropped, whatever happens.
struct FrozenMount {
    path: PathBuf,
}

impl FrozenMount {
    fn freeze(path: PathBuf) -> Result<Self> {
        mount::freeze(&path).map_err(Error::io("freeze the file system at", &path))?;
        Ok(Self { path })
    }
}

impl Drop for FrozenMount {
    fn drop(&mut self) {
        if let Err(error) = mount::thaw(&self.path) {
            tracing::error!(%error, path = %self.path.display(), "could not thaw a file system");
        }
    }
}
