//! A run: random operations on a pool and on the model, in step, on a recording device.
//!
//! It counts the barriers of every operation: one for a flush with something to make durable, none
//! for a write or a change, and two for each checkpoint that the operation had to make first.

use crate::digest;
use crate::history::{History, Moment, State};
use crate::meddler::Meddler;
use crate::oracle::{BLOCK, Oracle};
use cowshed_engine::{CreateOptions, MetadataCopies, Notes, OpenOptions, Pool, Volume};
use cowshed_format::base::{Error, Generation, Result, VolumeId};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The minimum size of a pool.
const POOL_BYTES: u64 = 2 << 20;
/// So small that the log wraps again and again.
const LOG_BYTES: u64 = 64 << 10;
/// So small that nodes are evicted and read back.
const CACHE_BYTES: u64 = 64 << 10;
/// Pools grow up to a second allocation group, and no further.
pub(crate) const GROW_TO_BYTES: [u64; 4] = [3 << 20, 5 << 20, (128 << 20) + (2 << 20), 200 << 20];

/// Whether the last barrier covered the last store is unknown: the store came in between.
const UNKNOWN: u64 = u64::MAX;

/// The changes of an operation to the model: each step is one record of the log.
pub(crate) enum Step {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Resize(u64),
}

/// The way in which a process that has the pool open ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    Dead,
    DeadInCheckpoint,
}

/// The storage of the pool.
pub(crate) struct Ground {
    /// The recording device.
    pub(crate) device: Arc<MemoryDevice>,
    /// The device given to the pool: the same, or one that misreports.
    pub(crate) seen: Arc<dyn Device>,
    /// Runs events in the middle of operations, if it is the device given to the pool.
    pub(crate) meddler: Option<Arc<Meddler>>,
    /// True if flushes are counted.
    pub(crate) honest: bool,
}

impl Ground {
    pub(crate) fn honest(device: MemoryDevice) -> Self {
        let device = Arc::new(device);
        let meddler = Arc::new(Meddler::new(Arc::clone(&device)));
        Self {
            seen: Arc::clone(&meddler) as Arc<dyn Device>,
            meddler: Some(meddler),
            device,
            honest: true,
        }
    }
}

fn note_in(durable: &Arc<AtomicU64>) -> Notes {
    let durable = Arc::clone(durable);
    Notes {
        durable: Some(Arc::new(move |generation: Generation| {
            durable.store(generation.0, Ordering::Relaxed);
        })),
        ..Notes::default()
    }
}

/// Returns an empty pool, closed; every other seed's keeps two copies of its metadata.
pub(crate) fn empty_pool(seed: u64) -> DeviceImage {
    let (copies, pool_bytes) = if seed.is_multiple_of(2) {
        (MetadataCopies::Two, 2 * POOL_BYTES)
    } else {
        (MetadataCopies::One, POOL_BYTES)
    };
    let device = MemoryDevice::new(pool_bytes);
    let options = CreateOptions {
        log_bytes: Some(LOG_BYTES),
        force: false,
        metadata_copies: Some(copies),
    };
    Pool::create(&device, &options).expect("create the pool");
    device.snapshot_image()
}

/// Opens the pool on `device`, and recovers it.
pub(crate) fn open(device: Arc<dyn Device>) -> Result<Pool> {
    open_or_resume(device, None, Notes::default())
}

/// Opens the pool; `resumes` is what is known from the process that had it last.
fn open_or_resume(
    device: Arc<dyn Device>,
    resumes: Option<Generation>,
    notes: Notes,
) -> Result<Pool> {
    let options = OpenOptions {
        cache_bytes: CACHE_BYTES,
        background: false,
        resumes,
        notes,
        ..OpenOptions::default()
    };
    Pool::open(device, &options)
}

pub(crate) struct Run {
    pub(crate) rng: StdRng,
    pub(crate) oracle: Oracle,
    pub(crate) ground: Ground,
    pool: Option<Pool>,
    states: Vec<State>,
    flushed: Vec<(Moment, usize)>,
    created: BTreeMap<u64, SystemTime>,
    trace: Vec<(Moment, String)>,
    pub(crate) names: u64,
    /// Volumes are removed if less than this share of the pool is free, in percent.
    pub(crate) crowded_percent: u64,
    begun: Moment,
    stores_at_barrier: u64,
    barriers: u64,
    generation: u64,
    /// The superblock that the pool has reported durable.
    durable: Arc<AtomicU64>,
}

