//! Tests the check on pools that the engine made: after random operations, in states in which the
//! machine could have stopped, and after recovery from them.

use cowshed_check::{CheckOptions, CheckReport, FindingKind, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool, RecordKind, Volume};
use cowshed_format::Superblock;
use cowshed_format::base::Name;
use cowshed_format::device::{Device, DeviceImage, MemoryDevice, RecordedOp};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

const BLOCK: u64 = 4096;
const POOL_BYTES: u64 = 256 << 20;
const VOLUME_BLOCKS: u64 = 70_000;

fn checked(image: DeviceImage, what: &str) -> CheckReport {
    let device = MemoryDevice::from_image(image);
    let options = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let report = check(&device, options, &mut |_| {}).expect(what);
    // A stop during the first write of a slot leaves one of its two copies empty.
    let faults = report.findings.iter();
    let faults = faults.filter(|each| each.kind != FindingKind::SuperblockUnreadable);
    let texts: Vec<_> = faults.take(20).map(ToString::to_string).collect();
    assert!(texts.is_empty(), "{what}: {texts:#?} {:?}", report.notes);
    report
}

fn fresh() -> DeviceImage {
    let device = MemoryDevice::new(POOL_BYTES);
    Pool::create(&device, &CreateOptions::default()).expect("a pool");
    device.snapshot_image()
}

fn open(device: &Arc<MemoryDevice>) -> Pool {
    let options = OpenOptions {
        cache_bytes: 8 << 20,
        background: false,
        ..OpenOptions::default()
    };
    Pool::open(Arc::clone(device) as Arc<dyn Device>, &options).expect("the pool opens")
}

/// A pool under random operations.
struct Load {
    pool: Pool,
    random: StdRng,
    names: u32,
    size_bytes: u64,
}

impl Load {
    fn name(&mut self) -> Name {
        self.names += 1;
        Name::new(&format!("v{}", self.names)).expect("a letter and digits")
    }

    fn any(&mut self, frozen: bool) -> Option<Volume> {
        let volumes: Vec<Volume> = (self.pool.volumes().iter())
            .filter_map(|info| self.pool.volume_by_id(info.id).ok())
            .filter(|volume| volume.is_frozen() == frozen)
            .collect();
        volumes.choose(&mut self.random).cloned()
    }

    fn write(&mut self, volume: &Volume) {
        let blocks = self.random.random_range(1..40);
        // Near the start of three regions, so that trees have holes, edges and several levels.
        let region = *[0, 600, 65_000].choose(&mut self.random).expect("three");
        let first = region + self.random.random_range(0..600);
        if self.random.random_ratio(1, 6) {
            volume
                .discard(first * BLOCK, blocks * 8 * BLOCK)
                .expect("a discard");
        } else {
            let fill = self.random.random_range(0..4);
            let bytes = vec![fill; usize::try_from(blocks * BLOCK - 100).expect("small")];
            volume
                .write_at(&bytes, first * BLOCK + 50)
                .expect("a write");
        }
    }

    fn step(&mut self) {
        let volume = self.any(false);
        let snapshot = self.any(true);
        let name = self.name();
        match (self.random.random_range(0..24), volume, snapshot) {
            (0, ..) | (_, None, None) => {
                self.pool
                    .create_volume(&name, VOLUME_BLOCKS * BLOCK)
                    .expect("created");
            }
            (1..=3, Some(volume), _) => drop(self.pool.snapshot(&volume, &name).expect("taken")),
            (4..=6, _, Some(snapshot)) => {
                self.pool.clone_volume(&snapshot, &name).expect("cloned");
            }
            (7, Some(volume), Some(snapshot)) => drop(self.pool.rollback(&volume, &snapshot)),
            (8, Some(volume), _) => self.pool.remove(&volume).expect("removed"),
            (9..=10, _, Some(snapshot)) => self.pool.remove(&snapshot).expect("removed"),
            (11, ..) => self.pool.flush().expect("flushed"),
            (12, ..) => self.pool.checkpoint().expect("a checkpoint"),
            (13, ..) => self.reclaim_and_checkpoint(),
            (14, ..) => {
                let mut transaction = self.pool.transaction();
                let value = vec![7; self.random.random_range(0..9000)];
                let key = [self.random.random_range(0..5)];
                transaction.put_record(RecordKind::IMAGE, &key, &value);
                transaction.commit().expect("a record");
            }
            (15, Some(volume), _) => {
                let blocks = self.random.random_range(66_000..90_000);
                self.pool.resize(&volume, blocks * BLOCK).expect("resized");
            }
            (16, ..) if self.size_bytes < 400 << 20 => {
                self.size_bytes += 9 << 20;
                self.pool.grow(self.size_bytes).expect("grown");
            }
            (_, Some(volume), _) => {
                for _ in 0..5 {
                    self.write(&volume);
                }
            }
            _ => {}
        }
    }

