//! Two pools in memory that exchange snapshots: random changes of a source, sent whole and as
//! differences, and compared byte for byte; and all that can go wrong on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pools;
mod sets;

use cowshed_engine::{Labels, Pool, Volume, VolumeKind};
use cowshed_stream::labels::{BLOBS, ORIGIN};
use cowshed_stream::receive::{clean, discard, origin, token};
use cowshed_stream::send::snapshot_of;
use cowshed_stream::wire::StreamWriter;
use cowshed_stream::{
    Error, Identity, Observer, SendOptions, Sending, Unobserved, bookmark, receive, send,
};
use pools::{
    MIB, assert_volumes, content, fresh, name, noise, place, refused, reopen, stream, stream_with,
    take,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

/// Changes a volume at random.
fn change(random: &mut StdRng, pool: &Pool, volume: &Volume) {
    for _ in 0..random.random_range(0..12) {
        let size = volume.size_bytes();
        let offset = random.random_range(0..size);
        let most = (size - offset).min(600_000);
        let len = random.random_range(1..=most);
        match random.random_range(0..10) {
            0..5 => {
                let bytes = noise(random, usize::try_from(len).unwrap());
                volume.write_at(&bytes, offset).unwrap();
            }
            5 => volume
                .write_at(&vec![0; usize::try_from(len).unwrap()], offset)
                .unwrap(),
            6 | 7 => volume.discard(offset, len).unwrap(),
            8 => volume.discard(0, size / 2).unwrap(),
            _ => {
                let size = random.random_range(1..20 * MIB);
                pool.resize(volume, size).unwrap();
            }
        }
        if random.random_range(0..6) == 0 {
            pool.checkpoint().unwrap();
        }
    }
}

/// Sends a random chain of snapshots, whole or from any earlier one or from a bookmark of one that
/// was removed, and compares after each.
fn exchange(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let (_, here) = fresh(256 * MIB);
    let (there_device, mut there) = fresh(512 * MIB);
    let volume = here.create_volume(&name("v"), 9 * MIB + 1234).unwrap();
    let mut bases: Vec<(Volume, Volume)> = Vec::new();
    let mut marks: Vec<Volume> = Vec::new();
    for round in 0..8 {
        change(&mut random, &here, &volume);
        let snapshot = here
            .snapshot(&volume, &name(&format!("v@{round}")))
            .unwrap();
        // Later than the snapshot: it must not be sent.
        change(&mut random, &here, &volume);
        let choices = bases.len() + marks.len();
        let choice = random.random_range(0..=choices);
        let from = match choice {
            0 => None,
            n if n <= bases.len() => Some(&bases[n - 1].0),
            n => Some(&marks[n - 1 - bases.len()]),
        };
        let bytes = stream_with(&here, &snapshot, from, random.random());
        let called = format!("copy@{round}");
        let copy = if random.random() {
            interrupted(
                &mut random,
                (&here, &snapshot, from),
                &there,
                &called,
                &bytes,
            )
        } else {
            take(&there, &called, &bytes).unwrap()
        };
        assert!(
            content(&copy) == content(&snapshot),
            "seed {seed}, round {round}"
        );
        assert_eq!(copy.info().unwrap().kind, VolumeKind::Snapshot);
        let identity = Identity::of(&here, &snapshot).unwrap();
        assert_eq!(Identity::of(&there, &copy).unwrap(), identity);
        bases.push((snapshot, copy));
        if random.random() {
            let (snapshot, _) = &bases[random.random_range(0..bases.len())];
            let mark = name(&format!("mark-{round}"));
            marks.push(bookmark::create(&here, snapshot, &mark).unwrap());
        }
        if random.random() && bases.len() > 1 {
            // Only the receiver keeps it; a bookmark may remain.
            let (snapshot, _) = bases.remove(random.random_range(0..bases.len()));
            here.remove(&snapshot).unwrap();
            here.reclaim().unwrap();
        }
        if random.random_range(0..4) == 0 {
            there.flush().unwrap();
            let names: Vec<_> = bases.iter().map(|(_, copy)| copy.name()).collect();
            there = reopen(&there_device);
            clean(&there).unwrap();
            for ((_, copy), name) in bases.iter_mut().zip(names) {
                *copy = there.volume(name.as_str()).unwrap();
            }
        }
        marks.retain(|mark| mark.info().is_ok());
    }
}

/// Receives a stream that is cut off, and then the rest of it.
fn interrupted(
    random: &mut StdRng,
    (here, snapshot, from): (&Pool, &Volume, Option<&Volume>),
    there: &Pool,
    called: &str,
    bytes: &[u8],
) -> Volume {
    let cut = random.random_range(0..bytes.len());
    refused(there, called, &bytes[..cut]);
    let Ok(token) = place(there, called) else {
        return take(there, called, bytes).unwrap();
    };
    let found = snapshot_of(here, &token).unwrap();
    assert_eq!(found.id(), snapshot.id());
    let from = if random.random() { from } else { None };
    let mut rest = Vec::new();
    let sending = Sending::new(here, &found, from, Some(&token)).unwrap();
    sending
        .run(&mut rest, SendOptions::default(), &Unobserved)
        .unwrap();
    take(there, called, &rest).unwrap()
}

#[test]
fn random_chains_of_streams_give_equal_bytes() {
    for seed in 0..12 {
        exchange(seed);
    }
}

/// A source with two snapshots, of which the second differs in little.
struct Scene {
    here: Pool,
    volume: Volume,
    first: Volume,
    second: Volume,
}

fn scene() -> Scene {
    let (_, here) = fresh(256 * MIB);
    let mut random = StdRng::seed_from_u64(1);
    let volume = here.create_volume(&name("v"), 32 * MIB).unwrap();
    volume.write_at(&noise(&mut random, 20 << 20), 0).unwrap();
    let first = here.snapshot(&volume, &name("v@1")).unwrap();
    volume.write_at(&noise(&mut random, 8192), 5 * MIB).unwrap();
    volume.discard(7 * MIB, MIB).unwrap();
    volume
        .write_at(&noise(&mut random, 3 << 20), 24 * MIB)
        .unwrap();
    let second = here.snapshot(&volume, &name("v@2")).unwrap();
    Scene {
        here,
        volume,
        first,
        second,
    }
}

#[test]
fn a_snapshot_keeps_its_labels_and_its_identity_through_several_pools() {
    let Scene {
        here,
        first,
        second,
        ..
    } = scene();
    let labels = Labels::from([("team".to_owned(), "a\nb\u{1b}[2J".to_owned())]);
    here.set_labels(&first, labels.clone()).unwrap();
    let (_, there) = fresh(128 * MIB);
    let (_, third) = fresh(128 * MIB);
    let copy = take(&there, "a", &stream(&here, &first, None)).unwrap();
    assert_eq!(copy.info().unwrap().labels, labels);
    let came = origin(&there, copy.id()).unwrap().unwrap();
    assert_eq!(came.name, name("v@1"));
    assert_eq!(came.created, first.info().unwrap().created);
    // The copy of the copy is a base for the original.
    take(&third, "a", &stream(&there, &copy, None)).unwrap();
    let last = take(&third, "b", &stream(&here, &second, Some(&first))).unwrap();
    assert!(content(&last) == content(&second));
    // A pool is its own receiver.
    let own = take(&here, "own", &stream(&here, &second, Some(&first))).unwrap();
    assert!(content(&own) == content(&second));
    assert_eq!(own.info().unwrap().parent, Some(first.id()));
}

#[test]
fn a_difference_is_as_long_as_the_change_and_shares_the_rest() {
    let Scene {
        here,
        first,
        second,
        ..
    } = scene();
    let (_, there) = fresh(128 * MIB);
    take(&there, "a", &stream(&here, &first, None)).unwrap();
    let bytes = stream(&here, &second, Some(&first));
    assert!(bytes.len() < 4 << 20, "{}", bytes.len());
    let copy = take(&there, "b", &bytes).unwrap();
    assert!(copy.info().unwrap().own_bytes < 4 * MIB);
    assert!(content(&copy) == content(&second));
}

#[test]
fn a_bookmark_serves_after_its_snapshot_is_gone_and_keeps_none_of_its_blocks() {
    let Scene {
        here,
        volume,
        first,
        second,
    } = scene();
    let (_, there) = fresh(128 * MIB);
    take(&there, "a", &stream(&here, &first, None)).unwrap();
    let mark = bookmark::create(&here, &first, &name("mark")).unwrap();
    assert!(bookmark::marked(&here, &mark).unwrap().is_some());
    here.remove(&first).unwrap();
    here.reclaim().unwrap();
    let before = here.status().unwrap().used_bytes;
    let copy = take(&there, "b", &stream(&here, &second, Some(&mark))).unwrap();
    assert!(content(&copy) == content(&second));
    // What only the snapshot had is free: 8 KiB that were overwritten and 1 MiB discarded.
    here.remove(&mark).unwrap();
    here.reclaim().unwrap();
    let after = here.status().unwrap().used_bytes;
    assert!(before - after < MIB / 2, "{before} {after}");

    // A state that does not descend from what is marked is refused.
    let mark = bookmark::create(&here, &second, &name("mark2")).unwrap();
    let other = here.create_volume(&name("other"), MIB).unwrap();
    let other = here.snapshot(&other, &name("other@1")).unwrap();
    let error = Sending::new(&here, &other, Some(&mark), None)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::NotDescended { .. }), "{error}");
    // As is one after the marked snapshot and all that descends from it are gone.
    here.remove(&volume).unwrap();
    here.remove(&second).unwrap();
    here.reclaim().unwrap();
    let error = Sending::new(&here, &other, Some(&mark), None)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::NotDescended { .. }), "{error}");
    let error = Sending::new(&here, &mark, None, None)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::IsBookmark(_)), "{error}");
}

