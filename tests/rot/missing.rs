//! Entries of the catalogue that are lost in all their copies: each costs its own volume. The rest
//! is read, written, branched and removed as ever, and a repair that forgets what is missing makes
//! the pool whole.

use crate::golden::{BLOCK, State, block_of, blocks, name, open, state_of};
use crate::{put, seed};
use cowshed_check::{CheckOptions, CheckReport, FindingKind, Repair, check};
use cowshed_engine::{CreateOptions, MetadataCopies, Pool, Volume};
use cowshed_format::base::Error;
use cowshed_format::device::{DeviceImage, MemoryDevice};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

const VOLUME_BYTES: u64 = 300 * BLOCK;
/// Length of a label that leaves no space for a second entry in a block of the catalogue.
const LABEL_BYTES: usize = 3800;

fn fresh(copies: MetadataCopies) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(48 << 20));
    let create = CreateOptions {
        log_bytes: Some(256 << 10),
        force: false,
        metadata_copies: Some(copies),
    };
    Pool::create(&*device, &create).unwrap();
    let pool = open(&device).unwrap();
    (device, pool)
}

/// Gives a volume an entry that has a block of the catalogue to itself.
fn mark(pool: &Pool, volume: &Volume, name: &str) {
    let mut value = format!("entry of {name};");
    value.push_str(&"x".repeat(LABEL_BYTES - value.len()));
    let labels = [("mark".to_owned(), value)].into();
    pool.set_labels(volume, labels).unwrap();
}

fn scribble(volume: &Volume, random: &mut StdRng, writes: u64) {
    for _ in 0..writes {
        let at = random.random_range(0..VOLUME_BYTES / BLOCK);
        let mut bytes = vec![0; 4096];
        random.fill(&mut bytes[..]);
        volume.write_at(&bytes, at * BLOCK).unwrap();
    }
}

/// The names of the pool's volumes: a stack of three layers, of which the middle one is removed
/// but needed, and containers on each.
const NAMES: [&str; 9] = ["work", "l1", "l3", "c1", "c2", "c3", "c4", "c3@s", "alone"];

/// Makes the pool; closed, or with a log of changes of every volume.
fn forest(random: &mut StdRng, copies: MetadataCopies, closed: bool) -> (DeviceImage, State) {
    let (device, pool) = fresh(copies);
    let create = |text| pool.create_volume(&name(text), VOLUME_BYTES).unwrap();
    let clone = |of: &Volume, text| pool.clone_volume(of, &name(text)).unwrap();
    let work = create("work");
    scribble(&work, random, 60);
    let l1 = pool.snapshot(&work, &name("l1")).unwrap();
    scribble(&work, random, 40);
    let l2 = pool.snapshot(&work, &name("l2")).unwrap();
    scribble(&work, random, 30);
    let l3 = pool.snapshot(&work, &name("l3")).unwrap();
    let c1 = clone(&l1, "c1");
    let c2 = clone(&l2, "c2");
    let c3 = clone(&l3, "c3");
    let c4 = clone(&l3, "c4");
    let alone = create("alone");
    for volume in [&work, &c1, &c2, &c3, &c4, &alone] {
        scribble(volume, random, 25);
    }
    let c3s = pool.snapshot(&c3, &name("c3@s")).unwrap();
    scribble(&c3, random, 25);
    let all = [&work, &l1, &l3, &c1, &c2, &c3, &c4, &c3s, &alone];
    for (volume, name) in all.into_iter().zip(NAMES) {
        mark(&pool, volume, name);
    }
    pool.remove(&l2).unwrap();
    pool.checkpoint().unwrap();
    if closed {
        let state = state_of(&pool);
        pool.close().unwrap();
        return (device.snapshot_image(), state);
    }
    for volume in [&work, &c1, &c2, &c3, &c4, &alone] {
        scribble(volume, random, 3);
    }
    pool.flush().unwrap();
    (device.snapshot_image(), state_of(&pool))
}

/// Overwrites the entry of a volume in every copy.
fn lose(image: &mut DeviceImage, name: &str) {
    let mark = format!("entry of {name};").into_bytes();
    let all = blocks(image);
    let mut count = 0;
    for (block, _) in all {
        let bytes = block_of(image, block);
        if bytes.windows(mark.len()).any(|each| each == mark) {
            put(image, block, &[0x5a; 4096]);
            count += 1;
        }
    }
    assert!(count > 0, "{name}");
}

fn checked(device: &MemoryDevice, repair: bool, forget: bool) -> CheckReport {
    let options = CheckOptions {
        deep: true,
        repair,
        forget,
    };
    check(device, options, &mut |_| {}).unwrap()
}

