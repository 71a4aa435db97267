//! The engine alone, on a device in memory.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of a test's own making"
)]

use super::*;
use cowshed_format::base::{Error, Name};
use cowshed_format::device::{Device, MemoryDevice};
use std::sync::Arc;

mod damage;
mod filling;
mod joining;
mod meanwhile;
mod medium;
mod pruning;
mod resuming;

const MIB: u64 = 1 << 20;

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 8 << 20,
        background: false,
        ..OpenOptions::default()
    }
}

fn fresh(len_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    fresh_as(len_bytes, &CreateOptions::default())
}

/// As `fresh`; a damaged block of metadata is lost, as there is no copy of it.
fn fresh_without_copies(len_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    let create = CreateOptions {
        metadata_copies: Some(MetadataCopies::One),
        ..CreateOptions::default()
    };
    fresh_as(len_bytes, &create)
}

fn fresh_as(len_bytes: u64, create: &CreateOptions) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(len_bytes));
    Pool::create(&*device, create).unwrap();
    let pool = reopen(&device);
    (device, pool)
}

fn reopen(device: &Arc<MemoryDevice>) -> Pool {
    Pool::open(Arc::clone(device) as Arc<dyn Device>, &options()).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 31 + usize::from(seed)) as u8 | 1)
        .collect()
}

fn content(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(volume.size_bytes()).unwrap()];
    volume.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_pool_that_is_open_read_only_is_recovered_in_memory_and_refuses_every_change() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), 8 * MIB).unwrap();
    volume.write_at(&pattern(1, 300_000), 5000).unwrap();
    pool.checkpoint().unwrap();
    volume.write_at(&pattern(2, 70_000), 100_000).unwrap();
    pool.create_volume(&name("w"), MIB).unwrap();
    pool.flush().unwrap();
    let expected = content(&volume);
    drop((volume, pool));
    // With records to replay in the log, and after the pool was closed.
    for closed in [false, true] {
        if closed {
            reopen(&device).close().unwrap();
        }
        let before = device.snapshot_image();
        let read_only = OpenOptions {
            read_only: true,
            ..options()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &read_only).unwrap();
        assert!(pool.is_read_only());
        assert_eq!(pool.status().unwrap().state, PoolState::ReadOnly);
        let volume = pool.volume("v").unwrap();
        pool.volume("w").unwrap();
        assert!(content(&volume) == expected, "closed: {closed}");
        let refused = |outcome: cowshed_format::base::Result<()>| {
            assert!(matches!(outcome, Err(Error::ReadOnly)), "{outcome:?}");
        };
        refused(volume.write_at(&[1; 4096], 0));
        refused(volume.discard(0, MIB));
        refused(pool.create_volume(&name("x"), MIB).map(drop));
        refused(pool.remove(&volume));
        refused(pool.rename(&volume, &name("x")));
        refused(pool.checkpoint());
        refused(pool.trim().map(drop));
        refused(pool.reclaim().map(drop));
        refused(pool.grow(128 * MIB));
        pool.flush().unwrap();
        volume.flush().unwrap();
        assert!(content(&volume) == expected);
        pool.close().unwrap();
        drop((volume, pool));
        assert!(device.snapshot_image() == before, "closed: {closed}");
    }
}

#[test]
fn what_was_written_is_read_at_any_offset_before_and_after_reopening() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), 3 * MIB + 17).unwrap();
    let mut model = vec![0; 3 * MIB as usize + 17];
    for (seed, offset, len) in [
        (1, 0, 10),
        (2, 4090, 12),
        (3, 8192, 4096),
        (4, 5, 300_000),
        (5, 3 * MIB as usize, 17),
    ] {
        let bytes = pattern(seed, len);
        volume.write_at(&bytes, offset as u64).unwrap();
        model[offset..offset + len].copy_from_slice(&bytes);
        assert!(content(&volume) == model);
    }
    assert!(matches!(
        volume.write_at(&[1], 3 * MIB + 17),
        Err(Error::OutOfRange { .. })
    ));
    drop((volume, pool));
    let pool = reopen(&device);
    assert!(
        content(&pool.volume("v").unwrap()) == model,
        "after an unclean stop"
    );
    pool.close().unwrap();
    drop(pool);
    let pool = reopen(&device);
    assert!(
        content(&pool.volume("v").unwrap()) == model,
        "after a clean stop"
    );
}