impl Run {
    /// Creates a run on the pool that `ground` holds. If the pool is open already, it is in the
    /// state of `oracle`; else it is opened now. Until it is open, a power cut could leave any
    /// state of `before`.
    pub(crate) fn new(
        seed: u64,
        ground: Ground,
        pool: Option<Pool>,
        oracle: Oracle,
        created: BTreeMap<u64, SystemTime>,
        mut states: Vec<State>,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let durable = Arc::new(AtomicU64::new(0));
        let pool = pool.unwrap_or_else(|| {
            let seen = Arc::clone(&ground.seen);
            open_or_resume(seen, None, note_in(&durable)).expect("open the pool")
        });
        let opened = ground.device.moment().expect("the device records");
        for (index, state) in states.iter_mut().enumerate() {
            state.begun = (0, 0);
            state.acknowledged = if index == 0 { (0, 0) } else { opened };
        }
        states.push(State::new(&oracle, opened, opened));
        Self {
            durable,
            crowded_percent: rng.random_range(4..40),
            names: rng.random_range(1 << 20..1 << 40),
            rng,
            oracle,
            pool: Some(pool),
            flushed: vec![((0, 0), 0), (opened, states.len() - 1)],
            states,
            created,
            trace: vec![((0, 0), "open".into())],
            begun: opened,
            stores_at_barrier: ground.device.stores(),
            barriers: 0,
            generation: 0,
            ground,
        }
    }

    pub(crate) fn pool(&self) -> Pool {
        self.pool.clone().expect("the pool is open")
    }

    pub(crate) fn handle(&self, id: u64) -> Volume {
        let volume = self.pool().volume_by_id(VolumeId(id));
        volume.unwrap_or_else(|error| panic!("volume {id}: {error}"))
    }

    pub(crate) fn moment(&self) -> Moment {
        self.ground.device.moment().expect("the device records")
    }

    fn generation(&self) -> u64 {
        self.pool().status().expect("status").generation
    }

    /// Begins an operation.
    pub(crate) fn begin(&mut self, what: String) {
        self.begun = self.moment();
        self.trace.push((self.begun, what));
        self.barriers = self.ground.device.flushes();
        self.generation = self.generation();
    }

    fn push_state(&mut self) {
        let unknown = (usize::MAX, usize::MAX);
        self.states
            .push(State::new(&self.oracle, self.begun, unknown));
    }

    /// Records that the operation has returned and the model has done it: an acknowledged state.
    pub(crate) fn acknowledge(&mut self, branches: u64) {
        self.push_state();
        self.returned(branches);
    }

    /// Checks an operation that has returned: every generation that it took beyond its branches was
    /// a checkpoint, with its two barriers, and there was no other barrier.
    pub(crate) fn returned(&mut self, branches: u64) {
        let now = self.moment();
        for state in self.states.iter_mut().rev() {
            if state.acknowledged.0 != usize::MAX {
                break;
            }
            state.acknowledged = now;
        }
        let barriers = self.ground.device.flushes() - self.barriers;
        let checkpoints = self.generation() - self.generation - branches;
        if self.ground.honest {
            assert_eq!(
                barriers,
                2 * checkpoints,
                "barriers of an operation with {checkpoints} checkpoints"
            );
        }
        if barriers > 0 {
            // Records appended behind the last checkpoint's cut are not covered by its barrier.
            let covered = self.pool().status().expect("status").log_used_bytes == 0;
            self.stores_at_barrier = self.ground.device.stores() - u64::from(!covered);
        }
    }

    /// Records that the last operation made everything acknowledged durable.
    fn all_is_durable(&mut self) {
        self.flushed.push((self.moment(), self.states.len() - 1));
        self.stores_at_barrier = self.ground.device.stores();
    }

    /// Flushes, through one of the volumes or the pool itself.
    pub(crate) fn flush(&mut self) {
        let named = self.oracle.all_named();
        let volume = named.choose(&mut self.rng).copied();
        let volume = volume.filter(|_| self.rng.random_ratio(3, 4));
        self.flush_through(volume);
    }

    pub(crate) fn flush_through(&mut self, volume: Option<u64>) {
        self.begin("flush".into());
        match volume {
            Some(id) => self.handle(id).flush().expect("flush a volume"),
            None => self.pool().flush().expect("flush"),
        }
        let barriers = self.ground.device.flushes() - self.barriers;
        let stores = self.ground.device.stores();
        if self.ground.honest {
            let wanted = u64::from(stores != self.stores_at_barrier);
            let unknown = self.stores_at_barrier == UNKNOWN;
            assert!(
                barriers == wanted || unknown && barriers == 0,
                "a flush took {barriers} barriers and not {wanted}"
            );
        }
        self.all_is_durable();
    }

