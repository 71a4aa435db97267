//! One run: random operations on a pool and on its model, in step.
//!
//! The run owns the pool and reopens it in every way; for the report of a failure it keeps the last
//! operations and the seed.

use crate::compare;
use crate::oracle::{BLOCK, Oracle};
use crate::storage::{Stop, Storage};
use cowshed_engine::{Pool, RecordKind, Volume};
use cowshed_format::base::VolumeId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;

/// Number of blocks that the catalogue of an emptied pool may still use.
const CATALOGUE_BLOCKS: u64 = 16;
/// Number of operations that the report of a failure shows.
const TRACE_LEN: usize = 40;
pub(crate) struct Run {
    pub(crate) rng: StdRng,
    pub(crate) oracle: Oracle,
    storage: Storage,
    pool: Option<Pool>,
    background: bool,
    seed: u64,
    operations: u64,
    pub(crate) names: u64,
    used_at_start: u64,
    trace: VecDeque<String>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {}, operation {}; the last ones:",
                self.seed, self.operations
            );
            for line in &self.trace {
                eprintln!("  {line}");
            }
            eprintln!("COWSHED_TEST_SEED={} repeats this", self.seed);
        }
    }
}

impl Run {
    pub(crate) fn new(seed: u64, storage: Storage, background: bool) -> Self {
        let pool = storage.open(background);
        let used_at_start = pool.status().expect("status").used_bytes;
        Self {
            rng: StdRng::seed_from_u64(seed),
            oracle: Oracle::default(),
            storage,
            pool: Some(pool),
            background,
            seed,
            operations: 0,
            names: 0,
            used_at_start,
            trace: VecDeque::new(),
        }
    }

    pub(crate) fn pool(&self) -> Pool {
        self.pool.clone().expect("the pool is open")
    }

    pub(crate) fn note(&mut self, text: &str) {
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{} {text}", self.operations));
    }

    /// Does one random operation, and compares what it touched.
    pub(crate) fn step(&mut self) {
        self.operations += 1;
        let named = self.oracle.all_named();
        let Some(id) = named.choose(&mut self.rng).copied() else {
            return self.create();
        };
        match self.rng.random_range(0..1000) {
            0..480 => self.write(id),
            480..560 => self.discard(id),
            560..620 => self.read(id),
            620..660 => self.snapshot(id),
            660..710 => self.clone_volume(id),
            710..770 => self.remove(id),
            770..785 => self.freeze(id),
            785..805 => self.rollback(id),
            805..830 => self.rename(id),
            830..850 => self.resize(id),
            850..870 => self.set_labels(id),
            870..900 => self.put_records(),
            900..920 => self.transaction(id),
            920..940 => self.create(),
            940..950 => self.refused(id),
            950..965 => self.difference(id),
            965..980 => self.all_is_as_it_ought_to_be(),
            980..985 => self.handle(id).flush().expect("flush"),
            985..989 => self.pool().checkpoint().expect("checkpoint"),
            989..993 => self.reclaim(),
            993..994 => drop(self.pool().trim().expect("trim")),
            _ => self.open_again(),
        }
    }

    /// Compares everything, reopens the pool in each way once more, and runs the check.
    pub(crate) fn finish(mut self) {
        self.all_is_as_it_ought_to_be();
        for stop in [Stop::Killed, Stop::Dropped, Stop::Clean] {
            self.stop_and_open(stop);
        }
        self.everything_goes();
    }

    /// Removes everything, and asserts that all of its space is free again.
    fn everything_goes(&mut self) {
        for id in self.oracle.all_named() {
            self.remove_volume(id);
        }
        let mut transaction = self.pool().transaction();
        for (kind, key) in std::mem::take(&mut self.oracle.records).into_keys() {
            transaction.remove_record(RecordKind(kind), &key);
        }
        transaction.commit().expect("remove the records");
        self.stop_and_open(Stop::Clean);
        self.reclaim();
        self.stop_and_open(Stop::Clean);
        let status = self.pool().status().expect("status");
        assert_eq!(status.volumes, 0);
        let most = self.used_at_start + CATALOGUE_BLOCKS * BLOCK;
        assert!(
            status.used_bytes <= most,
            "an empty pool uses more than {most}: {status:?}"
        );
    }

    fn reclaim(&mut self) {
        self.note("reclaim");
        self.pool().reclaim().expect("reclaim");
        self.oracle.unsettled = false;
    }

    pub(crate) fn handle(&self, id: u64) -> Volume {
        let volume = self.pool().volume_by_id(VolumeId(id));
        volume.unwrap_or_else(|error| panic!("volume {id}: {error}"))
    }

    pub(crate) fn name_of(&self, id: u64) -> String {
        self.oracle.volumes[&id]
            .name
            .clone()
            .expect("the driver uses named volumes")
    }

    pub(crate) fn all_is_as_it_ought_to_be(&mut self) {
        if self.rng.random() {
            self.reclaim();
        }
        compare::everything(&self.pool(), &self.oracle);
    }

    pub(crate) fn compare_info(&self, id: u64) {
        compare::info(&self.handle(id).info().expect("info"), id, &self.oracle);
    }

    fn open_again(&mut self) {
        match self.rng.random_range(0..4) {
            0 => self.stop_and_open(Stop::Clean),
            1 => self.stop_and_open(Stop::Dropped),
            2 => self.stop_and_open(Stop::Killed),
            _ => self.lose_power(),
        }
    }

    fn stop_and_open(&mut self, stop: Stop) {
        self.note(&format!("open again after: {stop:?}"));
        let pool = self.pool.take().expect("the pool is open");
        self.storage.stop(pool, stop);
        self.storage.check();
        self.pool = Some(self.storage.open(self.background));
        // What was settled since the last checkpoint is settled again.
        self.oracle.unsettled = true;
        self.all_is_as_it_ought_to_be();
    }

    /// Flushes, runs further operations, and loses those after the flush.
    fn lose_power(&mut self) {
        if self.background || self.storage.flushes().is_none() {
            return;
        }
        self.pool().flush().expect("flush");
        let (flushed, flushes) = (self.oracle.clone(), self.storage.flushes());
        for _ in 0..self.rng.random_range(0..20) {
            self.operations += 1;
            if let Some(id) = self.oracle.all_named().choose(&mut self.rng).copied() {
                match self.rng.random_range(0..8) {
                    0 => self.snapshot(id),
                    1 => self.remove(id),
                    2 => self.put_records(),
                    3 => self.rollback(id),
                    4 => self.discard(id),
                    _ => self.write(id),
                }
            }
        }
        if self.storage.flushes() != flushes {
            return; // A full log made a checkpoint, so more than the flush is durable.
        }
        self.note("lose the power");
        let pool = self.pool.take().expect("the pool is open");
        self.storage.cut_power(pool);
        self.oracle = flushed;
        self.storage.check();
        self.pool = Some(self.storage.open(self.background));
        // What was settled since the last checkpoint is settled again.
        self.oracle.unsettled = true;
        self.all_is_as_it_ought_to_be();
    }
}
