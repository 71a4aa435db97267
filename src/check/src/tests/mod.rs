//! Sound pools are clean, and each violated fact is found as what it is.

mod hostile;
mod log;
mod pool;
mod repair;
mod sides;

use self::pool::TestPool;
use super::*;
use cowshed_format::Pointer;
use cowshed_format::base::{BlockAddr, BlockIndex, Generation};
use cowshed_format::catalogue::EntryId;
use cowshed_format::device::MemoryDevice;

const DEEP: CheckOptions = CheckOptions {
    deep: true,
    repair: false,
    forget: false,
};

fn check_deep(device: &MemoryDevice) -> CheckReport {
    check(device, DEEP, &mut |_| {}).unwrap()
}

fn kinds(report: &CheckReport) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = report.findings.iter().map(|each| each.kind).collect();
    kinds.dedup();
    kinds
}

fn assert_clean(device: &MemoryDevice) -> CheckReport {
    let report = check_deep(device);
    assert!(report.clean(), "{:?}", report.findings);
    report
}

/// Returns a pool with a snapshot from which its volume, which is taller, and two clones descend.
fn forest() -> (TestPool, [u64; 4]) {
    let mut pool = TestPool::new();
    let base = pool.create("base");
    for index in (0..600).step_by(3) {
        pool.write(base, index, 1);
    }
    let snapshot = pool.snapshot(base, "layer");
    let [first, second] = ["first", "second"].map(|name| pool.clone_of(snapshot, name));
    for index in 0..20 {
        pool.write(first, index * 40, 2);
        pool.write(second, index * 3, 0);
    }
    pool.write(base, 100_000, 3);
    pool.write(base, 3, 4);
    (pool, [snapshot, base, first, second])
}

#[test]
fn a_sound_forest_is_clean() {
    let (mut pool, [_, base, first, second]) = forest();
    pool.remove(second);
    let layer = pool.snapshot(base, "upper");
    pool.remove(layer);
    let other = pool.clone_of(layer, "other");
    pool.write(other, 300, 5);
    pool.write(base, 300, 6);
    pool.remove(first);
    let volumes = pool.volumes.len() as u64;
    let data = pool.used.len() as u64;
    let report = assert_clean(&pool.finish());
    assert_eq!(report.volumes, volumes);
    assert!(report.blocks_used > data);
    assert_eq!(report.notes, [Note::Reclaiming { volumes: 3 }]);
}

#[test]
fn an_empty_pool_is_clean() {
    assert_clean(&TestPool::new().finish());
}

#[test]
fn a_removed_parent_is_clean_at_every_step_of_its_reclaim() {
    for cursor in [0, 256, 512, 768, 1 << 16] {
        let mut pool = TestPool::new();
        let base = pool.create("base");
        let write = |pool: &mut TestPool, from: usize, fill| {
            for index in (from..800).step_by(7) {
                pool.write(base, index as u64, fill);
            }
        };
        write(&mut pool, 0, 1);
        pool.snapshot(base, "lower");
        write(&mut pool, 3, 2);
        let upper = pool.snapshot(base, "upper");
        pool.write(base, 3, 3);
        pool.write(base, 10, 0);
        pool.write(base, 520, 0);
        pool.write(base, 521, 4);
        pool.remove(upper);
        pool.settle(upper, cursor);
        let clone = pool.snapshot(base, "last");
        pool.clone_of(clone, "mine");
        assert_clean(&pool.finish());
    }
}

#[test]
fn a_node_shared_across_the_cursor_of_a_reclaim_is_clean() {
    for cursor in [256, 512, 1024, 1 << 16, 1 << 17] {
        let mut pool = TestPool::new();
        let base = pool.create("base");
        for index in [1, 300, 600, 100_000] {
            pool.write(base, index, 1);
        }
        pool.snapshot(base, "lower");
        pool.write(base, 2, 2);
        pool.write(base, 601, 2);
        let upper = pool.snapshot(base, "upper");
        // Below the root, the left half stays the removed volume's own node.
        pool.write(base, 100_000, 3);
        pool.remove(upper);
        assert_eq!(pool.path(base, 2)[1], pool.path(upper, 2)[1]);
        pool.settle(upper, cursor);
        assert_clean(&pool.finish());
    }
}

#[test]
fn a_removed_leaf_is_clean_at_every_step_of_its_reclaim() {
    for cursor in [256, 512, 768, 1 << 16] {
        let (mut pool, [_, _, first, _]) = forest();
        pool.remove(first);
        pool.settle(first, cursor);
        assert_clean(&pool.finish());
    }
}

