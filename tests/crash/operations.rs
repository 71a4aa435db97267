//! The operations of a run, chosen at random.

use crate::compare::RECORD_KINDS;
use crate::oracle::{BLOCK, Refusal};
use crate::workload::{Run, Step, steps_of_discard, steps_of_write};
use cowshed_format::base::{Error, Name, Result, VolumeId};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;

/// The maximum number of named volumes of a run.
const VOLUMES_MAX: usize = 8;
/// The approximate maximum number of blocks of a volume.
const MAPPED_BLOCKS_MAX: u64 = 56;
/// Number of blocks in the longest write.
const WRITE_BLOCKS_MAX: u64 = 12;
/// A size for each height of a map, and some that end inside a block.
const SIZES: [u64; 7] = [
    BLOCK,
    7 * BLOCK + 100,
    40 * BLOCK,
    200 * BLOCK,
    300 * BLOCK + 4000,
    (256 << 20) + 8 * BLOCK,
    300 << 30,
];

impl Run {
    /// Does one random operation.
    pub(crate) fn step(&mut self) {
        let named = self.oracle.all_named();
        let Some(id) = named.choose(&mut self.rng).copied() else {
            return self.create();
        };
        if self.is_crowded() {
            self.make_room(id);
        }
        let named = self.oracle.all_named();
        let Some(id) = named.choose(&mut self.rng).copied() else {
            return self.create();
        };
        match self.rng.random_range(0..1000) {
            0..15 => self.write_synchronously(id),
            15..430 => self.write(id),
            430..580 => self.flush(),
            580..630 => self.discard(id),
            630..670 => self.snapshot(id),
            670..700 => self.clone_volume(id),
            700..730 => self.remove(id),
            730..740 => self.freeze(id),
            740..760 => self.rollback(id),
            760..780 => self.rename(id),
            780..800 => self.resize(id),
            800..815 => self.label(id),
            815..885 => self.put_records(),
            885..905 => self.transaction(id),
            905..925 => self.create(),
            925..945 => self.checkpoint(),
            945..960 => self.reclaim(),
            960..968 => self.trim(),
            968..971 => self.grow(),
            971..986 => self.open_again(),
            _ => self.compare(),
        }
    }

    fn make_room(&mut self, id: u64) {
        match self.rng.random_range(0..6) {
            0 | 1 => self.remove(id),
            2 => self.reclaim(),
            3 => self.checkpoint(),
            4 => self.discard(id),
            _ => {}
        }
    }

    fn fresh_name(&mut self) -> String {
        self.names += 1;
        let name = format!("v{}", self.names % 13);
        match self.oracle.check_free(&name) {
            Ok(()) => name,
            Err(_) => format!("layer/{:x}", self.names),
        }
    }

    fn is_writable(&self, id: u64) -> bool {
        self.oracle.check_writable(id).is_ok()
    }

    fn has_room(&self, more: usize) -> bool {
        self.oracle.all_named().len() + more <= VOLUMES_MAX
    }

    fn create(&mut self) {
        if !self.has_room(1) {
            return;
        }
        let name = self.fresh_name();
        let size = *SIZES.choose(&mut self.rng).expect("there are sizes");
        self.begin(format!("create {name} of {size}"));
        let Some(volume) = unless_full(self.pool().create_volume(&as_name(&name), size)) else {
            return self.returned(0);
        };
        let id = volume.id().0;
        self.oracle.create(id, &name, size);
        self.note_created(id);
        self.acknowledge(0);
    }

    /// Returns a range in a volume: of whole blocks or not; near its start, at the second leaf, or
    /// at its end.
    fn pick_range(&mut self, id: u64, blocks_max: u64) -> (u64, u64) {
        let size = self.oracle.volumes[&id].size_bytes;
        let block = self.rng.random_range(0..32);
        let mut offset = match self.rng.random_range(0..10) {
            0..6 => block * BLOCK,
            6 | 7 => (246 + block) * BLOCK,
            8 => ((1 << 16) - 6 + block % 12) * BLOCK,
            _ => size - (block * BLOCK).min(size),
        };
        let mut len = self.rng.random_range(1..=blocks_max) * BLOCK;
        if self.rng.random_ratio(1, 3) {
            offset += self.rng.random_range(0..BLOCK);
            len = self.rng.random_range(1..=len);
        }
        offset = offset.min(size - 1);
        (offset, len.min(size - offset))
    }

