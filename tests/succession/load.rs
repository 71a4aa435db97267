//! Threads that write, and remember what was acknowledged.

use super::until;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

const BLOCK: u64 = 4096;
/// Number of blocks of one thread.
const BLOCKS: u64 = 512;
/// Number of steps after which a load counts as having made progress.
const STEPS: u64 = 100;

/// The common part of all loads.
struct Threads<T> {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<T>>,
}

impl<T: Send + 'static> Threads<T> {
    fn start(
        count: u64,
        work: impl Fn(u64, &dyn Fn() -> bool) -> T + Clone + Send + 'static,
    ) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = |number| {
            let (stop, done, work) = (stop.clone(), done.clone(), work.clone());
            thread::spawn(move || {
                let step = || {
                    done.fetch_add(1, SeqCst);
                    !stop.load(SeqCst)
                };
                work(number, &step)
            })
        };
        let threads = (0..count).map(thread).collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    fn goes_on(&self) {
        let start = self.done.load(SeqCst);
        until("the load goes on", || {
            assert!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "a thread of the load has failed"
            );
            self.done.load(SeqCst) >= start + STEPS
        });
    }

    fn stop(self) -> Vec<T> {
        self.stop.store(true, SeqCst);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    }
}

fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Writes blocks at random places of one file.
pub(crate) struct BlockLoad {
    file: PathBuf,
    threads: Threads<Vec<u64>>,
}

impl BlockLoad {
    pub(crate) fn start(path: &Path, threads: u64) -> Self {
        let file = path.to_owned();
        let work = move |thread: u64, step: &dyn Fn() -> bool| {
            let file = OpenOptions::new().read(true).write(true).open(&file);
            write_blocks(&file.unwrap(), thread, step)
        };
        Self {
            file: path.to_owned(),
            threads: Threads::start(threads, work),
        }
    }

    pub(crate) fn goes_on(&self) {
        self.threads.goes_on();
    }

    /// Asserts that every block holds what was acknowledged last.
    pub(crate) fn stop_and_compare(self) {
        let models = self.threads.stop();
        let file = File::open(&self.file).unwrap();
        for (thread, model) in (0_u64..).zip(models) {
            for (block, seed) in (0_u64..).zip(model) {
                check(&file, thread * BLOCKS + block, seed);
            }
        }
    }
}

/// Writes blocks; returns the seed of each block's contents, or zero for a block that was never
/// written.
fn write_blocks(file: &File, thread: u64, step: &dyn Fn() -> bool) -> Vec<u64> {
    let mut random = StdRng::seed_from_u64(thread);
    let mut model = vec![0; usize::try_from(BLOCKS).unwrap()];
    let mut version = 0;
    while step() {
        let block = random.random_range(0..BLOCKS);
        let seed = &mut model[usize::try_from(block).unwrap()];
        let at = thread * BLOCKS + block;
        match random.random_range(0..10) {
            0..7 => {
                version += 1;
                let next = (thread + 1) << 32 | version;
                file.write_all_at(&content(next, 4096), at * BLOCK).unwrap();
                *seed = next;
            }
            7 => file.sync_data().unwrap(),
            _ => check(file, at, *seed),
        }
    }
    model
}

fn check(file: &File, block: u64, seed: u64) {
    let wanted = if seed == 0 {
        vec![0; 4096]
    } else {
        content(seed, 4096)
    };
    let mut found = vec![0; 4096];
    file.read_exact_at(&mut found, block * BLOCK).unwrap();
    assert!(found == wanted, "block {block} is not what was written");
}

/// Writes files and makes each durable.
pub(crate) struct FileLoad {
    place: PathBuf,
    threads: RefCell<Option<Threads<u64>>>,
    written: RefCell<Vec<u64>>,
}

const FILE_BYTES: usize = 20_000;

fn file_name(place: &Path, thread: u64, number: u64) -> PathBuf {
    place.join(format!("{thread}-{number}"))
}

/// Older files are removed, so that the file system does not fill up.
const FILES_MAX: u64 = 500;

impl FileLoad {
    pub(crate) fn start(place: &Path, threads: u64) -> Self {
        let root = place.to_owned();
        let work = move |thread: u64, step: &dyn Fn() -> bool| {
            let mut number = 0;
            while step() {
                let path = file_name(&root, thread, number);
                let mut file = File::create(path).unwrap();
                let seed = thread << 32 | number;
                file.write_all(&content(seed, FILE_BYTES)).unwrap();
                file.sync_all().unwrap();
                if let Some(old) = number.checked_sub(FILES_MAX) {
                    fs::remove_file(file_name(&root, thread, old)).unwrap();
                }
                number += 1;
            }
            number
        };
        Self {
            place: place.to_owned(),
            threads: RefCell::new(Some(Threads::start(threads, work))),
            written: RefCell::default(),
        }
    }

    pub(crate) fn goes_on(&self) {
        self.threads.borrow().as_ref().unwrap().goes_on();
    }

    pub(crate) fn stop_and_compare(&self) {
        let threads = self.threads.take().unwrap();
        self.written.replace(threads.stop());
        self.compare_at(&self.place);
    }

    /// Asserts that the files are complete where the file system is mounted now.
    pub(crate) fn compare_at(&self, place: &Path) {
        for (thread, count) in (0_u64..).zip(self.written.borrow().iter()) {
            for number in count.saturating_sub(FILES_MAX)..*count {
                let found = fs::read(file_name(place, thread, number)).unwrap();
                assert!(found == content(thread << 32 | number, FILE_BYTES));
            }
        }
    }
}