#[test]
fn wrong_counts_are_named_with_both_numbers() {
    let (mut pool, [snapshot, base, ..]) = forest();
    let own = pool.volume(snapshot).own_blocks;
    pool.volume(snapshot).own_blocks += 5;
    pool.volume(base).mapped_blocks -= 1;
    let report = check_deep(&pool.finish_with(|superblock, _| {
        superblock.used_blocks += 1;
        superblock.volume_count += 2;
        superblock.next_volume_id = 2;
    }));
    let found = [
        FindingKind::MappedCount,
        FindingKind::OwnCount,
        FindingKind::VolumeCount,
        FindingKind::SuperblockField,
        FindingKind::UsedCount,
    ];
    assert_eq!(kinds(&report), found);
    let finding = report.findings[1];
    assert_eq!(finding.place, Place::Volume(VolumeId(snapshot)));
    let (recorded, counted) = (own + 5, own);
    assert_eq!(finding.detail, Detail::Count { recorded, counted });
}

#[test]
fn leaked_and_unmarked_blocks_are_found_as_runs() {
    let (pool, [_, base, ..]) = forest();
    let addr = pool.path(base, 3)[3].addr();
    let (_, index) = pool.layout.locate(addr).unwrap();
    let start = pool.layout.group_start(0);
    let report = check_deep(&pool.finish_with(|_, bitmaps| {
        let bitmap = bitmaps.get_mut(&0).unwrap();
        bitmap[usize::try_from(index / 64).unwrap()] &= !(1 << (index % 64));
        bitmap[400] |= 0b0111_0000;
    }));
    let place = |first, count| Place::Blocks {
        first: BlockAddr(first),
        count,
    };
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|each| (each.kind, each.place))
        .collect();
    assert_eq!(
        found[0],
        (FindingKind::BlocksLeaked, place(start + 400 * 64 + 4, 3))
    );
    assert_eq!(found[1], (FindingKind::BlocksUnmarked, place(addr.0, 1)));
    assert_eq!(found[2], (FindingKind::UsedCount, Place::Pool));
}

