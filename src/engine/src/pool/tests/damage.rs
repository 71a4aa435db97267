//! A map node that cannot be read costs the blocks below it, and nothing else.

use super::*;
use crate::map::Link;
use cowshed_format::node;
use std::sync::atomic::Ordering;

/// Returns a volume of `size_bytes` whose first two leaves are full of data, read from the device.
fn two_leaves(size_bytes: u64) -> (Arc<MemoryDevice>, Pool, Volume) {
    let (device, pool) = fresh_without_copies(64 * MIB);
    let volume = pool.create_volume(&name("v"), size_bytes).unwrap();
    volume.write_at(&pattern(1, 2 * MIB as usize), 0).unwrap();
    pool.checkpoint().unwrap();
    drop((volume, pool));
    let pool = reopen(&device);
    let volume = pool.volume("v").unwrap();
    (device, pool, volume)
}

/// Returns the offset of the second leaf of a map of two levels, in bytes.
fn second_leaf(device: &MemoryDevice, volume: &Volume) -> u64 {
    let Link::Stored(root) = volume.core.tree.root_to_keep().link else {
        panic!("the root is not stored")
    };
    let mut bytes = [0; 4096];
    device
        .read_at(&mut bytes, root.addr().offset_bytes())
        .unwrap();
    node::decode(&bytes)[1].addr().offset_bytes()
}

/// Damages a block; returns its former contents.
fn damage(device: &MemoryDevice, offset_bytes: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    device.read_at(&mut bytes, offset_bytes).unwrap();
    device.write_at(&[0xa5; 4096], offset_bytes).unwrap();
    bytes
}

fn assert_clean(pool: Pool, device: &Arc<MemoryDevice>) {
    pool.close().unwrap();
    drop(pool);
    let pool = reopen(device);
    pool.reclaim().unwrap();
    pool.reclaim().unwrap();
    let status = pool.status().unwrap();
    assert!(status.used_bytes <= 3 * 4096, "{status:?}");
}

#[test]
fn a_removed_volume_with_a_damaged_node_is_settled_up_to_it_and_once() {
    let (device, pool, volume) = two_leaves(2 * MIB);
    let leaf = second_leaf(&device, &volume);
    let whole = damage(&device, leaf);
    pool.remove(&volume).unwrap();
    for _ in 0..3 {
        assert!(matches!(pool.reclaim(), Err(Error::Corrupt(_))));
        pool.checkpoint().unwrap();
    }
    drop((volume, pool));
    let pool = reopen(&device);
    let other = pool.create_volume(&name("other"), MIB).unwrap();
    other.write_at(&pattern(7, MIB as usize), 0).unwrap();
    assert!(matches!(pool.reclaim(), Err(Error::Corrupt(_))));
    pool.checkpoint().unwrap();
    assert!(content(&other) == pattern(7, MIB as usize));
    device.write_at(&whole, leaf).unwrap();
    pool.remove(&other).unwrap();
    assert_clean(pool, &device);
}

#[test]
fn a_child_of_a_half_settled_volume_is_settled_after_it() {
    let (device, pool, volume) = two_leaves(2 * MIB);
    let frozen = pool.snapshot(&volume, &name("s")).unwrap();
    let leaf = second_leaf(&device, &frozen);
    // The child has a first leaf and a second leaf of its own.
    for block in [3, 300] {
        volume.write_at(&pattern(9, 4096), block * 4096).unwrap();
    }
    pool.checkpoint().unwrap();
    drop((volume, frozen, pool));
    let pool = reopen(&device);
    let whole = damage(&device, leaf);
    pool.remove(&pool.volume("s").unwrap()).unwrap();
    assert!(matches!(pool.reclaim(), Err(Error::Corrupt(_))));
    pool.remove(&pool.volume("v").unwrap()).unwrap();
    assert!(matches!(pool.reclaim(), Err(Error::Corrupt(_))));
    device.write_at(&whole, leaf).unwrap();
    pool.reclaim().unwrap();
    assert_clean(pool, &device);
}

#[test]
fn a_discard_that_fails_frees_nothing_that_is_still_mapped() {
    let (device, pool, volume) = two_leaves(256 * MIB);
    let leaf = second_leaf(&device, &volume);
    damage(&device, leaf);
    assert!(matches!(
        volume.discard(0, 256 * MIB),
        Err(Error::Corrupt(_))
    ));
    pool.checkpoint().unwrap();
    let other = pool.create_volume(&name("other"), 32 * MIB).unwrap();
    other.write_at(&pattern(7, 32 * MIB as usize), 0).unwrap();
    let mut bytes = vec![0; MIB as usize];
    volume.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(1, 2 * MIB as usize)[..MIB as usize]);
    pool.checkpoint().unwrap();
}

#[test]
fn zeros_over_what_a_failed_discard_left_survive_the_process() {
    let (device, pool, volume) = two_leaves(2 * MIB);
    damage(&device, second_leaf(&device, &volume));
    assert!(matches!(
        volume.discard(0, 300 * 4096),
        Err(Error::Corrupt(_))
    ));
    volume.write_at(&[0; 8192], 0).unwrap();
    drop((volume, pool));
    let pool = reopen(&device);
    let mut bytes = [1; 8192];
    pool.volume("v").unwrap().read_at(&mut bytes, 0).unwrap();
    assert!(bytes == [0; 8192], "the zeros were acknowledged");
}

#[test]
fn a_full_pool_with_a_damaged_removed_volume_still_removes() {
    let (device, pool, volume) = two_leaves(2 * MIB);
    damage(&device, second_leaf(&device, &volume));
    pool.remove(&volume).unwrap();
    let filler = pool.create_volume(&name("filler"), 128 * MIB).unwrap();
    let error = (0..32 * 1024)
        .find_map(|block| {
            filler
                .write_at(&pattern(block as u8, 4096), block * 4096)
                .err()
        })
        .unwrap();
    assert!(matches!(error, Error::NoSpace), "{error}");
    pool.remove(&filler).unwrap();
}

/// Found by fuzzing: a wrong count on disk was taken for a fault of the engine.
#[test]
fn a_removed_volume_whose_own_blocks_were_miscounted_goes_all_the_same() {
    let (device, pool, volume) = two_leaves(2 * MIB);
    volume.core.own.fetch_add(5, Ordering::Relaxed);
    pool.remove(&volume).unwrap();
    pool.reclaim().unwrap();
    drop(volume);
    assert_clean(pool, &device);
}
