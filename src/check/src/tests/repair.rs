//! Repaired pools are clean afterwards, and a repair leaves alone what it cannot know.

use super::*;
use cowshed_format::device::{DeviceImage, RecordedOp};
use cowshed_format::group::BITMAP_WORDS;
use cowshed_format::operation::Operation;

const REPAIR: CheckOptions = CheckOptions {
    deep: true,
    repair: true,
    forget: false,
};

fn repair(device: &MemoryDevice) -> CheckReport {
    check(device, REPAIR, &mut |_| {}).unwrap()
}

/// Repairs, and asserts that everything is repaired and stays so.
fn assert_mended(device: &MemoryDevice) -> CheckReport {
    let report = repair(device);
    assert!(!report.findings.is_empty());
    assert!(report.clean(), "{:?}", report.remaining);
    assert_eq!(report.refused, None);
    let again = repair(device);
    assert_eq!(again.repaired, [], "a second repair has nothing to do");
    assert!(again.findings.is_empty());
    report
}

/// Returns a forest with every damage that can be derived away.
fn derivable_damage() -> MemoryDevice {
    let (mut pool, [snapshot, base, first, _]) = forest();
    pool.volume(snapshot).own_blocks += 5;
    pool.volume(base).mapped_blocks -= 1;
    pool.volume(first).own_blocks = 0;
    let device = pool.finish_with(|superblock, bitmaps| {
        let bitmap = bitmaps.get_mut(&0).unwrap();
        bitmap[400] = 0xff;
        bitmap[1] = 0;
        superblock.used_blocks = 3;
        superblock.volume_count = 1;
        superblock.next_volume_id = 1;
    });
    device.write_at(&[9; BLOCK_BYTES], 0).unwrap();
    device
}

#[test]
fn counts_bitmaps_and_superblocks_are_mended() {
    let report = assert_mended(&derivable_damage());
    let counts = report.repaired.iter();
    let counts = counts.filter(|each| matches!(each, Repair::Counts(_)));
    assert_eq!(counts.count(), 3);
    assert!(report.repaired.contains(&Repair::Superblock));
}

#[test]
fn each_lost_superblock_is_mended() {
    let device = forest().0.finish();
    let end = device.len_bytes() / BLOCK_BYTES as u64;
    for addr in [0, 1, end - 2, end - 1] {
        let device = MemoryDevice::from_image(device.snapshot_image());
        let offset = BlockAddr(addr).offset_bytes();
        device.write_at(&[9; BLOCK_BYTES], offset).unwrap();
        assert_mended(&device);
    }
}

#[test]
fn a_lost_bitmap_is_mended_from_the_trees() {
    let (pool, _) = forest();
    let slot = pool.layout.bitmap_slot(0, 0).offset_bytes();
    let device = pool.finish();
    device.write_at(&[9; BLOCK_BYTES], slot).unwrap();
    assert_mended(&device);
    let (pool, _) = forest();
    assert_mended(&pool.finish_with(|superblock, _| superblock.groups_initialized = 0));
}

/// The bitmaps come first: until they are known, there is no block that the counts could go to.
#[test]
fn counts_are_mended_where_every_bitmap_is_lost() {
    let (mut pool, [snapshot, ..]) = forest();
    pool.volume(snapshot).own_blocks += 5;
    let slot = pool.layout.bitmap_slot(0, 0).offset_bytes();
    // The second group's was never written.
    let device = pool.finish_with(|superblock, _| superblock.groups_initialized = 2);
    device.write_at(&[9; BLOCK_BYTES], slot).unwrap();
    let report = assert_mended(&device);
    assert!(
        report
            .repaired
            .contains(&Repair::Counts(VolumeId(snapshot)))
    );
}

#[test]
fn what_an_unfinished_checkpoint_left_never_counts_after_a_repair() {
    let (mut pool, _) = forest();
    pool.groups_initialized = 2;
    let (layout, generation) = (pool.layout, Generation(pool.generation + 1));
    let device = pool.finish_with(|superblock, _| superblock.volume_count = 1);
    let stale = cowshed_format::group::encode(&pool::UUID, 1, generation, &[!0; BITMAP_WORDS]);
    let offset = layout.bitmap_slot(1, 1).offset_bytes();
    device.write_at(&stale[..], offset).unwrap();
    assert_mended(&device);
}

#[test]
fn an_orphan_with_a_whole_tree_stands_alone_afterwards() {
    let mut pool = TestPool::new();
    let base = pool.create("base");
    for index in 0..300 {
        pool.write(base, index, 1);
    }
    let snapshot = pool.snapshot(base, "layer");
    pool.write(base, 7, 2);
    let lost = pool.volumes.remove(&snapshot).unwrap();
    let device = pool.finish();
    let report = assert_mended(&device);
    assert!(report.repaired.contains(&Repair::Orphan(VolumeId(base))));
    // Only what the child had replaced is free again: a block, its leaf and the root.
    let freed = report.repaired.iter().find_map(|each| match each {
        Repair::Bitmap { freed, .. } => Some(*freed),
        _ => None,
    });
    assert_eq!(lost.own_blocks, 303);
    // The catalogue's one block and node moved too.
    assert_eq!(freed, Some(3 + 2));
}

#[test]
fn orphans_that_share_blocks_are_left_alone() {
    let (mut pool, [snapshot, ..]) = forest();
    pool.volumes.remove(&snapshot);
    let device = pool.finish();
    let before = check_deep(&device).findings;
    let report = repair(&device);
    assert_eq!(report.refused, Some(Refusal::OwnershipUnknown));
    assert!(report.repaired.is_empty());
    assert_eq!(check_deep(&device).findings, before);
}

