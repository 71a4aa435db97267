//! Writes that are held in a full pool: what releases them, and what continues meanwhile.

use crate::bench::{
    BLOCK, MIB, block, eventually, expect_sound, fill, name, options, pool, verify, waiting,
};
use cowshed_engine::{CreateOptions, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, Result};
use cowshed_format::device::{Effect, FaultyDevice, Lasting, MemoryDevice, Operation};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// So long that a test fails before a held write is refused.
const LONG: Duration = Duration::from_secs(600);

struct Full {
    device: Arc<MemoryDevice>,
    pool: Pool,
    volume: Volume,
    other: Volume,
    took: u64,
}

/// A full pool of two volumes that holds writes.
fn full(time: Duration) -> Full {
    let (device, pool) = pool(8 * MIB, waiting(time));
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let other = pool.create_volume(&name("other"), 1 << 30).unwrap();
    for index in 0..300 {
        other.write_at(&block(index), index * BLOCK).unwrap();
    }
    let took = fill(&volume, 1000);
    assert!(!pool.status().unwrap().holds_writes);
    Full {
        device,
        pool,
        volume,
        other,
        took,
    }
}

impl Full {
    /// Writes a block for which there is no space, and calls `act` once the write is held; returns
    /// the write's result.
    fn hold(&self, act: impl FnOnce()) -> Result<()> {
        thread::scope(|scope| {
            let write = || self.volume.write_at(&block(7), self.took * BLOCK);
            let held = scope.spawn(write);
            eventually("a held write", || self.pool.status().unwrap().holds_writes);
            act();
            held.join().unwrap()
        })
    }

    fn expect_all(&self) {
        verify(&self.volume, 1000, self.took);
        let mut found = vec![0; BLOCK_BYTES];
        self.volume.read_at(&mut found, self.took * BLOCK).unwrap();
        assert!(found == block(7), "the held write");
        assert!(!self.pool.status().unwrap().holds_writes);
    }
}

#[test]
fn a_held_write_goes_on_once_a_volume_is_removed() {
    let full = full(LONG);
    full.hold(|| full.pool.remove(&full.other).unwrap())
        .unwrap();
    full.expect_all();
}

#[test]
fn a_held_write_goes_on_once_something_is_discarded() {
    let full = full(LONG);
    full.hold(|| full.other.discard(0, 100 * BLOCK).unwrap())
        .unwrap();
    full.expect_all();
}

#[test]
fn a_held_write_goes_on_once_the_pool_has_grown() {
    let full = full(LONG);
    full.hold(|| full.pool.grow(9 * MIB).unwrap()).unwrap();
    full.expect_all();
    full.pool.close().unwrap();
    expect_sound(&*full.device);
}

#[test]
fn everything_else_goes_on_while_a_write_is_held() {
    let full = full(LONG);
    let (pool, other) = (&full.pool, &full.other);
    full.hold(|| {
        verify(other, 0, 300);
        verify(&full.volume, 1000, full.took);
        pool.checkpoint().unwrap();
        pool.flush().unwrap();
        pool.rename(other, &name("renamed")).unwrap();
        let snapshot = pool.snapshot(&full.volume, &name("s")).unwrap();
        other.discard(10, 20).unwrap();
        pool.trim().unwrap();
        assert!(pool.status().unwrap().holds_writes);
        pool.remove(&snapshot).unwrap();
        pool.remove(other).unwrap();
    })
    .unwrap();
    full.expect_all();
}

#[test]
fn a_held_write_is_refused_when_its_time_is_over() {
    let full = full(Duration::from_millis(300));
    let refused = full.hold(|| {});
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    verify(&full.volume, 1000, full.took);
}

#[test]
fn held_writes_are_refused_once_nobody_is_to_wait() {
    let full = full(LONG);
    let refused = full.hold(|| full.pool.stop_holding());
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    let refused = full.volume.write_at(&[1; 4096], full.took * 4096);
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
}

#[test]
fn closing_the_pool_wakes_held_writes() {
    let full = full(LONG);
    let refused = full.hold(|| full.pool.close().unwrap());
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    expect_sound(&*full.device);
}

#[test]
fn a_pool_that_stops_wakes_held_writes() {
    let memory = Arc::new(MemoryDevice::new(8 * MIB));
    Pool::create(&*memory, &CreateOptions::default()).unwrap();
    let device = Arc::new(FaultyDevice::new(memory));
    let pool = Pool::open(device.clone(), &options(waiting(LONG))).unwrap();
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let took = fill(&volume, 0);
    let refused = thread::scope(|scope| {
        let held = scope.spawn(|| volume.write_at(&block(1), took * BLOCK));
        eventually("a held write", || pool.status().unwrap().holds_writes);
        // So that there is something to flush.
        volume.discard(0, 10).unwrap();
        device.fail_next(Operation::Flush, Lasting::Forever, Effect::Errno(libc::EIO));
        assert!(pool.flush().is_err());
        held.join().unwrap()
    });
    assert!(
        matches!(refused, Err(Error::FailStopped { .. })),
        "{refused:?}"
    );
}

#[test]
fn many_held_writers_share_what_little_room_there_is_made() {
    const WRITERS: u64 = 16;
    let full = full(LONG);
    thread::scope(|scope| {
        let write = |number: u64| {
            let volume = &full.volume;
            let at = (full.took + 1 + number) * BLOCK;
            scope.spawn(move || volume.write_at(&block(number), at))
        };
        let writers: Vec<_> = (0..WRITERS).map(write).collect();
        let mut freed = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            if full.pool.status().unwrap().holds_writes && freed < 300 {
                full.other.discard(freed * BLOCK, BLOCK).unwrap();
                freed += 1;
            }
        }
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
    });
    for number in 0..WRITERS {
        verify_at(&full.volume, number, full.took + 1 + number);
    }
    verify(&full.volume, 1000, full.took);
}

fn verify_at(volume: &Volume, seed: u64, index: u64) {
    let mut found = vec![0; BLOCK_BYTES];
    volume.read_at(&mut found, index * BLOCK).unwrap();
    assert!(found == block(seed), "block {index}");
}
