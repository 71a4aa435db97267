//! The pool's guarantees on flushes and on full pools: flushes are counted, pools are filled.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_engine::{CreateOptions, OpenOptions, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, Name};
use cowshed_format::device::MemoryDevice;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::sync::{Arc, Barrier};
use std::thread;

const BLOCK: u64 = BLOCK_BYTES as u64;

fn open(device: &Arc<MemoryDevice>) -> Pool {
    let options = OpenOptions {
        cache_bytes: 64 << 20,
        background: false,
        ..OpenOptions::default()
    };
    Pool::open(device.clone(), &options).unwrap()
}

fn new_pool(pool_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(pool_bytes));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let pool = open(&device);
    (device, pool)
}

/// Drops the pool and opens the remaining contents of its device.
fn open_again(device: &MemoryDevice, pool: Pool) -> (Arc<MemoryDevice>, Pool) {
    drop(pool);
    let device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let pool = open(&device);
    (device, pool)
}

fn volume(pool: &Pool, name: &str, size_bytes: u64) -> Volume {
    pool.create_volume(&Name::new(name).unwrap(), size_bytes)
        .unwrap()
}

/// Returns a block that no other number produces.
fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    StdRng::seed_from_u64(number).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn a_durable_write_costs_one_flush_and_a_plain_write_none() {
    let (device, pool) = new_pool(256 << 20);
    let volume = volume(&pool, "a", 1 << 40);
    let mut rng = StdRng::seed_from_u64(7);
    let before = device.flushes();
    for number in 0..500 {
        let offset = rng.random_range(0..1 << 28) * BLOCK;
        volume.write_at(&block(number), offset).unwrap();
        volume.write_at(&block(number)[..100], offset + 50).unwrap();
        volume.discard(offset, BLOCK).unwrap();
    }
    assert_eq!(device.flushes(), before, "a plain write or discard flushed");
    for number in 0..500 {
        let offset = rng.random_range(0..1 << 28) * BLOCK;
        volume.write_at(&block(number), offset).unwrap();
        volume.flush().unwrap();
        assert_eq!(
            device.flushes(),
            before + 1 + number,
            "flushes of a durable write"
        );
    }
}

#[test]
fn snapshots_clones_and_removals_do_not_flush() {
    let (device, pool) = new_pool(64 << 20);
    let root = volume(&pool, "root", 1 << 30);
    root.write_at(&block(1), 0).unwrap();
    let before = device.flushes();
    for number in 0..50 {
        let name = |kind: &str| Name::new(&format!("{kind}-{number}")).unwrap();
        let snapshot = pool.snapshot(&root, &name("snapshot")).unwrap();
        let clone = pool.clone_volume(&snapshot, &name("clone")).unwrap();
        clone.write_at(&block(2), BLOCK).unwrap();
        pool.remove(&clone).unwrap();
    }
    assert_eq!(device.flushes(), before);
}

#[test]
fn a_flush_makes_the_writes_of_all_volumes_durable() {
    let device = Arc::new(MemoryDevice::recording(64 << 20));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let pool = open(&device);
    let names = ["a", "b", "c"];
    for (name, number) in names.iter().zip(0..) {
        volume(&pool, name, 1 << 30)
            .write_at(&block(number), 5 * BLOCK)
            .unwrap();
    }
    pool.volume("b").unwrap().flush().unwrap();
    let late = pool.volume("a").unwrap();
    late.write_at(&block(99), 6 * BLOCK).unwrap();
    let recording = device.recorded().unwrap();
    drop((late, pool));
    let image = recording.crash_image(recording.epochs.len(), []);
    let pool = open(&Arc::new(MemoryDevice::from_image(image)));
    for (name, number) in names.iter().zip(0..) {
        let mut found = vec![0; BLOCK_BYTES];
        pool.volume(name)
            .unwrap()
            .read_at(&mut found, 5 * BLOCK)
            .unwrap();
        assert!(found == block(number), "{name} lost what was flushed");
    }
    let mut found = vec![1; BLOCK_BYTES];
    pool.volume("a")
        .unwrap()
        .read_at(&mut found, 6 * BLOCK)
        .unwrap();
    assert!(
        found == vec![0; BLOCK_BYTES],
        "a write of which nothing was kept is half there"
    );
}