#[test]
fn a_flipped_data_byte_is_found_by_deep_alone() {
    let (pool, [_, _, first, _]) = forest();
    let addr = pool.path(first, 40)[2].addr();
    let device = pool.finish();
    device
        .write_at(&[9; BLOCK_BYTES], addr.offset_bytes())
        .unwrap();
    let shallow = check(&device, CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(shallow.clean());
    let report = check_deep(&device);
    assert_eq!(kinds(&report), [FindingKind::DataChecksum]);
    let text = report.findings[0].to_string();
    let expected = format!(
        "data-checksum: volume 3, offset {}, pool block {addr}",
        40 << 12
    );
    assert_eq!(text, expected);
}

#[test]
fn adjacent_blocks_of_damaged_data_are_one_finding_with_the_name_of_the_volume() {
    let at = |block, addr| Place::Data {
        volume: VolumeId(3),
        block: BlockIndex(block),
        addr: BlockAddr(addr),
    };
    let mut findings = Findings::default();
    for place in [
        at(40, 900),
        at(41, 901),
        at(42, 902),
        at(43, 910),
        at(50, 911),
    ] {
        findings.add(FindingKind::DataChecksum, place, Detail::None);
    }
    findings.add(FindingKind::DataUnreadable, at(51, 912), Detail::None);
    let mut report = CheckReport {
        findings: findings.list,
        ..CheckReport::default()
    };
    report.names.insert(VolumeId(3), Name::new("big").unwrap());
    let lines = report.findings.iter();
    let lines: Vec<_> = lines.map(|it| report.named(*it).to_string()).collect();
    assert_eq!(
        lines,
        [
            "data-checksum: volume 3 (big), 12288 bytes at offset 163840, pool blocks 900 to 902",
            "data-checksum: volume 3 (big), offset 176128, pool block 910",
            "data-checksum: volume 3 (big), offset 204800, pool block 911",
            "data-unreadable: volume 3 (big), offset 208896, pool block 912",
        ]
    );
}

#[test]
fn an_unreadable_node_is_named_with_its_place() {
    let (pool, [snapshot, ..]) = forest();
    let leaf = pool.path(snapshot, 300)[1].addr();
    let device = pool.finish();
    device
        .write_at(&[9; BLOCK_BYTES], leaf.offset_bytes())
        .unwrap();
    let report = check_deep(&device);
    let place = Place::Node {
        volume: VolumeId(snapshot),
        level: 1,
        first: BlockIndex(256),
        addr: leaf,
    };
    assert_eq!(report.findings[0].kind, FindingKind::NodeUnreadable);
    assert_eq!(report.findings[0].place, place);
    // The blocks below it look leaked, but nothing may free them.
    let others: Vec<_> = report.findings[1..].iter().map(|each| each.kind).collect();
    assert!(others.iter().all(|kind| *kind == FindingKind::BlocksLeaked));
}

#[test]
fn ill_formed_entries_are_found_under_valid_checksums() {
    type Tamper = fn(Pointer) -> Pointer;
    let cases: [(Tamper, u8); 4] = [
        (|old| Pointer::node(old.addr(), old.birth(), old.crc()), 1),
        (|old| Pointer::data(old.addr(), old.birth(), old.crc()), 2),
        (|old| Pointer::data(BlockAddr(3), old.birth(), old.crc()), 1),
        (
            |old| Pointer::data(old.addr(), Generation(1 << 40), old.crc()),
            1,
        ),
    ];
    for (change, level) in cases {
        let (mut pool, [_, _, first, _]) = forest();
        pool.tamper(first, 0, level, &|entries| entries[0] = change(entries[0]));
        let report = check_deep(&pool.finish());
        assert_eq!(report.findings[0].kind, FindingKind::NodeIllFormed);
        assert!(matches!(report.findings[0].detail, Detail::Corrupt(_)));
    }
}

#[test]
fn a_block_with_two_owners_is_found() {
    let (mut pool, [_, base, first, _]) = forest();
    let stolen = pool.path(first, 40)[2];
    let late = Pointer::data(stolen.addr(), Generation(pool.generation), stolen.crc());
    pool.tamper(base, 3, 1, &|entries| entries[3] = late);
    let report = check_deep(&pool.finish());
    let found = kinds(&report);
    assert_eq!(
        found[..2],
        [FindingKind::BlockUsedTwice, FindingKind::BlocksLeaked]
    );
}

#[test]
fn a_tree_that_leads_back_into_itself_ends() {
    let (mut pool, [_, base, ..]) = forest();
    // Level 2 under the root leads to the root's own block: no checksum can fit, so the second
    // visit is noticed before the checksum is.
    let root = pool.path(base, 3)[0];
    pool.tamper(base, 3, 2, &|entries| entries[7] = root);
    let report = check_deep(&pool.finish());
    assert!(kinds(&report).contains(&FindingKind::BlockUsedTwice));
}

#[test]
fn a_pointer_that_no_ancestor_has_is_found() {
    let (mut pool, [_, _, first, _]) = forest();
    let wrong = pool.path(first, 9)[2];
    pool.tamper(first, 9, 1, &|entries| entries[12] = wrong);
    let report = check_deep(&pool.finish());
    let finding = report.findings[0];
    assert_eq!(finding.kind, FindingKind::PointerNotInherited);
    let place = Place::Data {
        volume: VolumeId(first),
        block: BlockIndex(12),
        addr: wrong.addr(),
    };
    assert_eq!(finding.place, place);
}

#[test]
fn orphans_cycles_and_impossible_states_are_found() {
    type Change = fn(&mut TestPool, [u64; 4]);
    let cases: [(Change, FindingKind); 5] = [
        (
            |pool, [_, _, first, _]| pool.volume(first).parent = Some(VolumeId(77)),
            FindingKind::ParentMissing,
        ),
        (
            |pool, [snapshot, base, ..]| {
                pool.volume(snapshot).parent = Some(VolumeId(base));
            },
            FindingKind::ForestCycle,
        ),
        (
            |pool, [snapshot, ..]| pool.volume(snapshot).frozen = false,
            FindingKind::ParentWritable,
        ),
        (
            |pool, [_, base, ..]| pool.volume(base).branch = Generation(1 << 30),
            FindingKind::BranchOrder,
        ),
        (
            |pool, [_, base, ..]| pool.volume(base).reclaimed = 256,
            FindingKind::ReclaimCursor,
        ),
    ];
    for (change, kind) in cases {
        let (mut pool, ids) = forest();
        change(&mut pool, ids);
        let report = check_deep(&pool.finish());
        assert!(
            kinds(&report).contains(&kind),
            "{kind}: {:?}",
            report.findings
        );
    }
}

#[test]
fn catalogue_damage_is_found_as_what_it_is() {
    type Change = fn(&mut TestPool, [u64; 4]);
    let cases: [(Change, FindingKind); 5] = [
        (
            |pool, _| pool.records.push((EntryId::Record(2), vec![1, 2, 3])),
            FindingKind::CatalogueEntry,
        ),
        (
            |pool, _| pool.records.push(pool.records[0].clone()),
            FindingKind::CataloguePartTwice,
        ),
        (
            |pool, _| {
                let bytes = pool.records[0].1.clone();
                pool.records.push((EntryId::Record(2), bytes));
            },
            FindingKind::NameTwice,
        ),
        (
            |pool, [_, base, first, _]| {
                pool.volume(first).name = pool.volume(base).name.clone();
            },
            FindingKind::NameTwice,
        ),
        (
            |pool, [_, base, ..]| {
                let bytes = pool.volume(base).encode();
                pool.records.push((EntryId::Volume(90), bytes));
            },
            FindingKind::CatalogueEntry,
        ),
    ];
    for (change, kind) in cases {
        let (mut pool, ids) = forest();
        change(&mut pool, ids);
        let report = check_deep(&pool.finish());
        assert_eq!(kinds(&report)[0], kind, "{:?}", report.findings);
    }
}

#[test]
fn a_lost_catalogue_block_is_found_with_the_parts_that_it_held() {
    let (pool, _) = forest();
    let first_block = BlockAddr(pool.path(1, 3)[0].addr().0);
    let device = pool.finish();
    // The blocks of the catalogue come after all others.
    let lost = (first_block.0..).map(BlockAddr).find(|addr| {
        let mut bytes = vec![0; BLOCK_BYTES];
        device.read_at(&mut bytes, addr.offset_bytes()).unwrap();
        bytes.windows(5).any(|each| each == b"label")
    });
    let offset = lost.unwrap().offset_bytes();
    device.write_at(&[9; BLOCK_BYTES], offset).unwrap();
    let found = kinds(&check_deep(&device));
    assert!(found.contains(&FindingKind::CatalogueBlock), "{found:?}");
    assert!(found.contains(&FindingKind::VolumeCount));
}

#[test]
fn one_lost_superblock_is_a_finding_and_four_are_no_pool() {
    let device = forest().0.finish();
    let end = device.len_bytes() / BLOCK_BYTES as u64;
    let mut places = vec![
        (1, 1, false),
        (end - 1, 1, true),
        (0, 0, false),
        (end - 2, 0, true),
    ];
    for (addr, slot, copy) in &places {
        let device = MemoryDevice::from_image(device.snapshot_image());
        let offset = BlockAddr(*addr).offset_bytes();
        device.write_at(&[9; BLOCK_BYTES], offset).unwrap();
        let report = check_deep(&device);
        let expected = Finding {
            kind: FindingKind::SuperblockUnreadable,
            place: Place::Superblock {
                slot: *slot,
                copy: *copy,
            },
            detail: Detail::Fact("it holds no superblock"),
        };
        assert_eq!(report.findings, [expected]);
        assert_eq!(report.volumes, 4, "the newest state is taken");
    }
    let last = places.pop().unwrap();
    for (addr, ..) in places {
        let offset = BlockAddr(addr).offset_bytes();
        device.write_at(&[9; BLOCK_BYTES], offset).unwrap();
    }
    // The remaining copy is of the state before; its bitmaps are gone.
    assert!(check(&device, DEEP, &mut |_| {}).is_ok());
    let offset = BlockAddr(last.0).offset_bytes();
    device.write_at(&[9; BLOCK_BYTES], offset).unwrap();
    assert!(check(&device, DEEP, &mut |_| {}).is_err());
}

#[test]
fn a_slot_that_was_never_written_is_no_damage_unless_it_should_be_the_newest() {
    for (addr, clean) in [(0, true), (1, false)] {
        let device = forest().0.finish();
        let offset = BlockAddr(addr).offset_bytes();
        device.write_at(&[0; BLOCK_BYTES], offset).unwrap();
        assert_eq!(check_deep(&device).clean(), clean);
    }
}

#[test]
fn a_device_that_was_cut_short_is_refused() {
    let device = forest().0.finish();
    let mut head = vec![0; 2 * BLOCK_BYTES];
    device.read_at(&mut head, 0).unwrap();
    let short = MemoryDevice::new(1 << 20);
    short.write_at(&head, 0).unwrap();
    let error = check(&short, DEEP, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
}

#[test]
fn a_lost_bitmap_and_a_group_without_one_are_found() {
    let (pool, _) = forest();
    let slot = pool.layout.bitmap_slot(0, 0).offset_bytes();
    let device = pool.finish();
    device.write_at(&[9; BLOCK_BYTES], slot).unwrap();
    assert_eq!(kinds(&check_deep(&device)), [FindingKind::BitmapUnreadable]);
    let (pool, _) = forest();
    let report = check_deep(&pool.finish_with(|superblock, _| superblock.groups_initialized = 0));
    assert_eq!(
        kinds(&report),
        [FindingKind::BlocksUnmarked, FindingKind::UsedCount]
    );
}
