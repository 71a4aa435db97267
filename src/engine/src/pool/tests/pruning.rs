//! Removed volumes that several others share, and a crash while some of their blocks are freed. The
//! rest is in tests/pruning.rs.

use super::*;

const BLOCK: u64 = 4096;

/// Returns a volume of `blocks` blocks, and clones of a removed snapshot of it.
fn family(pool: &Pool, blocks: u64, clones: u64) -> (Volume, Vec<Volume>) {
    let volume = pool.create_volume(&name("v"), MIB * 16).unwrap();
    for block in 0..blocks {
        let bytes = pattern(block as u8, 4096);
        volume.write_at(&bytes, block * BLOCK).unwrap();
    }
    let snapshot = pool.snapshot(&volume, &name("s")).unwrap();
    let clones = (0..clones)
        .map(|number| {
            let name = name(&format!("c{number}"));
            pool.clone_volume(&snapshot, &name).unwrap()
        })
        .collect();
    pool.remove(&snapshot).unwrap();
    pool.reclaim().unwrap();
    (volume, clones)
}

#[test]
fn a_crash_while_shared_blocks_are_freed_loses_nothing() {
    let (device, pool) = fresh(64 * MIB);
    let (volume, clones) = family(&pool, 1000, 1);
    pool.checkpoint().unwrap();
    for it in clones.iter().chain([&volume]) {
        it.write_at(&pattern(3, 500 * 4096), 0).unwrap();
    }
    let before: Vec<_> = clones.iter().chain([&volume]).map(content).collect();
    // Freed, but no checkpoint holds that yet: new writes must not take the blocks' place.
    pool.shared.reclaim_all(prune::Pace::Now).unwrap();
    volume.write_at(&pattern(4, 4096), 900 * BLOCK).unwrap();
    pool.flush().unwrap();
    let image = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let (kept, pool_after) = (before, reopen(&image));
    let volumes = ["c0", "v"].map(|name| pool_after.volume(name).unwrap());
    assert!(content(&volumes[0]) == kept[0]);
    let shared = pool_after.status().unwrap().removed_shared_bytes;
    assert_eq!(shared, 1005 * BLOCK, "as the last checkpoint has it");
    pool_after.reclaim().unwrap();
    // 500 blocks and the first leaf.
    assert_eq!(
        pool_after.status().unwrap().removed_shared_bytes,
        504 * BLOCK
    );
    assert!(content(&volumes[0]) == kept[0]);
    let report = pool_after.scrub(&mut |_, _| true).unwrap();
    assert!(report.bad.is_empty(), "{report:?}");
}