#[test]
fn flushes_that_come_together_share_a_barrier() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 200;
    let (device, pool) = new_pool(256 << 20);
    let before = device.flushes();
    let barrier = Barrier::new(usize::try_from(THREADS).unwrap());
    thread::scope(|scope| {
        for number in 0..THREADS {
            let volume = volume(&pool, &format!("v{number}"), 1 << 30);
            let barrier = &barrier;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    volume.write_at(&block(number), round * BLOCK).unwrap();
                    barrier.wait();
                    volume.flush().unwrap();
                }
            });
        }
    });
    let flushes = device.flushes() - before;
    assert!(
        flushes >= ROUNDS,
        "{flushes} flushes cannot have covered {ROUNDS} rounds"
    );
    assert!(
        flushes < THREADS * ROUNDS,
        "no two of {flushes} flushes were shared"
    );
}

/// Writes new blocks until the pool refuses; returns the number written.
fn fill(volume: &Volume, seed: u64) -> u64 {
    for index in 0.. {
        match volume.write_at(&block(seed + index), index * BLOCK) {
            Ok(()) => {}
            Err(Error::NoSpace) => return index,
            Err(error) => panic!("block {index}: {error}"),
        }
    }
    unreachable!("the pool ends before the numbers do")
}

fn verify(volume: &Volume, seed: u64, count: u64) {
    let mut found = vec![0; BLOCK_BYTES];
    for index in 0..count {
        volume.read_at(&mut found, index * BLOCK).unwrap();
        assert!(
            found == block(seed + index),
            "block {index} of {}",
            volume.name()
        );
    }
}

#[test]
fn a_full_pool_keeps_what_it_holds_and_takes_removals() {
    const POOL_BYTES: u64 = 24 << 20;
    let (mut device, mut pool) = new_pool(POOL_BYTES);
    let kept = volume(&pool, "kept", 1 << 40);
    for index in 0..500 {
        kept.write_at(&block(index), index * BLOCK).unwrap();
    }
    drop(kept);
    let mut took_first = 0;
    for round in 0..4 {
        let big = volume(&pool, "big", 1 << 40);
        let seed = 1_000_000 * (round + 1);
        let took = fill(&big, seed);
        println!("round {round}: {took} blocks");
        let least = if round == 0 {
            POOL_BYTES / BLOCK / 2
        } else {
            took_first * 95 / 100
        };
        assert!(
            took >= least,
            "round {round} took {took} blocks, at least {least} were expected"
        );
        took_first = took_first.max(took);
        verify(&big, seed, took);
        pool.flush().unwrap();
        drop(big);
        (device, pool) = open_again(&device, pool);
        let big = pool.volume("big").unwrap();
        verify(&big, seed, took);
        verify(&pool.volume("kept").unwrap(), 0, 500);
        pool.remove(&big).unwrap();
        pool.reclaim().unwrap();
        pool.checkpoint().unwrap();
        verify(&pool.volume("kept").unwrap(), 0, 500);
    }
}

#[test]
fn discarding_makes_room_in_a_full_pool() {
    let (_device, pool) = new_pool(16 << 20);
    let volume = volume(&pool, "a", 1 << 30);
    let took = fill(&volume, 0);
    for _ in 0..5 {
        volume.discard(0, 256 * BLOCK).unwrap();
        pool.checkpoint().unwrap();
        for index in 0..200 {
            volume.write_at(&block(index), index * BLOCK).unwrap();
        }
        verify(&volume, 0, 200);
    }
    let mut found = vec![0; BLOCK_BYTES];
    for index in 256..took {
        volume.read_at(&mut found, index * BLOCK).unwrap();
        assert!(found == block(index), "block {index}");
    }
}

#[test]
fn creating_stops_after_writing_and_removing_never() {
    let (_device, pool) = new_pool(4 << 20);
    let mut names = Vec::new();
    // Labels take space in the catalogue, so that creating volumes fills the pool too.
    let filler = volume(&pool, "filler", 1 << 30);
    fill(&filler, 0);
    loop {
        let name = Name::new(&format!("v{}", names.len())).unwrap();
        match pool.create_volume(&name, 1 << 30) {
            Ok(_) => names.push(name),
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(
            names.len() < 1_000_000,
            "the catalogue never fills a pool of 4 MiB"
        );
    }
    for name in &names {
        pool.remove(&pool.volume(name.as_str()).unwrap()).unwrap();
    }
    pool.remove(&filler).unwrap();
    pool.reclaim().unwrap();
    pool.checkpoint().unwrap();
    let volume = volume(&pool, "after", 1 << 30);
    let took = fill(&volume, 5);
    assert!(took > 100, "only {took} blocks fit after all was removed");
    verify(&volume, 5, took);
}
