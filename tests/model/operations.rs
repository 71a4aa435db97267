//! The operations of a run: each acts on the pool and on the model and compares both.

use crate::compare;
use crate::oracle::{BLOCK, Refusal};
use crate::run::Run;
use cowshed_format::base::{Error, Name, Result, VolumeId};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;

/// The maximum number of named volumes in a run.
const VOLUMES_MAX: usize = 24;
/// Number of blocks in the longest write.
const WRITE_BLOCKS_MAX: u64 = 48;
/// A size for each height of a map, and sizes one block larger than a height can hold.
const SIZES: [u64; 8] = [
    BLOCK,
    5 * BLOCK,
    256 * BLOCK,
    257 * BLOCK,
    3 << 20,
    300 << 20,
    (64 << 30) + BLOCK,
    1 << 40,
];

impl Run {
    /// Returns a new name, or occasionally one that is taken.
    pub(crate) fn pick_name(&mut self) -> String {
        if self.rng.random_ratio(1, 12)
            && let Some(id) = self.oracle.all_named().choose(&mut self.rng)
        {
            return self.name_of(*id);
        }
        self.names += 1;
        format!("layer/{}:{}", self.names % 7, self.names)
    }

    pub(crate) fn create(&mut self) {
        if self.oracle.all_named().len() >= VOLUMES_MAX {
            return;
        }
        let name = self.pick_name();
        let size = *SIZES.choose(&mut self.rng).expect("there are sizes");
        self.note(&format!("create {name} of {size}"));
        let found = self.pool().create_volume(&as_name(&name), size);
        if let Some(volume) = agree(found, self.oracle.check_free(&name)) {
            self.oracle.create(volume.id().0, &name, size);
            self.compare_info(volume.id().0);
        }
    }

    /// Returns a range inside the volume: near its start, near its end or anywhere; of whole blocks
    /// or not.
    pub(crate) fn pick_range(&mut self, id: u64, blocks_max: u64) -> (u64, u64) {
        let size = self.oracle.volumes[&id].size_bytes;
        let near = 400 * BLOCK;
        let mut offset = match self.rng.random_range(0..10) {
            0..6 => self.rng.random_range(0..size.min(near)),
            6..8 => size - 1 - self.rng.random_range(0..size.min(near)),
            _ => self.rng.random_range(0..size),
        };
        let mut len = self.rng.random_range(1..=blocks_max) * BLOCK;
        if self.rng.random_ratio(2, 3) {
            offset -= offset % BLOCK;
        } else {
            len = self.rng.random_range(1..=len);
        }
        (offset, len.min(size - offset))
    }

    pub(crate) fn write(&mut self, id: u64) {
        let (offset, len) = self.pick_range(id, WRITE_BLOCKS_MAX);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        match self.rng.random_range(0..10) {
            0 => {}
            1 => self
                .rng
                .fill(&mut bytes[usize::try_from(len / 2).unwrap()..]),
            _ => self.rng.fill(&mut bytes[..]),
        }
        self.note(&format!("write {offset}+{len} of {id}"));
        let found = self.handle(id).write_at(&bytes, offset);
        if agree(found, self.oracle.check_writable(id)).is_some() {
            self.oracle.write(id, offset, &bytes);
            self.compare_info(id);
            compare::range(&self.handle(id), &self.oracle.volumes[&id], offset, len);
        }
    }

    pub(crate) fn discard(&mut self, id: u64) {
        let blocks = if self.rng.random_ratio(1, 4) {
            1 << 20
        } else {
            64
        };
        let (offset, len) = self.pick_range(id, blocks);
        self.note(&format!("discard {offset}+{len} of {id}"));
        let found = self.handle(id).discard(offset, len);
        if agree(found, self.oracle.check_writable(id)).is_some() {
            self.oracle.discard(id, offset, len);
            self.compare_info(id);
        }
    }

    pub(crate) fn read(&mut self, id: u64) {
        let (offset, len) = self.pick_range(id, 300);
        self.note(&format!("read {offset}+{len} of {id}"));
        compare::range(&self.handle(id), &self.oracle.volumes[&id], offset, len);
    }

    pub(crate) fn snapshot(&mut self, id: u64) {
        if self.oracle.all_named().len() >= VOLUMES_MAX {
            return;
        }
        let name = self.pick_name();
        self.note(&format!("snapshot {id} as {name}"));
        let wanted = self
            .oracle
            .check_writable(id)
            .and_then(|()| self.oracle.check_free(&name));
        let found = self.pool().snapshot(&self.handle(id), &as_name(&name));
        if let Some(snapshot) = agree(found, wanted) {
            self.oracle.snapshot(id, snapshot.id().0, &name);
            self.compare_info(id);
            self.compare_info(snapshot.id().0);
        }
    }

