//! Layers between volumes: finding what a volume changed, writing it as a layer, and unpacking a
//! layer into a volume.
//!
//! This is above the mounts and below images, containers and roots, which all read or write layers.
//! It keeps no record, and does not know whose volumes these are. That is why roots, which know no
//! images, can use it.
//!
//! - `instant`: the changes between two frozen volumes.
//! - `upper`: the changes of an overlay root, and the volume made of them.
//! - `write`: the layer with these changes.
//! - `room`: free space in the file system that a layer is unpacked into.

mod instant;
mod room;
mod upper;
mod write;

pub(crate) use instant::Instant;
pub use room::Sizing;
pub(crate) use room::{Grown, Holder, LayerRoom, Mounted};
pub(crate) use upper::{Committed, Upper};
pub(crate) use write::write_layer;

use crate::mounts::Mounts;
use cowshed_ext4diff::Indexes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The way in which the changes of a container or root are found. Both ways give the same result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comparison {
    /// Compares only the blocks that differ, in time that grows with the change; falls back to
    /// trees if that is impossible.
    #[default]
    Blocks,
    /// Mounts both trees and compares every object in them.
    Trees,
}

/// The comparison of volumes, with cached data about those that never change; thread safe.
pub struct Layers {
    mounts: Arc<Mounts>,
    indexes: Indexes,
    by_trees: AtomicBool,
}

impl Layers {
    pub(crate) fn new(mounts: &Arc<Mounts>) -> Self {
        Self {
            mounts: Arc::clone(mounts),
            indexes: Indexes::default(),
            by_trees: AtomicBool::new(false),
        }
    }

    /// Sets the way to compare volumes from now on.
    pub fn set_comparison(&self, comparison: Comparison) {
        let by_trees = comparison == Comparison::Trees;
        self.by_trees.store(by_trees, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) const fn indexes(&self) -> &Indexes {
        &self.indexes
    }
}
