//! Pools of random shapes, filled to the last block, used, killed, freed and filled again.

use crate::bench::BLOCK;
use crate::shape::random_pool;
use crate::subject::Subject;
use cowshed_engine::PoolState;
use cowshed_format::base::Error;
use rand::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// The time during which rounds are started.
const SECONDS: u64 = 15;

#[test]
fn pools_of_any_shape_filled_to_the_last_block_keep_all_and_take_writes_again() {
    let number = |name| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().unwrap())
    };
    let folder = tempfile::tempdir().unwrap();
    let first = number("COWSHED_TEST_SEED").unwrap_or(1);
    let rounds = number("COWSHED_TEST_ROUNDS");
    let limit = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(SECONDS));
    let started = Instant::now();
    let mut told = Instant::now();
    let mut seed = first;
    while rounds.map_or(started.elapsed() < limit, |rounds| seed - first < rounds) {
        let outcome = catch_unwind(AssertUnwindSafe(|| round(random_pool(seed, folder.path()))));
        if let Err(panic) = outcome {
            eprintln!("it was the round of COWSHED_TEST_SEED={seed} COWSHED_TEST_ROUNDS=1");
            resume_unwind(panic);
        }
        seed += 1;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{} rounds, {:.0?}", seed - first, started.elapsed());
        }
    }
    println!("{} rounds", seed - first);
}

fn round(mut subject: Subject) {
    subject.populate();
    subject.fill_up();
    subject.verify();
    use_full(&mut subject);
    if subject.rng.random() {
        subject.die_and_open();
    } else {
        subject.close_and_open();
    }
    subject.verify();
    // A recovery returns the space that streams had reserved.
    subject.fill_up();
    free_some(&mut subject);
    subject.fill_up();
    subject.die_and_open();
    subject.verify();
    empty(&mut subject);
}

/// The operations that must work in a full pool.
fn use_full(subject: &mut Subject) {
    let pool = subject.pool().clone();
    let status = pool.status().unwrap();
    assert!(status.free_bytes < 64 * BLOCK, "{status:?}");
    for _ in 0..subject.rng.random_range(1..6) {
        match subject.rng.random_range(0..6) {
            0 => {
                let volume = subject.pick(|_| true).unwrap();
                subject.rename(&volume).expect("a rename");
            }
            1 => discard_some(subject, true),
            2 => discard_some(subject, false),
            3 => pool.checkpoint().expect("a checkpoint"),
            4 => pool.flush().expect("a flush"),
            _ => drop(pool.trim().expect("a trim")),
        }
    }
    // The first one; further ones need space for their entries.
    let first = pool.status().unwrap().state;
    if let Some(volume) = subject.pick(|model| !model.frozen) {
        match subject.snapshot(&volume) {
            Ok(_) => {}
            Err(Error::NoSpace) => assert!(subject.models.len() > 2, "{first:?}"),
            Err(error) => panic!("a snapshot: {error}"),
        }
    }
    subject.verify();
}

/// Discards a range of a volume's data, in parts of blocks or whole ones.
fn discard_some(subject: &mut Subject, part: bool) {
    let Some(volume) = subject.pick(|model| !model.frozen && !model.blocks.is_empty()) else {
        return;
    };
    let model = &subject.models[&volume];
    let (shared, size) = (model.shared, model.size_blocks);
    let number = subject.rng.random_range(0..model.blocks.len());
    let first = *subject.models[&volume].blocks.keys().nth(number).unwrap();
    let (from, to) = if part {
        let from = subject.rng.random_range(0..BLOCK - 1);
        let to = subject.rng.random_range(from + 1..BLOCK);
        (first * BLOCK + from, first * BLOCK + to)
    } else {
        let count = subject.rng.random_range(1..64).min(size - first);
        (first * BLOCK, (first + count) * BLOCK)
    };
    match subject.discard(&volume, from, to) {
        Ok(()) => {}
        // Blocks that a snapshot shares are not freed, and the reserve is limited.
        Err(Error::NoSpace) if shared => {}
        Err(error) => panic!("a discard of {from}..{to} of {volume}: {error}"),
    }
}

/// Removes or discards something; then writes must work again without further help.
fn free_some(subject: &mut Subject) {
    let own = |subject: &Subject, volume: &str| subject.volume(volume).info().unwrap().own_bytes;
    let names: Vec<_> = subject.models.keys().cloned().collect();
    let Some(volume) = names.into_iter().max_by_key(|name| own(subject, name)) else {
        return;
    };
    let info = subject.volume(&volume).info().unwrap();
    let freed = info.own_bytes / BLOCK;
    if info.children > 0 || freed < 200 {
        return;
    }
    if subject.rng.random() || subject.models[&volume].frozen {
        subject.remove(&volume);
    } else {
        let end = subject.models[&volume].size_blocks * BLOCK;
        subject.discard(&volume, 0, end).unwrap();
    }
    let size = 1 << 16;
    match subject.create(size) {
        Ok(()) => {}
        Err(error) => panic!("a volume after {freed} blocks were freed: {error}"),
    }
    let newest = |model: &crate::subject::Model| model.blocks.is_empty() && !model.frozen;
    let volume = subject
        .pick(|model| newest(model) && model.size_blocks == size)
        .unwrap();
    for index in 0..freed / 2 {
        if let Err(error) = subject.write(&volume, index, 1) {
            panic!("write {index} after {freed} blocks were freed: {error}");
        }
    }
}

/// Removes everything: all of the space must be free again.
fn empty(subject: &mut Subject) {
    let mut names: Vec<_> = subject.models.keys().cloned().collect();
    while !names.is_empty() {
        let number = subject.rng.random_range(0..names.len());
        subject.remove(&names.swap_remove(number));
    }
    subject.pool().reclaim().unwrap();
    subject.pool().checkpoint().unwrap();
    let status = subject.pool().status().unwrap();
    assert_eq!(status.pending_free_bytes, 0, "{status:?}");
    assert!(status.used_bytes <= 4 * BLOCK, "{status:?}");
    assert_eq!(status.state, PoolState::Open);
    subject.close_and_open();
    subject.fill_up();
    subject.verify();
    subject.close_and_open();
    subject.verify();
}
