//! The subjects of the benchmarks: a volume of a pool in a file, and a plain file beside it, both
//! completely written beforehand and both in the page cache.

#![allow(dead_code, reason = "each benchmark uses its own part of this")]
#![allow(unreachable_pub, reason = "each benchmark has a copy of this module")]

use cowshed_engine::{CreateOptions, OpenOptions, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Name};
use cowshed_format::device::{FileDevice, FileOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of the volume and of the plain file.
pub const SUBJECT_BYTES: u64 = 256 << 20;

/// Creates a folder below the one that `COWSHED_BENCH_DIR` names, or below `target`.
pub fn folder() -> TempDir {
    let parent = std::env::var_os("COWSHED_BENCH_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    folder_in(&parent)
}

pub fn folder_in(parent: &Path) -> TempDir {
    tempfile::Builder::new()
        .prefix("cowshed-bench-")
        .tempdir_in(parent)
        .expect("make a folder")
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

/// Creates a pool of `pool_bytes` in a sparse file.
pub fn create_pool(path: &Path, pool_bytes: u64) {
    let device = FileDevice::create(path, pool_bytes, Default::default()).expect("create the file");
    Pool::create(&device, &CreateOptions::default()).expect("create the pool");
}

pub fn open_pool(path: &Path, background: bool) -> Pool {
    let device = FileDevice::open(path, FileOptions::default()).expect("open the file");
    let options = OpenOptions {
        background,
        ..OpenOptions::default()
    };
    Pool::open(Arc::new(device), &options).expect("open the pool")
}

pub fn new_pool(path: &Path, pool_bytes: u64) -> Pool {
    create_pool(path, pool_bytes);
    open_pool(path, true)
}

/// Returns bytes that no engine can treat as a hole.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// The two subjects that are compared.
pub enum Subject {
    Volume(Volume),
    Plain(File),
    /// Two files that get the same, and are flushed at the same time.
    Pair(File, File),
}

/// The action on a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
    /// A write and a flush each time.
    DurableWrite,
}

/// The order of the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Random,
    Sequential,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub action: Action,
    pub order: Order,
    pub len_bytes: u64,
    pub threads: u64,
}

impl Subject {
    /// Creates a volume in a new pool, completely written and checkpointed.
    pub fn volume(folder: &Path) -> (Pool, Self) {
        let pool = new_pool(&folder.join("pool"), 8 * SUBJECT_BYTES);
        let volume = pool
            .create_volume(&name("subject"), SUBJECT_BYTES)
            .expect("create a volume");
        let subject = Self::Volume(volume);
        subject.fill();
        pool.checkpoint().expect("checkpoint");
        (pool, subject)
    }

    /// Creates a plain file, completely written and durable.
    pub fn plain(folder: &Path) -> Self {
        let path = folder.join("plain");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let subject = Self::Plain(file.expect("create a file"));
        subject.fill();
        subject.flush();
        subject
    }

    /// Creates two plain files, completely written and durable.
    pub fn pair(folder: &Path) -> Self {
        let files = ["one", "other"].map(|name| {
            let folder = folder.join(name);
            std::fs::create_dir(&folder).expect("make a folder");
            match Self::plain(&folder) {
                Self::Plain(file) => file,
                _ => unreachable!("it is a plain file"),
            }
        });
        let [one, other] = files;
        Self::Pair(one, other)
    }

    pub fn fill(&self) {
        for offset in (0..SUBJECT_BYTES).step_by(1 << 20) {
            self.write(&noise(1 << 20, offset), offset);
        }
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) {
        match self {
            Self::Volume(volume) => volume.read_at(buf, offset_bytes).expect("read the volume"),
            Self::Plain(file) | Self::Pair(file, _) => file
                .read_exact_at(buf, offset_bytes)
                .expect("read the file"),
        }
    }

    fn write(&self, bytes: &[u8], offset_bytes: u64) {
        match self {
            Self::Volume(volume) => volume
                .write_at(bytes, offset_bytes)
                .expect("write the volume"),
            Self::Plain(file) => file
                .write_all_at(bytes, offset_bytes)
                .expect("write the file"),
            Self::Pair(one, other) => {
                let written = one.write_all_at(bytes, offset_bytes);
                let both = written.and_then(|()| other.write_all_at(bytes, offset_bytes));
                both.expect("write both files");
            }
        }
    }

    pub fn flush(&self) {
        match self {
            Self::Volume(volume) => volume.flush().expect("flush the volume"),
            Self::Plain(file) => file.sync_data().expect("flush the file"),
            Self::Pair(one, other) => thread::scope(|scope| {
                let other = scope.spawn(|| other.sync_data());
                one.sync_data().expect("flush one file");
                other.join().expect("no panic").expect("flush the other");
            }),
        }
    }

    fn act(&self, action: Action, buf: &mut [u8], offset_bytes: u64) {
        match action {
            Action::Read => self.read(buf, offset_bytes),
            Action::Write => self.write(buf, offset_bytes),
            Action::DurableWrite => {
                self.write(buf, offset_bytes);
                self.flush();
            }
        }
    }

    /// Returns the time that `count` actions took, spread over the threads of the load.
    pub fn run(&self, load: Load, count: u64, seed: u64) -> Duration {
        let barrier = Barrier::new(usize::try_from(load.threads).expect("few threads") + 1);
        thread::scope(|scope| {
            for number in 0..load.threads {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut offsets = Offsets::new(load, number, seed);
                    let mut buf = noise(usize::try_from(load.len_bytes).expect("small"), number);
                    barrier.wait();
                    for _ in 0..count.div_ceil(load.threads) {
                        self.act(load.action, &mut buf, offsets.next());
                    }
                    barrier.wait();
                });
            }
            barrier.wait();
            let started = Instant::now();
            barrier.wait();
            started.elapsed()
        })
    }
}

pub fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("times are numbers"));
    values[values.len() / 2]
}

/// Returns the median ratio of the rates of two subjects in rounds, and the first one's median rate.
/// One side of a round takes about `side`; they run in alternating order.
pub fn compare(
    ours: &Subject,
    theirs: &Subject,
    load: Load,
    rounds: u64,
    side: Duration,
) -> (f64, f64) {
    // The first call warms up.
    let mut count = 16;
    while theirs.run(load, count, 1) < side && count < 1 << 24 {
        count *= 2;
    }
    ours.run(load, count / 4, 1);
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let seed = round + 2;
        let (one, other) = if round % 2 == 0 {
            let one = ours.run(load, count, seed);
            (one, theirs.run(load, count, seed))
        } else {
            let other = theirs.run(load, count, seed);
            (ours.run(load, count, seed), other)
        };
        ratios.push(other.as_secs_f64() / one.as_secs_f64());
        rates.push(count as f64 / one.as_secs_f64());
    }
    (median(ratios), median(rates))
}

/// The offsets of a thread's actions: in sequential order, each thread has its own part.
struct Offsets {
    rng: StdRng,
    load: Load,
    slots: u64,
    next: u64,
}

impl Offsets {
    fn new(load: Load, thread: u64, seed: u64) -> Self {
        let slots = SUBJECT_BYTES / load.len_bytes;
        Self {
            rng: StdRng::seed_from_u64(seed << 8 | thread),
            load,
            slots,
            next: slots / load.threads * thread + seed % slots,
        }
    }

    fn next(&mut self) -> u64 {
        let slot = match self.load.order {
            Order::Random => self.rng.random_range(0..self.slots),
            Order::Sequential => {
                self.next += 1;
                self.next % self.slots
            }
        };
        slot * self.load.len_bytes
    }
}
