//! Threads that write, read, flush, snapshot, remove and checkpoint at once, with every block's
//! content stamped, so that a block in the wrong place, of the wrong time, or torn, is seen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed::base::{BLOCK_BYTES, Name};
use cowshed::device::{Device, FileDevice, MemoryDevice};
use cowshed::pool::{CreateOptions, OpenOptions, Pool, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of each volume that are written.
const BLOCKS: u64 = 1024;
const VOLUMES: usize = 2;
const WRITERS: usize = 3;
const DURATION: Duration = Duration::from_secs(4);

/// What a block holds: who it is, and which version, in every 16 bytes.
fn stamp(volume: u64, index: u64, version: u64) -> Vec<u8> {
    let word = (volume << 32 | index).to_le_bytes();
    let pair = [word, version.to_le_bytes()].concat();
    pair.repeat(BLOCK_BYTES / pair.len())
}

/// The version that a block holds; 0 for a hole.
fn version_of(bytes: &[u8], volume: u64, index: u64) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert!(
        bytes == stamp(volume, index, version),
        "block {index} of volume {volume} is torn or another's: {:?}",
        &bytes[..32]
    );
    version
}

/// A volume and what is known of its blocks: each has one writer.
struct Stamped {
    number: u64,
    volume: Volume,
    begun: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

impl Stamped {
    fn new(pool: &Pool, number: usize) -> Self {
        let counters = || (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
        let name = Name::new(&format!("volume-{number}")).unwrap();
        Self {
            number: number as u64,
            volume: pool.create_volume(&name, 1 << 30).unwrap(),
            begun: counters(),
            acknowledged: counters(),
        }
    }

    fn load(counters: &[AtomicU64]) -> Vec<u64> {
        counters
            .iter()
            .map(|counter| counter.load(Ordering::SeqCst))
            .collect()
    }

    /// Writes the next version of a run of blocks that all belong to the caller.
    fn write(&self, first: u64, count: u64) {
        let blocks = first..first + count;
        let mut bytes = Vec::new();
        let at = |index: u64| usize::try_from(index).unwrap();
        for index in blocks.clone() {
            let version = self.begun[at(index)].fetch_add(1, Ordering::SeqCst) + 1;
            bytes.extend(stamp(self.number, index, version));
        }
        self.volume.write_at(&bytes, first * BLOCK).unwrap();
        for index in blocks {
            self.acknowledged[at(index)].fetch_add(1, Ordering::SeqCst);
        }
    }

    fn versions(&self, of: &Volume, first: u64, count: u64) -> Vec<u64> {
        let mut bytes = vec![0; usize::try_from(count * BLOCK).unwrap()];
        of.read_at(&mut bytes, first * BLOCK).unwrap();
        let blocks = bytes.chunks(BLOCK_BYTES).zip(first..);
        blocks
            .map(|(block, index)| version_of(block, self.number, index))
            .collect()
    }

    /// Reads blocks of `of` and checks that each version lies between `least` and what has begun.
    fn check(&self, of: &Volume, first: u64, least: &[u64]) -> Vec<u64> {
        let versions = self.versions(of, first, least.len() as u64);
        for (at, (version, least)) in versions.iter().zip(least).enumerate() {
            let index = usize::try_from(first).unwrap() + at;
            let most = self.begun[index].load(Ordering::SeqCst);
            assert!(
                (*least..=most).contains(version),
                "block {index}: version {version} is not in {least}..={most}"
            );
        }
        versions
    }
}

/// Writes, flushing now and then, the blocks whose groups of 16 are the writer's.
fn write_own_blocks(stamped: &[Stamped], writer: usize, stop: &AtomicBool, rng: &mut StdRng) {
    while !stop.load(Ordering::Relaxed) {
        let volume = &stamped[rng.random_range(0..VOLUMES)];
        let group =
            rng.random_range(0..BLOCKS / 16 / WRITERS as u64) * WRITERS as u64 + writer as u64;
        let from = rng.random_range(0..16);
        volume.write(group * 16 + from, rng.random_range(1..=16 - from));
        if rng.random_ratio(1, 50) {
            volume.volume.flush().unwrap();
        }
    }
}

/// A read never answers a version older than one acknowledged before it began.
fn read_anything(stamped: &[Stamped], stop: &AtomicBool, rng: &mut StdRng) {
    while !stop.load(Ordering::Relaxed) {
        let volume = &stamped[rng.random_range(0..VOLUMES)];
        let first = rng.random_range(0..BLOCKS - 64);
        let len = rng.random_range(1..64);
        let from = usize::try_from(first).unwrap();
        let least = Stamped::load(&volume.acknowledged[from..from + len]);
        volume.check(&volume.volume, first, &least);
    }
}

/// A snapshot holds what was acknowledged before it, and holds it unchanged until its end, while
/// its volume is written on, and other snapshots come and go.
fn snapshot_and_remove(pool: &Pool, stamped: &[Stamped], stop: &AtomicBool, rng: &mut StdRng) {
    let mut kept: Vec<(usize, Volume, Vec<u64>)> = Vec::new();
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let number = rng.random_range(0..VOLUMES);
        let volume = &stamped[number];
        let least = Stamped::load(&volume.acknowledged);
        let name = Name::new(&format!("snapshot-{count}")).unwrap();
        let snapshot = pool.snapshot(&volume.volume, &name).unwrap();
        let versions = volume.check(&snapshot, 0, &least);
        kept.push((number, snapshot, versions));
        if kept.len() > 5 {
            let (number, snapshot, versions) = kept.swap_remove(rng.random_range(0..kept.len()));
            assert_eq!(
                stamped[number].versions(&snapshot, 0, BLOCKS),
                versions,
                "it changed"
            );
            pool.remove(&snapshot).unwrap();
        }
        if rng.random_ratio(1, 10) {
            pool.checkpoint().unwrap();
        }
    }
    for (number, snapshot, versions) in kept {
        assert_eq!(
            stamped[number].versions(&snapshot, 0, BLOCKS),
            versions,
            "it changed"
        );
    }
    assert!(count > 10, "only {count} snapshots were taken");
}

fn everything_at_once(device: Arc<dyn Device>, reopen: impl FnOnce() -> Arc<dyn Device>) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let create = CreateOptions {
        log_bytes: Some(1 << 20),
        force: false,
    };
    Pool::create(&*device, &create).unwrap();
    let options = OpenOptions {
        cache_bytes: 4 << 20,
        background: true,
    };
    let pool = Pool::open(device, &options).unwrap();
    let stamped: Vec<Stamped> = (0..VOLUMES)
        .map(|number| Stamped::new(&pool, number))
        .collect();
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        let (stamped, stop, pool) = (&stamped[..], &stop, &pool);
        let rng = |stream: u64| StdRng::seed_from_u64(seed ^ stream);
        for writer in 0..WRITERS {
            scope.spawn(move || {
                stop_on_panic(stop, || {
                    write_own_blocks(stamped, writer, stop, &mut rng(writer as u64))
                });
            });
        }
        for reader in 10..12 {
            scope.spawn(move || {
                stop_on_panic(stop, || read_anything(stamped, stop, &mut rng(reader)));
            });
        }
        scope.spawn(move || {
            stop_on_panic(stop, || {
                snapshot_and_remove(pool, stamped, stop, &mut rng(20))
            });
        });
        while started.elapsed() < DURATION && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let last: Vec<Vec<u64>> = stamped
        .iter()
        .map(|each| Stamped::load(&each.acknowledged))
        .collect();
    let written: u64 = last.iter().flatten().sum();
    assert!(written > 1000, "only {written} blocks were written");
    for (each, last) in stamped.iter().zip(&last) {
        assert_eq!(&each.versions(&each.volume, 0, BLOCKS), last);
    }
    let numbers: Vec<u64> = stamped.iter().map(|each| each.number).collect();
    drop(stamped);
    drop(pool);
    let pool = Pool::open(reopen(), &options).unwrap();
    for (number, last) in numbers.iter().zip(&last) {
        let volume = pool.volume(&format!("volume-{number}")).unwrap();
        for (index, version) in (0..).zip(last) {
            let mut block = [0; BLOCK_BYTES];
            volume.read_at(&mut block, index * BLOCK).unwrap();
            assert_eq!(
                version_of(&block, *number, index),
                *version,
                "after opening again"
            );
        }
    }
    pool.close().unwrap();
}

/// Lets the other threads end when one fails, so that the failure is reported.
fn stop_on_panic(stop: &AtomicBool, work: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _stop = Stop(stop);
    work();
}

#[test]
fn threads_on_a_device_in_memory_never_see_a_wrong_block() {
    let device = Arc::new(MemoryDevice::new(256 << 20));
    let same = device.clone();
    everything_at_once(device, move || {
        Arc::new(MemoryDevice::from_image(same.snapshot_image()))
    });
}

#[test]
fn threads_on_a_file_never_see_a_wrong_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let device = FileDevice::create(&path, 256 << 20, Default::default()).unwrap();
    everything_at_once(Arc::new(device), || {
        Arc::new(FileDevice::open(&path, Default::default()).unwrap())
    });
}
