//! One side fails: each of its calls once, or from then on for ever. The pool goes on, the side is
//! behind before anything more is acknowledged, and gets what it missed afterwards.

use super::life::{self, Life, State, expect_sound, options, read_state};
use super::world::{World, assembled, of_images};
use cowshed_engine::Pool;
use cowshed_format::base::{BlockAddr, Error, MirrorError};
use cowshed_format::device::mirror::SideStanding;
use cowshed_format::device::{Device, Effect, Fault, FaultyDevice, Lasting, Operation};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;

const SEED: u64 = 3;
const STEPS: usize = 60;

/// A pool on a side that works, and one that fails.
struct Subject {
    world: World,
    faulty: Arc<FaultyDevice>,
    life: Life,
}

impl Subject {
    fn new(failing: usize) -> Self {
        let world = World::zeroed(2, life::POOL_BYTES);
        life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
        let faulty = Arc::new(FaultyDevice::new(world.device(failing)));
        let seen = |number| match number == failing {
            true => (number, Arc::clone(&faulty) as Arc<dyn Device>),
            false => (number, world.device(number)),
        };
        let mirror = assembled([seen(0), seen(1)]).unwrap();
        let pool = Pool::open(mirror, &options()).unwrap();
        let life = Life::new(pool, StdRng::seed_from_u64(SEED), State::new());
        Self {
            world,
            faulty,
            life,
        }
    }
}

#[test]
fn a_side_that_fails_is_left_out_and_comes_back() {
    let mut tried = 0;
    for failing in 0..2 {
        let mut whole = Subject::new(failing);
        let operations = [
            Operation::Read,
            Operation::Write,
            Operation::Store,
            Operation::Flush,
        ];
        let opened = operations.map(|operation| whole.faulty.calls(operation));
        (0..STEPS).for_each(|_| whole.life.step().unwrap());
        for (operation, opened) in operations.into_iter().zip(opened) {
            // Those that opening the pool makes come before.
            let calls = opened + 1..=whole.faulty.calls(operation);
            let step = usize::try_from(((calls.end() - opened) / 12).max(1)).unwrap();
            for nth in calls.step_by(step) {
                for lasting in [Lasting::Once, Lasting::Forever] {
                    for effect in [Effect::Errno(libc::EIO), Effect::Short(libc::EIO)] {
                        tried += 1;
                        let fault = Fault {
                            operation,
                            nth,
                            lasting,
                            effect,
                        };
                        one(failing, fault);
                    }
                }
            }
        }
    }
    println!("{tried} faults");
    assert!(tried > 200, "{tried} faults");
}