/// Returns the state without the volumes that are lost.
fn without(state: &State, lost: &[&str]) -> State {
    let mut state = state.clone();
    state.retain(|name, _| !lost.contains(&name.as_str()));
    state
}

/// Writes to a volume, snapshots and clones one, and removes one; `state` follows.
fn use_it(pool: &Pool, state: &mut State, random: &mut StdRng, round: u32) {
    let writable = |name: &&String| {
        let volume = pool.volume(name).unwrap();
        !volume.is_frozen()
    };
    let names: Vec<String> = state.keys().filter(writable).cloned().collect();
    for name in &names {
        scribble(&pool.volume(name).unwrap(), random, 5);
    }
    if let Some(of) = names.iter().choose(random) {
        let snapshot = name(&format!("{of}@{round}"));
        let snapshot = pool.snapshot(&pool.volume(of).unwrap(), &snapshot).unwrap();
        let clone = name(&format!("{of}-{round}"));
        scribble(&pool.clone_volume(&snapshot, &clone).unwrap(), random, 5);
    }
    let gone = state.keys().choose(random).unwrap();
    pool.remove(&pool.volume(gone).unwrap()).unwrap();
    pool.reclaim().unwrap();
    *state = state_of(pool);
}

/// Asserts that a pool without some entries is used as far as it is there, and then made whole.
fn lives_without(image: &DeviceImage, state: &State, lost: &[&str], random: &mut StdRng) {
    let what = format!("without {lost:?} (COWSHED_TEST_SEED={})", seed());
    let mut image = image.clone();
    lost.iter().for_each(|name| lose(&mut image, name));
    let mut state = without(state, lost);

    // Opened and used, twice.
    for round in 0..2 {
        let device = Arc::new(MemoryDevice::from_image(image));
        let pool = open(&device).unwrap_or_else(|error| panic!("{what}: {error}"));
        let missing = pool.status().unwrap().missing;
        // The small entry of the removed layer lies beside that of another volume.
        let volumes = lost.len() as u64..=lost.len() as u64 + 1;
        assert_eq!(missing.catalogue_blocks, lost.len() as u64, "{what}");
        assert!(volumes.contains(&missing.volumes), "{what}: {missing:?}");
        assert!(state_of(&pool) == state, "{what}, round {round}");
        let report = pool.scrub(&mut |_, _| true).unwrap();
        assert_eq!(report.bad.len(), lost.len(), "{what}: {:?}", report.bad);
        use_it(&pool, &mut state, random, round);
        pool.close().unwrap();
        drop(pool);
        image = device.snapshot_image();
    }

    // Damage is reported, and a plain repair neither frees nor forgets anything.
    let device = MemoryDevice::from_image(image);
    let report = checked(&device, false, false);
    let kinds = |report: &CheckReport| report.findings.iter().map(|found| found.kind).collect();
    let kinds: Vec<FindingKind> = kinds(&report);
    assert!(kinds.contains(&FindingKind::CatalogueBlock), "{what}");
    let report = checked(&device, true, false);
    assert!(!report.clean(), "{what}");
    let pool = open(&Arc::new(MemoryDevice::from_image(device.snapshot_image()))).unwrap();
    assert!(state_of(&pool) == state, "{what}: after a repair");
    pool.close().unwrap();

    // Forgotten: nothing is missing any more.
    let report = checked(&device, true, true);
    let forgets = |repair: &Repair| matches!(repair, Repair::Forgotten { .. });
    assert!(report.repaired.iter().any(forgets), "{what}");
    assert!(report.clean(), "{what}: {:?}", report.remaining);
    let mut image = device.snapshot_image();
    for round in 2..4 {
        let device = Arc::new(MemoryDevice::from_image(image));
        let pool = open(&device).unwrap();
        assert_eq!(pool.status().unwrap().missing.catalogue_blocks, 0, "{what}");
        assert!(state_of(&pool) == state, "{what}, round {round}");
        use_it(&pool, &mut state, random, round);
        pool.close().unwrap();
        drop(pool);
        image = device.snapshot_image();
        let leaks = checked(&MemoryDevice::from_image(image.clone()), false, false);
        let all_leaks = leaks
            .findings
            .iter()
            .all(|it| it.kind == FindingKind::BlocksLeaked);
        assert!(all_leaks, "{what}, round {round}: {:?}", leaks.findings);
    }
    gives_everything_back(image, &what);
}

