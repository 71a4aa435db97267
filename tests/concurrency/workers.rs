//! The threads: the work that each of them repeats until the time is up.

use crate::stamps::BLOCK;
use crate::subject::{FULL_BLOCKS, Frozen, Record, Span, Subject, TAIL};
use cowshed_engine::Pool;
use cowshed_format::base::{Error, Name};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// The maximum numbers of volumes and snapshots.
const VOLUMES_MAX: usize = 10;
const SNAPSHOTS_MAX: usize = 12;
/// The initial, and minimum, number of volumes.
const VOLUMES_MIN: usize = 3;
/// The longest span of a read or write, in lanes.
const SPAN_MAX: usize = 160;

/// The state that the threads work on.
pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) record: Record,
    pub(crate) volumes: RwLock<Vec<Arc<Subject>>>,
    pub(crate) snapshots: RwLock<Vec<Arc<Frozen>>>,
    pub(crate) done: Done,
}

/// Number of times each operation was done, so that a run that did nothing is noticed.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) snapshots: AtomicU64,
    pub(crate) clones: AtomicU64,
    pub(crate) removals: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
    pub(crate) resizes: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl World {
    pub(crate) fn new(pool: Pool) -> Self {
        let world = Self {
            pool,
            record: Record::default(),
            volumes: RwLock::default(),
            snapshots: RwLock::default(),
            done: Done::default(),
        };
        for _ in 0..VOLUMES_MIN {
            let volume = world
                .pool
                .create_volume(&world.name("volume"), FULL_BLOCKS * BLOCK);
            let subject = Subject::new(&world.record, volume.unwrap(), None);
            world.volumes.write().unwrap().push(Arc::new(subject));
        }
        world
    }

    fn name(&self, what: &str) -> Name {
        Name::new(&format!("{what}-{}", self.record.number())).unwrap()
    }

    fn volume(&self, rng: &mut StdRng) -> Arc<Subject> {
        let volumes = self.volumes.read().unwrap();
        Arc::clone(volumes.choose(rng).expect("some are always kept"))
    }

    fn snapshot(&self, rng: &mut StdRng) -> Option<Arc<Frozen>> {
        let snapshots = self.snapshots.read().unwrap();
        snapshots.choose(rng).map(Arc::clone)
    }

    /// Writes whole blocks, parts of blocks, and zeros.
    pub(crate) fn write(&self, rng: &mut StdRng) {
        let volume = self.volume(rng);
        let whole = rng.random_ratio(3, 5);
        let span = span(rng, whole);
        volume.write(&self.record, &span, rng.random_ratio(1, 30));
        if rng.random_ratio(1, 100) {
            volume.volume.flush().unwrap();
            count(&self.done.flushes);
        }
    }

    pub(crate) fn read(&self, rng: &mut StdRng) {
        let span = span(rng, false);
        match self.snapshot(rng) {
            Some(snapshot) if rng.random_ratio(1, 4) => snapshot.read(&span),
            _ => self.volume(rng).read(&self.record, &span),
        }
    }

    /// Takes and removes snapshots, clones and volumes.
    pub(crate) fn branch(&self, rng: &mut StdRng) {
        match rng.random_range(0..10) {
            0..4 => self.take_snapshot(rng),
            4..6 => self.clone_snapshot(rng),
            6..8 => self.remove_snapshot(rng),
            _ => self.remove_volume(rng),
        }
    }

    fn take_snapshot(&self, rng: &mut StdRng) {
        if self.snapshots.read().unwrap().len() >= SNAPSHOTS_MAX {
            return self.remove_snapshot(rng);
        }
        let origin = self.volume(rng);
        let call = self.record.clock.begin();
        let snapshot = match self.pool.snapshot(&origin.volume, &self.name("snapshot")) {
            Err(Error::NoSpace) => return count(&self.record.full),
            snapshot => snapshot.unwrap(),
        };
        let content = origin.exact(&self.record, &snapshot, call.since);
        drop(call);
        let frozen = Frozen {
            volume: snapshot,
            content,
            leaving: Default::default(),
        };
        self.snapshots.write().unwrap().push(Arc::new(frozen));
        count(&self.done.snapshots);
    }

    fn clone_snapshot(&self, rng: &mut StdRng) {
        let Some(origin) = self.snapshot(rng) else {
            return;
        };
        if self.volumes.read().unwrap().len() >= VOLUMES_MAX {
            return self.remove_volume(rng);
        }
        let clone = match self.pool.clone_volume(&origin.volume, &self.name("clone")) {
            Err(Error::NoSpace) => return count(&self.record.full),
            clone => clone.unwrap(),
        };
        let subject = Subject::new(&self.record, clone, Some(&origin.content));
        self.volumes.write().unwrap().push(Arc::new(subject));
        count(&self.done.clones);
    }

    fn remove_snapshot(&self, rng: &mut StdRng) {
        let snapshot = {
            let mut snapshots = self.snapshots.write().unwrap();
            if snapshots.is_empty() {
                return;
            }
            let at = rng.random_range(0..snapshots.len());
            snapshots.swap_remove(at)
        };
        for cluster in 0..Span::CLUSTERS {
            snapshot.read(&Span::new(cluster, 0..Span::LANES));
        }
        snapshot.leaving.store(true, Ordering::SeqCst);
        self.pool.remove(&snapshot.volume).unwrap();
        count(&self.done.removals);
    }

    fn remove_volume(&self, rng: &mut StdRng) {
        let volume = {
            let mut volumes = self.volumes.write().unwrap();
            if volumes.len() <= VOLUMES_MIN {
                return;
            }
            let at = rng.random_range(0..volumes.len());
            volumes.swap_remove(at)
        };
        volume.leaving.store(true, Ordering::SeqCst);
        self.pool.remove(&volume.volume).unwrap();
        count(&self.done.removals);
    }

    /// Discards, resizes and rolls back.
    pub(crate) fn shape(&self, rng: &mut StdRng) {
        let volume = self.volume(rng);
        match rng.random_range(0..20) {
            0..16 => {
                let whole = rng.random_ratio(2, 3);
                volume.discard(&self.record, &span(rng, whole));
                count(&self.done.discards);
            }
            16..18 => {
                let blocks = rng.random_range(TAIL.start..=TAIL.end);
                let resize = || self.pool.resize(&volume.volume, blocks * BLOCK);
                volume.resize(&self.record, blocks, resize);
                count(&self.done.resizes);
            }
            _ => {
                let Some(origin) = self.snapshot(rng) else {
                    return;
                };
                let rollback = || self.pool.rollback(&volume.volume, &origin.volume);
                if volume.rollback(&self.record, &origin, rollback) {
                    count(&self.done.rollbacks);
                }
            }
        }
    }

    /// Checkpoints, flushes, reclaims, trims, and requests the information that users request.
    pub(crate) fn tend(&self, rng: &mut StdRng) {
        match rng.random_range(0..20) {
            0..6 => {
                self.pool.checkpoint().unwrap();
                count(&self.done.checkpoints);
            }
            6..12 => {
                self.pool.flush().unwrap();
                count(&self.done.flushes);
            }
            12..14 => self.pool.reclaim().unwrap(),
            14 => drop(self.pool.trim().unwrap()),
            15 => drop(self.pool.status().unwrap()),
            16 => drop(self.pool.volumes()),
            17 => {
                let (a, b) = (self.volume(rng), self.volume(rng));
                let found = self.pool.diff(&a.volume, &b.volume);
                let gone = |subject: &Subject| subject.leaving.load(Ordering::SeqCst);
                assert!(found.is_ok() || gone(&a) || gone(&b), "diff: {found:?}");
            }
            _ => self.walk_extents(rng),
        }
    }

    fn walk_extents(&self, rng: &mut StdRng) {
        let Some(snapshot) = self.snapshot(rng) else {
            return;
        };
        let mut at = 0;
        loop {
            match snapshot.volume.extent_at(at) {
                Ok(Some(extent)) => at += extent.len_bytes,
                Ok(None) => break,
                Err(_) if snapshot.leaving.load(Ordering::SeqCst) => return,
                Err(error) => panic!("extents of a snapshot: {error}"),
            }
        }
        assert_eq!(at, snapshot.volume.size_bytes());
    }
}

/// Returns a random span: of whole blocks, or of arbitrary lanes.
fn span(rng: &mut StdRng, whole: bool) -> Span {
    let cluster = rng.random_range(0..Span::CLUSTERS);
    let mut from = rng.random_range(0..Span::LANES);
    let len = match rng.random_range(0..4) {
        0 => rng.random_range(1..8),
        1 => 8,
        _ => rng.random_range(1..SPAN_MAX),
    };
    let mut to = (from + len).min(Span::LANES);
    if whole {
        from -= from % 8;
        to = to.next_multiple_of(8);
    }
    Span::new(cluster, from..to)
}
