//! Power cuts at any moment, with sides that lose, tear and reorder independently.

use super::life::{self, Life, State, expect_sound, options, read_state};
use super::world::{World, assembled, of_images, path, tell_images};
use cowshed_engine::{NewSide, Pool};
use cowshed_format::base::{Error, MirrorError};
use cowshed_format::device::mirror::{SideStanding, newest_label};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice};
use cowshed_format::side::{Lack, SideLabel};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

/// One moment between two operations: the number of events, the states that may come back after a
/// cut then.
#[derive(Clone, Copy)]
struct Mark {
    moment: usize,
    /// The first state that the last flush covers.
    flushed: usize,
    /// The last state that was reached.
    reached: usize,
}

impl Mark {
    fn of(world: &World, life: &Life) -> Self {
        Self {
            moment: world.moment(),
            flushed: life.flushed,
            reached: life.states.len() - 1,
        }
    }
}

/// Opens the pool on images of its sides, and expects one of the states.
fn expect_one_of(images: &[DeviceImage], states: &[State], what: &str) -> State {
    let devices = of_images(images);
    let pool = Pool::open(assembled(devices.clone()).unwrap(), &options());
    let pool = pool.unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = read_state(&pool).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(states.contains(&found), "{what}: no state of the life");
    pool.resync(&mut |_, _| true).unwrap();
    let sides = pool.sides().unwrap();
    for side in &sides {
        assert_eq!(side.standing, SideStanding::Good, "{what}: {side:?}");
    }
    pool.close().unwrap();
    drop(pool);
    // Each side has all of it, by itself.
    for (number, device) in devices {
        expect_sound(&*device, &format!("{what}: side {number}"));
        let alone = Pool::open(assembled([(number, device)]).unwrap(), &options()).unwrap();
        let state = read_state(&alone).unwrap_or_else(|error| panic!("{what}: {number}: {error}"));
        assert!(state == found, "{what}: side {number} differs");
    }
    found
}

#[test]
fn every_power_cut_leaves_one_state_and_equal_sides() {
    for seed in super::seed()..super::seed() + super::rounds(12) {
        let sides = if seed % 4 == 0 { 3 } else { 2 };
        let world = World::zeroed(sides, life::POOL_BYTES);
        let devices = |world: &World| {
            (0..sides)
                .map(|number| (number, world.device(number)))
                .collect()
        };
        life::create(devices(&world)).unwrap();
        let start = world.moment();
        let devices: Vec<_> = devices(&world);
        let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
        let mut life = Life::new(pool, StdRng::seed_from_u64(seed), State::new());
        let mut marks = vec![Mark {
            moment: start,
            flushed: 0,
            reached: 0,
        }];
        for _ in 0..120 {
            life.step().unwrap();
            marks.push(Mark::of(&world, &life));
        }
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        for round in 0..40 {
            let index = rng.random_range(0..marks.len() - 1);
            let (before, after) = (marks[index], marks[index + 1]);
            let moment = rng.random_range(before.moment..=after.moment);
            let images = world.cut(moment, &mut rng);
            let what = format!("seed {seed}, cut {round} at {moment}");
            let states = &life.states[before.flushed..=after.reached];
            if round % 4 == 0 {
                cut_recovery(&images, states, &mut rng, &what);
            }
            if round % 3 == 0 {
                // One side alone has all that was flushed.
                let number = rng.random_range(0..sides);
                let device = Arc::new(MemoryDevice::from_image(images[number].clone()));
                let alone = assembled([(number, device as Arc<dyn Device>)]).unwrap();
                let pool = Pool::open(alone, &options()).unwrap();
                let found = read_state(&pool).unwrap();
                assert!(states.contains(&found), "{what}: side {number} alone");
            }
            expect_one_of(&images, states, &what);
        }
    }
    tell_images();
}

/// Cuts the power of the recovery, and of what follows it.
fn cut_recovery(images: &[DeviceImage], states: &[State], rng: &mut StdRng, what: &str) {
    let world = World::new(images.to_vec());
    let devices: Vec<_> = (0..images.len())
        .map(|number| (number, world.device(number)))
        .collect();
    let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
    let opened = world.moment();
    let found = read_state(&pool).unwrap();
    pool.resync(&mut |_, _| true).unwrap();
    let resynced = world.moment();
    let mut life = Life::new(pool, StdRng::seed_from_u64(rng.random()), found.clone());
    let mut marks = vec![Mark {
        moment: resynced,
        flushed: 0,
        reached: 0,
    }];
    for _ in 0..20 {
        life.step().unwrap();
        marks.push(Mark::of(&world, &life));
    }
    for round in 0..4 {
        let moment = rng.random_range(0..=opened);
        let cut = world.cut(moment, rng);
        expect_one_of(&cut, states, &format!("{what}, again {round} at {moment}"));
        // What was shown once it was open is what it stays.
        let moment = rng.random_range(opened..=resynced);
        let cut = world.cut(moment, rng);
        expect_one_of(
            &cut,
            std::slice::from_ref(&found),
            &format!("{what}, resync {round} at {moment}"),
        );
        let index = rng.random_range(0..marks.len() - 1);
        let moment = rng.random_range(marks[index].moment..=marks[index + 1].moment);
        let cut = world.cut(moment, rng);
        let states = &life.states[marks[index].flushed..=marks[index + 1].reached];
        expect_one_of(&cut, states, &format!("{what}, later {round} at {moment}"));
    }
}

