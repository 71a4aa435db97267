//! The reserve for operations that must work in a full pool, and the counts of a full pool.

use crate::bench::{BLOCK, MIB, block, expect_sound, fill, name, options, pool, verify};
use cowshed_engine::{CreateOptions, FullOptions, Pool, PoolState, Status, Watermark};
use cowshed_format::base::{BLOCK_BYTES, Error};
use cowshed_format::device::MemoryDevice;
use std::sync::Arc;

#[test]
fn parts_of_blocks_can_be_discarded_in_a_full_pool() {
    let (device, pool) = pool(8 * MIB, FullOptions::default());
    let volume = pool.create_volume(&name("v"), 1 << 40).unwrap();
    let took = fill(&volume, 0);
    // Each takes a new block for the rest of the old one; there are far more of them than reserved
    // blocks.
    for index in 0..took {
        volume.discard(index * BLOCK + 100, 200).unwrap();
        volume
            .discard((index + 1) * BLOCK - 300, BLOCK.min(600))
            .unwrap();
    }
    let mut found = vec![0; BLOCK_BYTES];
    for index in 0..took {
        let mut expected = block(index);
        expected[100..300].fill(0);
        expected[BLOCK_BYTES - 300..].fill(0);
        if index > 0 {
            expected[..300].fill(0);
        }
        volume.read_at(&mut found, index * BLOCK).unwrap();
        assert!(found == expected, "block {index}");
    }
    pool.close().unwrap();
    expect_sound(&*device);
}

#[test]
fn zeros_written_over_data_make_room_in_a_full_pool() {
    let (_device, pool) = pool(8 * MIB, FullOptions::default());
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let took = fill(&volume, 0);
    volume.write_at(&vec![0; 256 * BLOCK_BYTES], 0).unwrap();
    for index in 0..200 {
        volume
            .write_at(&block(index), (took + index) * BLOCK)
            .unwrap();
    }
}

#[test]
fn discards_of_what_a_snapshot_keeps_leave_room_for_removing_it() {
    let (device, pool) = pool(8 * MIB, FullOptions::default());
    let volume = pool.create_volume(&name("v"), 1 << 40).unwrap();
    let mut leaves = 0;
    while volume
        .write_at(&block(leaves), leaves * 256 * BLOCK)
        .is_ok()
    {
        volume
            .write_at(&block(leaves), (leaves * 256 + 1) * BLOCK)
            .ok();
        leaves += 1;
    }
    let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
    // Each changes its own leaf and frees nothing.
    let refused = (0..leaves).find_map(|leaf| volume.discard(leaf * 256 * BLOCK, BLOCK).err());
    assert!(matches!(refused, Some(Error::NoSpace)), "{refused:?}");
    assert!(matches!(
        pool.snapshot(&volume, &name("t")),
        Err(Error::NoSpace)
    ));
    pool.remove(&snapshot).unwrap();
    pool.remove(&volume).unwrap();
    let again = pool.create_volume(&name("again"), 1 << 30).unwrap();
    assert!(fill(&again, 7) > leaves);
    pool.close().unwrap();
    expect_sound(&*device);
}

#[test]
fn hundreds_of_volumes_can_be_removed_and_reclaimed_in_a_full_pool() {
    let (device, pool) = pool(6 * MIB, FullOptions::default());
    let mut volumes = Vec::new();
    for number in 0..150 {
        let volume = pool
            .create_volume(&name(format!("v{number}")), 1 << 30)
            .unwrap();
        volume.write_at(&block(number), 0).unwrap();
        // An entry that fills a block of the catalogue.
        let labels = [("key".to_owned(), "x".repeat(3500))].into();
        pool.set_labels(&volume, labels).unwrap();
        volumes.push(volume);
    }
    let filler = pool.create_volume(&name("filler"), 1 << 40).unwrap();
    let took = fill(&filler, 1000);
    pool.checkpoint().unwrap();
    for volume in &volumes {
        pool.remove(volume).unwrap();
    }
    pool.reclaim().unwrap();
    verify(&filler, 1000, took);
    assert_eq!(pool.status().unwrap().pending_free_bytes, 0);
    pool.close().unwrap();
    expect_sound(&*device);
}

#[test]
fn a_full_pool_in_which_nothing_changes_refuses_without_a_checkpoint() {
    let (device, pool) = pool(8 * MIB, FullOptions::default());
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let took = fill(&volume, 0);
    let before = pool.status().unwrap();
    let flushes = device.flushes();
    let many = block(1).repeat(256);
    for round in 0..100 {
        for bytes in [&many[..], &many[..BLOCK_BYTES]] {
            let refused = volume.write_at(bytes, (took + round) * BLOCK);
            assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
        }
    }
    let after = pool.status().unwrap();
    assert_eq!(device.flushes(), flushes);
    let counts = |status: &Status| (status.used_bytes, status.free_bytes, status.generation);
    assert_eq!(
        counts(&before),
        counts(&after),
        "what is refused is given back"
    );
    assert_eq!(after.state, PoolState::Full);
    assert_eq!(after.low_water, Watermark::Full);
}

#[test]
fn a_rest_that_is_too_short_for_a_group_is_not_in_use() {
    const LOG_BLOCKS: u64 = 64;
    let blocks = 16 + LOG_BLOCKS + 32_768 + 40 + 2;
    let device = Arc::new(MemoryDevice::new(blocks * BLOCK));
    let create = CreateOptions {
        log_bytes: Some(LOG_BLOCKS * BLOCK),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
    let pool = Pool::open(device, &options(FullOptions::default())).unwrap();
    let status = pool.status().unwrap();
    assert_eq!(status.used_bytes, 0);
    assert_eq!(
        status.metadata_bytes,
        (16 + LOG_BLOCKS + 4 + 40 + 2) * BLOCK
    );
    assert_eq!(status.capacity_bytes(), (32_768 - 4) * BLOCK);
}