    /// Takes checkpoints while the reclaim runs.
    fn reclaim_and_checkpoint(&self) {
        std::thread::scope(|scope| {
            let reclaim = scope.spawn(|| self.pool.reclaim());
            while !reclaim.is_finished() {
                self.pool.checkpoint().expect("a checkpoint");
            }
            reclaim.join().expect("no panic").expect("reclaimed");
        });
    }
}

#[test]
fn pools_are_clean_after_random_operations_and_after_reopening() {
    for seed in 0..6 {
        let mut device = Arc::new(MemoryDevice::from_image(fresh()));
        checked(device.snapshot_image(), "made");
        let mut load = Load {
            pool: open(&device),
            random: StdRng::seed_from_u64(seed),
            names: 0,
            size_bytes: POOL_BYTES,
        };
        for round in 0..6 {
            for step in 0..60 {
                load.step();
                if step % 20 == 19 {
                    let what = format!("seed {seed} step {round}/{step}");
                    checked(device.snapshot_image(), &what);
                }
            }
            if round % 2 == 0 {
                load.pool.close().expect("closed");
            }
            device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
            load.pool = open(&device);
            let what = format!("seed {seed} round {round} reopened");
            checked(device.snapshot_image(), &what);
        }
    }
}

#[test]
fn pools_are_clean_wherever_the_machine_stops_and_after_the_recovery() {
    for seed in 0..3 {
        let device = Arc::new(MemoryDevice::recording_from(fresh()));
        let mut load = Load {
            pool: open(&device),
            random: StdRng::seed_from_u64(seed),
            names: 0,
            size_bytes: POOL_BYTES,
        };
        for _ in 0..150 {
            load.step();
        }
        let recording = device.recorded().expect("it records");
        let mut random = StdRng::seed_from_u64(seed + 100);
        let mut recovered = 0;
        // Each image is built from the start, so only as many are tested as time allows.
        let stride = recording.epochs.len().div_ceil(150);
        for epoch in (0..recording.epochs.len()).step_by(stride) {
            let ops = &recording.epochs[epoch];
            let share = random.random_range(0..=10);
            let mut survives = |_: &&RecordedOp| random.random_ratio(share, 10);
            let survivors: Vec<&RecordedOp> = ops.iter().filter(&mut survives).collect();
            let what = format!("seed {seed} epoch {epoch} share {share}");
            let image = recording.crash_image(epoch, survivors);
            checked(image.clone(), &what);
            if random.random_ratio(1, 3) {
                let device = Arc::new(MemoryDevice::from_image(image));
                let pool = open(&device);
                pool.checkpoint().expect("a checkpoint");
                checked(device.snapshot_image(), &format!("{what} recovered"));
                recovered += 1;
            }
        }
        assert!(recovered > 3);
    }
}