    /// Makes each of a few writes durable at once.
    fn write_synchronously(&mut self, id: u64) {
        for _ in 0..self.rng.random_range(4..12) {
            self.write(id);
            self.flush_through(Some(id));
        }
    }

    fn write(&mut self, id: u64) {
        if !self.is_writable(id) {
            return;
        }
        let blocks = if self.rng.random_ratio(1, 6) {
            WRITE_BLOCKS_MAX
        } else {
            3
        };
        let (offset, len) = self.pick_range(id, blocks);
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        match self.rng.random_range(0..12) {
            0 => {}
            1 => self
                .rng
                .fill(&mut bytes[usize::try_from(len / 2).expect("small")..]),
            // Repeating contents: a torn block may look like a complete one.
            2 => bytes.fill(self.rng.random_range(1..4)),
            _ => self.rng.fill(&mut bytes[..]),
        }
        if self.blocks_mapped(id) > MAPPED_BLOCKS_MAX {
            return self.discard(id);
        }
        self.begin(format!("write {offset}+{len} of {id}"));
        let volume = self.handle(id);
        let steps = steps_of_write(offset, &bytes);
        self.stepwise(id, &steps, |_| volume.write_at(&bytes, offset));
    }

    fn discard(&mut self, id: u64) {
        if !self.is_writable(id) {
            return;
        }
        let blocks = if self.rng.random_ratio(1, 3) {
            1 << 18
        } else {
            10
        };
        let (offset, len) = self.pick_range(id, blocks);
        let size = self.oracle.volumes[&id].size_bytes;
        self.begin(format!("discard {offset}+{len} of {id}"));
        let volume = self.handle(id);
        let steps = steps_of_discard(offset, len, size);
        self.stepwise(id, &steps, |_| volume.discard(offset, len));
    }

    fn resize(&mut self, id: u64) {
        if !self.is_writable(id) {
            return;
        }
        let size = *SIZES.choose(&mut self.rng).expect("there are sizes");
        let old = self.oracle.volumes[&id].size_bytes;
        self.begin(format!("resize {id} from {old} to {size}"));
        let mut steps = if size < old {
            steps_of_discard(size, old - size, old)
        } else {
            Vec::new()
        };
        steps.push(Step::Resize(size));
        let volume = self.handle(id);
        self.stepwise(id, &steps, |pool| pool.resize(&volume, size));
    }

    fn snapshot(&mut self, id: u64) {
        if !self.is_writable(id) || !self.has_room(1) {
            return;
        }
        let name = self.fresh_name();
        self.begin(format!("snapshot {id} as {name}"));
        let found = self.pool().snapshot(&self.handle(id), &as_name(&name));
        let Some(snapshot) = unless_full(found) else {
            return self.returned(0);
        };
        let snapshot = snapshot.id().0;
        self.oracle.snapshot(id, snapshot, &name);
        self.note_created(snapshot);
        self.acknowledge(1);
    }

    fn clone_volume(&mut self, id: u64) {
        if self.is_writable(id) || !self.has_room(1) {
            return;
        }
        let name = self.fresh_name();
        self.begin(format!("clone {id} as {name}"));
        let found = self.pool().clone_volume(&self.handle(id), &as_name(&name));
        let Some(clone) = unless_full(found) else {
            return self.returned(0);
        };
        let clone = clone.id().0;
        let done = self.oracle.clone_volume(id, clone, &name);
        done.expect("it is frozen");
        self.note_created(clone);
        self.acknowledge(1);
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.begin(format!("remove {id}"));
        let found = self.pool().remove(&self.handle(id));
        if unless_full(found).is_none() {
            return self.returned(0);
        }
        self.oracle.remove(id);
        self.acknowledge(0);
    }

    fn freeze(&mut self, id: u64) {
        self.begin(format!("freeze {id}"));
        if unless_full(self.pool().freeze(&self.handle(id))).is_none() {
            return self.returned(0);
        }
        self.oracle.freeze(id);
        self.acknowledge(0);
    }