/// Removes every volume; a repair then leaves nothing in use but the catalogue.
fn gives_everything_back(image: DeviceImage, what: &str) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let pool = open(&device).unwrap();
    for info in pool.volumes() {
        pool.remove(&pool.volume_by_id(info.id).unwrap()).unwrap();
    }
    pool.reclaim().unwrap();
    pool.close().unwrap();
    drop(pool);
    // Pins are undone first, then what was pinned is reclaimed.
    for _ in 0..2 {
        let report = checked(&device, true, false);
        assert!(report.clean(), "{what}: {:?}", report.remaining);
        let pool = open(&device).unwrap();
        pool.reclaim().unwrap();
        pool.close().unwrap();
    }
    let report = checked(&device, false, false);
    assert!(report.clean(), "{what}: {:?}", report.findings);
    assert!(
        report.volumes == 0 && report.blocks_used < 16,
        "{what}: {} volumes, {} blocks",
        report.volumes,
        report.blocks_used
    );
}

#[test]
fn each_lost_entry_costs_one_volume_and_can_be_forgotten() {
    let mut random = StdRng::seed_from_u64(seed());
    for copies in [MetadataCopies::One, MetadataCopies::Two] {
        for closed in [true, false] {
            let (image, state) = forest(&mut random, copies, closed);
            for lost in NAMES {
                lives_without(&image, &state, &[lost], &mut random);
            }
        }
    }
}

#[test]
fn any_two_or_three_lost_entries_cost_those_volumes() {
    let mut random = StdRng::seed_from_u64(seed());
    let (image, state) = forest(&mut random, MetadataCopies::Two, true);
    for count in [2, 2, 2, 2, 3, 3, 3, 3] {
        let lost = NAMES.into_iter().choose_multiple(&mut random, count);
        lives_without(&image, &state, &lost, &mut random);
    }
}

/// A stack of four volumes, each on the one before, whose ids come in any order: a pin must not
/// depend on which one is walked first.
#[test]
fn what_is_pinned_depends_on_no_order() {
    let mut random = StdRng::seed_from_u64(seed());
    for lost in [&["p", "e"][..], &["p"], &["e"], &["p", "d"], &["d", "e"]] {
        for clone_first in [true, false] {
            let (device, pool) = fresh(MetadataCopies::One);
            let mut top = pool.create_volume(&name("top"), VOLUME_BYTES).unwrap();
            mark(&pool, &top, "top");
            scribble(&top, &mut random, 60);
            // A snapshot gets a new id and leaves the volume its own; a clone gets a new one.
            for text in ["p", "d", "e", "f"] {
                let snapshot = pool.snapshot(&top, &name(text)).unwrap();
                mark(&pool, &snapshot, text);
                if clone_first {
                    top = pool
                        .clone_volume(&snapshot, &name(&format!("{text}-top")))
                        .unwrap();
                }
                scribble(&top, &mut random, 60);
                mark(&pool, &top, top.name().as_str());
            }
            pool.checkpoint().unwrap();
            let state = state_of(&pool);
            pool.close().unwrap();
            drop((top, pool));
            let image = device.snapshot_image();
            for gone in state.keys().filter(|name| !lost.contains(&name.as_str())) {
                removes_one(&image, &state, lost, gone);
            }
        }
    }
}

/// Asserts that two states are the same; says which volumes differ otherwise.
fn same(found: &State, wanted: &State, what: &str) {
    let names = found.keys().chain(wanted.keys());
    let differ = |name: &&String| found.get(*name) != wanted.get(*name);
    let differing: Vec<_> = names.filter(differ).collect();
    assert!(differing.is_empty(), "{what}: {differing:?} differ");
}

/// Forgets entries, removes a volume, repairs twice and fills the pool; the others stay as they
/// were.
fn removes_one(image: &DeviceImage, state: &State, lost: &[&str], gone: &str) {
    let what = format!("without {lost:?}, {gone} removed");
    let mut image = image.clone();
    lost.iter().for_each(|name| lose(&mut image, name));
    let device = Arc::new(MemoryDevice::from_image(image));
    let report = checked(&device, true, true);
    assert!(report.clean(), "{what}: {:?}", report.remaining);
    let mut state = without(state, lost);
    for round in 0..2 {
        let pool = open(&device).unwrap();
        if round == 0 {
            pool.remove(&pool.volume(gone).unwrap()).unwrap();
            state.remove(gone);
        }
        pool.reclaim().unwrap();
        pool.checkpoint().unwrap();
        let filler = pool.create_volume(&name("filler"), 1 << 30).unwrap();
        for number in 0..1u64 << 14 {
            let bytes = [7; 16 << 10];
            if filler
                .write_at(&bytes, number * bytes.len() as u64)
                .is_err()
            {
                break;
            }
        }
        pool.remove(&filler).unwrap();
        pool.reclaim().unwrap();
        same(&state_of(&pool), &state, &format!("{what}, round {round}"));
        pool.close().unwrap();
        drop(pool);
        let report = checked(&device, true, false);
        assert!(
            report.clean(),
            "{what}, round {round}: {:?}",
            report.remaining
        );
    }
}