#[test]
fn a_rollback_leaves_the_line_of_a_bookmark() {
    let Scene {
        here,
        volume,
        first,
        second,
    } = scene();
    let mark = bookmark::create(&here, &second, &name("mark")).unwrap();
    here.rollback(&volume, &first).unwrap();
    let third = here.snapshot(&volume, &name("v@3")).unwrap();
    here.remove(&second).unwrap();
    here.reclaim().unwrap();
    let error = Sending::new(&here, &third, Some(&mark), None)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::NotDescended { .. }), "{error}");
}

#[test]
fn a_foreign_base_a_taken_name_and_a_volume_are_refused() {
    let Scene {
        here,
        volume,
        first,
        second,
    } = scene();
    let (_, there) = fresh(128 * MIB);
    let difference = stream(&here, &second, Some(&first));
    let error = refused(&there, "b", &difference);
    assert!(
        matches!(&error, Error::BaseMissing { name } if name.as_str() == "v@1"),
        "{error}"
    );
    assert_volumes(&there, &[]);
    // The same bytes, but another snapshot.
    let imposter = there.create_volume(&name("v"), 32 * MIB).unwrap();
    imposter.write_at(&content(&first), 0).unwrap();
    there.snapshot(&imposter, &name("v@1")).unwrap();
    refused(&there, "b", &difference);
    assert_volumes(&there, &["v", "v@1"]);
    let error = refused(&there, "v", &difference);
    assert!(
        matches!(error, Error::Pool(cowshed_engine::Error::Exists(_))),
        "{error}"
    );
    let error = Sending::new(&here, &volume, None, None)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, Error::Pool(cowshed_engine::Error::NotFrozen(_))),
        "{error}"
    );
    let error = Sending::new(&here, &second, Some(&volume), None)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::NotABase(_)), "{error}");
}

