//! Removed volumes that several others share: how they are counted, and what is freed of them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small numbers of a test's own making; a test fails by panicking"
)]

use cowshed_check as check;
use cowshed_engine::{CreateOptions, MetadataCopies, OpenOptions, Pool, Status, Volume};
use cowshed_format::base::Name;
use cowshed_format::base::checksum::crc32;
use cowshed_format::device::{Device, MemoryDevice};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 8 << 20,
        background: false,
        ..OpenOptions::default()
    }
}

fn fresh(len_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(len_bytes));
    // Second copies count as used space, and belong to no volume.
    let create = CreateOptions {
        metadata_copies: Some(MetadataCopies::One),
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
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

/// Creates a volume of `blocks` blocks, a removed snapshot of it, and clones of that.
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

/// Asserts that the numbers of the pool add up to its size, and those of its volumes to the used
/// space.
fn assert_sums(pool: &Pool) -> Status {
    let status = pool.status().unwrap();
    let parts = status.used_bytes
        + status.free_bytes
        + status.pending_free_bytes
        + status.reserved_bytes
        + status.metadata_bytes;
    assert_eq!(parts, status.size_bytes, "{status:?}");
    let removed = pool.removed_volumes();
    let removed = removed.iter().filter(|it| it.is_needed);
    let removed: u64 = removed.map(|it| it.own_bytes).sum();
    assert_eq!(removed, status.removed_shared_bytes, "{status:?}");
    let named: u64 = pool.volumes().iter().map(|it| it.own_bytes).sum();
    // The catalogue is the part that no volume owns.
    let catalogue = status.used_bytes.checked_sub(named + removed);
    assert!(
        catalogue.is_some_and(|bytes| bytes <= 8 * BLOCK),
        "{status:?}"
    );
    status
}

fn assert_clean(pool: &Pool, device: &Arc<MemoryDevice>) {
    pool.close().unwrap();
    let options = check::CheckOptions {
        deep: true,
        ..check::CheckOptions::default()
    };
    let report = check::check(&**device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{report:?}");
}

#[test]
fn a_removed_snapshot_that_several_volumes_share_counts_as_used() {
    let (device, pool) = fresh(64 * MIB);
    let (volume, clones) = family(&pool, 1000, 2);
    let status = assert_sums(&pool);
    assert_eq!(status.pending_free_bytes, 0, "{status:?}");
    // Four leaves and the node above them.
    assert_eq!(status.removed_shared_bytes, 1005 * BLOCK, "{status:?}");
    assert!(status.used_bytes >= 1005 * BLOCK, "{status:?}");
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert_eq!(report.blocks, 1000, "each block is read once");
    drop((volume, clones));
    assert_clean(&pool, &device);
}

#[test]
fn what_no_volume_needs_of_a_removed_one_is_freed() {
    let (device, pool) = fresh(64 * MIB);
    let (volume, clones) = family(&pool, 1000, 2);
    // A volume that still needs a block keeps it.
    volume.discard(0, 600 * BLOCK).unwrap();
    clones[0].write_at(&vec![7; 600 * 4096], 0).unwrap();
    pool.reclaim().unwrap();
    assert_eq!(assert_sums(&pool).removed_shared_bytes, 1005 * BLOCK);
    clones[1].discard(BLOCK, 598 * BLOCK).unwrap();
    clones[1].write_at(&[9; 10], 300 * BLOCK).unwrap();
    let before: Vec<_> = clones.iter().chain([&volume]).map(content).collect();
    pool.reclaim().unwrap();
    let status = assert_sums(&pool);
    // Blocks 1 to 598, and the leaf that held blocks 256 to 511.
    assert_eq!(status.removed_shared_bytes, (1005 - 598 - 1) * BLOCK);
    let after: Vec<_> = clones.iter().chain([&volume]).map(content).collect();
    assert!(before == after);
    drop((volume, clones));
    assert_clean(&pool, &device);
    let pool = reopen(&device);
    let volumes = ["c0", "c1", "v"].map(|name| pool.volume(name).unwrap());
    assert!(volumes.iter().map(content).collect::<Vec<_>>() == before);
    // The last one inherits the blocks that it needs.
    pool.remove(&volumes[0]).unwrap();
    pool.remove(&volumes[2]).unwrap();
    pool.reclaim().unwrap();
    assert_eq!(pool.removed_volumes(), []);
    assert!(content(&volumes[1]) == before[1]);
    let own = volumes[1].info().unwrap().own_bytes;
    assert_eq!(
        own,
        (402 + 1 + 4 + 1) * BLOCK,
        "with leaves and a node above"
    );
    drop(volumes);
    assert_clean(&pool, &device);
}

#[test]
fn what_a_removed_ancestor_of_shared_volumes_holds_for_nobody_is_freed() {
    let (device, pool) = fresh(64 * MIB);
    let volume = pool.create_volume(&name("v"), MIB * 16).unwrap();
    volume.write_at(&pattern(1, 400 * 4096), 0).unwrap();
    let first = pool.snapshot(&volume, &name("s1")).unwrap();
    let middle = pool.clone_volume(&first, &name("m")).unwrap();
    middle.write_at(&pattern(2, 100 * 4096), 0).unwrap();
    let second = pool.snapshot(&middle, &name("s2")).unwrap();
    let clone = pool.clone_volume(&second, &name("c")).unwrap();
    pool.remove(&first).unwrap();
    pool.remove(&second).unwrap();
    pool.reclaim().unwrap();
    let before = assert_sums(&pool).removed_shared_bytes;
    for volume in [&volume, &middle, &clone] {
        volume.discard(0, 256 * BLOCK).unwrap();
    }
    pool.reclaim().unwrap();
    let after = assert_sums(&pool).removed_shared_bytes;
    // 256 blocks and a leaf of the first, 100 and a leaf of the second.
    assert_eq!(before - after, (257 + 101) * BLOCK);
    drop((volume, first, middle, second, clone));
    assert_clean(&pool, &device);
}

#[test]
fn a_volume_that_goes_with_its_children_is_pending_as_a_whole() {
    let (_device, pool) = fresh(64 * MIB);
    let (volume, clones) = family(&pool, 100, 2);
    for it in clones.iter().chain([&volume]) {
        pool.remove(it).unwrap();
    }
    let status = assert_sums(&pool);
    assert_eq!(status.removed_shared_bytes, 0, "{status:?}");
    assert!(status.pending_free_bytes >= 102 * BLOCK, "{status:?}");
}

#[test]
fn blocks_are_freed_beside_writers_and_new_branches_and_none_that_is_needed() {
    let (device, pool) = fresh(128 * MIB);
    let (volume, clones) = family(&pool, 3000, 2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let kept = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                pool.reclaim().unwrap();
            }
        });
        let mut kept = Vec::new();
        for round in 0..15_u64 {
            for it in clones.iter().chain([&volume]) {
                let first = round * 200 * BLOCK;
                if round % 3 == 0 {
                    it.discard(first, 200 * BLOCK).unwrap();
                } else {
                    it.write_at(&pattern(round as u8, 200 * 4096), first)
                        .unwrap();
                }
                let snapshot = pool
                    .snapshot(it, &name(&format!("{}-{round}", it.name())))
                    .unwrap();
                kept.push((crc32(&content(&snapshot)), snapshot));
            }
            if kept.len() > 9 {
                let (_, snapshot) = kept.remove(4);
                pool.remove(&snapshot).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        kept
    });
    pool.reclaim().unwrap();
    for (before, snapshot) in &kept {
        assert_eq!(crc32(&content(snapshot)), *before, "{}", snapshot.name());
    }
    assert_sums(&pool);
    drop((kept, volume, clones));
    assert_clean(&pool, &device);
}
