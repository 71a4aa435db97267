//! The forest: which volumes exist, their names and relations, and the records of the crates above.
//! In memory it is an index of the catalogue.

use super::volume::VolumeCore;
use cowshed_format::base::{Name, VolumeId};
use cowshed_format::catalogue::{RecordEntry, VolumeEntry};
use cowshed_format::operation::Operation;
use cowshed_format::pointer::Pointer;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Volumes, names and records.
#[derive(Default)]
pub(super) struct Forest {
    pub(super) volumes: HashMap<VolumeId, VolumeNode>,
    pub(super) names: BTreeMap<Name, VolumeId>,
    /// Removed volumes that wait to be reclaimed.
    pub(super) removed: BTreeSet<VolumeId>,
    records: BTreeMap<(u16, Arc<[u8]>), Kept>,
    next_record: u64,
}

/// A volume and its place in the forest.
pub(super) struct VolumeNode {
    pub(super) core: Arc<VolumeCore>,
    pub(super) name: Option<Name>,
    pub(super) parent: Option<VolumeId>,
    pub(super) children: BTreeSet<VolumeId>,
    pub(super) created_ns: u64,
    pub(super) labels: BTreeMap<String, String>,
}

/// A record's key and value.
pub type KeyAndValue = (Arc<[u8]>, Arc<[u8]>);

struct Kept {
    number: u64,
    value: Arc<[u8]>,
}

impl VolumeNode {
    /// Returns the volume's catalogue entry, with `root` as its map's root.
    pub(super) fn entry(&self, root: Pointer, height: u8, cut: &Counts) -> VolumeEntry {
        VolumeEntry {
            id: self.core.id,
            name: self.name.clone(),
            parent: self.parent,
            frozen: self.core.frozen.load(Ordering::Relaxed),
            pinned: self.core.pinned,
            branch: cut.branch,
            size_bytes: cut.size_bytes,
            height,
            root,
            own_blocks: cut.own_blocks,
            mapped_blocks: cut.mapped_blocks,
            reclaimed: cut.settled,
            created_ns: self.created_ns,
            labels: self.labels.clone(),
        }
    }
}

/// Number of blocks that removed volumes own.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemovedBlocks {
    /// Owned by volumes that no named one descends from: they are about to be freed.
    pub(super) unneeded: u64,
    /// Owned by volumes that named ones still descend from.
    pub(super) shared: u64,
}

/// A volume's numbers at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) branch: cowshed_format::base::Generation,
    pub(super) size_bytes: u64,
    pub(super) own_blocks: u64,
    pub(super) mapped_blocks: u64,
    pub(super) settled: u64,
}

impl Forest {
    /// Returns the volume of this name.
    pub(super) fn by_name(&self, name: &str) -> Option<&VolumeNode> {
        self.volumes.get(self.names.get(name)?)
    }

    /// Inserts a volume, and makes it its parent's child.
    pub(super) fn insert(&mut self, volume_node: VolumeNode) {
        let id = volume_node.core.id;
        if let Some(name) = &volume_node.name {
            self.names.insert(name.clone(), id);
        } else {
            self.removed.insert(id);
        }
        if let Some(parent) = volume_node
            .parent
            .and_then(|parent| self.volumes.get_mut(&parent))
        {
            parent.children.insert(id);
        }
        self.volumes.insert(id, volume_node);
    }

    /// Makes `id` a child of `parent`, instead of its present parent.
    pub(super) fn adopt(&mut self, id: VolumeId, parent: Option<VolumeId>) {
        let Some(child) = self.volumes.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(&mut child.parent, parent);
        if let Some(old) = old.and_then(|old| self.volumes.get_mut(&old)) {
            old.children.remove(&id);
        }
        if let Some(parent) = parent.and_then(|parent| self.volumes.get_mut(&parent)) {
            parent.children.insert(id);
        }
    }

    /// Returns true if `ancestor` is above `id`.
    pub(super) fn is_ancestor(&self, ancestor: VolumeId, id: VolumeId) -> bool {
        let mut above = self.volumes.get(&id).and_then(|volume| volume.parent);
        while let Some(parent) = above {
            if parent == ancestor {
                return true;
            }
            above = self.volumes.get(&parent).and_then(|volume| volume.parent);
        }
        false
    }

    /// Returns true for a rollback of a volume whose ancestors are not all there, to one that may be
    /// among them.
    pub(super) fn may_roll_back(&self, change: &Operation) -> bool {
        let Operation::Rollback {
            volume,
            snapshot,
            discarded,
        } = change
        else {
            return false;
        };
        let mut above = self.volumes.get(volume).and_then(|it| it.parent);
        while let Some(parent) = above.and_then(|id| self.volumes.get(&id)) {
            above = parent.parent;
        }
        above.is_some()
            && self.volumes.contains_key(snapshot)
            && !self.volumes.contains_key(discarded)
    }