#[test]
fn a_damaged_node_is_given_up_and_the_rest_is_mended() {
    let (pool, [snapshot, _, first, second]) = forest();
    let leaf = pool.path(snapshot, 300)[1].addr();
    let own = pool.path(first, 40)[2].addr();
    let (_, index) = pool.layout.locate(own).unwrap();
    let device = pool.finish_with(|_, bitmaps| {
        let bitmap = bitmaps.get_mut(&0).unwrap();
        bitmap[400] = 0xff;
        bitmap[usize::try_from(index / 64).unwrap()] &= !(1 << (index % 64));
    });
    device
        .write_at(&[9; BLOCK_BYTES], leaf.offset_bytes())
        .unwrap();
    let report = assert_mended(&device);
    for volume in [snapshot, second] {
        assert!(report.repaired.contains(&Repair::Map(VolumeId(volume))));
    }
    // The first clone has its own leaf there, and everything below it is whole.
    assert!(!report.repaired.contains(&Repair::Map(VolumeId(first))));
    let lost = Note::Lost {
        volume: VolumeId(snapshot),
        first: BlockIndex(256),
        blocks: 256,
    };
    assert!(report.notes.contains(&lost), "{:?}", report.notes);
}

#[test]
fn a_log_that_is_damaged_ends_before_the_damage_after_a_repair() {
    let (mut pool, [_, base, ..]) = forest();
    let freeze = [Operation::Freeze {
        volume: VolumeId(base),
    }];
    for (sequence, durable) in [(9, 8), (10, 9), (11, 10)] {
        pool.append(sequence, durable, &freeze);
    }
    let (layout, record) = (pool.layout, pool.log.len() as u64 / 3);
    let device = pool.finish();
    let mut bytes = [0; BLOCK_BYTES];
    let at = layout.log_offset_bytes();
    device.read_at(&mut bytes, at).unwrap();
    bytes[usize::try_from(record).unwrap() + 50] ^= 1;
    device.write_at(&bytes, at).unwrap();
    assert!(kinds(&check_deep(&device)).contains(&FindingKind::LogDamaged));
    let report = repair(&device);
    assert_eq!(
        report.repaired,
        [Repair::Log(cowshed_format::base::Sequence(10))]
    );
    assert_eq!(report.refused, Some(Refusal::LogNotEmpty));
    assert!(report.clean(), "{:?}", report.remaining);
    let records = Note::LogToReplay { records: 1 };
    assert!(report.notes.contains(&records), "{:?}", report.notes);
}

#[test]
fn a_repair_writes_over_nothing_that_the_old_state_calls_used() {
    let (mut pool, [_, base, ..]) = forest();
    pool.volume(base).own_blocks += 1;
    let layout = pool.layout;
    let device = pool.finish_with(|_, bitmaps| {
        bitmaps.get_mut(&0).unwrap()[..500].fill(!0);
    });
    let device = MemoryDevice::recording_from(device.snapshot_image());
    assert_mended(&device);
    let recording = device.recorded().unwrap();
    let writes = recording.epochs.iter().flatten().filter_map(|op| match op {
        RecordedOp::Write { offset_bytes, .. } => layout.locate(BlockAddr(offset_bytes >> 12)),
        _ => None,
    });
    let indices: Vec<u64> = writes.map(|(_, index)| index).collect();
    assert!(!indices.is_empty() && indices.iter().all(|index| *index >= 500 * 64));
}

#[test]
fn a_pool_with_a_live_log_is_not_repaired() {
    let (mut pool, [_, base, ..]) = forest();
    pool.append(
        9,
        8,
        &[Operation::Freeze {
            volume: VolumeId(base),
        }],
    );
    let device = pool.finish_with(|superblock, _| superblock.used_blocks = 3);
    let writes = device.writes();
    let report = repair(&device);
    assert_eq!(report.refused, Some(Refusal::LogNotEmpty));
    assert_eq!(device.writes(), writes);
}

#[test]
fn a_check_without_repair_writes_nothing() {
    let device = derivable_damage();
    let writes = device.writes();
    assert!(!check_deep(&device).clean());
    assert_eq!((device.writes(), device.flushes()), (writes, 0));
}

#[test]
fn a_repair_that_is_cut_anywhere_can_be_repeated() {
    let broken = MemoryDevice::recording_from(derivable_damage().snapshot_image());
    repair(&broken);
    let recording = broken.recorded().unwrap();
    let mut states: Vec<DeviceImage> = Vec::new();
    for (epoch, ops) in recording.epochs.iter().enumerate() {
        // The last writes may have arrived first, or alone.
        for cut in 0..=ops.len() {
            let survivors: Vec<&RecordedOp> = ops[..cut].iter().collect();
            states.push(recording.crash_image(epoch, survivors));
            states.push(recording.crash_image(epoch, &ops[cut..]));
        }
    }
    assert!(states.len() > 12);
    for state in states {
        let device = MemoryDevice::from_image(state);
        let report = repair(&device);
        assert!(report.clean(), "{:?}", report.remaining);
        assert!(check_deep(&device).clean());
    }
}

#[test]
fn counts_are_mended_while_a_reclaim_is_under_way() {
    let (mut pool, [snapshot, base, first, second]) = forest();
    pool.remove(first);
    pool.remove(second);
    pool.settle(first, 256);
    pool.volume(first).own_blocks += 9;
    pool.volume(base).own_blocks += 1;
    pool.volume(snapshot).mapped_blocks += 1;
    assert_mended(&pool.finish());
}
