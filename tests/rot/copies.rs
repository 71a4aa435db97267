//! Damage of metadata of which there are two copies: nothing is lost or refused, and afterwards the
//! damaged copy is whole again.

use crate::golden::{
    BLOCK, Golden, Part, block_of, blocks, golden_in, options, state_of, superblock_of,
};
use crate::{put, seed};
use cowshed_check::{CheckOptions, FindingKind, Repair, UpgradeRefusal, Upgraded, check, upgrade};
use cowshed_engine::{MetadataCopies, Pool};
use cowshed_format::Superblock;
use cowshed_format::base::{BlockAddr, Error, Name};
use cowshed_format::device::{Device, DeviceImage, FaultyDevice, MemoryDevice};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pools of one group, of two, and of two and a short third one.
const POOLS: [u64; 3] = [20 << 20, 150 << 20, 290 << 20];

/// Returns the blocks that the pool holds twice, each with its copy, and with what is left of it
/// where it was before. Data is random, so no two blocks of it are alike.
fn pairs(golden: &Golden) -> Vec<Vec<u64>> {
    let mut places: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    for (block, part) in &golden.blocks {
        if *part == Part::Body {
            let bytes = block_of(&golden.image, *block);
            places.entry(bytes).or_default().push(*block);
        }
    }
    let pairs: Vec<Vec<u64>> = places
        .into_values()
        .filter(|places| places.len() > 1)
        .collect();
    assert!(pairs.len() > 5, "{} pairs", pairs.len());
    pairs
}

/// Returns the damages of one block, each with its name and bytes; `None` makes it unreadable.
fn damages(
    golden: &Golden,
    block: u64,
    random: &mut StdRng,
) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut flipped = block_of(&golden.image, block);
    flipped[random.random_range(0..4096)] ^= 1 << random.random_range(0..8);
    let (other, _) = *golden.blocks.choose(random).unwrap();
    vec![
        ("zeros", Some(vec![0; 4096])),
        ("a flipped bit", Some(flipped)),
        ("an older version", Some(block_of(&golden.older, block))),
        ("another block", Some(block_of(&golden.image, other))),
        ("unreadable", None),
    ]
}

fn checked(image: &DeviceImage, repair: bool) -> cowshed_check::CheckReport {
    let device = MemoryDevice::from_image(image.clone());
    let options = CheckOptions {
        deep: true,
        repair,
        forget: false,
    };
    check(&device, options, &mut |_| {}).unwrap()
}

/// Opens a damaged pool and asserts that everything is there; returns its image after it was closed.
fn survives(what: &str, golden: &Golden, image: &DeviceImage, unreadable: &[u64]) -> DeviceImage {
    survives_and_heals(what, golden, image, unreadable).0
}

/// As `survives`; also returns true if no block is unreadable any longer.
fn survives_and_heals(
    what: &str,
    golden: &Golden,
    image: &DeviceImage,
    unreadable: &[u64],
) -> (DeviceImage, bool) {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&device) as Arc<dyn Device>));
    for block in unreadable {
        faulty.spoil(BlockAddr(*block));
    }
    let pool = Pool::open(Arc::clone(&faulty) as Arc<dyn Device>, &options())
        .unwrap_or_else(|why| panic!("{what}: {why}"));
    let wanted = golden.states.last().unwrap();
    assert!(state_of(&pool) == *wanted, "{what}: other contents");
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(
        report.finished && report.bad.is_empty(),
        "{what}: {:?}",
        report.bad
    );
    assert!(
        state_of(&pool) == *wanted,
        "{what}: other contents after a scrub"
    );
    pool.close().unwrap();
    drop(pool);
    let mut spoiled = unreadable.iter().map(|block| BlockAddr(*block));
    let heals = !spoiled.any(|block| faulty.is_spoiled(block));
    (device.snapshot_image(), heals)
}

fn every_block_once(closed: bool) {
    let mut random = StdRng::seed_from_u64(seed());
    for pool_bytes in POOLS {
        let golden = golden_in(seed(), pool_bytes, closed, MetadataCopies::Two);
        let (mut count, mut found) = (0, 0);
        for block in pairs(&golden).into_iter().flatten() {
            let mut is_used = false;
            for (kind, bytes) in damages(&golden, block, &mut random) {
                let what = format!("{pool_bytes} bytes, block {block}, {kind}");
                let mut image = golden.image.clone();
                let mut unreadable = Vec::new();
                match &bytes {
                    Some(bytes) => put(&mut image, block, bytes),
                    None => unreadable.push(block),
                }
                let (after, heals) = survives_and_heals(&what, &golden, &image, &unreadable);
                let report = checked(&after, false);
                assert!(report.clean(), "{what}: {:?}", report.findings);
                count += 1;
                if bytes.is_some() {
                    let faults = mends(&what, &golden, &image);
                    is_used |= faults > 0;
                    found += faults;
                } else {
                    // In a closed pool nothing replaces the block before it is read.
                    assert!(
                        heals || !is_used || !closed,
                        "{what}: it is still unreadable"
                    );
                }
            }
        }
        println!("{pool_bytes} bytes, closed: {closed}: {count} damages, {found} found by a check");
        assert!(found * 10 > count * 3, "{found} of {count}");
    }
}

