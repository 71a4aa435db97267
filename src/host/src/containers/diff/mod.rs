//! The changes of a container to its image's root, taken at one instant even while it runs.
//!
//! A mounted container's file system is frozen for the moment in which a snapshot of its volume is
//! taken: everything written is on the volume then and the journal is empty. The snapshot is
//! compared with the image's volume after that, while the container goes on: by the blocks that
//! differ, or, if that is impossible, as two mounted trees (`layers::instant`). Of an overlay root the
//! upper folder in that snapshot is read (`layers::upper`).

use super::Containers;
use crate::error::{Error, Kind, Result};
use crate::layers::{Instant, Upper};
use crate::mounts::{FrozenMount, WorkVolumes, ext4, hold};
use crate::record::{self, ContainerRecord, ImageRecord, RootKind};
use cowshed_engine::Volume;
use cowshed_ext4diff::TreeChange;
use cowshed_sys::mount::FileSystem;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};

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

impl Containers {
    /// Returns the container's changes, sorted by path; the root directory itself is not listed.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and any error of the pool and the host.
    pub fn diff(&self, container: &str) -> Result<Vec<ContainerChange>> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        if self.is_unchanged(&record)? {
            return Ok(Vec::new());
        }
        let changes = match record.root {
            RootKind::Block => self.instant(&record)?.changes()?,
            RootKind::Overlay => self.upper(&record)?.changes()?,
        };
        Ok(changes
            .into_iter()
            .filter_map(|(path, change)| listed(path.as_path(), change))
            .collect())
    }

    /// Returns true if the container is not mounted and no block of its volume differs from its
    /// image's, which is cheap to find out.
    fn is_unchanged(&self, record: &ContainerRecord) -> Result<bool> {
        if self.mounted_at(record)?.is_some() || record.root == RootKind::Overlay {
            return Ok(false);
        }
        let base = self.image_top(record)?;
        let volume = record.volume(self.pool())?;
        Ok(self.pool().diff(&base, &volume)?.is_empty())
    }

    /// Takes the container's file system as it is now. The container's lock must be held.
    pub(crate) fn instant(&self, record: &ContainerRecord) -> Result<Instant<'_>> {
        let base = self.image_top(record)?;
        let mut work = WorkVolumes::new(self.pool());
        let volume = record.volume(self.pool())?;
        let snapshot = self.snapshot_settled(record, &volume)?;
        work.push(snapshot.clone());
        Ok(Instant {
            layers: &self.layers,
            base,
            volume: snapshot,
            work,
        })
    }

    /// Takes what the container changed in its overlay root, as it is now. The container's lock must
    /// be held.
    pub(super) fn upper(&self, record: &ContainerRecord) -> Result<Upper<'_>> {
        let lower = self.image_top(record)?;
        let mut work = WorkVolumes::new(self.pool());
        let volume = record.volume(self.pool())?;
        let snapshot = self.snapshot_settled(record, &volume)?;
        work.push(snapshot.clone());
        Upper::of_snapshot(&self.layers, lower, snapshot, work)
    }

    /// Takes a snapshot of the container's volume that holds everything written to the container.
    fn snapshot_settled(&self, record: &ContainerRecord, volume: &Volume) -> Result<Volume> {
        let name = self.mounts.work_name()?;
        let frozen = match self.mounted_at(record)? {
            Some(root) => {
                let path = self.file_system_of(record, root)?;
                let at = FileSystem::at(&path).map_err(Error::io("open", &path))?;
                let note = self.mounts.frozen_note(&record.id);
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
    pub(super) fn image_top(&self, record: &ContainerRecord) -> Result<Volume> {
        let image = self.image_of(record)?;
        let top = image.layers.last();
        let top = top.ok_or_else(|| Error::EmptyImage(record.image_name.as_str().into()))?;
        self.images.layer(top.chain_id)
    }

    pub(crate) fn image_of(&self, record: &ContainerRecord) -> Result<ImageRecord> {
        let image = record::image(self.pool(), record.image)?;
        image.ok_or_else(|| Error::not_found(Kind::Image, &record.image.to_string()))
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
