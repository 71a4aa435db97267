//! Threads that concurrently write, read, flush, snapshot, clone, roll back, discard, resize,
//! remove, checkpoint and reclaim many volumes, in a pool so small that blocks are constantly
//! reused, and with a cache that holds almost nothing. A checker knows which values each read may
//! return, and verifies that a snapshot shows one point in time and never changes. On a mirror, sides
//! fail and come back meanwhile, and either one has everything in the end.
//!
//! `tools/concurrency` runs it for longer: `COWSHED_TEST_SECONDS` sets the duration of each test,
//! `COWSHED_TEST_SEED` the first seed. The machine schedules the threads, so a seed repeats the
//! choices, not the order; `tools/models` explores orders.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod history;
mod sides;
mod stamps;
mod subject;
mod workers;

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_format::base::Error;
use cowshed_format::device::{Device, FileDevice, MemoryDevice};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use workers::World;

/// The time during which each test starts rounds.
const SECONDS: u64 = 8;
/// The duration of a round.
const ROUND: Duration = Duration::from_secs(4);
/// The time that the pool's own threads may take to release it.
const PATIENCE: Duration = Duration::from_secs(60);
const POOL_BYTES: u64 = 48 << 20;
const LOG_BYTES: u64 = 512 << 10;
const CACHE_BYTES: u64 = 64 << 10;

type Work = fn(&World, &mut StdRng);

/// The workers of a round.
const WORKERS: [Work; 9] = [
    World::write,
    World::write,
    World::write,
    World::read,
    World::read,
    World::read,
    World::branch,
    World::shape,
    World::tend,
];

/// What a round runs on.
struct Ground {
    device: Arc<dyn Device>,
    /// Returns the device again after the process has died.
    again: Box<dyn FnOnce() -> Arc<dyn Device>>,
    /// Interferes with the device, until it is told to stop.
    meddle: Meddle,
}

type Meddle = Box<dyn Fn(&World, &AtomicBool) + Send + Sync>;

/// Interferes with nothing.
fn nothing() -> Meddle {
    Box::new(|_, _| {})
}

#[test]
fn threads_on_a_device_in_memory_see_only_what_they_may() {
    rounds(|| {
        let device = Arc::new(MemoryDevice::new(POOL_BYTES));
        let same = Arc::clone(&device);
        let again =
            move || Arc::new(MemoryDevice::from_image(same.snapshot_image())) as Arc<dyn Device>;
        Ground {
            device,
            again: Box::new(again),
            meddle: nothing(),
        }
    });
}

#[test]
fn threads_on_a_mirror_whose_sides_come_and_go_see_only_what_they_may() {
    rounds(sides::mirror);
}

#[test]
fn threads_on_a_file_see_only_what_they_may() {
    let folder = tempfile::tempdir().unwrap();
    rounds(|| {
        let path = folder.path().join("pool");
        let _ = std::fs::remove_file(&path);
        let device = FileDevice::create(&path, POOL_BYTES, Default::default()).unwrap();
        let again = move || Arc::new(open_once_let_go(&path)) as Arc<dyn Device>;
        Ground {
            device: Arc::new(device),
            again: Box::new(again),
            meddle: nothing(),
        }
    });
}

/// Opens the pool's file once it is released: one of the pool's own threads may still be in the
/// middle of a checkpoint.
fn open_once_let_go(path: &Path) -> FileDevice {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match FileDevice::open(path, Default::default()) {
            Err(Error::InUse) if Instant::now() < deadline => {}
            device => return device.unwrap(),
        }
    }
}

fn rounds(make: impl Fn() -> Ground) {
    let number = |name| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().unwrap())
    };
    let limit = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(SECONDS));
    let first: u64 = number("COWSHED_TEST_SEED").unwrap_or_else(rand::random);
    let started = Instant::now();
    let mut seed = first;
    while seed == first || started.elapsed() < limit {
        println!("seed {seed}");
        round(seed, make(), ROUND.min(limit));
        seed = seed.wrapping_add(1);
    }
}

fn round(seed: u64, ground: Ground, duration: Duration) {
    let Ground {
        device,
        again,
        meddle,
    } = ground;
    let create = CreateOptions {
        log_bytes: Some(LOG_BYTES),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
    let options = OpenOptions {
        cache_bytes: CACHE_BYTES,
        background: true,
        ..OpenOptions::default()
    };
    let world = World::new(Pool::open(device, &options).unwrap());
    work(&world, seed, duration, &meddle);
    let kept: Vec<_> = {
        let volumes = world.volumes.read().unwrap();
        let content = volumes
            .iter()
            .map(|each| (each.volume.name(), each.read_all(&world.record)));
        let snapshots = world.snapshots.read().unwrap();
        let frozen = snapshots
            .iter()
            .map(|each| (each.volume.name(), each.content.clone()));
        content.chain(frozen).collect()
    };
    report(&world);
    if seed.is_multiple_of(2) {
        world.pool.close().unwrap();
    }
    drop(world);
    let device = again();
    let options = OpenOptions {
        background: false,
        ..options
    };
    let pool = Pool::open(Arc::clone(&device), &options).unwrap();
    for (name, content) in kept {
        let volume = pool.volume(name.as_str()).unwrap();
        assert!(
            subject::content_of(&volume) == content,
            "{name} is another after opening again"
        );
    }
    pool.close().unwrap();
    drop(pool);
    let deep = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let found = check(&*device, deep, &mut |_| {}).unwrap();
    assert!(found.clean(), "{:?}", found.findings);
}

fn work(world: &World, seed: u64, duration: Duration, meddle: &Meddle) {
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(WORKERS)
            .map(|(stream, work)| {
                let stop = &stop;
                let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(31) ^ stream);
                scope.spawn(move || {
                    stop_on_panic(stop, || {
                        while !stop.load(Ordering::Relaxed) && started.elapsed() < duration {
                            work(world, &mut rng);
                        }
                    });
                })
            })
            .collect();
        let meddler = scope.spawn(|| stop_on_panic(&stop, || meddle(world, &ended)));
        let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        ended.store(true, Ordering::Release);
        let meddled = meddler.join();
        for outcome in outcomes.into_iter().chain([meddled]) {
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Reports what the round did, and fails if that is almost nothing.
fn report(world: &World) {
    let (record, done) = (&world.record, &world.done);
    println!(
        "{:?} reads, {:?} writes, {:?} refused for want of space, {done:?}",
        record.reads, record.writes, record.full
    );
    for counter in [
        &record.reads,
        &record.writes,
        &done.snapshots,
        &done.flushes,
    ] {
        assert!(
            counter.load(Ordering::Relaxed) > 0,
            "some of it was never done"
        );
    }
}

/// Makes the other threads end when one fails, so that the failure is reported.
fn stop_on_panic(stop: &AtomicBool, work: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    let _stop = Stop(stop);
    work();
}
