//! A sparse pool whose host is full, on each file system on which pools are known to lie: writers
//! get an error, nothing acknowledged is lost, operations that free space succeed, and once the
//! host has space, the pool works again without a restart.

use crate::small_host::{KINDS, REFLINKS, SmallHost};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{OpenOptions, Pool, PoolState, Volume};
use cowshed_format::base::{Error, Name};
use cowshed_format::device::{Device, FileDevice, FileOptions};
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Sparse, and much larger than its host.
const POOL_BYTES: u64 = 512 * MIB;

fn open(path: &Path, background: bool) -> Pool {
    let device = FileDevice::open(path, FileOptions::default()).unwrap();
    let options = OpenOptions {
        cache_bytes: 8 * MIB,
        background,
        ..OpenOptions::default()
    };
    Pool::open(Arc::new(device), &options).unwrap()
}

fn block(seed: u64) -> Vec<u8> {
    (seed | 1 << 40).to_le_bytes().repeat(512)
}

/// Writes blocks from `first` on until the host is full; returns the first refused block.
fn write_until_full(volume: &Volume, first: u64) -> u64 {
    for number in first.. {
        if let Err(error) = volume.write_at(&block(number), number * BLOCK) {
            assert_eq!(error.errno(), libc::ENOSPC, "{error}");
            return number;
        }
    }
    unreachable!("the host ends before the numbers do")
}

fn verify(volume: &Volume, blocks: u64) {
    let mut found = vec![0; 4096];
    for number in 0..blocks {
        volume.read_at(&mut found, number * BLOCK).unwrap();
        assert!(found == block(number), "block {number}");
    }
}

fn assert_clean(path: &Path) {
    let device = FileDevice::open(path, FileOptions::default()).unwrap();
    let options = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let report = check(&device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}

fn create(host: &SmallHost) {
    let device = FileDevice::create(host.pool(), POOL_BYTES, Default::default()).unwrap();
    let create = cowshed_engine::CreateOptions {
        log_bytes: Some(4 * MIB),
        force: false,
        ..Default::default()
    };
    Pool::create(&device, &create).unwrap();
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Returns a host that is full to the last block, with a pool that holds data. If `copied`, the
/// pool's file shares its extents with a copy.
fn filled(kind: &str, background: bool, copied: bool) -> (SmallHost, Pool, Volume, u64) {
    let host = SmallHost::new(kind);
    create(&host);
    host.ballast(8 << 20);
    let pool = open(&host.pool(), background);
    let spare = pool.create_volume(&name("spare"), MIB).unwrap();
    spare.write_at(&[5; 300_000], 0).unwrap();
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let written = write_until_full(&volume, 0);
    assert!(written > 100, "{kind}: only {written} blocks fit");
    if copied {
        // The copy's inode and extents need some space themselves.
        host.free();
        host.copy_pool();
    }
    host.fill();
    (host, pool, volume, written)
}

fn full_host(kind: &str, background: bool, copied: bool) {
    let (host, mut pool, mut volume, written) = filled(kind, background, copied);
    let copies_on_write = copied || kind == "btrfs";
    pool.flush().unwrap();
    // A checkpoint uses the space that the pool has reserved.
    for _ in 0..3 {
        pool.checkpoint().unwrap();
        assert_eq!(pool.status().unwrap().state, PoolState::Open);
    }
    let error = volume.write_at(&block(1), 900 * MIB).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert!(!matches!(error, Error::FailStopped { .. }));
    verify(&volume, written);
    pool.remove(&pool.volume("spare").unwrap()).unwrap();
    pool.flush().unwrap();
    // Reopens on the full host, after a stop without closing and after an orderly one.
    for closes in [false, true, false] {
        if closes {
            pool.close().unwrap();
        }
        drop((volume, pool));
        // The reserved space may have been in use when the pool was cut short: no other file takes
        // it before the pool does.
        pool = open(&host.pool(), background);
        volume = pool.volume("v").unwrap();
        verify(&volume, written);
        assert!(
            pool.volume("spare").is_err(),
            "its removal was acknowledged"
        );
        // Where the log is overwritten in place, a record needs no space.
        if !copies_on_write {
            pool.rename(&volume, &name("w")).unwrap();
            pool.rename(&volume, &name("v")).unwrap();
        }
    }
    // Space on the host is space in the pool, without a restart.
    host.free();
    for number in written..written + 40 {
        if let Err(error) = volume.write_at(&block(number), number * BLOCK) {
            let (free, at) = (host.free_bytes(), number - written);
            panic!("{kind}, block {at}, {free} bytes are free: {error}");
        }
    }
    pool.checkpoint().unwrap();
    verify(&volume, written + 40);
    pool.close().unwrap();
    drop((volume, pool));
    assert_clean(&host.pool());
    verify(
        &open(&host.pool(), background).volume("v").unwrap(),
        written + 40,
    );
}

/// Only the pool itself can free space.
fn emptied(kind: &str, background: bool, copied: bool) {
    let (host, pool, volume, written) = filled(kind, background, copied);
    for number in (0..written).step_by(3) {
        volume.discard(number * BLOCK, BLOCK).unwrap();
    }
    // Discarding parts of blocks takes blocks for the rest of them.
    volume.discard(BLOCK + 100, 200).unwrap();
    pool.trim().unwrap();
    pool.remove(&volume).unwrap();
    pool.reclaim().unwrap();
    pool.trim().unwrap();
    let spare = pool.volume("spare").unwrap();
    let mut found = vec![0; 300_000];
    spare.read_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|byte| *byte == 5), "{kind}");
    host.sync();
    let free = host.free_bytes();
    if copied {
        // The copy still has all extents.
        host.free();
    } else {
        // The pool keeps its reserve, which has grown with the map nodes that were in memory.
        assert!(
            free > written * BLOCK / 10 * 8,
            "{kind}: {free} of {written}"
        );
    }
    let again = pool.create_volume(&name("again"), 1 << 30).unwrap();
    for number in 0..40 {
        again.write_at(&block(number), number * BLOCK).unwrap();
    }
    pool.close().unwrap();
    drop((spare, again, volume, pool));
    assert_clean(&host.pool());
    verify(&open(&host.pool(), false).volume("again").unwrap(), 40);
}

