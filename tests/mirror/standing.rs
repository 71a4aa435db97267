//! Sides that are copies from earlier or of another pool, and requests that are refused.

use super::life::{self, Life, State, options, read_state};
use super::world::{World, assembled, of_images, path};
use cowshed_engine::{NewSide, Pool};
use cowshed_format::base::{Error, MirrorError, Result};
use cowshed_format::device::mirror::SideStanding;
use cowshed_format::device::{Device, DeviceImage, MemoryDevice};
use cowshed_format::side::Lack;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

/// One side is put back to any earlier moment, while the other goes on: it never answers with what
/// it had then.
#[test]
fn a_side_that_is_a_copy_from_earlier_never_counts() {
    for seed in super::seed()..super::seed() + super::rounds(10) {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::zeroed(2, life::POOL_BYTES);
        let devices = || (0..2).map(|number| (number, world.device(number)));
        life::create(devices().collect()).unwrap();
        let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
        let mut life = Life::new(pool, StdRng::seed_from_u64(seed), State::new());
        let mut old: Vec<Vec<DeviceImage>> = vec![world.now()];
        for _ in 0..60 {
            life.step().unwrap();
            old.push(world.now());
        }
        for round in 0..30 {
            let moment = rng.random_range(0..old.len());
            let now = if round % 2 == 0 {
                old.len() - 1
            } else {
                rng.random_range(moment..old.len())
            };
            let side = rng.random_range(0..2);
            let mut images = old[now].clone();
            images[side] = old[moment][side].clone();
            let what = format!("seed {seed}: side {side} as of {moment}, the other as of {now}");
            let expected = Pool::open(assembled(of_images(&old[now])).unwrap(), &options());
            let expected = read_state(&expected.unwrap()).unwrap();
            let devices = of_images(&images);
            let pool = Pool::open(assembled(devices.clone()).unwrap(), &options()).unwrap();
            assert!(read_state(&pool).unwrap() == expected, "{what}");
            pool.resync(&mut |_, _| true).unwrap();
            pool.close().unwrap();
            drop(pool);
            let alone = assembled([devices[side].clone()]).unwrap();
            let alone = Pool::open(alone, &options()).unwrap();
            let found = read_state(&alone).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(found == expected, "{what}: the side by itself");
        }
    }
}

/// Sides go and come back in any order, and nothing that was acknowledged is lost.
#[test]
fn sides_that_come_and_go_in_any_order_lose_nothing() {
    let (mut lives, mut refused) = (0, 0);
    for seed in super::seed()..super::seed() + super::rounds(10) {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::zeroed(3, life::POOL_BYTES);
        life::create(
            (0..3)
                .map(|number| (number, world.device(number)))
                .collect(),
        )
        .unwrap();
        let mut state = State::new();
        for _ in 0..12 {
            let there: Vec<usize> = (0..3).filter(|_| rng.random_ratio(2, 3)).collect();
            let devices: Vec<_> = there.iter().map(|it| (*it, world.device(*it))).collect();
            let mirror = match assembled(devices) {
                // Whoever has only sides that are behind is told so, and nothing changes.
                Err(Error::NotAPool) => continue,
                mirror => mirror.unwrap(),
            };
            let pool = match Pool::open(mirror, &options()) {
                Err(Error::Mirror(MirrorError::NoGoodSide { .. })) => {
                    refused += 1;
                    continue;
                }
                Err(Error::NotAPool) if there.is_empty() => continue,
                pool => pool.unwrap(),
            };
            assert!(
                read_state(&pool).unwrap() == state,
                "seed {seed}: sides {there:?} have another state"
            );
            lives += 1;
            let mut life = Life::new(pool.clone(), StdRng::seed_from_u64(rng.random()), state);
            for _ in 0..15 {
                life.step().unwrap();
            }
            if rng.random() {
                pool.resync(&mut |_, _| rng.random_ratio(9, 10)).unwrap();
            }
            state = life.state().clone();
            if rng.random() {
                pool.close().unwrap();
            }
            drop(life);
            drop(pool);
            // A side that was not there does not know of this until it is told.
            let all = (0..3).map(|number| (number, world.device(number)));
            let pool = Pool::open(assembled(all).unwrap(), &options()).unwrap();
            assert!(
                read_state(&pool).unwrap() == state,
                "seed {seed}: all sides"
            );
            pool.resync(&mut |_, _| rng.random_ratio(9, 10)).unwrap();
            pool.close().unwrap();
        }
    }
    println!("{lives} lives, {refused} refused for want of a good side");
    assert!(lives > 0 && refused > 0);
}