#[test]
fn snapshots_keep_their_content_and_blocks_have_one_owner() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    volume.write_at(&pattern(1, 40_960), 0).unwrap();
    let own = volume.info().unwrap().own_bytes;
    assert_eq!(own, 11 * 4096, "ten blocks and a leaf");
    let first = pool.snapshot(&volume, &name("s1")).unwrap();
    assert_eq!(volume.info().unwrap().own_bytes, 0);
    assert_eq!(first.info().unwrap().own_bytes, own);
    volume.write_at(&pattern(2, 4096), 4096).unwrap();
    assert_eq!(volume.info().unwrap().own_bytes, 2 * 4096);
    let clone = pool.clone_volume(&first, &name("c")).unwrap();
    assert!(content(&clone)[..40_960] == pattern(1, 40_960));
    assert!(content(&volume)[4096..8192] == pattern(2, 4096));
    let extents = pool.diff(&first, &volume).unwrap();
    assert_eq!(
        extents,
        [Extent {
            offset_bytes: 4096,
            len_bytes: 4096,
            kind: ExtentKind::Data
        }]
    );
    assert!(matches!(first.write_at(&[1], 0), Err(Error::Frozen(_))));
    pool.remove(&first).unwrap();
    pool.remove(&clone).unwrap();
    pool.reclaim().unwrap();
    assert_eq!(
        volume.info().unwrap().own_bytes,
        own,
        "it inherits all but what it changed"
    );
    let before = content(&volume);
    drop((first, clone, volume));
    drop(pool);
    let pool = reopen(&device);
    let volume = pool.volume("v").unwrap();
    assert!(content(&volume) == before);
    pool.remove(&volume).unwrap();
    pool.reclaim().unwrap();
    pool.reclaim().unwrap();
    let status = pool.status().unwrap();
    assert!(
        status.used_bytes <= 3 * 4096,
        "only the catalogue is left: {status:?}"
    );
}

#[test]
fn a_write_costs_no_barrier_and_a_flush_exactly_one() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), MIB).unwrap();
    pool.flush().unwrap();
    let before = device.flushes();
    for block in 0..50u64 {
        volume
            .write_at(&pattern(block as u8, 4096), block * 4096)
            .unwrap();
        assert_eq!(device.flushes(), before + block);
        volume.flush().unwrap();
        assert_eq!(device.flushes(), before + block + 1);
    }
}

#[test]
fn a_scrub_that_was_stopped_goes_on_where_it_was() {
    let (device, pool) = fresh(64 * MIB);
    for which in ["a", "b"] {
        let volume = pool.create_volume(&name(which), 8 * MIB).unwrap();
        volume.write_at(&pattern(3, 2000 * 4096), 0).unwrap();
    }
    // It stops between two runs of neighbouring blocks.
    let first = pool.scrub(&mut |_, _| false).unwrap();
    assert!((512..768).contains(&first.blocks), "{first:?}");
    assert_eq!((first.resumed, first.finished), (false, false));
    let mut calls = 0;
    let second = pool
        .scrub(&mut |_, _| {
            calls += 1;
            calls < 3
        })
        .unwrap();
    assert!((1024..2304).contains(&second.blocks), "{second:?}");
    assert_eq!((second.resumed, second.finished), (true, false));
    pool.close().unwrap();
    drop(pool);
    let pool = reopen(&device);
    let last = pool.scrub(&mut |_, _| true).unwrap();
    assert_eq!(
        (last.blocks, last.resumed, last.finished),
        (4000 - first.blocks - second.blocks, true, true)
    );
    let anew = pool.scrub(&mut |_, _| true).unwrap();
    assert_eq!(
        (anew.blocks, anew.resumed, anew.finished),
        (4000, false, true)
    );
    assert!(anew.bad.is_empty());
}