/// Overwrites and discards while there is no space for either; each is done or refused.
fn refused_records(kind: &str) {
    let (host, pool, volume, written) = filled(kind, true, true);
    let seed = |number, round| number | round << 20;
    let mut holds: Vec<Option<u64>> = (0..written).map(Some).collect();
    for round in 1..4_u64 {
        for step in 0..written.min(3000) {
            let number = step * 7919 % written;
            let at = usize::try_from(number).unwrap();
            let bytes = block(seed(number, round));
            let (outcome, now) = if step % 3 == 0 {
                (volume.discard(number * BLOCK, BLOCK), None)
            } else {
                let outcome = volume.write_at(&bytes, number * BLOCK);
                (outcome, Some(seed(number, round)))
            };
            match outcome {
                Ok(()) => holds[at] = now,
                Err(error) => {
                    assert_eq!(error.errno(), libc::ENOSPC, "{kind}: {error}");
                    assert!(!matches!(error, Error::FailStopped { .. }));
                    // A refused discard may have been done.
                    let mut found = vec![0; 4096];
                    volume.read_at(&mut found, number * BLOCK).unwrap();
                    if now.is_none() && found.iter().all(|byte| *byte == 0) {
                        holds[at] = None;
                    }
                }
            }
        }
        host.fill();
    }
    let check = |volume: &Volume| {
        let mut found = vec![0; 4096];
        for (number, held) in (0..).zip(&holds) {
            volume.read_at(&mut found, number * BLOCK).unwrap();
            let expected = held.map_or_else(|| vec![0; 4096], block);
            assert!(found == expected, "{kind}: block {number}");
        }
    };
    check(&volume);
    assert_eq!(pool.status().unwrap().state, PoolState::Open);
    // The filler may have taken the space that the pool had reserved.
    host.free();
    pool.close().unwrap();
    drop((volume, pool));
    assert_clean(&host.pool());
    check(&open(&host.pool(), false).volume("v").unwrap());
}

#[test]
fn a_pool_on_a_full_tmpfs_works_again_once_there_is_room() {
    full_host("tmpfs", false, false);
    full_host("tmpfs", true, false);
}

