//! A process that continues where another one died, on the same kernel.

use super::*;
use cowshed_format::base::Generation;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory that outlives a process.
#[derive(Clone, Default)]
struct Memory(Arc<AtomicU64>);

impl Memory {
    fn notes(&self) -> Notes {
        let noted = Arc::clone(&self.0);
        Notes {
            durable: Some(Arc::new(move |generation: Generation| {
                noted.store(generation.0, Ordering::SeqCst);
            })),
            ..Notes::default()
        }
    }

    fn durable(&self) -> Option<Generation> {
        Some(Generation(self.0.load(Ordering::SeqCst)))
    }

    fn resume(&self, device: &Arc<MemoryDevice>) -> Pool {
        let options = OpenOptions {
            resumes: self.durable(),
            notes: self.notes(),
            ..options()
        };
        Pool::open(Arc::clone(device) as Arc<dyn Device>, &options).unwrap()
    }
}

/// Returns a recorded device with a pool, whose durable superblocks are noted.
fn watched() -> (Arc<MemoryDevice>, Pool, Memory) {
    let made = MemoryDevice::new(16 * MIB);
    Pool::create(&made, &CreateOptions::default()).unwrap();
    let device = Arc::new(MemoryDevice::recording_from(made.snapshot_image()));
    let memory = Memory::default();
    let options = OpenOptions {
        notes: memory.notes(),
        ..options()
    };
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).unwrap();
    (device, pool, memory)
}

#[test]
fn resuming_takes_no_barrier_and_finds_every_write() {
    let (device, pool, memory) = watched();
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    let mut model = vec![0; MIB as usize];
    // It dies again and again, and never flushes.
    drop((volume, pool));
    let barriers = device.flushes();
    for life in 0..20u8 {
        let pool = memory.resume(&device);
        let volume = pool.volume("v").unwrap();
        assert!(content(&volume) == model, "in life {life}");
        let at = usize::from(life) * 7000;
        let bytes = pattern(life, 9000);
        volume.write_at(&bytes, at as u64).unwrap();
        model[at..at + 9000].copy_from_slice(&bytes);
    }
    assert_eq!(device.flushes(), barriers);
    // A flush covers the writes of earlier lives.
    let pool = memory.resume(&device);
    pool.flush().unwrap();
    assert_eq!(device.flushes(), barriers + 1);
    drop(pool);
    let recording = device.recorded().unwrap();
    let image = recording.crash_image(recording.epochs.len(), []);
    let pool = reopen(&Arc::new(MemoryDevice::from_image(image)));
    assert!(
        content(&pool.volume("v").unwrap()) == model,
        "after a power cut"
    );
}

#[test]
fn what_a_checkpoint_freed_in_an_earlier_life_is_not_used_before_the_next_one() {
    let (device, pool, memory) = watched();
    let volume = pool.create_volume(&name("v"), 4 * MIB).unwrap();
    volume.write_at(&pattern(1, 4 * MIB as usize), 0).unwrap();
    pool.checkpoint().unwrap();
    volume.write_at(&pattern(2, 4 * MIB as usize), 0).unwrap();
    drop((volume, pool));
    // The blocks of the first write are free in memory only once a checkpoint has said so.
    let pool = memory.resume(&device);
    let free = pool.status().unwrap().free_bytes;
    pool.checkpoint().unwrap();
    assert!(pool.status().unwrap().free_bytes > free + 3 * MIB);
    drop(pool);
    let pool = memory.resume(&device);
    assert!(content(&pool.volume("v").unwrap()) == pattern(2, 4 * MIB as usize));
}

#[test]
fn a_superblock_that_is_not_known_to_be_durable_is_made_so_before_anything_is_written() {
    let (device, pool, memory) = watched();
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    volume.write_at(&pattern(1, 5000), 0).unwrap();
    let before = memory.durable();
    pool.checkpoint().unwrap();
    assert_ne!(memory.durable(), before);
    drop((volume, pool));
    // As if it had died between the superblock's write and the barrier: the note is missing.
    for resumes in [before, None] {
        let again = Arc::new(MemoryDevice::recording_from(device.snapshot_image()));
        let options = OpenOptions {
            resumes,
            ..options()
        };
        let pool = Pool::open(Arc::clone(&again) as Arc<dyn Device>, &options).unwrap();
        assert!(content(&pool.volume("v").unwrap())[..5000] == pattern(1, 5000));
        let recording = again.recorded().unwrap();
        assert!(recording.epochs[0].is_empty(), "written before a barrier");
        assert!(!recording.epochs[1].is_empty(), "no new salt");
    }
}

