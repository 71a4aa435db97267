//! A mirror of two sides in memory: one of them fails, or gets what it lacks, while others write and
//! flush. What was flushed is durable on each side that the durable labels call good.

use super::{BLOCK, explore, join, name, options, read, write};
use cowshed_engine::{CreateOptions, NewSide, Pool, Volume};
use cowshed_format::base::Error;
use cowshed_format::device::mirror::{Found, newest_label};
use cowshed_format::device::{
    Device, Effect, Fault, FaultyDevice, Lasting, MemoryDevice, MirrorDevice, Operation,
};
use cowshed_format::side::SideState;
use shuttle::rand::Rng;
use shuttle::thread;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

const POOL_BYTES: u64 = 2 << 20;
/// Number of times that a block is written while a side joins, which takes many steps.
const VERSIONS: u8 = 12;

/// A pool on two sides, whose second one can fail.
#[derive(Clone)]
struct Mirror {
    sides: [Arc<MemoryDevice>; 2],
    second: Arc<FaultyDevice>,
    pool: Pool,
    volume: Volume,
}

fn found(number: usize, device: Arc<dyn Device>) -> Found {
    let path = PathBuf::from(format!("/side/{number}"));
    Found { path, device }
}

impl Mirror {
    fn new() -> Self {
        let sides = [0, 1].map(|_| Arc::new(MemoryDevice::recording(POOL_BYTES)));
        let second = Arc::clone(&sides[1]) as Arc<dyn Device>;
        let second = Arc::new(FaultyDevice::new(second));
        let first = found(0, Arc::clone(&sides[0]) as Arc<dyn Device>);
        let both = vec![first, found(1, Arc::clone(&second) as Arc<dyn Device>)];
        let device = MirrorDevice::new(both).unwrap();
        let create = CreateOptions {
            log_bytes: Some(64 << 10),
            force: false,
            ..CreateOptions::default()
        };
        Pool::create(&device, &create).unwrap();
        let pool = Pool::open(Arc::new(device), &options()).unwrap();
        let volume = pool.create_volume(&name("v"), 8 * BLOCK).unwrap();
        pool.flush().unwrap();
        Self {
            sides,
            second,
            pool,
            volume,
        }
    }

    /// Returns one whose second side works again, and lacks block 2.
    fn behind() -> Self {
        let mirror = Self::new();
        let effect = Effect::Errno(libc::EIO);
        let second = &mirror.second;
        second.fail_next(Operation::Write, Lasting::Forever, effect);
        mirror.write_durably(2, 9..=9);
        assert!(mirror.is_degraded());
        second.heal();
        mirror
    }

    /// Lets one of the next calls of the second side fail, and all of that kind behind it.
    fn break_second(&self) {
        let mut random = shuttle::rand::thread_rng();
        let kinds = [Operation::Write, Operation::Store, Operation::Flush];
        let kind = kinds[random.gen_range(0..kinds.len())];
        self.second.inject(Fault {
            operation: kind,
            nth: self.second.calls(kind) + random.gen_range(1..4),
            lasting: Lasting::Forever,
            effect: Effect::Errno(libc::EIO),
        });
    }

    /// Writes versions of a block, flushes each, and asserts that the last one is durable where it has
    /// to be.
    fn write_durably(&self, block: u64, versions: RangeInclusive<u8>) {
        for version in versions.clone() {
            write(&self.volume, block, version);
            self.volume.flush().unwrap();
        }
        self.expect_durable(block, *versions.end());
    }

    fn expect_durable(&self, block: u64, version: u8) {
        // In this order: what is good when the first side is looked at stays as good as it is then.
        let images = self.sides.each_ref().map(|side| {
            let recording = side.recorded().unwrap();
            recording.crash_image(recording.epochs.len(), [])
        });
        let [first, second] = images.map(|image| Arc::new(MemoryDevice::from_image(image)));
        // A side that joins counts once its own label says so, too.
        let is_second_good = [&first, &second].into_iter().all(|side| all_good(side));
        assert_eq!(alone(0, first, block), version, "lost on the first side");
        if is_second_good {
            assert_eq!(alone(1, second, block), version, "lost on the second side");
        }
    }

    /// Has the second side get what it lacks.
    fn bring_second_back(&self) -> Result<(), Error> {
        let new = NewSide {
            path: PathBuf::from("/side/1"),
            // Its device is still there.
            open: Box::new(|_| Err(Error::InUse)),
            force: false,
        };
        self.pool.add_side(new, &mut |_, _| true)
    }

    fn is_degraded(&self) -> bool {
        self.pool.status().unwrap().degraded
    }
}

/// Returns true if the label of a side calls all sides good.
fn all_good(side: &MemoryDevice) -> bool {
    let (label, _) = newest_label(side).unwrap();
    let mut entries = label.set.sides.iter();
    entries.all(|entry| entry.state == SideState::Good)
}

/// Returns the version of a block that a side has by itself after a power cut.
fn alone(number: usize, device: Arc<MemoryDevice>, block: u64) -> u8 {
    let mirror = MirrorDevice::assemble(vec![found(number, device)]).unwrap();
    let pool = Pool::open(Arc::new(mirror), &options()).unwrap();
    read(&pool.volume("v").unwrap(), block)
}

#[test]
fn what_was_flushed_is_on_every_side_that_is_good_while_one_fails() {
    explore(|| {
        let mirror = Mirror::new();
        mirror.break_second();
        let writer = |block: u64| {
            let mirror = mirror.clone();
            thread::spawn(move || {
                for version in 1..=3 {
                    mirror.write_durably(block, version..=version);
                }
            })
        };
        join([writer(0), writer(1)]);
        for block in [0, 1] {
            assert_eq!(read(&mirror.volume, block), 3);
        }
    });
}

#[test]
fn what_was_flushed_is_on_a_side_that_joins_meanwhile() {
    explore(|| {
        let mirror = Mirror::behind();
        let writer = |block: u64| {
            let mirror = mirror.clone();
            thread::spawn(move || mirror.write_durably(block, 1..=VERSIONS))
        };
        let (joining, checkpointing) = (mirror.clone(), mirror.clone());
        join([
            writer(0),
            writer(1),
            thread::spawn(move || joining.bring_second_back().unwrap()),
            thread::spawn(move || checkpointing.pool.checkpoint().unwrap()),
        ]);
        assert!(!mirror.is_degraded());
        for (block, version) in [(0, VERSIONS), (1, VERSIONS), (2, 9)] {
            mirror.expect_durable(block, version);
        }
    });
}

/// Its copying ends, and nobody takes it for one that has everything.
#[test]
fn a_side_that_fails_while_it_joins_is_not_good() {
    explore(|| {
        let mirror = Mirror::behind();
        mirror.break_second();
        let (writing, joining) = (mirror.clone(), mirror.clone());
        join([
            thread::spawn(move || writing.write_durably(0, 1..=VERSIONS)),
            thread::spawn(move || {
                // The side may fail on the way.
                let _ = joining.bring_second_back();
            }),
        ]);
        for (block, version) in [(0, VERSIONS), (2, 9)] {
            mirror.expect_durable(block, version);
            assert_eq!(read(&mirror.volume, block), version);
        }
    });
}