#[test]
fn a_side_of_another_pool_is_left_alone() {
    let worlds = [0, 1].map(|_| World::zeroed(2, life::POOL_BYTES));
    for world in &worlds {
        life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
    }
    let before = worlds[1].now();
    let swapped = [(0, worlds[0].device(0)), (1, worlds[1].device(1))];
    let mirror = assembled(swapped).unwrap();
    let pool = Pool::open(mirror, &options()).unwrap();
    let sides = pool.sides().unwrap();
    assert!(
        matches!(sides[1].standing, SideStanding::Missing(_)),
        "{sides:?}"
    );
    pool.close().unwrap();
    assert!(worlds[1].now() == before, "the other pool was changed");
}

fn new_side(number: usize, image: DeviceImage, force: bool) -> NewSide<'static> {
    NewSide {
        path: path(number),
        open: Box::new(move |_| Ok(Arc::new(MemoryDevice::from_image(image)) as Arc<dyn Device>)),
        force,
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let world = World::zeroed(2, life::POOL_BYTES);
    life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
    let devices = || (0..2).map(|number| (number, world.device(number)));
    let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
    let before = (pool.sides().unwrap(), world.now());
    let no = &mut |_: u64, _: u64| true;
    let small = || DeviceImage::zeroed(life::POOL_BYTES / 2);
    let whole = || DeviceImage::zeroed(life::POOL_BYTES);
    let refusals: Vec<(&str, Result<()>)> = vec![
        ("has 8 MiB", pool.add_side(new_side(2, small(), false), no)),
        (
            "is a side of the pool already",
            pool.add_side(new_side(1, whole(), false), no),
        ),
        (
            "is a side of the pool already",
            pool.add_side(new_side(2, before.1[0].clone(), false), no),
        ),
        ("is not a side", pool.remove_side(&path(7))),
        (
            "is not a side",
            pool.replace_side(&path(7), new_side(2, whole(), false), no),
        ),
        (
            "is a side",
            pool.replace_side(&path(1), new_side(1, whole(), false), no),
        ),
    ];
    for (expected, outcome) in refusals {
        let error = outcome.expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(pool.sides().unwrap() == before.0, "{:?}", pool.sides());
    assert!(world.now() == before.1, "a refusal has changed something");

    pool.remove_side(&path(0)).unwrap();
    let error = pool.remove_side(&path(1)).unwrap_err().to_string();
    assert!(error.contains("the last side"), "{error}");
    // What was taken out is no pool any more.
    assert!(matches!(
        assembled([(0, world.device(0))]),
        Err(Error::NotAPool)
    ));
    pool.close().unwrap();
    let pool = Pool::open(assembled([(1, world.device(1))]).unwrap(), &options()).unwrap();
    let stop = &mut |_: u64, _: u64| false;
    pool.add_side(new_side(2, whole(), false), stop).unwrap();
    let sides = pool.sides().unwrap();
    assert_eq!(sides[1].standing, SideStanding::Behind(Lack::ALL));
    let error = pool
        .replace_side(&path(1), new_side(3, whole(), false), no)
        .unwrap_err();
    assert!(
        error.to_string().contains("is missing or behind"),
        "{error}"
    );
    pool.close().unwrap();
}

/// A side that was away while a hundredth of the pool changed gets little more than that.
#[test]
fn a_side_that_comes_back_gets_only_what_changed() {
    let world = World::zeroed(2, 64 << 20);
    let devices = || (0..2).map(|number| (number, world.device(number)));
    life::create(devices().collect()).unwrap();
    let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
    let volume = pool
        .create_volume(&cowshed_engine::Name::new("v").unwrap(), 40 << 20)
        .unwrap();
    for at in 0..40 {
        volume
            .write_at(&vec![at + 1; 1 << 20], u64::from(at) << 20)
            .unwrap();
    }
    pool.close().unwrap();
    drop((pool, volume));
    let pool = Pool::open(assembled([(0, world.device(0))]).unwrap(), &options()).unwrap();
    let volume = pool.volume("v").unwrap();
    volume.write_at(&vec![99; 400 << 10], 5 << 20).unwrap();
    pool.close().unwrap();
    drop((pool, volume));
    let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
    let mut copied = 0;
    pool.resync(&mut |done, _| {
        copied = done;
        true
    })
    .unwrap();
    assert!(
        (400 << 10..1200 << 10).contains(&copied),
        "{copied} bytes were copied"
    );
    pool.close().unwrap();
    drop(pool);
    let alone = Pool::open(assembled([(1, world.device(1))]).unwrap(), &options()).unwrap();
    let mut found = vec![0; 1 << 20];
    alone
        .volume("v")
        .unwrap()
        .read_at(&mut found, 5 << 20)
        .unwrap();
    assert!(found[..400 << 10].iter().all(|byte| *byte == 99));
    let report = alone.scrub(&mut |_, _| true).unwrap();
    assert!(report.bad.is_empty());
}

/// Copying that was stopped in the middle goes on there, also after the death of the process, and
/// what was written meanwhile is copied as well.
#[test]
fn copying_that_was_stopped_goes_on_where_it_was() {
    for (round, is_killed) in [false, true].into_iter().enumerate() {
        let world = World::zeroed(3, 64 << 20);
        let devices = |count| (0..count).map(|number| (number, world.device(number)));
        life::create(devices(2).collect()).unwrap();
        let pool = Pool::open(assembled(devices(2)).unwrap(), &options()).unwrap();
        let volume = pool
            .create_volume(&cowshed_engine::Name::new("v").unwrap(), 40 << 20)
            .unwrap();
        for at in 0..40 {
            let bytes = vec![at + 1; 1 << 20];
            volume.write_at(&bytes, u64::from(at) << 20).unwrap();
        }
        pool.checkpoint().unwrap();
        let device = world.device(2);
        let new = NewSide {
            path: path(2),
            open: Box::new(move |_| Ok(device)),
            force: false,
        };
        let mut first = 0;
        let stop = &mut |done: u64, total: u64| {
            first = done;
            total < 30 << 20 || done < 30 << 20
        };
        pool.add_side(new, stop).unwrap();
        // Where the copying was, before it, and behind it.
        for at in [1, 20, 39] {
            volume.write_at(&[77; 64 << 10], at << 20).unwrap();
        }
        let pool = if is_killed {
            pool.flush().unwrap();
            drop((pool, volume));
            // The recorded devices have what a killed process leaves.
            Pool::open(assembled(devices(3)).unwrap(), &options()).unwrap()
        } else {
            drop(volume);
            pool
        };
        let mut second = 0;
        pool.resync(&mut |done, _| {
            second = done;
            true
        })
        .unwrap();
        assert!(
            second < (64 << 20) / 3 && first > (64 << 20) / 3,
            "round {round}: {first} bytes were copied, and then {second}"
        );
        let sides = pool.sides().unwrap();
        assert_eq!(sides[2].standing, SideStanding::Good);
        pool.close().unwrap();
        drop(pool);
        let alone = Pool::open(assembled([(2, world.device(2))]).unwrap(), &options()).unwrap();
        let volume = alone.volume("v").unwrap();
        let mut found = vec![0; 1 << 20];
        for at in 0..40 {
            volume.read_at(&mut found, u64::from(at) << 20).unwrap();
            let (head, tail) = found.split_at(64 << 10);
            let expected = if [1, 20, 39].contains(&at) {
                77
            } else {
                at + 1
            };
            assert!(head.iter().all(|byte| *byte == expected), "MiB {at}");
            assert!(tail.iter().all(|byte| *byte == at + 1), "MiB {at}");
        }
        let report = alone.scrub(&mut |_, _| true).unwrap();
        assert!(report.bad.is_empty(), "{:?}", report.bad);
    }
}

/// The process dies at any moment while a side comes back; then each side is used alone, if it lets
/// itself be used. Both together are refused, or the one that could not be used alone had nothing.
#[test]
fn sides_used_apart_after_any_moment_of_a_return_are_refused() {
    let world = World::zeroed(2, life::POOL_BYTES);
    let devices = |count| (0..count).map(|number| (number, world.device(number)));
    life::create(devices(2).collect()).unwrap();
    let name = |name: &str| cowshed_engine::Name::new(name).unwrap();
    let pool = Pool::open(assembled(devices(1)).unwrap(), &options()).unwrap();
    pool.create_volume(&name("before"), 1 << 20).unwrap();
    pool.close().unwrap();
    drop(pool);
    let first = world.moment();
    let pool = Pool::open(assembled(devices(2)).unwrap(), &options()).unwrap();
    pool.resync(&mut |_, _| true).unwrap();
    assert!(!pool.status().unwrap().degraded);
    let (mut diverged, mut refused) = (0, 0);
    for moment in first..=world.moment() {
        let what = format!("moment {moment}");
        let sides = of_images(&world.at(moment));
        let mut used = Vec::new();
        for (number, device) in &sides {
            let mirror = match assembled([(*number, Arc::clone(device))]) {
                Err(Error::NotAPool) => continue,
                mirror => mirror.unwrap(),
            };
            match Pool::open(mirror, &options()) {
                Ok(pool) => {
                    let alone = format!("alone{number}");
                    pool.create_volume(&name(&alone), 1 << 20).unwrap();
                    pool.close().unwrap();
                    used.push(alone);
                }
                Err(Error::Mirror(MirrorError::NoGoodSide { .. })) => {}
                Err(error) => panic!("{what}, side {number}: {error}"),
            }
        }
        match assembled(sides) {
            Err(Error::Mirror(MirrorError::Diverged { .. })) if used.len() == 2 => diverged += 1,
            Ok(mirror) if used.len() == 1 => {
                refused += 1;
                let pool = Pool::open(mirror, &options()).unwrap();
                assert!(pool.volume(&used[0]).is_ok(), "{what}");
            }
            outcome => panic!("{what}: {used:?}, then {:?}", outcome.err()),
        }
    }
    println!("{diverged} times diverged, {refused} times one side did not let itself be used");
    assert!(diverged > 0 && refused > 0);
}

/// What is overwritten while a side is copied to is part of its last superblock until the next one:
/// if the side is all that a power cut leaves, it has a whole state.
#[test]
fn what_is_overwritten_during_the_copying_is_not_missing_afterwards() {
    for is_stopped in [false, true] {
        let world = World::zeroed(2, life::POOL_BYTES);
        let devices = |count| (0..count).map(|number| (number, world.device(number)));
        life::create(devices(2).collect()).unwrap();
        let pool = Pool::open(assembled(devices(2)).unwrap(), &options()).unwrap();
        let name = cowshed_engine::Name::new("v").unwrap();
        let volume = pool.create_volume(&name, 8 << 20).unwrap();
        volume.write_at(&[1; 4 << 20], 0).unwrap();
        pool.close().unwrap();
        drop((pool, volume));
        let pool = Pool::open(assembled(devices(1)).unwrap(), &options()).unwrap();
        let volume = pool.volume("v").unwrap();
        volume.write_at(&[2; 3 << 20], 0).unwrap();
        pool.checkpoint().unwrap();
        let mut calls = 0;
        let back = |pool: &Pool, progress: &mut dyn FnMut(u64, u64) -> bool| {
            let device = world.device(1);
            let new = NewSide {
                path: path(1),
                open: Box::new(move |_| Ok(device)),
                force: false,
            };
            pool.add_side(new, progress).unwrap();
        };
        back(&pool, &mut |done, _| {
            // While superblocks, log and bitmaps are copied.
            calls += 1;
            if calls == 1 {
                volume.write_at(&[3; 2 << 20], 0).unwrap();
            }
            !is_stopped || done < 2 << 20
        });
        if is_stopped {
            // Power is cut on both sides, and the copying goes on with what that left.
            let images = world.durable();
            drop((pool, volume));
            let sides = of_images(&images);
            let both = Pool::open(assembled(sides.clone()).unwrap(), &options()).unwrap();
            both.resync(&mut |_, _| true).unwrap();
            assert!(!both.status().unwrap().degraded);
            both.close().unwrap();
            drop(both);
            expect_fills(assembled([sides[1].clone()]).unwrap());
        } else {
            let images = world.durable();
            let sides = of_images(&images);
            expect_fills(assembled([sides[1].clone()]).unwrap());
        }
    }
}

/// Expects each part of the volume to have bytes that were written there.
fn expect_fills(mirror: Arc<cowshed_format::device::MirrorDevice>) {
    let pool = Pool::open(mirror, &options()).unwrap();
    let volume = pool.volume("v").unwrap();
    let mut found = vec![0; 4 << 20];
    volume.read_at(&mut found, 0).unwrap();
    for (block, bytes) in found.chunks(4096).enumerate() {
        let possible: &[u8] = match block {
            0..512 => &[2, 3],
            512..768 => &[2],
            _ => &[1],
        };
        let is_whole = bytes.iter().all(|byte| *byte == bytes[0]);
        assert!(
            is_whole && possible.contains(&bytes[0]),
            "block {block}: {}",
            bytes[0]
        );
    }
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(report.bad.is_empty(), "{:?}", report.bad);
}
