//! Holds: tags that keep a volume from being removed, kept as records of the catalogue.
//!
//! # Invariants
//! - A hold belongs to an existing volume: a transaction that puts one on a missing volume, or
//!   removes a volume that has one, is refused. Both are checked where all changes of the forest
//!   are, so no other change comes between.

use super::forest::Forest;
use super::handle::{Pool, Volume};
use super::info::RecordKind;
use super::transaction::Transaction;
use cowshed_format::base::{Name, VolumeId};
use cowshed_format::operation::Operation;

impl Transaction {
    /// Puts a hold on a volume: until `release`, its removal is refused with `Held`. A second hold
    /// with the same tag changes nothing.
    pub fn hold(&mut self, volume: VolumeId, tag: &Name) -> &mut Self {
        self.put_record(RecordKind::HOLD, &key(volume, tag.as_str()), &[])
    }

    /// Removes a hold, if it exists.
    pub fn release(&mut self, volume: VolumeId, tag: &Name) -> &mut Self {
        self.remove_record(RecordKind::HOLD, &key(volume, tag.as_str()))
    }
}

impl Pool {
    /// Returns the tags of those who hold a volume, in order.
    #[must_use]
    pub fn holds(&self, volume: &Volume) -> Vec<Name> {
        holds(&self.shared.forest.read(), volume.id())
    }
}

/// Returns the tags of those who hold a volume, in order.
pub(super) fn holds(forest: &Forest, volume: VolumeId) -> Vec<Name> {
    let start = key(volume, "");
    let keys = forest.keys_from(RecordKind::HOLD.0, &start);
    keys.filter_map(|key| {
        let tag = std::str::from_utf8(key.strip_prefix(&*start)?).ok()?;
        Name::new(tag).ok()
    })
    .collect()
}

/// Returns the volume that an operation puts a hold on.
pub(super) fn held_by(operation: &Operation) -> Option<VolumeId> {
    match operation {
        Operation::PutRecord { kind, key, .. } if *kind == RecordKind::HOLD.0 => {
            let id = key.split(|byte| *byte == b'/').next()?;
            std::str::from_utf8(id).ok()?.parse().ok().map(VolumeId)
        }
        _ => None,
    }
}

/// Returns the key of a hold: the volume's id in decimal, a slash, and the tag.
fn key(volume: VolumeId, tag: &str) -> Vec<u8> {
    format!("{}/{tag}", volume.0).into_bytes()
}