/// Checks a damaged pool offline, and asserts that a repair makes the copy whole. Returns 1 if the
/// damage was in use.
fn mends(what: &str, golden: &Golden, image: &DeviceImage) -> u64 {
    let before = checked(image, false);
    let is_copy = |kind| kind == FindingKind::CopyDamaged;
    assert!(
        before.findings.iter().all(|found| is_copy(found.kind)),
        "{what}: {:?}",
        before.findings
    );
    let device = MemoryDevice::from_image(image.clone());
    let options = CheckOptions {
        deep: true,
        repair: true,
        forget: false,
    };
    let report = check(&device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{what}: {:?}", report.remaining);
    let copies = report
        .repaired
        .iter()
        .filter(|repair| matches!(repair, Repair::Copy(_)));
    assert_eq!(copies.count(), before.findings.len(), "{what}");
    if !before.findings.is_empty() {
        let mended = device.snapshot_image();
        assert!(
            mended == golden.image,
            "{what}: the repair has changed something else"
        );
    }
    before.findings.len() as u64
}

#[test]
fn one_damaged_copy_of_any_block_of_metadata_costs_nothing() {
    every_block_once(true);
}

#[test]
fn one_damaged_copy_costs_nothing_while_the_log_has_to_be_replayed() {
    every_block_once(false);
}

#[test]
fn a_whole_region_may_be_gone_without_a_loss_of_metadata() {
    let golden = golden_in(seed(), POOLS[1], true, MetadataCopies::Two);
    let pairs = pairs(&golden);
    // The two copies lie a group apart, so that no region of half a group has both.
    let span = 16_384;
    for start in (0..golden.image.len_bytes() / BLOCK).step_by(8192) {
        let region = start..start + span;
        let mut image = golden.image.clone();
        for block in pairs
            .iter()
            .flatten()
            .filter(|block| region.contains(*block))
        {
            put(&mut image, *block, &[0; 4096]);
        }
        let what = format!("blocks {region:?}");
        let after = survives(&what, &golden, &image, &[]);
        assert!(checked(&after, false).clean(), "{what}");
    }
}

#[test]
fn where_both_copies_are_damaged_the_loss_is_told() {
    let golden = golden_in(seed(), POOLS[0], true, MetadataCopies::Two);
    let mut told = 0;
    for pair in pairs(&golden) {
        let mut image = golden.image.clone();
        for block in pair {
            put(&mut image, block, &[0; 4096]);
        }
        let report = checked(&image, false);
        if report.clean() {
            // It was not in use.
            survives("not in use", &golden, &image, &[]);
            continue;
        }
        let is_copy = |kind| kind == FindingKind::CopyDamaged;
        assert!(!report.findings.iter().any(|found| is_copy(found.kind)));
        let device = Arc::new(MemoryDevice::from_image(image));
        let outcome = Pool::open(device, &options()).and_then(|pool| {
            let volumes = pool.volumes();
            volumes.iter().try_for_each(|info| {
                let volume = pool.volume_by_id(info.id)?;
                let len = usize::try_from(volume.size_bytes()).unwrap();
                volume.read_at(&mut vec![0; len], 0)
            })
        });
        match outcome {
            Err(Error::Corrupt(_)) => told += 1,
            // It is a removed volume's, which nobody can read.
            outcome => outcome.unwrap(),
        }
    }
    assert!(told > 5, "{told}");
}

#[test]
fn a_node_whose_other_copy_cannot_be_read_just_now_is_not_given_up() {
    let golden = golden_in(seed(), POOLS[0], false, MetadataCopies::Two);
    let mut refused = 0;
    for pair in pairs(&golden) {
        let [first, second] = pair[..] else { continue };
        let mut image = golden.image.clone();
        put(&mut image, first, &[0; 4096]);
        let device = Arc::new(MemoryDevice::from_image(image.clone()));
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&device) as Arc<dyn Device>));
        faulty.spoil(BlockAddr(second));
        if let Err(error) = Pool::open(Arc::clone(&faulty) as Arc<dyn Device>, &options()) {
            assert!(matches!(error, Error::Io { .. }), "{error}");
            refused += 1;
        }
        // Once it can be read again, nothing is lost.
        survives("readable again", &golden, &device.snapshot_image(), &[]);
    }
    assert!(refused > 2, "{refused}");
}

/// Returns the same pool as one of version 2, whose structures are those of one with one copy.
fn as_version_2(image: &DeviceImage) -> DeviceImage {
    let layout = superblock_of(image).layout;
    let mut old = image.clone();
    for place in [0, 1]
        .into_iter()
        .flat_map(|slot| layout.superblock_slots(slot))
    {
        if let Ok(superblock) = Superblock::decode(&block_of(image, place.0)) {
            let superblock = Superblock {
                version: 2,
                ..superblock
            };
            put(&mut old, place.0, &superblock.encode());
        }
    }
    old
}

