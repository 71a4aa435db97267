//! The changes of a container to its image's root, taken at one instant even while it runs.
//!
//! A mounted container's file system is frozen for the moment in which a snapshot of its volume is
//! taken: everything written is on the volume then and the journal is empty. The snapshot is
//! compared with the image's volume after that, while the container goes on: by the blocks that
//! differ, or, if that is impossible, as two mounted trees (`cowshed-ext4diff` does both). If the snapshot's
//! journal must still be replayed or deleted files released, a clone of the snapshot is used.

use super::error::{Error, Result};
use super::ext4;
use super::filesystem::Mode;
use super::frozen::FrozenMount;
use super::host::{Host, WorkVolumes, hold};
use super::record::{self, ContainerRecord, ImageRecord};
use cowshed_engine::Volume;
use cowshed_ext4diff::{Fault, Indexes, TreeChange, TreeChanges, compare_trees};
use cowshed_sys::mount::FileSystem;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The kind of a change to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ChangeKind {
    /// Only the container has it.
    #[serde(rename = "A")]
    Added,
    /// Both have it, and it differs; or it is a directory above a change.
    #[serde(rename = "C")]
    Changed,
    /// Only the image has it.
    #[serde(rename = "D")]
    Deleted,
}

/// One change of a container, as `docker diff` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContainerChange {
    /// The kind of the change.
    pub kind: ChangeKind,
    /// The path, relative to the container's root.
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

/// The way in which a host finds a container's changes. Both ways give the same result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comparison {
    /// Compares only the blocks that differ, in time that grows with the change; falls back to
    /// trees if that is impossible.
    #[default]
    Blocks,
    /// Mounts both trees and compares every object in them.
    Trees,
}

/// The way to compare containers, and cached data about their images.
#[derive(Default)]
pub(super) struct Comparing {
    pub indexes: Indexes,
    by_trees: AtomicBool,
}

/// The file system of a container or root at one instant, together with the one that it came from.
pub(super) struct Instant<'h> {
    pub host: &'h Host,
    /// The image's side.
    pub base: Volume,
    /// The container's side; frozen.
    pub volume: Volume,
    /// The guard that removes that volume, and the snapshot that it may be a clone of.
    pub work: WorkVolumes<'h>,
}

impl Host {
    /// Sets the way to compare containers from now on.
    pub fn set_comparison(&self, comparison: Comparison) {
        let by_trees = comparison == Comparison::Trees;
        self.comparing.by_trees.store(by_trees, Ordering::Relaxed);
    }

    /// Returns the container's changes, sorted by path; the root directory itself is not listed.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and any error of the pool and the host.
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

    /// Returns true if the container is not mounted and no block of its volume differs from its
    /// image's, which is cheap to find out.
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

    /// Takes a snapshot of the container's volume that holds everything written to the container.
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
            // The journal is empty while the file system is frozen, and is never read.
            ext4::release_journal(volume)?;
        }
        let snapshot = self.pool().snapshot(volume, &name);
        drop(frozen);
        Ok(snapshot?)
    }

    /// Returns the volume of the top layer of the container's image.
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
    /// Returns the container's changes.
    pub(super) fn changes(&mut self) -> Result<TreeChanges> {
        let comparing = &self.host.comparing;
        if !comparing.by_trees.load(Ordering::Relaxed) {
            if !ext4::is_settled(&self.volume)? {
                self.settle()?;
            }
            let pool = self.host.pool();
            match ext4::changes(pool, &self.base, &self.volume, &comparing.indexes) {
                Ok(changes) => return Ok(changes),
                Err(Fault::Read(error)) => return Err(error.into()),
                Err(Fault::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(fault) => {
                    tracing::warn!(
                        %fault,
                        "cannot compare two file systems by their blocks: comparing them file by \
                         file"
                    );
                }
            }
        }
        self.changes_by_trees()
    }

    /// As `changes`, by mounting both and comparing every object.
    pub(super) fn changes_by_trees(&mut self) -> Result<TreeChanges> {
        self.settle()?;
        let base = self.host.view(&self.base)?;
        let mount = self.host.mount_for_work(&self.volume, Mode::Frozen)?;
        Ok(compare_trees(base.path(), mount.path())?)
    }

    /// Returns the image's side and the container's side.
    #[cfg(test)]
    pub(super) const fn volumes(&self) -> (&Volume, &Volume) {
        (&self.base, &self.volume)
    }

    /// Makes the container's side a cleanly unmounted file system, if it is not one yet.
    pub(super) fn settle(&mut self) -> Result<()> {
        if ext4::superblock(&self.volume)?.is_some_and(|superblock| superblock.is_clean()) {
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

#[cfg(test)]
mod tests;
