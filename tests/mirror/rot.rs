//! Rot of one side: every block that is in use, data and metadata. Every read is right, and the
//! block is whole again afterwards.

use super::life::{self, Life, State, options, read_state};
use super::world::{World, assembled, of_images};
use cowshed_engine::Pool;
use cowshed_format::base::BlockAddr;
use cowshed_format::device::{Device, DeviceImage, FaultyDevice, MemoryDevice, RecordedOp};
use cowshed_format::{Superblock, group};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// The kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rot {
    Zeros,
    Flipped,
    Unreadable,
}

fn golden(closed: bool) -> (Vec<DeviceImage>, State) {
    let world = World::zeroed(2, life::POOL_BYTES);
    let devices = || (0..2).map(|number| (number, world.device(number)));
    life::create(devices().collect()).unwrap();
    let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
    let mut life = Life::new(pool, StdRng::seed_from_u64(11), State::new());
    for _ in 0..60 {
        life.step().unwrap();
    }
    life.pool.flush().unwrap();
    if closed {
        life.pool.close().unwrap();
    }
    (world.now(), life.state().clone())
}

fn superblock(image: &DeviceImage) -> Superblock {
    let block = |number: u64| {
        let mut bytes = vec![0; 4096];
        image.read(&mut bytes, number * BLOCK);
        bytes
    };
    let superblocks = (0..2).filter_map(|slot| Superblock::decode(&block(slot)).ok());
    superblocks.max_by_key(|it| it.generation).unwrap()
}