fn upgraded(image: &DeviceImage, copies: u8) -> (DeviceImage, Upgraded) {
    let device = MemoryDevice::from_image(image.clone());
    let done = upgrade(&device, copies, &mut |_| {}).unwrap().unwrap();
    (device.snapshot_image(), done)
}

#[test]
fn a_pool_of_version_2_is_used_as_it_is_and_upgraded_on_request() {
    for pool_bytes in POOLS {
        let golden = golden_in(seed(), pool_bytes, true, MetadataCopies::One);
        let image = as_version_2(&golden.image);
        let after = survives("version 2", &golden, &image, &[]);
        assert!(checked(&after, false).clean());
        let now = superblock_of(&after);
        assert_eq!((now.version, now.metadata_copies), (2, 1));

        let (image, done) = upgraded(&after, 2);
        assert_eq!((done.from_version, done.to_version), (2, 3));
        assert!(done.rewritten > 5, "{done:?}");
        assert!(checked(&image, false).clean());
        assert_eq!(upgraded(&image, 2).1.rewritten, 0);
        let golden = Golden {
            image: image.clone(),
            blocks: blocks(&image),
            ..golden
        };
        let pairs = pairs(&golden);
        assert!(pairs.len() as u64 >= done.rewritten, "{done:?}");
        for block in pairs.iter().flatten() {
            let mut damaged = image.clone();
            put(&mut damaged, *block, &[0; 4096]);
            let after = survives("upgraded", &golden, &damaged, &[]);
            assert!(checked(&after, false).clean());
        }
        let (one, done) = upgraded(&image, 1);
        assert_eq!((done.from_copies, done.to_copies), (2, 1));
        assert!(checked(&one, false).clean());
        survives("with one copy", &golden, &one, &[]);
        assert_eq!(
            superblock_of(&one).used_blocks,
            superblock_of(&after).used_blocks
        );
    }
}

#[test]
fn an_upgrade_that_cannot_be_done_changes_nothing() {
    let refused = |image: &DeviceImage| {
        let device = MemoryDevice::from_image(image.clone());
        let refusal = upgrade(&device, 2, &mut |_| {}).unwrap().unwrap_err();
        assert!(device.snapshot_image() == *image, "{refusal}");
        refusal
    };
    let open = golden_in(seed(), POOLS[0], false, MetadataCopies::One);
    assert_eq!(refused(&open.image), UpgradeRefusal::NotClosed);
    let closed = golden_in(seed(), POOLS[0], true, MetadataCopies::One);
    let root = superblock_of(&closed.image).catalogue_root;
    let mut damaged = closed.image.clone();
    put(&mut damaged, root.addr().0, &[0; 4096]);
    assert_eq!(refused(&damaged), UpgradeRefusal::Damaged);
    // Full to the last block that a writer may have.
    let device = Arc::new(MemoryDevice::from_image(closed.image));
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options()).unwrap();
    let volume = pool
        .create_volume(&Name::new("large").unwrap(), 1 << 30)
        .unwrap();
    let noise = |number: u64| (number | 1 << 40).to_le_bytes().repeat(512);
    // One block in each leaf: the map takes as much as the data.
    let mut number = 0;
    while volume
        .write_at(&noise(number), number * 256 * BLOCK)
        .is_ok()
    {
        number += 1;
        if number == 1024 {
            break;
        }
    }
    while volume.write_at(&noise(number), number * BLOCK).is_ok() {
        number += 1;
    }
    pool.close().unwrap();
    drop((volume, pool));
    // What was written before that is in blocks that are free.
    let full = MemoryDevice::from_image(device.snapshot_image());
    let refusal = upgrade(&full, 2, &mut |_| {}).unwrap().unwrap_err();
    assert_eq!(refusal, UpgradeRefusal::NoSpace);
    let (before, after) = (device.snapshot_image(), full.snapshot_image());
    assert!(checked(&after, false).clean());
    assert_eq!(superblock_of(&after), superblock_of(&before));
}

#[test]
fn lost_bitmaps_are_made_anew_from_the_maps() {
    for closed in [true, false] {
        for copies in [MetadataCopies::One, MetadataCopies::Two] {
            let golden = golden_in(seed(), POOLS[2], closed, copies);
            let layout = superblock_of(&golden.image).layout;
            let groups = superblock_of(&golden.image).groups_initialized;
            // Each group's, and all of them.
            let mut choices: Vec<Vec<u64>> = (0..groups).map(|group| vec![group]).collect();
            choices.push((0..groups).collect());
            for lost in choices {
                let what = format!("closed: {closed}, {copies:?}, lost: {lost:?}");
                let mut image = golden.image.clone();
                for start in lost.iter().map(|group| layout.group_start(*group)) {
                    (0..4).for_each(|block| put(&mut image, start + block, &[0x5a; 4096]));
                }
                let free = |image: &DeviceImage| {
                    let device = Arc::new(MemoryDevice::from_image(image.clone()));
                    let pool = Pool::open(device, &options()).unwrap();
                    pool.status().unwrap().free_bytes
                };
                assert_eq!(free(&image), free(&golden.image), "{what}");
                let after = survives(&what, &golden, &image, &[]);
                assert!(checked(&after, false).clean(), "{what}");
            }
        }
    }
}