#[test]
fn the_engine_opens_a_repaired_pool_and_finds_every_byte() {
    for closed in [true, false] {
        let device = Arc::new(MemoryDevice::from_image(fresh()));
        let pool = open(&device);
        let volume = pool
            .create_volume(&Name::new("v").expect("a name"), 1 << 30)
            .expect("created");
        let bytes: Vec<u8> = (0..3_000_000u32)
            .map(|at| at.to_le_bytes()[1] ^ 0x55)
            .collect();
        volume.write_at(&bytes, 12_345).expect("written");
        if closed {
            pool.close().expect("closed");
        } else {
            pool.checkpoint().expect("a checkpoint");
        }
        let device = MemoryDevice::from_image(device.snapshot_image());
        let mut block = vec![0; 4096];
        device.read_at(&mut block, 0).expect("slot 0");
        let layout = Superblock::decode(&block).expect("slot 0").layout;
        let bitmaps = layout.bitmap_slot(0, 0).offset_bytes();
        device.write_at(&[0xee; 4 * 4096], bitmaps).expect("lost");
        device.write_at(&[0xee; 4096], 0).expect("lost");
        let options = CheckOptions {
            deep: true,
            repair: true,
            forget: false,
        };
        let report = check(&device, options, &mut |_| {}).expect("a pool");
        assert_eq!(report.findings.len(), 2, "{:?}", report.findings);
        assert!(report.clean() && report.refused.is_none(), "{report:?}");
        let device = Arc::new(device);
        let pool = open(&device);
        let mut found = vec![0; bytes.len()];
        let volume = pool.volume("v").expect("it is there");
        volume.read_at(&mut found, 12_345).expect("read");
        assert!(found == bytes);
        pool.remove(&volume).expect("removed");
        pool.reclaim().expect("reclaimed");
        checked(device.snapshot_image(), "used after the repair");
    }
}

/// Returns the slots of a pool, and the index of the newer one.
fn superblocks(image: &DeviceImage) -> ([Superblock; 2], usize) {
    let slots = [0, 1].map(|slot| {
        let mut bytes = [0; 4096];
        image.read(&mut bytes, slot * BLOCK);
        Superblock::decode(&bytes).expect("both slots are written")
    });
    let newer = usize::from(slots[1].generation > slots[0].generation);
    (slots, newer)
}

/// Found by fuzzing: the engine identified the pool by its first slot, the check by the newer one.
#[test]
fn a_slot_that_holds_another_pools_superblock_is_found_and_does_not_count() {
    for checkpoints in 2..4 {
        let device = Arc::new(MemoryDevice::from_image(fresh()));
        let pool = open(&device);
        let volume = pool.create_volume(&Name::new("v").unwrap(), 8 * BLOCK);
        volume.unwrap().write_at(&[7; 4096], 0).unwrap();
        for _ in 0..checkpoints {
            pool.checkpoint().unwrap();
        }
        drop(pool);
        let mut image = device.snapshot_image();
        let (slots, newer) = superblocks(&image);
        let other = Superblock {
            uuid: [9; 16],
            ..slots[1 - newer].clone()
        };
        image.apply(&RecordedOp::Write {
            offset_bytes: (1 - newer as u64) * BLOCK,
            bytes: other.encode().into(),
            mapped: false,
        });
        let device = Arc::new(MemoryDevice::from_image(image));
        let report = check(&*device, CheckOptions::default(), &mut |_| {}).unwrap();
        let kinds: Vec<_> = report.findings.iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [FindingKind::SuperblockUnreadable]);
        let pool = open(&device);
        let mut bytes = [0; 4096];
        pool.volume("v").unwrap().read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; 4096]);
    }
}

/// Found by fuzzing: of two superblocks of one generation the engine took the copy, and the check
/// the primary.
#[test]
fn a_copy_that_differs_from_its_primary_is_found_and_does_not_count() {
    let device = Arc::new(MemoryDevice::from_image(fresh()));
    let pool = open(&device);
    pool.checkpoint().unwrap();
    pool.checkpoint().unwrap();
    drop(pool);
    let mut image = device.snapshot_image();
    let (slots, newer) = superblocks(&image);
    let [_, copy] = slots[newer].layout.superblock_slots(u8::from(newer == 1));
    let other = Superblock {
        next_volume_id: 1000,
        ..slots[newer].clone()
    };
    image.apply(&RecordedOp::Write {
        offset_bytes: copy.offset_bytes(),
        bytes: other.encode().into(),
        mapped: false,
    });
    let device = Arc::new(MemoryDevice::from_image(image));
    let report = check(&*device, CheckOptions::default(), &mut |_| {}).unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [FindingKind::SuperblockUnreadable]);
    let pool = open(&device);
    let volume = pool.create_volume(&Name::new("v").unwrap(), BLOCK);
    assert!(volume.unwrap().id().0 < 1000, "the copy counted");
}
