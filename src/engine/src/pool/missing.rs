//! What is missing since blocks of the catalogue were damaged in all their copies.
//!
//! The entries of volumes and records that lay there are lost. The rest of the pool is used as
//! ever, with two exceptions:
//!
//! - Nothing is reclaimed: a volume that is missing may stand between a removed volume and one
//!   that has its blocks.
//! - A replay leaves out the changes of missing volumes.
//!
//! What missing volumes own stays in use until an offline repair forgets them (FORMAT.md, section
//! 11). A child of a missing volume is kept as it is: what it has from its parent is an ancestor's.

use super::catalogue::Loss;
use super::forest::Forest;
use cowshed_format::base::VolumeId;
use cowshed_format::base::sync::Mutex;
use cowshed_format::catalogue::EntryId;
use std::collections::BTreeSet;

/// The missing part of a pool's catalogue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Number of damaged blocks and nodes of the catalogue.
    pub catalogue_blocks: u64,
    /// Number of volumes whose entries are lost, removed ones included.
    pub volumes: u64,
    /// The ids of those that something still refers to.
    pub volume_ids: Vec<VolumeId>,
}

/// The missing part of the catalogue of an open pool.
#[derive(Default)]
pub(super) struct MissingEntries {
    blocks: u64,
    /// Number of volumes that the superblock counts and the catalogue does not hold.
    volumes: u64,
    ids: Mutex<BTreeSet<VolumeId>>,
}

impl MissingEntries {
    /// Returns what is missing from `forest`, which should have `volume_count` volumes.
    pub(super) fn new(loss: &Loss, forest: &Forest, volume_count: u64) -> Self {
        if loss.blocks == 0 {
            return Self::default();
        }
        let parents = forest.volumes.values().filter_map(|volume| volume.parent);
        let mut ids: BTreeSet<VolumeId> = parents
            .filter(|parent| !forest.volumes.contains_key(parent))
            .collect();
        ids.extend(loss.entries.iter().filter_map(|entry| match entry {
            EntryId::Volume(id) => Some(VolumeId(*id)),
            EntryId::Record(_) => None,
        }));
        let missing = Self {
            blocks: loss.blocks,
            volumes: volume_count.saturating_sub(forest.volumes.len() as u64),
            ids: Mutex::new(ids),
        };
        let Missing {
            catalogue_blocks,
            volumes,
            ..
        } = missing.report();
        tracing::error!(
            catalogue_blocks,
            volumes,
            "the catalogue is damaged: volumes and records are missing, and no space is reclaimed \
             until a repair forgets them"
        );
        missing
    }

    /// Returns true if a part of the catalogue is missing.
    pub(super) const fn is_some(&self) -> bool {
        self.blocks > 0
    }

    /// Returns the number of volumes to count in the superblock beside those that are there.
    pub(super) const fn uncounted(&self) -> u64 {
        self.volumes
    }

    /// Notes that the log refers to a volume that is not there.
    pub(super) fn note(&self, id: VolumeId) {
        self.ids.lock().insert(id);
    }

    pub(super) fn report(&self) -> Missing {
        let volume_ids: Vec<VolumeId> = self.ids.lock().iter().copied().collect();
        Missing {
            catalogue_blocks: self.blocks,
            volumes: self.volumes.max(volume_ids.len() as u64),
            volume_ids,
        }
    }
}
