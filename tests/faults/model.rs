//! The expected state of the pool: plain maps, with every value that a failed call may have left.

use cowshed_engine::{Pool, RecordKind, Volume as Handle, VolumeKind};
use cowshed_format::base::{BLOCK_BYTES, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// The content of a part of a block: the number of the operation that wrote it, or 0 for zeros.
pub(crate) type Tag = u16;

/// Number of bytes in a part: volumes are written and compared in parts.
pub(crate) const PART: u64 = PART_LEN as u64;
const PART_LEN: usize = 1024;
/// Parts in a block.
pub(crate) const PARTS: u64 = BLOCK_BYTES as u64 / PART;

/// Returns the bytes of a part.
pub(crate) fn bytes_of(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(PART_LEN / 2)
}

/// A volume: for each part that may hold anything but zeros, the possible contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) frozen: bool,
    pub(crate) parts: u64,
    pub(crate) held: BTreeMap<u64, BTreeSet<Tag>>,
}

impl Volume {
    fn allowed(&self, part: u64) -> BTreeSet<Tag> {
        self.held.get(&part).cloned().unwrap_or_else(|| [0].into())
    }

    /// The part holds exactly this content.
    pub(crate) fn put(&mut self, part: u64, tag: Tag) {
        self.held.insert(part, [tag].into());
    }

    /// The part may also hold this content.
    pub(crate) fn may_hold(&mut self, part: u64, tag: Tag) {
        let mut allowed = self.allowed(part);
        allowed.insert(tag);
        self.held.insert(part, allowed);
    }
}

/// A whole pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) records: BTreeMap<u8, Tag>,
}

/// The observed contents of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    volumes: BTreeMap<String, (bool, Vec<Tag>)>,
    records: BTreeMap<u8, Tag>,
}

impl Seen {
    /// Reads all of a pool.
    pub(crate) fn of(pool: &Pool) -> Result<Self, String> {
        let mut seen = Self::default();
        for info in pool.volumes() {
            let volume = pool.volume_by_id(VolumeId(info.id.0));
            let volume = volume.map_err(|error| format!("{}: {error}", info.name))?;
            let frozen = info.kind == VolumeKind::Snapshot;
            let tags = read_tags(&volume).map_err(|why| format!("{}: {why}", info.name))?;
            seen.volumes.insert(info.name.to_string(), (frozen, tags));
        }
        for (key, value) in pool.records(RecordKind::IMAGE) {
            let tag = Tag::from_le_bytes([value[0], value[1]]);
            seen.records.insert(key[0], tag);
        }
        Ok(seen)
    }
}

fn read_tags(volume: &Handle) -> Result<Vec<Tag>, String> {
    let len = usize::try_from(volume.size_bytes()).map_err(|error| error.to_string())?;
    let mut bytes = vec![0xee; len];
    volume
        .read_at(&mut bytes, 0)
        .map_err(|error| error.to_string())?;
    let mut tags = Vec::new();
    for (number, part) in bytes.chunks(PART_LEN).enumerate() {
        let tag = Tag::from_le_bytes([part[0], part[1]]);
        if part != &bytes_of(tag)[..part.len()] {
            return Err(format!("part {number} holds what was never written"));
        }
        tags.push(tag);
    }
    Ok(tags)
}

impl Model {
    /// Returns the difference between the pool and this model; `None` if there is none.
    pub(crate) fn difference(&self, seen: &Seen) -> Option<String> {
        let names: Vec<_> = self.volumes.keys().collect();
        let found: Vec<_> = seen.volumes.keys().collect();
        if names != found {
            return Some(format!("the volumes are {found:?} and not {names:?}"));
        }
        if self.records != seen.records {
            let (found, wanted) = (&seen.records, &self.records);
            return Some(format!("the records are {found:?} and not {wanted:?}"));
        }
        for ((name, model), (frozen, tags)) in self.volumes.iter().zip(seen.volumes.values()) {
            if model.frozen != *frozen || model.parts != tags.len() as u64 {
                return Some(format!("{name} has another state or size"));
            }
            for (part, tag) in (0..).zip(tags) {
                let allowed = model.allowed(part);
                if !allowed.contains(tag) {
                    return Some(format!("part {part} of {name} is {tag}, not {allowed:?}"));
                }
            }
        }
        None
    }
}