    /// Returns the removed volumes that no named one descends from, directly or through others.
    pub(super) fn unneeded(&self) -> Vec<VolumeId> {
        let mut found = Vec::new();
        // From the leaves up: the number of a removed volume's children that are unneeded.
        let mut unneeded: HashMap<VolumeId, usize> = HashMap::new();
        let is_leaf = |id: &&VolumeId| {
            let volume = &self.volumes[*id];
            volume.children.is_empty() && !volume.core.pinned
        };
        let mut next: Vec<VolumeId> = self.removed.iter().filter(is_leaf).copied().collect();
        while let Some(id) = next.pop() {
            found.push(id);
            let parent = self.volumes[&id].parent;
            let Some(parent) = parent.filter(|id| self.removed.contains(id)) else {
                continue;
            };
            let count = unneeded.entry(parent).or_default();
            *count += 1;
            let above = &self.volumes[&parent];
            if *count == above.children.len() && !above.core.pinned {
                next.push(parent);
            }
        }
        found
    }

    /// Returns the number of blocks that removed volumes own.
    pub(super) fn removed_blocks(&self) -> RemovedBlocks {
        let own = |id: &VolumeId| self.volumes[id].core.own_blocks();
        let all = self.removed.iter().map(own).sum::<u64>();
        let unneeded = self.unneeded().iter().map(own).sum::<u64>();
        // A concurrent reclaim may change the counts.
        let shared = all.saturating_sub(unneeded);
        RemovedBlocks { unneeded, shared }
    }

    /// Returns true if the settling of its parent or of one of its children has begun and not
    /// ended. The settled part of that volume belongs to that volume's child, and its own map no
    /// longer describes it: nothing of its neighbours is freed before the settling ends.
    pub(super) fn is_beside_begun(&self, id: VolumeId) -> bool {
        let begun = |id: &VolumeId| {
            let Some(volume) = self.volumes.get(id) else {
                return false;
            };
            let core = &volume.core;
            core.removed.load(Ordering::Acquire) && core.settled.load(Ordering::Acquire) > 0
        };
        let volume = &self.volumes[&id];
        volume.parent.as_ref().is_some_and(begun) || volume.children.iter().any(begun)
    }

    /// Returns the value of a record.
    pub(super) fn record(&self, kind: u16, key: &[u8]) -> Option<Arc<[u8]>> {
        self.records
            .get(&(kind, key.into()))
            .map(|kept| Arc::clone(&kept.value))
    }

    /// Returns all records of a kind, by key.
    pub(super) fn records(&self, kind: u16) -> Vec<KeyAndValue> {
        let from = (kind, Arc::from([].as_slice()));
        self.records
            .range(from..)
            .take_while(|((of, _), _)| *of == kind)
            .map(|((_, key), kept)| (Arc::clone(key), Arc::clone(&kept.value)))
            .collect()
    }

    /// Returns the keys of the records of a kind that start with `start`, in order.
    pub(super) fn keys_from(&self, kind: u16, start: &[u8]) -> impl Iterator<Item = &[u8]> {
        let from = (kind, Arc::from(start));
        self.records
            .range(from..)
            .map(|((of, key), _)| (*of, &**key))
            .take_while(move |(of, key)| *of == kind && key.starts_with(start))
            .map(|(_, key)| key)
    }

    /// Stores a record; returns its number and entry.
    pub(super) fn put_record(&mut self, kind: u16, key: &[u8], value: &[u8]) -> (u64, Vec<u8>) {
        let next = &mut self.next_record;
        let kept = self.records.entry((kind, key.into())).or_insert_with(|| {
            *next += 1;
            Kept {
                number: *next,
                value: [].into(),
            }
        });
        kept.value = value.into();
        (kept.number, RecordEntry::encode(kind, key, value))
    }

    /// Removes a record; returns its number, if there was one.
    pub(super) fn remove_record(&mut self, kind: u16, key: &[u8]) -> Option<u64> {
        self.records
            .remove(&(kind, key.into()))
            .map(|kept| kept.number)
    }

    /// Gives no new record a number that one with a damaged entry may have: its entry, or a part of
    /// it, may still be in the catalogue.
    pub(super) fn skip_records(&mut self) {
        self.next_record = self.next_record.saturating_add(1 << 32);
    }

    /// Adds a record from the catalogue; returns `false` if its key exists already.
    pub(super) fn load_record(&mut self, number: u64, entry: RecordEntry) -> bool {
        self.next_record = self.next_record.max(number);
        let kept = Kept {
            number,
            value: entry.value.into(),
        };
        self.records
            .insert((entry.kind, entry.key.into()), kept)
            .is_none()
    }
}
