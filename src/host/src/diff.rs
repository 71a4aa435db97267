//! What a container changed in its image's root, seen at one instant even while it runs.
//!
//! A mounted container's file system is frozen for the moment in which a snapshot of its volume
//! is taken: everything written is on the volume then and the journal is empty. The snapshot is
//! compared with the image's volume after that, while the container goes on: by the blocks that
//! differ (`changes`), and where that cannot be done, as two mounted trees (`tree`). Where the
//! snapshot still needs its journal replayed or deleted files released, that is done on a clone of
//! it.

use super::changes::{self, Indexes};
use super::error::{Error, Result};
use super::ext4::{self, Fault, Superblock};
use super::filesystem::Mode;
use super::frozen::FrozenMount;
use super::host::{Host, WorkVolumes, hold};
use super::record::{self, ContainerRecord, ImageRecord};
use super::tree::{self, TreeChange, TreeChanges};
use cowshed_engine::Volume;
use cowshed_sys::mount::FileSystem;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// How a host finds what a container changed. Both ways give the same answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comparison {
    /// From the blocks that differ, in time that grows with the change; trees where that cannot
    /// be done.
    #[default]
    Blocks,
    /// By mounting both trees and looking at every object in them.
    Trees,
}

/// How containers are compared, and what was learnt of their images.
#[derive(Default)]
pub(super) struct Comparing {
    pub indexes: Indexes,
    by_trees: AtomicBool,
}

/// A container's or root's file system as it was at one instant, beside the one it came from.
pub(super) struct Instant<'h> {
    pub host: &'h Host,
    /// The image's side.
    pub base: Volume,
    /// The container's side; frozen.
    pub volume: Volume,
    /// Removes that volume, and the snapshot that it may be a clone of.
    pub work: WorkVolumes<'h>,
}

impl Host {
    /// Chooses how containers are compared from now on.
    pub fn set_comparison(&self, comparison: Comparison) {
        let by_trees = comparison == Comparison::Trees;
        self.comparing.by_trees.store(by_trees, Ordering::Relaxed);
    }

    /// What the container changed, sorted by path; the root directory itself is not listed.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and what the pool and the host answer.
    pub fn diff_container(&self, container: &str) -> Result<Vec<ContainerChange>> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.container_lock(&record.id);
        let _held = hold(&lock)?;
        if self.is_unchanged(&record)? {
            return Ok(Vec::new());
        }
        let mut instant = self.instant(&record)?;
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

    /// Takes the container's file system as it is now. The container's lock must be held.
    pub(super) fn instant(&self, record: &ContainerRecord) -> Result<Instant<'_>> {
        let base = self.image_top(record)?;
        let mut work = WorkVolumes::new(self.pool());
        let volume = record.volume(self.pool())?;
        let snapshot = self.snapshot_settled(record, &volume)?;
        work.push(snapshot.clone());
        Ok(Instant {
            host: self,
            base,
            volume: snapshot,
            work,
        })
    }

    /// A snapshot of the container's volume that holds all that was written to the container.
    fn snapshot_settled(&self, record: &ContainerRecord, volume: &Volume) -> Result<Volume> {
        let name = self.work_name()?;
        let frozen = match self.mounted_at(record)? {
            Some(path) => {
                let at = FileSystem::at(&path).map_err(Error::io("open", &path))?;
                let note = self.frozen_note(&record.id);
                Some(FrozenMount::freeze(at, path, note)?)
            }
            None => None,
        };
        if frozen.as_ref().is_some_and(FrozenMount::is_ours) {
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
    pub(super) fn changes(&mut self) -> Result<TreeChanges> {
        let comparing = &self.host.comparing;
        if !comparing.by_trees.load(Ordering::Relaxed) {
            if !ext4::is_settled(&self.volume)? {
                self.settle()?;
            }
            let pool = self.host.pool();
            match changes::between(pool, &self.base, &self.volume, &comparing.indexes) {
                Ok(changes) => return Ok(changes),
                Err(Fault::Pool(error)) => return Err(error.into()),
                Err(Fault::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(fault) => tracing::warn!(%fault, "comparing the trees file by file"),
            }
        }
        self.changes_by_trees()
    }

    /// As `changes`, by mounting both and looking at every object.
    pub(super) fn changes_by_trees(&mut self) -> Result<TreeChanges> {
        self.settle()?;
        let base = self.host.view(&self.base)?;
        let mount = self.host.mount_for_work(&self.volume, Mode::Frozen)?;
        tree::compare(base.path(), mount.path())
    }

    /// The image's side and the container's.
    #[cfg(test)]
    pub(super) const fn volumes(&self) -> (&Volume, &Volume) {
        (&self.base, &self.volume)
    }

    /// Makes the container's side a file system that was cleanly unmounted, if it is not one yet.
    pub(super) fn settle(&mut self) -> Result<()> {
        if Superblock::read(&self.volume)?.is_some_and(|superblock| superblock.is_clean()) {
            return Ok(());
        }
        let pool = self.host.pool();
        let copy = pool.clone_volume(&self.volume, &self.host.work_name()?)?;
        self.work.push(copy.clone());
        self.host.mount_for_work(&copy, Mode::Settle)?.unmount()?;
        self.host.check_complete(&copy)?;
        pool.freeze(&copy)?;
        self.volume = copy;
        Ok(())
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
