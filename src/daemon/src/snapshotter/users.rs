//! The snapshots that use each volume, for messages about volumes.

use super::record::{self, Kind};
use cowshed_engine::Pool;
use cowshed_format::base::VolumeId;

/// A snapshot and the volume that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotUse {
    /// Its key, or its name if it is committed.
    pub key: String,
    /// `active`, `view` or `committed`.
    pub kind: &'static str,
    /// The snapshot's volume; a view has its parent's.
    pub volume: VolumeId,
    /// True if the volume is removed with the snapshot.
    pub owns_volume: bool,
}

/// Returns all snapshots of the pool; `None` when a record is unreadable.
#[must_use]
pub fn snapshot_uses(pool: &Pool) -> Option<Vec<SnapshotUse>> {
    let records = record::all(pool);
    let records = records.inspect_err(|(key, fault)| {
        tracing::warn!(key, %fault, "the record of a snapshot is unreadable");
    });
    let uses = records.ok()?.into_iter().map(|(key, record)| SnapshotUse {
        key,
        kind: record.kind.as_str(),
        volume: record.volume(),
        owns_volume: record.kind != Kind::View,
    });
    Some(uses.collect())
}