#[test]
fn a_full_pool_refuses_writes_and_takes_them_again_after_a_removal() {
    let (device, pool) = fresh(16 * MIB);
    let mut stored = 0;
    let filler = pool.create_volume(&name("filler"), 64 * MIB).unwrap();
    let keeper = pool.create_volume(&name("keeper"), MIB).unwrap();
    keeper.write_at(&pattern(9, 4096), 0).unwrap();
    let error = loop {
        match filler.write_at(&pattern(stored as u8, 4096), stored * 4096) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert!(stored > 3000, "only {stored} blocks were stored");
    for block in 0..stored {
        let mut bytes = [0; 4096];
        filler.read_at(&mut bytes, block * 4096).unwrap();
        assert!(bytes[..] == pattern(block as u8, 4096));
    }
    pool.checkpoint().unwrap();
    pool.remove(&filler).unwrap();
    let again = pool.create_volume(&name("again"), 64 * MIB).unwrap();
    for block in 0..stored {
        again.write_at(&pattern(1, 4096), block * 4096).unwrap();
    }
    drop((filler, keeper, again, pool));
    let pool = reopen(&device);
    assert!(content(&pool.volume("keeper").unwrap())[..4096] == pattern(9, 4096));
}

#[test]
fn closing_a_pool_while_a_checkpoint_begins_succeeds() {
    let device = Arc::new(MemoryDevice::new(4 * MIB));
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
    let mut image = device.snapshot_image();
    for round in 0..200 {
        let device = Arc::new(MemoryDevice::from_image(image));
        let pool = Pool::open(device.clone(), &OpenOptions::default()).unwrap();
        let volume = match pool.volume("v") {
            Ok(volume) => volume,
            Err(_) => pool.create_volume(&name("v"), MIB).unwrap(),
        };
        // A half-full log requests a checkpoint in the background.
        while pool.status().unwrap().log_used_bytes < 33 << 10 {
            volume.write_at(&pattern(round, 4096), 0).unwrap();
        }
        volume.write_at(&pattern(round, 4096), 0).unwrap();
        pool.close().unwrap();
        image = device.snapshot_image();
    }
}

#[test]
fn a_volume_that_is_held_does_not_shrink_and_one_that_does_keeps_nothing_beyond_its_end() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), 2 * MIB).unwrap();
    let bytes = pattern(9, 2 * MIB as usize);
    volume.write_at(&bytes, 0).unwrap();
    let cut = MIB + 17;
    assert_eq!(volume.data_bytes_from(cut).unwrap(), MIB - 17);
    let hold = volume.hold().unwrap();
    let refused = pool.shrink(&volume, cut).unwrap_err();
    assert!(matches!(refused, Error::Busy(_)), "{refused}");
    assert!(content(&volume) == bytes, "it was changed all the same");
    drop(hold);
    assert!(pool.shrink(&volume, 3 * MIB).is_err(), "it grew");
    pool.shrink(&volume, cut).unwrap();
    // 257 blocks of data, two leaves and the node above them.
    assert_eq!(volume.info().unwrap().own_bytes, 260 * 4096);
    pool.resize(&volume, 2 * MIB).unwrap();
    let mut wanted = bytes[..cut as usize].to_vec();
    wanted.resize(2 * MIB as usize, 0);
    assert!(content(&volume) == wanted);
    pool.close().unwrap();
    let pool = reopen(&device);
    assert!(content(&pool.volume("v").unwrap()) == wanted);
}

#[test]
fn writers_of_parts_of_one_block_lose_nothing_of_each_other() {
    let (_device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), 64 << 10).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8_u8 {
            let volume = volume.clone();
            scope.spawn(move || {
                for round in 1..=50_u8 {
                    for block in 0..4_u64 {
                        let at = block * 4096 + u64::from(writer) * 512;
                        volume
                            .write_at(&[writer * 16 + round % 15 + 1; 512], at)
                            .unwrap();
                    }
                }
            });
        }
    });
    for (index, part) in content(&volume)[..4 * 4096].chunks(512).enumerate() {
        let wanted = (index % 8) as u8 * 16 + 50 % 15 + 1;
        assert!(part.iter().all(|byte| *byte == wanted), "sector {index}");
    }
}