#[test]
fn a_pool_that_was_closed_is_opened_as_ever() {
    let (device, pool, memory) = watched();
    pool.create_volume(&name("v"), MIB).unwrap();
    pool.close().unwrap();
    drop(pool);
    let pool = memory.resume(&device);
    let volume = pool.volume("v").unwrap();
    volume.write_at(&pattern(3, 5000), 0).unwrap();
    drop((volume, pool));
    let pool = memory.resume(&device);
    assert!(content(&pool.volume("v").unwrap())[..5000] == pattern(3, 5000));
}

#[test]
fn a_record_that_was_lost_with_later_ones_behind_it_gets_a_new_salt() {
    let (device, pool, memory) = watched();
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    let salt = pool.shared.log.salt();
    let mut places = Vec::new();
    for seed in 1..5 {
        places.push(pool.shared.log.position().bytes);
        volume.write_at(&pattern(seed, 4096), 0).unwrap();
    }
    let log = pool.shared.space.layout().log_offset_bytes();
    drop((volume, pool));
    let lost = log + places[1] / 4096 * 4096;
    let mut block = vec![0; 4096];
    device.read_at(&mut block, lost).unwrap();
    block[usize::try_from(places[1] % 4096).unwrap()] ^= 1;
    device.write_at(&block, lost).unwrap();
    // None of the later records says that the lost one was durable.
    let pool = memory.resume(&device);
    let volume = pool.volume("v").unwrap();
    assert!(content(&volume)[..4096] == pattern(1, 4096));
    assert_ne!(pool.shared.log.salt(), salt);
    volume.write_at(&pattern(9, 4096), 0).unwrap();
    drop((volume, pool));
    let pool = memory.resume(&device);
    assert!(content(&pool.volume("v").unwrap())[..4096] == pattern(9, 4096));
}

#[test]
fn an_older_superblock_than_the_durable_one_is_refused() {
    let (device, pool, memory) = watched();
    drop(pool);
    let newer = memory.durable().unwrap().next();
    let options = OpenOptions {
        resumes: Some(newer),
        ..options()
    };
    let device = Arc::clone(&device) as Arc<dyn Device>;
    let refused = Pool::open(device, &options).err().unwrap();
    assert!(
        refused.to_string().contains("the newest superblock"),
        "{refused}"
    );
}

#[test]
fn what_a_removed_volume_had_promised_is_promised_until_a_checkpoint_holds_its_removal() {
    let device = Arc::new(MemoryDevice::new(64 * MIB));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let memory = Memory::default();
    let options = OpenOptions {
        cache_bytes: 256 << 20,
        notes: memory.notes(),
        ..options()
    };
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).unwrap();
    pool.checkpoint().unwrap();
    // A leaf for each block.
    let sparse = pool.create_volume(&name("sparse"), 1024 * MIB).unwrap();
    for at in 0..600 {
        sparse.write_at(&pattern(1, 4096), at * MIB).unwrap();
    }
    pool.remove(&sparse).unwrap();
    drop(sparse);
    pool.shared.reclaim_all(prune::Pace::Now).unwrap();
    // Everything that fits is written, without a checkpoint.
    let volume = pool.create_volume(&name("v"), 64 * MIB).unwrap();
    let mut written = 0;
    let bytes = pattern(2, 4096);
    let checkpoints = pool.shared.checkpoints.load(Ordering::SeqCst);
    while pool.shared.space.writable_blocks() > 320 && written < 64 * MIB {
        volume.write_at(&bytes, written).unwrap();
        written += 4096;
    }
    assert_eq!(pool.shared.checkpoints.load(Ordering::SeqCst), checkpoints);
    drop((volume, pool));
    for resumes in [memory.durable(), None] {
        let device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
        let options = OpenOptions {
            resumes,
            ..super::options()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).unwrap();
        pool.checkpoint().unwrap();
        let volume = pool.volume("v").unwrap();
        let mut found = vec![0; 4096];
        volume.read_at(&mut found, written - 4096).unwrap();
        assert!(found == bytes);
        pool.remove(&volume).unwrap();
    }
}