/// Copies to a new side while the pool is used, cut off at any moment: the side is never read before
/// it has everything, and the pool has lost nothing.
#[test]
fn cutting_off_a_copy_to_a_new_side_loses_nothing() {
    for seed in super::seed()..super::seed() + super::rounds(12) {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::zeroed(3, life::POOL_BYTES);
        life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
        let devices = [(0, world.device(0)), (1, world.device(1))];
        let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
        let mut life = Life::new(pool.clone(), StdRng::seed_from_u64(seed), State::new());
        for _ in 0..100 {
            life.step().unwrap();
        }
        pool.flush().unwrap();
        life.flushed = life.states.len() - 1;
        let mut marks = vec![Mark {
            moment: world.moment(),
            flushed: life.flushed,
            reached: life.flushed,
        }];
        let new = NewSide {
            path: path(2),
            open: Box::new(|_| Ok(world.device(2))),
            force: false,
        };
        pool.replace_side(&path(1), new, &mut |_, _| {
            life.step().unwrap();
            marks.push(Mark::of(&world, &life));
            true
        })
        .unwrap();
        let paths: Vec<_> = pool
            .sides()
            .unwrap()
            .into_iter()
            .map(|side| side.path)
            .collect();
        assert_eq!(paths, [path(0), path(2)]);
        for _ in 0..10 {
            life.step().unwrap();
        }
        marks.push(Mark::of(&world, &life));
        for round in 0..24 {
            let index = rng.random_range(0..marks.len() - 1);
            let moment = rng.random_range(marks[index].moment..=marks[index + 1].moment);
            let images = world.cut(moment, &mut rng);
            let what = format!("seed {seed}, cut {round} at {moment}");
            let states = &life.states[marks[index].flushed..=marks[index + 1].reached];
            expect_side_alone(&images[2], 2, states, &what);
            let devices = of_images(&images);
            let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
            let found = read_state(&pool).unwrap();
            assert!(states.contains(&found), "{what}");
            pool.resync(&mut |_, _| true).unwrap();
            for side in pool.sides().unwrap() {
                // Before its first label, the new side is not known as one.
                let is_unknown = side.path == path(2) && labels_of(&images[2]).is_none();
                let expected = if is_unknown {
                    SideStanding::Missing(Lack::ALL)
                } else {
                    SideStanding::Good
                };
                assert_eq!(side.standing, expected, "{what}: {side:?}");
            }
            pool.close().unwrap();
        }
    }
    tell_images();
}

fn labels_of(image: &DeviceImage) -> Option<SideLabel> {
    let device = MemoryDevice::from_image(image.clone());
    newest_label(&device).map(|(label, _)| label)
}

/// A side by itself has a right state, or says that it is behind or no side.
fn expect_side_alone(image: &DeviceImage, number: usize, states: &[State], what: &str) {
    let device = Arc::new(MemoryDevice::from_image(image.clone())) as Arc<dyn Device>;
    let mirror = match assembled([(number, device)]) {
        Err(Error::NotAPool) => return,
        mirror => mirror.unwrap(),
    };
    match Pool::open(mirror, &options()) {
        Ok(pool) => {
            let found = read_state(&pool).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(states.contains(&found), "{what}: side {number} alone");
        }
        Err(Error::Mirror(MirrorError::NoGoodSide { .. }) | Error::NotAPool) => {}
        Err(error) => panic!("{what}: side {number} alone: {error}"),
    }
}

/// A side that was away gets what it missed, whenever the copying is cut off.
#[test]
fn cutting_off_the_return_of_a_side_loses_nothing() {
    for seed in super::seed()..super::seed() + super::rounds(12) {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::zeroed(2, life::POOL_BYTES);
        let devices = || {
            (0..2)
                .map(|number| (number, world.device(number)))
                .collect::<Vec<_>>()
        };
        life::create(devices()).unwrap();
        let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
        let mut life = Life::new(pool.clone(), StdRng::seed_from_u64(seed), State::new());
        for _ in 0..60 {
            life.step().unwrap();
        }
        pool.close().unwrap();
        drop(pool);
        // Without side 1, in two lives.
        let (mut state, mut rest) = (life.state().clone(), life.rng.clone());
        drop(life);
        for _ in 0..2 {
            let pool = Pool::open(assembled([(0, world.device(0))]).unwrap(), &options()).unwrap();
            assert!(pool.status().unwrap().degraded);
            let mut life = Life::new(pool.clone(), rest, state);
            for _ in 0..40 {
                life.step().unwrap();
            }
            pool.close().unwrap();
            (state, rest) = (life.state().clone(), life.rng.clone());
        }
        let begun = world.moment();
        let pool = Pool::open(assembled(devices()).unwrap(), &options()).unwrap();
        let mut life = Life::new(pool.clone(), rest, state);
        let mut marks = vec![Mark {
            moment: begun,
            flushed: 0,
            reached: 0,
        }];
        pool.resync(&mut |_, _| {
            life.is_copying = true;
            life.step().unwrap();
            marks.push(Mark::of(&world, &life));
            true
        })
        .unwrap();
        marks.push(Mark::of(&world, &life));
        assert!(!pool.status().unwrap().degraded);
        for round in 0..24 {
            let index = rng.random_range(0..marks.len() - 1);
            let moment = rng.random_range(marks[index].moment..=marks[index + 1].moment);
            let images = world.cut(moment, &mut rng);
            let what = format!("seed {seed}, cut {round} at {moment}");
            let states = &life.states[marks[index].flushed..=marks[index + 1].reached];
            expect_one_of(&images, states, &what);
        }
        pool.close().unwrap();
        let images = world.now();
        expect_one_of(
            &images,
            &[life.state().clone()],
            &format!("seed {seed}, at the end"),
        );
    }
    tell_images();
}