#[test]
fn a_stream_that_was_cut_or_altered_leaves_nothing_under_its_name() {
    let Scene { here, first, .. } = scene();
    let (device, there) = fresh(128 * MIB);
    let bytes = stream(&here, &first, None);
    for cut in [0, 7, 30, 100, 5000, 3 << 20, bytes.len() - 1] {
        let error = refused(&there, "a", &bytes[..cut]);
        assert!(matches!(error, Error::Stream(_)), "{error}");
        assert!(there.volume("a").is_err());
    }
    let mut altered = bytes.clone();
    altered[9 << 20] ^= 1;
    refused(&there, "a", &altered);
    let kept = place(&there, "a").unwrap();
    assert!((8 * MIB..=9 * MIB).contains(&kept.position), "{kept:?}");
    // What is kept outlives the process; something of which nothing came does not.
    refused(&there, "c", &bytes[..4000]);
    there.flush().unwrap();
    let there = reopen(&device);
    clean(&there).unwrap();
    assert_eq!(place(&there, "a").unwrap(), kept);
    assert!(matches!(token(&there, "c"), Err(Error::NothingKept(_))));
    discard(&there, "a").unwrap();
    assert_volumes(&there, &[]);
    assert!(matches!(token(&there, "a"), Err(Error::NothingKept(_))));
}

