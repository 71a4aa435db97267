//! The engine in random orders of its threads: each model is a small scene that is run repeatedly,
//! and at every lock and atomic the checker decides which thread continues. A failure prints the
//! schedule that repeats it (`shuttle::replay`). `COWSHED_TEST_ORDERS` sets the number of orders in
//! which each model is run.
//!
//! All threads see each step at once: the further effects of a weak memory model are tested by
//! `entries` and by ThreadSanitizer (`tools/tsan`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mirror;

use cowshed_engine::{CreateOptions, OpenOptions, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, Name};
use cowshed_format::device::{Device, MemoryDevice};
use shuttle::thread;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Number of orders in which each model is run.
const ORDERS: usize = 400;
/// Number of reads of a reader that is to be stopped in the middle of one, for as long as the other
/// threads need.
const READS: usize = 100;

fn explore(scene: impl Fn() + Send + Sync + 'static) {
    let text = std::env::var("COWSHED_TEST_ORDERS").ok();
    let orders = text.map_or(ORDERS, |text| text.parse().unwrap());
    let mut config = shuttle::Config::new();
    // The engine's stacks are deep, and a reader that waits for a writer takes steps.
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
    let scene = Arc::new(scene);
    let (random, preempted) = (Arc::clone(&scene), scene);
    let scheduler = shuttle::scheduler::RandomScheduler::new(orders / 2);
    shuttle::Runner::new(scheduler, config.clone()).run(move || random());
    // Few switches, at the worst places: this finds orders that random choice would not.
    let scheduler = shuttle::scheduler::PctScheduler::new(3, orders / 2);
    shuttle::Runner::new(scheduler, config).run(move || preempted());
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Creates a pool of 2 MiB: a freed block is soon reused.
fn pool(device: &Arc<MemoryDevice>) -> Pool {
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&**device, &create).unwrap();
    Pool::open(Arc::clone(device) as Arc<dyn Device>, &options()).unwrap()
}

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 64 << 10,
        background: false,
        ..OpenOptions::default()
    }
}

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(2 << 20))
}

fn write(volume: &Volume, block: u64, version: u8) {
    let bytes = [version; BLOCK_BYTES];
    volume.write_at(&bytes, block * BLOCK).unwrap();
}

/// Returns the version of a block, and asserts that the block is not torn.
fn try_read(volume: &Volume, block: u64) -> Result<u8, Error> {
    let mut bytes = [0xee; BLOCK_BYTES];
    volume.read_at(&mut bytes, block * BLOCK)?;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
    Ok(bytes[0])
}

fn read(volume: &Volume, block: u64) -> u8 {
    try_read(volume, block).unwrap()
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

/// A block in a second leaf: the map has two levels, so that nodes have children.
const FAR: u64 = 300;

#[test]
fn readers_follow_a_map_while_a_checkpoint_stores_it_and_a_writer_changes_it() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), 400 * BLOCK).unwrap();
        write(&volume, 0, 1);
        write(&volume, FAR, 1);
        let (writer, reader) = (volume.clone(), volume.clone());
        let checkpointer = pool;
        join([
            thread::spawn(move || {
                for version in 2..4 {
                    write(&writer, 0, version);
                    write(&writer, FAR, version);
                }
            }),
            thread::spawn(move || {
                checkpointer.checkpoint().unwrap();
                checkpointer.checkpoint().unwrap();
            }),
            thread::spawn(move || {
                let mut least = 1;
                for _ in 0..2 {
                    let far = read(&reader, FAR);
                    let near = read(&reader, 0);
                    assert!(far >= least, "an older version than was seen before");
                    assert!(near >= far, "the near block is written first");
                    least = far;
                }
            }),
        ]);
        assert_eq!((read(&volume, 0), read(&volume, FAR)), (3, 3));
    });
}

#[test]
fn a_late_reader_finds_the_block_where_it_has_gone() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), BLOCK).unwrap();
        let other = pool.create_volume(&name("o"), 8 * BLOCK).unwrap();
        write(&volume, 0, 1);
        let (writer, reader) = (volume.clone(), volume);
        join([
            thread::spawn(move || {
                for version in 2..4 {
                    write(&writer, 0, version);
                    // The old block is free from here on, and the next write takes the first free
                    // block.
                    pool.checkpoint().unwrap();
                    write(&other, u64::from(version), 0xaa);
                }
            }),
            thread::spawn(move || {
                let mut least = 1;
                for _ in 0..READS {
                    let version = read(&reader, 0);
                    assert!((least..4).contains(&version), "version {version}");
                    least = version;
                }
            }),
        ]);
    });
}