/// A rollback in the log, of a volume to one that is missing and over one that is.
#[test]
fn a_logged_rollback_beside_missing_volumes_costs_no_other_volume() {
    let mut random = StdRng::seed_from_u64(seed());
    for (lost, keeps) in [("s1", false), ("s2", true)] {
        let (device, pool) = fresh(MetadataCopies::One);
        let volume = pool.create_volume(&name("v"), VOLUME_BYTES).unwrap();
        let other = pool.create_volume(&name("other"), VOLUME_BYTES).unwrap();
        for text in ["s1", "s2"] {
            scribble(&volume, &mut random, 30);
            scribble(&other, &mut random, 30);
            let snapshot = pool.snapshot(&volume, &name(text)).unwrap();
            mark(&pool, &snapshot, text);
        }
        scribble(&volume, &mut random, 30);
        mark(&pool, &volume, "v");
        mark(&pool, &other, "other");
        pool.checkpoint().unwrap();
        pool.rollback(&volume, &pool.volume("s1").unwrap()).unwrap();
        scribble(&other, &mut random, 5);
        scribble(&volume, &mut random, 5);
        pool.flush().unwrap();
        let state = without(&state_of(&pool), &[lost]);
        let mut image = device.snapshot_image();
        drop((volume, other, pool));
        lose(&mut image, lost);
        let device = Arc::new(MemoryDevice::from_image(image));
        let pool = open(&device).unwrap();
        if keeps {
            assert!(state_of(&pool) == state, "{lost}");
        } else {
            let error = pool.volume("v").unwrap().read_at(&mut [0; 4096], 0);
            assert!(matches!(error, Err(Error::Corrupt(_))), "{error:?}");
            pool.remove(&pool.volume("v").unwrap()).unwrap();
            assert!(state_of(&pool) == without(&state, &["v"]), "{lost}");
        }
        pool.close().unwrap();
        drop(pool);
        let report = checked(&device, true, true);
        assert!(report.clean(), "{lost}: {:?}", report.remaining);
        gives_everything_back(device.snapshot_image(), lost);
    }
}

/// Above a catalogue of more than 256 blocks are nodes that are not its root.
#[test]
fn a_lost_node_of_the_catalogue_costs_the_volumes_below_it() {
    let (device, pool) = fresh(MetadataCopies::One);
    for number in 0..300 {
        let text = format!("v{number}");
        let volume = pool.create_volume(&name(&text), 1 << 16).unwrap();
        mark(&pool, &volume, &text);
        volume.write_at(text.as_bytes(), 0).unwrap();
    }
    pool.close().unwrap();
    drop(pool);
    // The second leaf leads to the last entries. It is the one block of data whose only contents
    // are pointers to the blocks of those.
    let image = device.snapshot_image();
    let mut tried = 0;
    for (block, _) in blocks(&image) {
        let mut image = image.clone();
        put(&mut image, block, &[0x5a; 4096]);
        let device = Arc::new(MemoryDevice::from_image(image));
        let pool = match open(&device) {
            Ok(pool) => pool,
            Err(error) => {
                assert!(matches!(error, Error::Corrupt(_)), "{error}");
                continue;
            }
        };
        let missing = pool.status().unwrap().missing;
        if missing.volumes < 2 {
            continue;
        }
        tried += 1;
        let there = state_of(&pool);
        assert_eq!(there.len() as u64 + missing.volumes, 300);
        // New entries go elsewhere.
        for number in 0..50 {
            let text = format!("new{number}");
            mark(
                &pool,
                &pool.create_volume(&name(&text), 1 << 16).unwrap(),
                &text,
            );
        }
        let there = state_of(&pool);
        pool.close().unwrap();
        drop(pool);
        let pool = open(&device).unwrap();
        assert!(state_of(&pool) == there);
        pool.close().unwrap();
        drop(pool);
        let report = checked(&device, true, true);
        assert!(report.clean(), "{:?}", report.remaining);
        let pool = open(&device).unwrap();
        assert!(state_of(&pool) == there);
        assert_eq!(pool.status().unwrap().missing.volumes, 0);
        gives_everything_back(device.snapshot_image(), "a lost node");
    }
    assert_eq!(tried, 2, "the catalogue has two leaves");
}