#[test]
fn a_token_of_another_stream_is_refused_on_both_sides() {
    let Scene {
        here,
        first,
        second,
        ..
    } = scene();
    let (_, there) = fresh(256 * MIB);
    let whole = stream(&here, &first, None);
    refused(&there, "a", &whole[..6 << 20]);
    let of_first = place(&there, "a").unwrap();
    let error = Sending::new(&here, &second, None, Some(&of_first))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::OtherSnapshot(_)), "{error}");
    let error = Sending::new(&here, &first, Some(&second), Some(&of_first))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::OtherBase), "{error}");
    assert!(matches!(
        snapshot_of(&there, &of_first),
        Err(Error::TokenForeign(_))
    ));
    // A stream that goes on with another snapshot, or further than what is kept.
    refused(&there, "b", &stream(&here, &second, None)[..9 << 20]);
    let of_second = place(&there, "b").unwrap();
    let rest = |token| {
        let mut bytes = Vec::new();
        let snapshot = snapshot_of(&here, token).unwrap();
        let sending = Sending::new(&here, &snapshot, None, Some(token)).unwrap();
        sending
            .run(&mut bytes, SendOptions::default(), &Unobserved)
            .unwrap();
        bytes
    };
    let error = refused(&there, "a", &rest(&of_second));
    assert!(matches!(error, Error::OtherStream(..)), "{error}");
    let mut further = of_first;
    further.position += 4096;
    let error = refused(&there, "a", &rest(&further));
    assert!(matches!(error, Error::OtherStream(..)), "{error}");
    let error = refused(&there, "nothing", &rest(&of_first));
    assert!(matches!(error, Error::NothingKept(_)), "{error}");
    // And all is still there to go on with.
    let copy = take(&there, "a", &rest(&of_first)).unwrap();
    assert!(content(&copy) == content(&first));
    let copy = take(&there, "b", &rest(&of_second)).unwrap();
    assert!(content(&copy) == content(&second));
}

#[test]
fn a_stream_larger_than_the_pool_changes_nothing() {
    let Scene { here, first, .. } = scene();
    let (_, small) = fresh(12 * MIB);
    let error = refused(&small, "a", &stream(&here, &first, None));
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_volumes(&small, &[]);
    assert!(matches!(token(&small, "a"), Err(Error::NothingKept(_))));
    small.create_volume(&name("still"), MIB).unwrap();
}

#[test]
fn a_pool_that_fills_up_on_the_way_gets_its_space_back() {
    let Scene { here, first, .. } = scene();
    let (_, there) = fresh(40 * MIB);
    let other = there.create_volume(&name("other"), 30 * MIB).unwrap();
    let bytes = stream(&here, &first, None);
    // Half of the stream comes, then somebody else takes the space.
    struct Halfway<'a>(&'a [u8], usize, &'a Volume);
    impl Read for Halfway<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.1 < 4 << 20 && self.0.len() < 14 << 20 {
                for at in (0..30 * MIB).step_by(1 << 20) {
                    let _ = self.2.write_at(&vec![3; 1 << 20], at);
                }
                self.1 = usize::MAX;
            }
            self.0.read(buffer)
        }
    }
    let error = receive(&there, &name("a"), Halfway(&bytes, 0, &other), &Unobserved);
    let error = error.map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::Pool(error) if error.is_no_room()),
        "{error}"
    );
    assert_volumes(&there, &["other"]);
    assert!(matches!(token(&there, "a"), Err(Error::NothingKept(_))));
}