/// Returns every block that is in use, with superblocks, labels and bitmaps.
fn in_use(image: &DeviceImage) -> Vec<u64> {
    let newest = superblock(image);
    let mut blocks: Vec<u64> = (0..6).collect();
    let layout = newest.layout;
    for slot in [0, 1] {
        blocks.extend(layout.superblock_slots(slot).map(|addr| addr.0));
    }
    for number in 0..newest.groups_initialized {
        let mut best = None;
        for slot in [0, 1] {
            let mut bytes = Box::new([0; group::SLOT_BYTES]);
            image.read(
                &mut bytes[..],
                layout.bitmap_slot(number, slot).offset_bytes(),
            );
            if let Some(found) = group::decode(&bytes, &newest.uuid, number) {
                let is_new = best
                    .as_ref()
                    .is_none_or(|best: &group::BitmapSlot| best.generation < found.generation);
                if is_new {
                    best = Some(found);
                }
            }
        }
        let start = layout.group_start(number);
        let bitmap = best.unwrap().bitmap;
        let is_set =
            |index: &u64| bitmap[usize::try_from(index / 64).unwrap()] >> (index % 64) & 1 == 1;
        blocks.extend(
            (0..layout.group_blocks(number))
                .filter(is_set)
                .map(|index| start + index),
        );
    }
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

#[test]
fn every_block_of_one_side_may_rot() {
    let mut tally = [0u64; 2];
    for closed in [true, false] {
        let (images, expected) = golden(closed);
        let blocks = in_use(&images[0]);
        let step = if super::rounds(0) > 0 { 1 } else { 3 };
        for (index, block) in blocks.iter().enumerate() {
            // A short run takes one kind of damage for each block, in turn.
            for (kind, rot) in [Rot::Zeros, Rot::Flipped, Rot::Unreadable]
                .into_iter()
                .enumerate()
            {
                if step == 3 && index % 3 != kind {
                    continue;
                }
                for side in 0..2 {
                    let what = format!("closed {closed}, block {block} of side {side}, {rot:?}");
                    tally[usize::from(one(&images, &expected, *block, side, rot, &what))] += 1;
                }
            }
        }
    }
    println!(
        "{} damages, of which {} were in blocks of zeros",
        tally[0] + tally[1],
        tally[0]
    );
}

/// Returns true if the block has changed.
fn one(
    images: &[DeviceImage],
    expected: &State,
    block: u64,
    side: usize,
    rot: Rot,
    what: &str,
) -> bool {
    let mut images = images.to_vec();
    let mut bytes = vec![0; 4096];
    images[side].read(&mut bytes, block * BLOCK);
    let before = bytes.clone();
    match rot {
        Rot::Zeros => bytes.fill(0),
        Rot::Flipped => bytes[777] ^= 4,
        Rot::Unreadable => {}
    }
    images[side].apply(&RecordedOp::Write {
        offset_bytes: block * BLOCK,
        bytes: bytes.clone().into(),
        mapped: false,
    });
    let mut devices = of_images(&images);
    let memory = Arc::clone(&devices[side].1);
    let faulty = Arc::new(FaultyDevice::new(memory));
    if rot == Rot::Unreadable {
        faulty.spoil(BlockAddr(block));
    }
    devices[side].1 = Arc::clone(&faulty) as Arc<dyn Device>;
    let pool = Pool::open(assembled(devices.clone()).unwrap(), &options());
    let pool = pool.unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = read_state(&pool).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(found == *expected, "{what}");
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(
        report.finished && report.bad.is_empty(),
        "{what}: {:?}",
        report.bad
    );
    let again = pool.scrub(&mut |_, _| true).unwrap();
    assert_eq!(
        (again.bad.len(), again.healed),
        (0, 0),
        "{what}: the second scrub"
    );
    pool.resync(&mut |_, _| true).unwrap();
    assert!(!pool.status().unwrap().degraded, "{what}");
    pool.checkpoint().unwrap();
    pool.close().unwrap();
    drop(pool);
    // The side has everything again, by itself.
    let alone = assembled([(side, Arc::clone(&devices[side].1))]).unwrap();
    let pool = Pool::open(alone, &options()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(read_state(&pool).unwrap() == *expected, "{what}: alone");
    let alone = pool.scrub(&mut |_, _| true).unwrap();
    assert!(
        alone.bad.is_empty() && alone.healed == 0,
        "{what}: {:?}",
        alone.bad
    );
    bytes != before || rot == Rot::Unreadable
}

/// Each block of data and of maps has rotted on one of two sides, or cannot be read on the first one,
/// and a third one gets all of them right, as do these.
#[test]
fn what_has_rotted_on_one_side_is_not_copied_to_a_new_one() {
    for (closed, replaces) in [(true, false), (true, true), (false, false), (false, true)] {
        for rot in [Rot::Flipped, Rot::Unreadable] {
            copy_from_rotten_sides(closed, replaces, rot);
        }
    }
}

/// The blocks of the first side have `rot`, and those of the second one a flipped bit, in turn.
fn copy_from_rotten_sides(closed: bool, replaces: bool, rot: Rot) {
    let (mut images, expected) = golden(closed);
    let layout = superblock(&images[0]).layout;
    let first = layout.bitmap_slot(0, 1).0 + (group::SLOT_BYTES as u64) / BLOCK;
    let is_content = |block: &u64| *block >= first && *block < layout.block_count() - 2;
    let mut blocks = in_use(&images[0]);
    blocks.retain(is_content);
    assert!(blocks.len() > 80, "{}", blocks.len());
    for (index, block) in blocks.iter().enumerate() {
        if index % 2 == 0 && rot == Rot::Unreadable {
            continue;
        }
        let mut bytes = vec![0; 4096];
        images[index % 2].read(&mut bytes, block * BLOCK);
        bytes[777] ^= 4;
        images[index % 2].apply(&RecordedOp::Write {
            offset_bytes: block * BLOCK,
            bytes: bytes.into(),
            mapped: false,
        });
    }
    let mut devices = of_images(&images);
    if rot == Rot::Unreadable {
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&devices[0].1)));
        let spoiled = blocks.iter().step_by(2);
        spoiled.for_each(|block| faulty.spoil(BlockAddr(*block)));
        devices[0].1 = faulty;
    }
    let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
    let blank = Arc::new(MemoryDevice::new(life::POOL_BYTES)) as Arc<dyn Device>;
    let third = Arc::clone(&blank);
    let new = cowshed_engine::NewSide {
        path: super::world::path(2),
        open: Box::new(move |_| Ok(third)),
        force: false,
    };
    let (old, mut tell) = (super::world::path(0), |_, _| true);
    match replaces {
        true => pool.replace_side(&old, new, &mut tell).unwrap(),
        false => pool.add_side(new, &mut tell).unwrap(),
    }
    assert!(!pool.status().unwrap().degraded);
    let report = pool.scrub(&mut tell).unwrap();
    let what = format!("closed {closed}, replaces {replaces}, {rot:?}");
    assert_eq!((report.bad.len(), report.healed), (0, 0), "{what}");
    pool.close().unwrap();
    drop(pool);
    let alone = Pool::open(assembled([(2, blank)]).unwrap(), &options()).unwrap();
    assert!(read_state(&alone).unwrap() == expected, "{what}");
}

#[test]
fn a_side_of_zeros_and_a_side_that_is_gone_cost_nothing() {
    for closed in [true, false] {
        let (images, expected) = golden(closed);
        for side in 0..2 {
            let other = 1 - side;
            let gone = assembled([of_images(&images).swap_remove(other)]).unwrap();
            let pool = Pool::open(gone, &options()).unwrap();
            assert!(read_state(&pool).unwrap() == expected);
            assert!(pool.status().unwrap().degraded);
            let mut zeroed = images.clone();
            zeroed[side] = DeviceImage::zeroed(life::POOL_BYTES);
            let pool = Pool::open(assembled(of_images(&zeroed)).unwrap(), &options()).unwrap();
            assert!(read_state(&pool).unwrap() == expected);
            let blank = Arc::new(MemoryDevice::new(life::POOL_BYTES));
            let new = cowshed_engine::NewSide {
                path: super::world::path(side),
                open: Box::new(move |_| Ok(blank as Arc<dyn Device>)),
                force: false,
            };
            pool.add_side(new, &mut |_, _| true).unwrap();
            assert!(!pool.status().unwrap().degraded);
            assert_eq!(pool.sides().unwrap().len(), 2);
        }
    }
}