#[test]
fn a_pool_on_a_full_ext4_works_again_once_there_is_room() {
    full_host("ext4", false, false);
    full_host("ext4", true, false);
}

#[test]
fn a_pool_on_a_full_xfs_works_again_once_there_is_room() {
    full_host("xfs", false, false);
    full_host("xfs", true, false);
}

#[test]
fn a_pool_on_a_full_btrfs_works_again_once_there_is_room() {
    full_host("btrfs", false, false);
    full_host("btrfs", true, false);
}

#[test]
fn a_pool_whose_file_shares_extents_works_again_once_the_full_host_has_room() {
    for kind in REFLINKS {
        full_host(kind, false, true);
        full_host(kind, true, true);
    }
}

#[test]
fn a_full_host_is_emptied_through_its_pool() {
    for kind in KINDS {
        emptied(kind, false, false);
        emptied(kind, true, false);
    }
}

#[test]
fn what_gives_room_back_goes_through_where_a_copy_shares_the_pools_extents() {
    for kind in REFLINKS {
        emptied(kind, false, true);
        emptied(kind, true, true);
    }
}

#[test]
fn a_full_copy_on_write_host_refuses_records_of_the_log_and_nothing_else() {
    for kind in REFLINKS {
        refused_records(kind);
    }
}

#[test]
fn a_pool_whose_quota_is_reached_opens_is_read_and_works_again_without_the_quota() {
    for background in [false, true] {
        let host = SmallHost::with_quota();
        create(&host);
        let pool = open(&host.pool(), background);
        let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
        let written = write_until_full(&volume, 0);
        assert!(written > 100, "only {written} blocks fit");
        drop((volume, pool));
        host.fill();
        for closes in [false, true, false] {
            let pool = open(&host.pool(), background);
            let volume = pool.volume("v").unwrap();
            verify(&volume, written);
            let refused = volume.write_at(&block(1), 900 * MIB).unwrap_err();
            assert_eq!(refused.errno(), libc::ENOSPC, "{refused}");
            assert_eq!(pool.status().unwrap().state, PoolState::Open);
            if closes {
                // Its last writes may find no space; then the next opening recovers.
                let _ = pool.close();
            }
        }
        host.lift_quota();
        let pool = open(&host.pool(), background);
        let volume = pool.volume("v").unwrap();
        for number in written..written + 40 {
            volume.write_at(&block(number), number * BLOCK).unwrap();
        }
        pool.checkpoint().unwrap();
        verify(&volume, written + 40);
        pool.close().unwrap();
        drop((volume, pool));
        assert_clean(&host.pool());
    }
}

#[test]
fn who_fills_the_host_while_a_slice_of_the_reserve_is_released_gets_no_other_slice() {
    for kind in KINDS {
        let host = SmallHost::new(kind);
        create(&host);
        let device = FileDevice::open(host.pool(), FileOptions::default()).unwrap();
        let held = device.reserve_host_bytes(4 * MIB).unwrap().unwrap();
        assert_eq!(held, 4 * MIB);
        host.fill();
        let error = device.write_at(&vec![1; 3 << 20], 200 * MIB).unwrap_err();
        assert!(error.is_host_full(), "{kind}: {error}");
        for left in [3 * MIB, 2 * MIB] {
            let released = device.release_host_bytes(left, left + MIB).unwrap();
            assert!((MIB / 2..=MIB).contains(&released), "{kind}: {released}");
            host.fill();
        }
        device.release_host_bytes(0, 2 * MIB).unwrap();
        device.write_at(&vec![1; 1 << 20], 200 * MIB).unwrap();
        device.flush().unwrap();
    }
}

#[test]
fn the_room_kept_on_the_host_is_private_and_stays_while_the_pool_is_closed() {
    for kind in KINDS {
        let host = SmallHost::new(kind);
        create(&host);
        open(&host.pool(), false).close().unwrap();
        if REFLINKS.contains(&kind) {
            host.copy_pool();
        }
        host.fill();
        let device = FileDevice::open(host.pool(), FileOptions::default()).unwrap();
        assert!(
            device.release_host_bytes(0, 0).unwrap() >= 4 * MIB,
            "{kind}"
        );
        device.write_at(&vec![1; 3 << 20], 200 * MIB).unwrap();
        device.flush().unwrap();
    }
}