    pub(crate) fn checkpoint(&mut self) {
        self.begin("checkpoint".into());
        self.amid_others(|pool| pool.checkpoint().expect("checkpoint"));
    }

    pub(crate) fn reclaim(&mut self) {
        self.begin("reclaim".into());
        self.oracle.unsettled = false;
        self.amid_others(|pool| pool.reclaim().expect("reclaim"));
    }

    /// Runs an operation that ends with a checkpoint, in whose middle events may happen.
    fn amid_others(&mut self, act: impl FnOnce(&Pool)) {
        let before = self.states.len() - 1;
        let meddling = if self.rng.random() {
            self.prepare_meddling()
        } else {
            None
        };
        act(&self.pool());
        let (branches, barriers) = self.take_over(meddling);
        self.barriers += barriers;
        self.returned(branches);
        if self.states.len() - 1 > before {
            self.stores_at_barrier = UNKNOWN;
        }
        // What happened after the cut is durable only if it was flushed.
        let flushed = self.flushed.last().expect("there is a first one").1;
        self.flushed.push((self.moment(), flushed.max(before)));
    }

    /// Records an event in the middle of an operation, and its state.
    pub(crate) fn push_between(&mut self, what: String, begun: Moment, ended: Moment) {
        self.trace.push((begun, what));
        self.states.push(State::new(&self.oracle, begun, ended));
    }

    /// Records an acknowledged flush of all states until now.
    pub(crate) fn note_flushed(&mut self, ended: Moment) {
        self.flushed.push((ended, self.states.len() - 1));
    }

    pub(crate) fn trim(&mut self) {
        self.begin("trim".into());
        self.pool().trim().expect("trim");
        self.returned(0);
    }

    pub(crate) fn grow(&mut self) {
        let to = *GROW_TO_BYTES
            .choose(&mut self.rng)
            .expect("there are sizes");
        if to <= self.pool().status().expect("status").size_bytes {
            return;
        }
        self.begin(format!("grow to {to}"));
        self.pool().grow(to).expect("grow");
        self.returned(0);
        self.all_is_durable();
    }

    /// Ends the process's use of the pool, in order or not, and opens the pool again.
    pub(crate) fn open_again(&mut self) {
        let end = *[End::Closed, End::Dead, End::DeadInCheckpoint]
            .choose(&mut self.rng)
            .expect("there are ends");
        let resumes = self.ground.honest && self.rng.random();
        let how = if resumes { "resume" } else { "open" };
        self.begin(format!("{end:?}, then {how}"));
        let pool = self.pool.take().expect("the pool is open");
        match (end, &self.ground.meddler) {
            (End::Closed, _) => {
                pool.close().expect("close the pool");
                self.flushed.push((self.moment(), self.states.len() - 1));
            }
            (End::DeadInCheckpoint, Some(meddler)) => {
                meddler.kill_after(self.rng.random_range(0..24));
                let outcome = pool.checkpoint();
                let is_over = meddler.revive();
                assert!(outcome.is_ok() || is_over, "{outcome:?}");
            }
            (End::Dead | End::DeadInCheckpoint, _) => {}
        }
        drop(pool);
        let barriers = self.ground.device.flushes();
        let durable = Generation(self.durable.load(Ordering::Relaxed));
        let resumes = resumes.then_some(durable);
        let pool = open_or_resume(
            Arc::clone(&self.ground.seen),
            resumes,
            note_in(&self.durable),
        );
        let pool = pool.expect("open the pool again");
        self.pool = Some(pool);
        self.oracle.unsettled = true;
        if self.ground.honest && self.ground.device.flushes() == barriers {
            assert!(resumes.is_some(), "a recovery without a barrier");
            self.stores_at_barrier = UNKNOWN;
        } else {
            self.all_is_durable();
        }
    }