#[test]
fn a_part_of_a_block_is_never_lost_to_another_part() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), BLOCK).unwrap();
        let part = |at: u64| {
            let volume = volume.clone();
            thread::spawn(move || volume.write_at(&[7; 512], at * 512).unwrap())
        };
        let threads = [part(0), part(3), part(5)];
        pool.checkpoint().unwrap();
        join(threads);
        let mut bytes = [0; BLOCK_BYTES];
        volume.read_at(&mut bytes, 0).unwrap();
        for (at, lane) in bytes.chunks(512).enumerate() {
            let wanted = if [0, 3, 5].contains(&at) { 7 } else { 0 };
            assert!(lane.iter().all(|byte| *byte == wanted), "lane {at}");
        }
    });
}

#[test]
fn a_snapshot_is_of_one_moment_and_stays() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), 400 * BLOCK).unwrap();
        write(&volume, 0, 1);
        write(&volume, FAR, 1);
        let (writer, checkpointer) = (volume.clone(), pool.clone());
        let threads = [
            thread::spawn(move || {
                for version in 2..4 {
                    write(&writer, 0, version);
                    write(&writer, FAR, version);
                }
            }),
            thread::spawn(move || checkpointer.checkpoint().unwrap()),
        ];
        let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
        let both = |volume: &Volume| (read(volume, 0), read(volume, FAR));
        let (near, far) = both(&snapshot);
        assert!(near == far || near == far + 1, "{near} beside {far}");
        join(threads);
        assert_eq!(both(&snapshot), (near, far), "it changed");
        assert_eq!(both(&volume), (3, 3));
    });
}

#[test]
fn a_child_keeps_what_it_shares_with_a_parent_that_is_reclaimed_beside_it() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), 400 * BLOCK).unwrap();
        for block in [0, 1, FAR] {
            write(&volume, block, 1);
        }
        let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
        write(&volume, 1, 2);
        let (writer, reader, other) = (volume.clone(), volume.clone(), pool.clone());
        join([
            thread::spawn(move || {
                pool.remove(&snapshot).unwrap();
                pool.reclaim().unwrap();
                // A reader that still looks for a freed block finds this data there.
                let filler = pool.create_volume(&name("f"), 8 * BLOCK).unwrap();
                filler.write_at(&[0xaa; 8 * BLOCK_BYTES], 0).unwrap();
            }),
            thread::spawn(move || {
                write(&writer, 0, 3);
                other.checkpoint().unwrap();
            }),
            thread::spawn(move || {
                assert_eq!(read(&reader, FAR), 1);
                assert_eq!(read(&reader, 1), 2);
                assert!([1, 3].contains(&read(&reader, 0)));
            }),
        ]);
        let all = [0, 1, FAR].map(|block| read(&volume, block));
        assert_eq!(all, [3, 2, 1]);
    });
}

#[test]
fn a_volume_that_is_removed_under_a_reader_gives_its_data_or_is_gone() {
    explore(|| {
        let pool = pool(&device());
        let volume = pool.create_volume(&name("v"), 4 * BLOCK).unwrap();
        write(&volume, 0, 1);
        let reader = volume.clone();
        join([
            thread::spawn(move || {
                pool.remove(&volume).unwrap();
                pool.reclaim().unwrap();
                let filler = pool.create_volume(&name("f"), 8 * BLOCK).unwrap();
                filler.write_at(&[0xaa; 8 * BLOCK_BYTES], 0).unwrap();
            }),
            thread::spawn(move || {
                for _ in 0..READS {
                    match try_read(&reader, 0) {
                        Ok(version) => assert_eq!(version, 1),
                        Err(Error::NoSuchVolume(_)) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }),
        ]);
    });
}

#[test]
fn whoever_has_flushed_finds_his_write_behind_a_barrier() {
    explore(|| {
        let device = Arc::new(MemoryDevice::recording(2 << 20));
        let pool = pool(&device);
        let volume = pool.create_volume(&name("v"), 8 * BLOCK).unwrap();
        let before = device.flushes();
        let flusher = |block: u64| {
            let (volume, device) = (volume.clone(), Arc::clone(&device));
            thread::spawn(move || {
                let version = u8::try_from(block).unwrap() + 1;
                write(&volume, block, version);
                volume.flush().unwrap();
                let recording = device.recorded().unwrap();
                let image = recording.crash_image(recording.epochs.len(), []);
                let after = Arc::new(MemoryDevice::from_image(image));
                let pool = Pool::open(after as Arc<dyn Device>, &options()).unwrap();
                let volume = pool.volume("v").unwrap();
                assert_eq!(read(&volume, block), version, "acknowledged, and lost");
            })
        };
        join([flusher(0), flusher(1), flusher(2)]);
        assert!(
            device.flushes() - before <= 3,
            "a barrier for each at the most"
        );
    });
}
