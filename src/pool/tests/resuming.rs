//! A process that goes on where another one died, on the same kernel.

use super::*;
use crate::base::Generation;
use std::sync::atomic::{AtomicU64, Ordering};

/// What outlives a process.
#[derive(Clone, Default)]
struct Memory(Arc<AtomicU64>);

impl Memory {
    fn watch(&self, pool: &Pool) {
        let noted = Arc::clone(&self.0);
        pool.on_durable(Box::new(move |generation| {
            noted.store(generation.0, Ordering::SeqCst);
        }));
    }

    fn durable(&self) -> Option<Generation> {
        Some(Generation(self.0.load(Ordering::SeqCst)))
    }

    fn resume(&self, device: &Arc<MemoryDevice>) -> Pool {
        let options = OpenOptions {
            resumes: self.durable(),
            ..options()
        };
        Pool::open(Arc::clone(device) as Arc<dyn Device>, &options).unwrap()
    }
}

/// A recorded device with a pool, whose durable superblocks are noted.
fn watched() -> (Arc<MemoryDevice>, Pool, Memory) {
    let made = MemoryDevice::new(16 * MIB);
    Pool::create(&made, &CreateOptions::default()).unwrap();
    let device = Arc::new(MemoryDevice::recording_from(made.snapshot_image()));
    let pool = reopen(&device);
    let memory = Memory::default();
    memory.watch(&pool);
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
        memory.watch(&pool);
        let volume = pool.volume("v").unwrap();
        assert!(content(&volume) == model, "in life {life}");
        let at = usize::from(life) * 7000;
        let bytes = pattern(life, 9000);
        volume.write_at(&bytes, at as u64).unwrap();
        model[at..at + 9000].copy_from_slice(&bytes);
    }
    assert_eq!(device.flushes(), barriers);
    // A flush covers what earlier lives wrote.
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
    memory.watch(&pool);
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
    memory.watch(&pool);
    let volume = pool.volume("v").unwrap();
    volume.write_at(&pattern(3, 5000), 0).unwrap();
    drop((volume, pool));
    let pool = memory.resume(&device);
    assert!(content(&pool.volume("v").unwrap())[..5000] == pattern(3, 5000));
}
