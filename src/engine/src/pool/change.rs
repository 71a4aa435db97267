//! Applying operations in memory: the same code for a live change and for its replay.

use super::forest::{Forest, VolumeNode};
use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::VolumeCore;
use crate::map::Root;
use cowshed_format::base::units::blocks_for;
use cowshed_format::base::{Generation, Name, VolumeId};
use cowshed_format::operation::Operation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Shared {
    /// Applies a change of the forest, which a plan has accepted. The caller excludes all writers,
    /// and has promised `promises_for` blocks.
    pub(super) fn apply(&self, forest: &mut Forest, operation: &Operation) {
        match operation {
            Operation::Create {
                volume,
                name,
                size_bytes,
                created_ns,
            } => {
                let root = Root::empty(blocks_for(*size_bytes));
                let core = VolumeCore::new(*volume, root, *size_bytes, Generation(0));
                self.appear(forest, core, Some(name), None, *created_ns);
            }
            Operation::Snapshot {
                volume,
                snapshot,
                name,
                created_ns,
            } => {
                self.apply_snapshot(forest, *volume, *snapshot, name, *created_ns);
            }
            Operation::Clone {
                snapshot,
                volume,
                name,
                created_ns,
            } => {
                let of = Arc::clone(&forest.volumes[snapshot].core);
                let root = (*of.tree.root_to_keep()).clone();
                let core = VolumeCore::new(*volume, root, of.size_bytes(), self.branch());
                core.mapped
                    .store(of.mapped.load(Ordering::Relaxed), Ordering::Relaxed);
                self.appear(forest, core, Some(name), Some(*snapshot), *created_ns);
            }
            Operation::Freeze { volume } => {
                let core = self.touch(forest, *volume);
                core.frozen.store(true, Ordering::Release);
            }
            Operation::Resize { volume, size_bytes } => {
                self.touch(forest, *volume)
                    .size_bytes
                    .store(*size_bytes, Ordering::Release);
            }
            Operation::Rename { volume, name } => {
                self.touch(forest, *volume);
                let volume_node = forest.volumes.get_mut(volume).expect("planned");
                if let Some(old) = volume_node.name.replace(name.clone()) {
                    forest.names.remove(&old);
                }
                forest.names.insert(name.clone(), *volume);
            }
            Operation::Label { volume, labels } => {
                self.touch(forest, *volume);
                forest.volumes.get_mut(volume).expect("planned").labels = labels.clone();
            }
            Operation::Remove { volume } => self.apply_remove(forest, *volume),
            Operation::Rollback {
                volume,
                snapshot,
                discarded,
            } => {
                self.apply_rollback(forest, *volume, *snapshot, *discarded);
            }
            Operation::PutRecord { kind, key, value } => {
                let (number, entry) = forest.put_record(*kind, key, value);
                self.note_record(number, Some(entry));
            }
            Operation::RemoveRecord { kind, key } => match forest.remove_record(*kind, key) {
                Some(number) => self.note_record(number, None),
                None => self.space.void_promise(promises_for(operation)),
            },
            Operation::Write { .. } | Operation::Discard { .. } => {
                unreachable!("changes of a map are not changes of the forest")
            }
        }
    }

    /// Returns the present generation, as a branch, and begins the next one.
    fn branch(&self) -> Generation {
        Generation(self.generation.fetch_add(1, Ordering::AcqRel))
    }

    fn appear(
        &self,
        forest: &mut Forest,
        core: VolumeCore,
        name: Option<&Name>,
        parent: Option<VolumeId>,
        created_ns: u64,
    ) {
        let core = Arc::new(core);
        self.next_volume_id
            .fetch_max(core.id.0 + 1, Ordering::AcqRel);
        self.note_changed(&core);
        forest.insert(VolumeNode {
            core,
            name: name.cloned(),
            parent,
            children: BTreeSet::new(),
            created_ns,
            labels: BTreeMap::new(),
        });
    }

    fn touch(&self, forest: &Forest, id: VolumeId) -> Arc<VolumeCore> {
        let core = &forest.volumes[&id].core;
        self.note_changed(core);
        Arc::clone(core)
    }

    /// Gives a volume's present state to `heir`, a new volume that takes its place in the forest.
    fn bequeath(&self, core: &VolumeCore, heir: &VolumeCore) -> Generation {
        let mut writer = core.writer.lock();
        let mut heirs = heir.writer.lock();
        heirs.branch = writer.branch;
        heirs.inheritance = writer.inheritance.take();
        heir.own
            .store(core.own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        heir.mapped
            .store(core.mapped.load(Ordering::Relaxed), Ordering::Relaxed);
        heir.frozen.store(true, Ordering::Release);
        writer.branch = self.branch();
        writer.branch
    }

    fn apply_snapshot(
        &self,
        forest: &mut Forest,
        volume: VolumeId,
        snapshot: VolumeId,
        name: &Name,
        created_ns: u64,
    ) {
        let core = self.touch(forest, volume);
        let root = (*core.tree.root_to_keep()).clone();
        let mut heir = VolumeCore::new(snapshot, root, core.size_bytes(), Generation(0));
        heir.pinned = core.pinned;
        self.bequeath(&core, &heir);
        let parent = forest.volumes[&volume].parent;
        self.appear(forest, heir, Some(name), parent, created_ns);
        forest.adopt(volume, Some(snapshot));
    }

    fn apply_remove(&self, forest: &mut Forest, volume: VolumeId) {
        let core = self.touch(forest, volume);
        core.removed.store(true, Ordering::Release);
        core.frozen.store(true, Ordering::Release);
        let volume_node = forest.volumes.get_mut(&volume).expect("planned");
        volume_node.labels.clear();
        if let Some(name) = volume_node.name.take() {
            forest.names.remove(&name);
        }
        forest.removed.insert(volume);
    }

    fn apply_rollback(
        &self,
        forest: &mut Forest,
        volume: VolumeId,
        snapshot: VolumeId,
        discarded: VolumeId,
    ) {
        let core = self.touch(forest, volume);
        let of = Arc::clone(&forest.volumes[&snapshot].core);
        let root = (*core.tree.root_to_keep()).clone();
        let mut heir = VolumeCore::new(discarded, root, core.size_bytes(), Generation(0));
        heir.pinned = core.pinned;
        heir.removed.store(true, Ordering::Release);
        self.bequeath(&core, &heir);
        core.tree.set_root((*of.tree.root_to_keep()).clone());
        core.mapped
            .store(of.mapped.load(Ordering::Relaxed), Ordering::Relaxed);
        core.size_bytes.store(of.size_bytes(), Ordering::Release);
        // A reader that sees the new state of the discarded map sees this count, too.
        core.rollbacks.fetch_add(1, Ordering::AcqRel);
        let (parent, created_ns) = (
            forest.volumes[&volume].parent,
            forest.volumes[&volume].created_ns,
        );
        self.appear(forest, heir, None, parent, created_ns);
        forest.adopt(volume, Some(snapshot));
    }

    fn note_record(&self, number: u64, entry: Option<Vec<u8>>) {
        let mut changes = self.changes.lock();
        changes.promised += record_promise(entry.as_ref().map_or(0, Vec::len));
        changes.records.insert(number, entry);
    }
}

fn record_promise(entry_bytes: usize) -> u64 {
    ENTRY_PROMISE + 2 * (entry_bytes / cowshed_format::base::BLOCK_BYTES) as u64
}

/// Returns the number of blocks to promise for an operation before it is applied. Each promise is
/// taken over when a changed volume or record is noted.
pub(super) fn promises_for(operation: &Operation) -> u64 {
    match operation {
        Operation::Snapshot { .. } | Operation::Rollback { .. } => 2 * ENTRY_PROMISE,
        Operation::PutRecord { key, value, .. } => {
            let entry = cowshed_format::catalogue::RecordEntry::encode(0, key, value);
            record_promise(entry.len())
        }
        Operation::Label { .. } => ENTRY_PROMISE,
        _ => ENTRY_PROMISE,
    }
}