fn one(failing: usize, fault: Fault) {
    let what = format!("side {failing}: {fault:?}");
    let mut subject = Subject::new(failing);
    subject.faulty.inject(fault);
    for _ in 0..STEPS {
        subject
            .life
            .step()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let Subject {
        world,
        faulty,
        life,
    } = subject;
    let states = &life.states[life.flushed..];
    let expected = life.state().clone();
    assert!(read_state(&life.pool).unwrap() == expected, "{what}");
    assert!(faulty.failures() > 0, "{what}: it did not happen");
    let failed = fault.operation != Operation::Read;
    assert_eq!(life.pool.status().unwrap().degraded, failed, "{what}");

    // Power is cut: the side that was left out has nothing to say.
    let mut rng = StdRng::seed_from_u64(fault.nth);
    let images = world.cut(world.moment(), &mut rng);
    if failed {
        let both = Pool::open(assembled(of_images(&images)).unwrap(), &options()).unwrap();
        assert!(
            states.contains(&read_state(&both).unwrap()),
            "{what}: power cut"
        );
        let sides = both.sides().unwrap();
        assert!(
            matches!(sides[failing].standing, SideStanding::Behind(_)),
            "{what}"
        );
        both.resync(&mut |_, _| true).unwrap();
        assert!(!both.status().unwrap().degraded, "{what}");
        both.close().unwrap();
    }
    life.pool.close().unwrap();
    drop(life);

    faulty.heal();
    let devices = of_images(&world.now());
    let pool = Pool::open(assembled(devices.clone()).unwrap(), &options()).unwrap();
    assert_eq!(pool.status().unwrap().degraded, failed, "{what}");
    pool.resync(&mut |_, _| true).unwrap();
    assert!(!pool.status().unwrap().degraded, "{what}");
    pool.close().unwrap();
    drop(pool);
    for (number, device) in devices {
        expect_sound(&*device, &format!("{what}: side {number}"));
        let alone = Pool::open(assembled([(number, device)]).unwrap(), &options()).unwrap();
        assert!(
            read_state(&alone).unwrap() == expected,
            "{what}: side {number}"
        );
    }
}

/// What the mirror does not survive it does not acknowledge.
#[test]
fn the_last_side_that_fails_stops_the_pool() {
    for operation in [Operation::Write, Operation::Store, Operation::Flush] {
        for nth in 1..=6 {
            let world = World::zeroed(2, life::POOL_BYTES);
            life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
            let faulty: Vec<_> = (0..2)
                .map(|number| Arc::new(FaultyDevice::new(world.device(number))))
                .collect();
            let seen = |number: usize| (number, Arc::clone(&faulty[number]) as Arc<dyn Device>);
            let mirror = assembled([seen(0), seen(1)]).unwrap();
            let pool = Pool::open(mirror, &options()).unwrap();
            let mut life = Life::new(pool, StdRng::seed_from_u64(nth), State::new());
            for _ in 0..20 {
                life.step().unwrap();
            }
            for side in &faulty {
                side.inject(Fault {
                    operation,
                    nth: side.calls(operation) + nth,
                    lasting: Lasting::Forever,
                    effect: Effect::Errno(libc::EIO),
                });
            }
            while life.step().is_ok() {}
            assert!(life.pool.flush().is_err());
            let found = Pool::open(assembled(of_images(&world.now())).unwrap(), &options());
            let found = read_state(&found.unwrap()).unwrap();
            // The operation that failed may have been done.
            let mut possible = life.states[life.flushed..].iter().chain(&life.attempted);
            let is_possible = possible.any(|state| *state == found);
            assert!(is_possible, "{operation:?} {nth}");
            let cut = world.cut(world.moment(), &mut StdRng::seed_from_u64(nth));
            Pool::open(assembled(of_images(&cut)).unwrap(), &options()).unwrap();
        }
    }
}

/// A side that was left out is not taken for the pool when it is alone, once its label says so; and
/// two sides that were used apart are refused together.
#[test]
fn sides_that_were_used_apart_are_refused() {
    let world = World::zeroed(2, life::POOL_BYTES);
    let devices = || (0..2).map(|number| (number, world.device(number)));
    life::create(devices().collect()).unwrap();
    for number in 0..2 {
        let alone = assembled([(number, world.device(number))]).unwrap();
        let pool = Pool::open(alone, &options()).unwrap();
        let name = cowshed_engine::Name::new("alone").unwrap();
        pool.create_volume(&name, 1 << 20).unwrap();
        pool.close().unwrap();
    }
    let before = world.now();
    let refused = assembled(devices()).err();
    assert!(matches!(
        refused,
        Some(Error::Mirror(MirrorError::Diverged { .. }))
    ));
    assert!(world.now() == before, "a refusal has changed something");
}

/// Reads that fail while the pool is opened cost that opening, not what was flushed.
#[test]
fn reads_that_fail_in_a_recovery_lose_nothing() {
    for (sides, lasting) in [
        (1, Lasting::Once),
        (1, Lasting::Forever),
        (2, Lasting::Once),
        (2, Lasting::Forever),
    ] {
        let world = World::zeroed(2, life::POOL_BYTES);
        life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
        let mirror = assembled((0..sides).map(|number| (number, world.device(number))));
        let pool = Pool::open(mirror.unwrap(), &options()).unwrap();
        let mut life = Life::new(pool, StdRng::seed_from_u64(SEED), State::new());
        (0..STEPS).for_each(|_| life.step().unwrap());
        life.pool.flush().unwrap();
        let expected = life.state().clone();
        drop(life);
        let images = &world.now()[..sides];
        let mut refused = 0;
        for nth in 1.. {
            let devices = of_images(images);
            let faulty: Vec<_> = devices
                .iter()
                .map(|(_, device)| Arc::new(FaultyDevice::new(Arc::clone(device))))
                .collect();
            for side in &faulty {
                side.inject(Fault {
                    operation: Operation::Read,
                    nth,
                    lasting,
                    effect: Effect::Errno(libc::EIO),
                });
            }
            let seen = faulty.iter().enumerate();
            let seen = seen.map(|(number, side)| (number, Arc::clone(side) as Arc<dyn Device>));
            let opened = assembled(seen).and_then(|mirror| Pool::open(mirror, &options()));
            let is_over = faulty.iter().all(|side| side.failures() == 0);
            match opened.map(|pool| pool.close()) {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => refused += 1,
            }
            let pool = Pool::open(assembled(devices).unwrap(), &options()).unwrap();
            let found = read_state(&pool).unwrap();
            assert!(found == expected, "{sides} sides, read {nth}, {lasting:?}");
            if is_over {
                break;
            }
        }
        println!("{sides} sides, {lasting:?}: {refused} openings failed");
        assert!(lasting == Lasting::Once || refused > 0);
    }
}

/// A block that cannot be read while the pool is opened, and can another time, loses nothing.
#[test]
fn a_block_that_cannot_be_read_in_a_recovery_is_not_given_up() {
    let world = World::zeroed(2, life::POOL_BYTES);
    life::create(vec![(0, world.device(0)), (1, world.device(1))]).unwrap();
    let pool = Pool::open(assembled([(0, world.device(0))]).unwrap(), &options()).unwrap();
    let mut life = Life::new(pool, StdRng::seed_from_u64(SEED), State::new());
    (0..STEPS).for_each(|_| life.step().unwrap());
    life.pool.flush().unwrap();
    let expected = life.state().clone();
    drop(life);
    let images = &world.now()[..1];
    let blocks = world.last_written(0, 40);
    let mut refused = 0;
    for block in &blocks {
        let (_, device) = of_images(images).remove(0);
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&device)));
        faulty.spoil(BlockAddr(*block));
        let seen = Arc::clone(&faulty) as Arc<dyn Device>;
        let opened = assembled([(0, seen)]).and_then(|mirror| Pool::open(mirror, &options()));
        refused += usize::from(opened.is_err());
        drop(opened);
        let pool = Pool::open(assembled([(0, device)]).unwrap(), &options()).unwrap();
        assert!(read_state(&pool).unwrap() == expected, "block {block}");
    }
    println!("{refused} of {} openings failed", blocks.len());
    assert!(refused > 0);
}