    fn rollback(&mut self, id: u64) {
        let mut lineage = Vec::new();
        let mut at = self.oracle.volumes[&id].parent;
        while let Some(ancestor) = at {
            let volume = &self.oracle.volumes[&ancestor];
            lineage.extend(volume.name.is_some().then_some(ancestor));
            at = volume.parent;
        }
        let Some(snapshot) = lineage.choose(&mut self.rng).copied() else {
            return;
        };
        if self.oracle.check_rollback(id, snapshot).is_err() {
            return;
        }
        self.begin(format!("roll {id} back to {snapshot}"));
        let (volume, of) = (self.handle(id), self.handle(snapshot));
        if unless_full(self.pool().rollback(&volume, &of)).is_none() {
            return self.returned(0);
        }
        self.oracle.rollback(id, snapshot);
        self.acknowledge(1);
    }

    fn rename(&mut self, id: u64) {
        let name = self.fresh_name();
        self.begin(format!("rename {id} to {name}"));
        let found = self.pool().rename(&self.handle(id), &as_name(&name));
        if unless_full(found).is_none() {
            return self.returned(0);
        }
        self.oracle.rename(id, &name);
        self.acknowledge(0);
    }

    fn label(&mut self, id: u64) {
        let count = self.rng.random_range(0..4);
        let labels: BTreeMap<String, String> = (0..count)
            .map(|key| (format!("key/{key}"), self.rng.random::<u64>().to_string()))
            .collect();
        self.begin(format!("label {id} with {count}"));
        let found = self.pool().set_labels(&self.handle(id), labels.clone());
        if unless_full(found).is_none() {
            return self.returned(0);
        }
        self.oracle.set_labels(id, labels);
        self.acknowledge(0);
    }

    /// Puts several records in one transaction. Long ones fill the log.
    fn put_records(&mut self) {
        let pool = self.pool();
        let mut transaction = pool.transaction();
        let mut records = self.oracle.records.clone();
        for _ in 0..self.rng.random_range(1..3) {
            let kind = *RECORD_KINDS.choose(&mut self.rng).expect("there are kinds");
            let key = vec![self.rng.random_range(b'a'..b'e')];
            if self.rng.random_ratio(1, 4) {
                transaction.remove_record(kind, &key);
                records.remove(&(kind.0, key));
            } else {
                let len = if self.rng.random_ratio(1, 2) {
                    3900
                } else {
                    100
                };
                let mut value = vec![0; self.rng.random_range(0..len)];
                self.rng.fill(&mut value[..]);
                transaction.put_record(kind, &key, &value);
                records.insert((kind.0, key), value);
            }
        }
        self.begin("put records".into());
        if unless_full(transaction.commit()).is_none() {
            return self.returned(0);
        }
        self.oracle.records = records;
        self.acknowledge(0);
    }

    /// Commits changes of several volumes and a record as one transaction.
    fn transaction(&mut self, id: u64) {
        if !self.has_room(2) {
            return;
        }
        let (name, second) = (self.fresh_name(), self.fresh_name());
        let frozen = !self.is_writable(id);
        self.begin(format!("transaction on {id}: {name} and {second}"));
        let pool = self.pool();
        let mut transaction = pool.transaction();
        let key = b"of a transaction".to_vec();
        transaction.put_record(RECORD_KINDS[0], &key, name.as_bytes());
        let made = transaction.create_volume(&as_name(&name), 3 * BLOCK).0;
        let copy = if frozen {
            transaction.clone_volume(VolumeId(id), &as_name(&second)).0
        } else {
            transaction.snapshot(VolumeId(id), &as_name(&second)).0
        };
        transaction.freeze(VolumeId(made));
        if unless_full(transaction.commit()).is_none() {
            return self.returned(0);
        }
        let records = &mut self.oracle.records;
        records.insert((RECORD_KINDS[0].0, key), name.clone().into_bytes());
        self.oracle.create(made, &name, 3 * BLOCK);
        self.oracle.freeze(made);
        if frozen {
            let done: Result<(), Refusal> = self.oracle.clone_volume(id, copy, &second);
            done.expect("it is frozen");
        } else {
            self.oracle.snapshot(id, copy, &second);
        }
        self.note_created(made);
        self.note_created(copy);
        self.acknowledge(1);
    }
}

fn as_name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

/// Returns the result of a call; `None` when the pool is full.
fn unless_full<T>(found: Result<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(Error::NoSpace) => None,
        Err(error) => panic!("the engine failed: {error} ({error:?})"),
    }
}
