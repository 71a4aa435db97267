//! Two frozen volumes, one of which began as a clone of the other, and the changes between them.
//!
//! They are compared by the blocks that differ, or, if that is impossible, as two mounted trees
//! (`cowshed-ext4diff` does both). If a journal must still be replayed or deleted files released, a
//! clone of the later volume is used.

use super::Layers;
use crate::error::Result;
use crate::mounts::filesystem::Mode;
use crate::mounts::{WorkVolumes, ext4};
use cowshed_engine::Volume;
use cowshed_ext4diff::{Fault, TreeChanges, compare_trees};
use std::sync::atomic::Ordering;

/// A file system at one instant, together with the one that it came from.
pub(crate) struct Instant<'l> {
    pub layers: &'l Layers,
    /// The side with the file system that it came from.
    pub base: Volume,
    /// The side with the changes; frozen.
    pub volume: Volume,
    /// The guard that removes that volume, and the snapshot that it may be a clone of.
    pub work: WorkVolumes<'l>,
}

impl Instant<'_> {
    /// Returns the changes.
    pub(crate) fn changes(&mut self) -> Result<TreeChanges> {
        let layers = self.layers;
        if !layers.by_trees.load(Ordering::Relaxed) {
            if !ext4::is_settled(&self.volume)? {
                self.settle()?;
            }
            let pool = layers.mounts.pool();
            match ext4::changes(pool, &self.base, &self.volume, &layers.indexes) {
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
    pub(crate) fn changes_by_trees(&mut self) -> Result<TreeChanges> {
        self.settle()?;
        let mounts = &self.layers.mounts;
        let base = mounts.view(&self.base)?;
        let mount = mounts.mount_for_work(&self.volume, Mode::Frozen)?;
        Ok(compare_trees(base.path(), mount.path())?)
    }

    /// Returns both sides.
    #[cfg(test)]
    pub(crate) const fn volumes(&self) -> (&Volume, &Volume) {
        (&self.base, &self.volume)
    }

    /// Makes the side with the changes a cleanly unmounted file system, if it is not one yet.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if ext4::superblock(&self.volume)?.is_some_and(|superblock| superblock.is_clean()) {
            return Ok(());
        }
        let mounts = &self.layers.mounts;
        let copy = mounts.settled_clone(&self.volume, &mut self.work)?;
        self.volume = copy;
        Ok(())
    }
}