    pub(crate) fn clone_volume(&mut self, id: u64) {
        if self.oracle.all_named().len() >= VOLUMES_MAX {
            return;
        }
        let name = self.pick_name();
        self.note(&format!("clone {id} as {name}"));
        let frozen = self.oracle.volumes[&id].frozen;
        let frozen = if frozen {
            Ok(())
        } else {
            Err(Refusal::NotFrozen)
        };
        let wanted = frozen.and_then(|()| self.oracle.check_free(&name));
        let found = self.pool().clone_volume(&self.handle(id), &as_name(&name));
        if let Some(clone) = agree(found, wanted) {
            self.oracle
                .clone_volume(id, clone.id().0, &name)
                .expect("it is frozen");
            self.compare_info(clone.id().0);
        }
    }

    pub(crate) fn remove(&mut self, id: u64) {
        let volume = self.handle(id);
        if self.rng.random_ratio(1, 8) {
            self.note(&format!("remove {id}, which is held"));
            let hold = volume.hold().expect("hold");
            let found = self.pool().remove(&volume);
            assert!(matches!(found, Err(Error::Busy(_))), "{found:?}");
            drop(hold);
        }
        self.remove_volume(id);
        let gone = |found: Result<()>| {
            assert!(matches!(found, Err(Error::NoSuchVolume(_))), "{found:?}");
        };
        gone(volume.read_at(&mut [0], 0));
        gone(volume.write_at(&[1], 0));
        gone(volume.discard(0, 1));
        gone(volume.info().map(drop));
        gone(volume.hold().map(drop));
        gone(self.pool().remove(&volume));
        gone(
            self.pool()
                .snapshot(&volume, &as_name("of-nothing"))
                .map(drop),
        );
    }

    pub(crate) fn remove_volume(&mut self, id: u64) {
        self.note(&format!("remove {id}"));
        self.pool().remove(&self.handle(id)).expect("remove");
        self.oracle.remove(id);
    }

    pub(crate) fn freeze(&mut self, id: u64) {
        self.note(&format!("freeze {id}"));
        self.pool().freeze(&self.handle(id)).expect("freeze");
        self.oracle.freeze(id);
        self.compare_info(id);
    }

    pub(crate) fn rollback(&mut self, id: u64) {
        let mut lineage = Vec::new();
        let mut at = self.oracle.volumes[&id].parent;
        while let Some(ancestor) = at {
            let volume = &self.oracle.volumes[&ancestor];
            lineage.extend(volume.name.is_some().then_some(ancestor));
            at = volume.parent;
        }
        if lineage.is_empty() || self.rng.random_ratio(1, 6) {
            lineage = self.oracle.all_named();
        }
        let snapshot = *lineage.choose(&mut self.rng).expect("there is a volume");
        if snapshot == id {
            return;
        }
        self.note(&format!("roll {id} back to {snapshot}"));
        let wanted = self.oracle.check_rollback(id, snapshot);
        let found = self
            .pool()
            .rollback(&self.handle(id), &self.handle(snapshot));
        if agree(found, wanted).is_some() {
            self.oracle.rollback(id, snapshot);
            self.compare_info(id);
        }
    }

    pub(crate) fn rename(&mut self, id: u64) {
        let name = self.pick_name();
        if name == self.name_of(id) {
            return;
        }
        self.note(&format!("rename {id} to {name}"));
        let old = self.name_of(id);
        let found = self.pool().rename(&self.handle(id), &as_name(&name));
        if agree(found, self.oracle.check_free(&name)).is_some() {
            self.oracle.rename(id, &name);
            self.compare_info(id);
            assert!(matches!(self.pool().volume(&old), Err(Error::NotFound(_))));
        }
    }

    pub(crate) fn resize(&mut self, id: u64) {
        let size = *SIZES.choose(&mut self.rng).expect("there are sizes");
        self.note(&format!("resize {id} to {size}"));
        let found = self.pool().resize(&self.handle(id), size);
        if agree(found, self.oracle.check_writable(id)).is_some() {
            self.oracle.resize(id, size);
            self.compare_info(id);
        }
    }

    pub(crate) fn set_labels(&mut self, id: u64) {
        let count = self.rng.random_range(0..4);
        let labels: BTreeMap<String, String> = (0..count)
            .map(|key| (format!("key/{key}"), self.rng.random::<u64>().to_string()))
            .collect();
        self.note(&format!("label {id} with {labels:?}"));
        self.pool()
            .set_labels(&self.handle(id), labels.clone())
            .expect("set labels");
        self.oracle.set_labels(id, labels);
        self.compare_info(id);
    }

    pub(crate) fn put_records(&mut self) {
        let pool = self.pool();
        let mut transaction = pool.transaction();
        for _ in 0..self.rng.random_range(1..4) {
            let kind = *compare::RECORD_KINDS
                .choose(&mut self.rng)
                .expect("there are kinds");
            let key = format!("record {}", self.rng.random_range(0..20)).into_bytes();
            if self.rng.random_ratio(1, 3) {
                self.note(&format!(
                    "remove {kind:?} {}",
                    String::from_utf8_lossy(&key)
                ));
                transaction.remove_record(kind, &key);
                self.oracle.records.remove(&(kind.0, key));
            } else {
                let len = if self.rng.random_ratio(1, 10) {
                    20_000
                } else {
                    200
                };
                let mut value = vec![0; self.rng.random_range(0..len)];
                self.rng.fill(&mut value[..]);
                let key_text = String::from_utf8_lossy(&key).into_owned();
                self.note(&format!("put {kind:?} {key_text}, {} bytes", value.len()));
                transaction.put_record(kind, &key, &value);
                self.oracle.records.insert((kind.0, key), value);
            }
        }
        transaction.commit().expect("commit records");
    }