    /// Runs an operation that may take several records, and may stop in the middle for lack of
    /// space.
    pub(crate) fn stepwise(
        &mut self,
        id: u64,
        steps: &[Step],
        act: impl FnOnce(&Pool) -> Result<()>,
    ) {
        let outcome = act(&self.pool());
        let before = self.states.len() - 1;
        let mut after = vec![self.oracle.clone()];
        for step in steps {
            match step {
                Step::Write(offset, bytes) => self.oracle.write(id, *offset, bytes),
                Step::Discard(offset, len) => self.oracle.discard(id, *offset, *len),
                Step::Resize(size) => self.oracle.resize(id, *size),
            }
            self.push_state();
            after.push(self.oracle.clone());
        }
        match outcome {
            Ok(()) => self.returned(0),
            Err(Error::NoSpace) => {
                let content = self.content();
                let states = &self.states[before..];
                let done = states.iter().rposition(|state| state.content == content);
                let done = done.expect("what ran out of space is done up to one of its records");
                let first = states.iter().position(|state| state.content == content);
                let certain =
                    first.is_some_and(|first| states[first].ownership == states[done].ownership);
                self.states.truncate(before + done + 1);
                self.oracle = after.swap_remove(done);
                self.returned(0);
                if !certain {
                    // The bytes were there already, so the owner of their blocks is unknown.
                    self.remove(id);
                }
            }
            Err(error) => panic!("the engine failed: {error} ({error:?})"),
        }
    }

    fn content(&self) -> u64 {
        let pool = self.pool();
        digest::content_of_pool(&pool, &pool.volumes()).expect("read the pool")
    }

    /// Asserts that the open pool equals the model.
    pub(crate) fn compare(&self) {
        let wanted = self.states.last().expect("there is a state").content;
        assert_eq!(
            self.content(),
            wanted,
            "the open pool is not what it ought to be"
        );
    }

    /// Records the creation time of a volume.
    pub(crate) fn note_created(&mut self, id: u64) {
        let info = self.handle(id).info().expect("info");
        self.created.insert(id, info.created);
    }

    /// Returns true if so little space is free that something must be removed.
    pub(crate) fn is_crowded(&self) -> bool {
        let status = self.pool().status().expect("status");
        let room = status.size_bytes.min(2 * POOL_BYTES);
        status.free_bytes * 100 < room * self.crowded_percent
    }

    pub(crate) fn blocks_mapped(&self, id: u64) -> u64 {
        self.oracle.volumes[&id].blocks.len() as u64
    }

    /// Returns the history, for the functions that cut the power.
    pub(crate) fn into_history(self) -> (History, StdRng) {
        let recording = self.ground.device.recorded().expect("the device records");
        let history = History {
            recording,
            states: self.states,
            flushed: self.flushed,
            created: self.created,
            trace: self.trace,
        };
        (history, self.rng)
    }

    pub(crate) fn epochs(&self) -> usize {
        self.moment().0
    }

    pub(crate) fn last_operations(&self, count: usize) -> Vec<(Moment, String)> {
        self.trace[self.trace.len().saturating_sub(count)..].to_vec()
    }
}

/// Returns the records that a write takes: one for each part of a block, and one for up to 256
/// whole blocks.
pub(crate) fn steps_of_write(offset: u64, bytes: &[u8]) -> Vec<Step> {
    let (mut at, end) = (offset, offset + bytes.len() as u64);
    let mut steps = Vec::new();
    while at < end {
        let whole = (end - at) / BLOCK * BLOCK;
        let len = if at.is_multiple_of(BLOCK) && whole > 0 {
            whole.min(256 * BLOCK)
        } else {
            (BLOCK - at % BLOCK).min(end - at)
        };
        let from = usize::try_from(at - offset).expect("in memory");
        let part = &bytes[from..from + usize::try_from(len).expect("in memory")];
        steps.push(Step::Write(at, part.to_vec()));
        at += len;
    }
    steps
}

/// Returns the records that a discard takes: the part before the first whole block, whole blocks up
/// to 256 MiB at a time, and the part behind the last one.
pub(crate) fn steps_of_discard(offset: u64, len: u64, size: u64) -> Vec<Step> {
    const RECORD_BYTES: u64 = BLOCK << 16;
    let end = offset + len;
    let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
    let last = if end == size { end } else { last };
    if first >= last {
        let middle = first.clamp(offset, end);
        let parts = [(offset, middle), (middle, end)];
        let parts = parts.into_iter().filter(|(from, to)| from < to);
        return parts
            .map(|(from, to)| Step::Discard(from, to - from))
            .collect();
    }
    let mut steps = Vec::new();
    let mut at = offset;
    while at < end {
        let to = match at {
            at if at < first => first,
            at if at < last => ((at / RECORD_BYTES + 1) * RECORD_BYTES).min(last),
            _ => end,
        };
        steps.push(Step::Discard(at, to - at));
        at = to;
    }
    steps
}