#[test]
fn only_one_receive_into_a_name_runs_at_a_time() {
    let Scene { here, first, .. } = scene();
    let (_, there) = fresh(128 * MIB);
    let bytes = stream(&here, &first, None);
    let (reader, mut writer) = io::pipe().unwrap();
    thread::scope(|scope| {
        let slow = scope.spawn(|| receive(&there, &name("a"), reader, &Unobserved));
        io::Write::write_all(&mut writer, &bytes[..3 << 20]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !pool_has_unfinished(&there) {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(5));
        }
        let error = refused(&there, "a", &bytes);
        assert!(matches!(error, Error::Receiving(_)), "{error}");
        assert!(matches!(token(&there, "a"), Err(Error::Receiving(_))));
        io::Write::write_all(&mut writer, &bytes[3 << 20..]).unwrap();
        drop(writer);
        slow.join().unwrap().unwrap();
    });
    assert_volumes(&there, &["a"]);
    // A name that is taken meanwhile is not lost: what came is kept.
    let kept = take(&there, "b", &bytes[..bytes.len() - 10]);
    assert!(kept.is_err() && token(&there, "b").is_ok());
}

fn pool_has_unfinished(pool: &Pool) -> bool {
    let volumes = pool.volumes();
    volumes
        .iter()
        .any(|info| info.name.as_str().starts_with("unfinished/"))
}

#[test]
fn an_observer_learns_how_much_comes_and_how_much_has_come() {
    #[derive(Default)]
    struct Counts(std::cell::Cell<u64>, std::cell::Cell<u64>);
    impl Observer for Counts {
        fn begin(&self, total_bytes: u64) {
            self.0.set(total_bytes);
        }
        fn advance(&self, len_bytes: u64) {
            self.1.set(self.1.get() + len_bytes);
        }
    }
    let Scene { here, first, .. } = scene();
    let (_, there) = fresh(128 * MIB);
    let (sent, received) = (Counts::default(), Counts::default());
    let mut bytes = Vec::new();
    send(
        &here,
        &first,
        None,
        &mut bytes,
        SendOptions::default(),
        &sent,
    )
    .unwrap();
    receive(&there, &name("a"), &bytes[..], &received).unwrap();
    for counts in [sent, received] {
        assert_eq!((counts.0.get(), counts.1.get()), (20 * MIB, 20 * MIB));
    }
}

#[test]
fn a_held_volume_is_not_removed_and_says_by_whom_it_is_held() {
    let Scene { here, first, .. } = scene();
    let hold = |tag: &str| {
        let mut transaction = here.transaction();
        transaction.hold(first.id(), &name(tag));
        transaction.commit()
    };
    hold("backup").unwrap();
    hold("audit").unwrap();
    hold("audit").unwrap();
    let error = here.remove(&first).unwrap_err();
    assert_eq!(
        error.to_string(),
        "v@1 is held by audit, backup; release it first"
    );
    for tag in ["audit", "backup"] {
        assert!(here.remove(&first).is_err());
        let mut transaction = here.transaction();
        transaction.release(first.id(), &name(tag));
        transaction.commit().unwrap();
    }
    assert!(here.holds(&first).is_empty());
    here.remove(&first).unwrap();
    assert!(hold("late").is_err());
}

#[test]
fn what_only_its_pool_knows_of_a_layer_is_neither_sent_nor_received() {
    let (_, here) = fresh(32 * MIB);
    let (_, there) = fresh(32 * MIB);
    let volume = here.create_volume(&name("v"), MIB).unwrap();
    let first = here.snapshot(&volume, &name("v@1")).unwrap();
    let own = Labels::from([("team".to_owned(), "a".to_owned())]);
    let mut labels = own.clone();
    labels.insert(BLOBS.to_owned(), "[]".to_owned());
    labels.insert(ORIGIN.to_owned(), "sha256:00".to_owned());
    here.set_labels(&first, labels.clone()).unwrap();
    let sending = Sending::new(&here, &first, None, None).unwrap();
    assert_eq!(sending.begin().labels, own);

    // A stream of one who sends it all the same.
    let mut begin = sending.begin().clone();
    begin.labels = labels;
    let mut bytes = Vec::new();
    StreamWriter::new(&mut bytes, &begin)
        .unwrap()
        .end()
        .unwrap();
    let copy = take(&there, "copy", &bytes).unwrap();
    assert_eq!(copy.info().unwrap().labels, own);
}