    /// Applies several changes as one transaction, occasionally with one that makes it fail.
    pub(crate) fn transaction(&mut self, id: u64) {
        if self.oracle.all_named().len() + 2 >= VOLUMES_MAX {
            return;
        }
        let (name, second) = (self.pick_name(), self.pick_name());
        let spoilt = self.rng.random_ratio(1, 3);
        self.note(&format!(
            "transaction on {id}: {name}, {second}, spoilt {spoilt}"
        ));
        let mut wanted = self
            .oracle
            .check_free(&name)
            .and_then(|()| self.oracle.check_free(&second));
        if name == second {
            return;
        }
        let pool = self.pool();
        let mut transaction = pool.transaction();
        let key = b"of a transaction".to_vec();
        transaction.put_record(compare::RECORD_KINDS[0], &key, name.as_bytes());
        let made = transaction.create_volume(&as_name(&name), 3 * BLOCK);
        let copy = if self.oracle.volumes[&id].frozen {
            transaction.clone_volume(VolumeId(id), &as_name(&second))
        } else {
            transaction.snapshot(VolumeId(id), &as_name(&second))
        };
        transaction.freeze(made);
        if spoilt {
            transaction.remove(VolumeId(u64::MAX - 1));
            wanted = wanted.and(Err(Refusal::NotFound));
        }
        if agree(transaction.commit(), wanted).is_none() {
            return self.all_is_as_it_ought_to_be();
        }
        self.oracle
            .records
            .insert((compare::RECORD_KINDS[0].0, key), name.clone().into_bytes());
        self.oracle.create(made.0, &name, 3 * BLOCK);
        self.oracle.freeze(made.0);
        if self.oracle.volumes[&id].frozen {
            self.oracle
                .clone_volume(id, copy.0, &second)
                .expect("it is frozen");
        } else {
            self.oracle.snapshot(id, copy.0, &second);
        }
        for id in [made.0, copy.0, id] {
            self.compare_info(id);
        }
    }

    /// Makes calls that must be refused, each with its reason, and change nothing.
    pub(crate) fn refused(&mut self, id: u64) {
        self.note(&format!("what {id} must refuse"));
        let (pool, volume) = (self.pool(), self.handle(id));
        let size = self.oracle.volumes[&id].size_bytes;
        let outside = |found: Result<()>| {
            assert!(matches!(found, Err(Error::OutOfRange { .. })), "{found:?}");
        };
        outside(volume.read_at(&mut [0; 2], size - 1));
        outside(volume.read_at(&mut [0; 2], u64::MAX - 1));
        if !self.oracle.volumes[&id].frozen {
            outside(volume.write_at(&[1; 2], size - 1));
            outside(volume.discard(size - 1, 2));
            outside(volume.discard(1, u64::MAX));
            for size in [0, u64::MAX] {
                let found = pool.resize(&volume, size);
                assert!(matches!(found, Err(Error::InvalidSize { .. })), "{found:?}");
            }
        }
        assert!(volume.extent_at(size).expect("extent_at").is_none());
        let found = pool.create_volume(&as_name("never-made"), 0);
        assert!(matches!(found, Err(Error::InvalidSize { .. })));
        assert!(matches!(pool.volume("never-made"), Err(Error::NotFound(_))));
        self.compare_info(id);
    }

    pub(crate) fn difference(&mut self, id: u64) {
        let other = *self
            .oracle
            .all_named()
            .choose(&mut self.rng)
            .expect("there is a volume");
        self.note(&format!("diff {id} and {other}"));
        compare::difference(&self.pool(), &self.oracle, id, other);
    }
}

fn as_name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

/// Asserts that the engine and the model both succeeded, or both refused for the same reason.
fn agree<T>(found: Result<T>, wanted: Result<(), Refusal>) -> Option<T> {
    let refusal = match &found {
        Ok(_) => None,
        Err(Error::Exists(_)) => Some(Refusal::Exists),
        Err(Error::Frozen(_)) => Some(Refusal::Frozen),
        Err(Error::NotFrozen(_)) => Some(Refusal::NotFrozen),
        Err(Error::NotAncestor { .. }) => Some(Refusal::NotAncestor),
        Err(Error::NotFound(_) | Error::NoSuchVolume(_)) => Some(Refusal::NotFound),
        Err(error) => panic!("the engine failed: {error} ({error:?})"),
    };
    assert_eq!(
        refusal,
        wanted.err(),
        "the engine answered the left, the model the right"
    );
    found.ok()
}
