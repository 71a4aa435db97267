//! Sets of snapshots and volumes that share blocks, sent in one stream.

use crate::pools::{MIB, content, fresh, name, noise, reopen};
use cowshed_engine::{Labels, Name, Pool, Volume, VolumeKind};
use cowshed_stream::receive::{Incoming, clean, discard, token};
use cowshed_stream::wire::{Entry, EntryKind, MemberKind, SetHead, Source};
use cowshed_stream::{Arrived, Error, Fate, SendOptions, SetMember, SetSending, Token, Unobserved};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A forest: a base, two snapshots of a clone of it, and two volumes.
struct Forest {
    pool: Pool,
    members: Vec<SetMember>,
}

fn member(volume: &Volume, called: &str, kind: MemberKind) -> SetMember {
    SetMember {
        volume: volume.clone(),
        name: name(called),
        labels: Labels::from([("name".to_owned(), called.to_owned())]),
        kind,
        is_there: false,
    }
}

/// Writes noise into a part of a volume.
fn change(random: &mut StdRng, volume: &Volume) {
    let offset = random.random_range(0..volume.size_bytes() - MIB);
    let len = random.random_range(1..1 << 20);
    let bytes = noise(random, len);
    volume.write_at(&bytes, offset).unwrap();
    let offset = random.random_range(0..volume.size_bytes() / 2);
    volume.discard(offset, 100_000).unwrap();
}

fn forest(seed: u64) -> Forest {
    let mut random = StdRng::seed_from_u64(seed);
    let (_, pool) = fresh(256 * MIB);
    let base = pool.create_volume(&name("base"), 12 * MIB).unwrap();
    base.write_at(&noise(&mut random, 9 << 20), 0).unwrap();
    pool.freeze(&base).unwrap();
    let disk = pool.clone_volume(&base, &name("disk")).unwrap();
    let mut members = vec![member(&base, "base", MemberKind::Snapshot)];
    for called in ["disk@1", "disk@2"] {
        change(&mut random, &disk);
        let snapshot = pool.snapshot(&disk, &name(called)).unwrap();
        members.push(member(&snapshot, called, MemberKind::Snapshot));
    }
    pool.resize(&disk, 15 * MIB + 77).unwrap();
    change(&mut random, &disk);
    // Not a member: the members on both sides of it still share their blocks.
    let between = pool.snapshot(&disk, &name("disk@3")).unwrap();
    let other = pool.clone_volume(&between, &name("other")).unwrap();
    change(&mut random, &other);
    pool.remove(&between).unwrap();
    for (volume, called) in [(&disk, "disk"), (&other, "other")] {
        let now = pool.snapshot(volume, &name(&format!("now/{called}")));
        members.push(member(&now.unwrap(), called, MemberKind::Volume));
    }
    // The order of the members is the sender's own.
    members.reverse();
    Forest { pool, members }
}

fn entries() -> Vec<Entry> {
    vec![Entry {
        kind: EntryKind::Image,
        key: b"image".to_vec(),
        value: b"record".to_vec(),
    }]
}

fn sent(forest: &Forest, token: Option<&Token>, compress: bool) -> Vec<u8> {
    let place = token.map(|token| match token {
        Token::Set(place) => place,
        Token::Snapshot(_) => panic!("a token of one snapshot"),
    });
    let sending = SetSending::new(&forest.pool, &forest.members, entries(), place).unwrap();
    let mut bytes = Vec::new();
    let options = SendOptions { compress };
    sending.run(&mut bytes, options, &Unobserved).unwrap();
    bytes
}

fn fates(head: &SetHead, prefix: &str) -> Vec<Fate> {
    let prefix = if prefix == "-" { "" } else { prefix };
    let named = |called: &Name| Fate::Named(name(&format!("{prefix}{called}")));
    let members = head.members.iter();
    members.map(|member| named(&member.name)).collect()
}

/// Receives a set as far as its end.
fn arrive<'a>(pool: &'a Pool, prefix: &str, bytes: &[u8]) -> Result<Arrived<'a>, Error> {
    let Incoming::Set(incoming) = Incoming::open(bytes)? else {
        return Err(Error::IsSnapshot);
    };
    assert_eq!(incoming.head().entries, entries());
    let fates = fates(incoming.head(), prefix);
    incoming.receive(pool, prefix, fates, &Unobserved)
}

/// Receives a set.
fn receive(pool: &Pool, prefix: &str, bytes: &[u8]) -> Result<(), Error> {
    let arrived = arrive(pool, prefix, bytes)?;
    let mut transaction = pool.transaction();
    arrived.settle(&mut transaction)?;
    Ok(transaction.commit()?)
}

/// Asserts that a pool has the members, with their bytes, kinds and labels.
fn assert_same(forest: &Forest, pool: &Pool, prefix: &str) {
    for member in &forest.members {
        let called = format!("{prefix}{}", member.name);
        let copy = pool.volume(&called).unwrap();
        assert!(content(&copy) == content(&member.volume), "{called}");
        let info = copy.info().unwrap();
        assert_eq!(info.labels, member.labels, "{called}");
        let kind = match member.kind {
            MemberKind::Snapshot => VolumeKind::Snapshot,
            MemberKind::Volume => VolumeKind::Volume,
        };
        assert_eq!(info.kind, kind, "{called}");
    }
}

fn assert_nothing_unfinished(pool: &Pool) {
    for info in pool.volumes() {
        assert!(!info.name.as_str().starts_with("unfinished/"), "{info:?}");
    }
}

#[test]
fn a_set_arrives_with_its_contents_kinds_and_sharing() {
    for seed in 0..4 {
        let forest = forest(seed);
        let bytes = sent(&forest, None, seed % 2 == 1);
        // The base and what changed, and not five volumes.
        assert!(bytes.len() < 17 << 20, "{}", bytes.len());
        let (_, there) = fresh(128 * MIB);
        receive(&there, "a/", &bytes).unwrap();
        assert_same(&forest, &there, "a/");
        assert_nothing_unfinished(&there);
        let used = there.status().unwrap().used_bytes;
        assert!(used < 19 * MIB, "{used}");
        // The snapshots are bases for what comes later.
        let later = forest
            .pool
            .clone_volume(&forest.pool.volume("disk@2").unwrap(), &name("later"));
        forest.pool.freeze(&later.unwrap()).unwrap();
        let later = forest.pool.volume("later").unwrap();
        let from = forest.pool.volume("disk@2").unwrap();
        let difference = crate::pools::stream(&forest.pool, &later, Some(&from));
        crate::pools::take(&there, "later", &difference).unwrap();
        assert!(matches!(token(&there, "a/"), Err(Error::NothingKept(_))));
    }
}

#[test]
fn nothing_of_a_set_appears_before_all_of_it_was_verified() {
    let forest = forest(1);
    let bytes = sent(&forest, None, false);
    let (_, there) = fresh(128 * MIB);
    for cut in [10, 500, 5 << 20, bytes.len() - (1 << 20), bytes.len() - 1] {
        receive(&there, "a/", &bytes[..cut]).unwrap_err();
        let names = there.volumes();
        let is_hidden = |called: &Name| called.as_str().starts_with("unfinished/");
        assert!(names.iter().all(|info| is_hidden(&info.name)), "{cut}");
    }
    discard(&there, "a/").unwrap();
    assert!(there.volumes().is_empty());
    // Nor if the caller commits nothing.
    drop(arrive(&there, "a/", &bytes).unwrap());
    assert!(there.volume("a/base").is_err());
    discard(&there, "a/").unwrap();
    assert!(there.volumes().is_empty());
    assert!(matches!(discard(&there, "a/"), Err(Error::NothingKept(_))));
}

#[test]
fn an_interrupted_set_goes_on_where_it_was_cut() {
    for seed in 0..12 {
        let forest = forest(seed);
        let (device, mut there) = fresh(128 * MIB);
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = sent(&forest, None, false);
        let whole = bytes.len();
        for _ in 0..4 {
            let cut = random.random_range(0..bytes.len());
            receive(&there, "-", &bytes[..cut]).unwrap_err();
            if random.random() {
                there.flush().unwrap();
                there = reopen(&device);
                clean(&there).unwrap();
            }
            let token = token(&there, "-").ok();
            let rest = sent(&forest, token.as_ref(), random.random());
            assert!(rest.len() <= whole + 100, "seed {seed}");
            bytes = rest;
        }
        receive(&there, "-", &bytes).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for member in &forest.members {
            let copy = there.volume(member.name.as_str()).unwrap();
            assert!(content(&copy) == content(&member.volume), "seed {seed}");
        }
        assert_nothing_unfinished(&there);
        let sound = there.volumes();
        assert_eq!(sound.len(), forest.members.len());
    }
}

#[test]
fn what_the_receiver_has_is_a_base_and_is_not_sent_again() {
    let mut forest = forest(3);
    let (_, there) = fresh(128 * MIB);
    receive(&there, "a/", &sent(&forest, None, false)).unwrap();
    let all = forest.members.len();
    for member in &mut forest.members {
        member.is_there = member.name.as_str() != "other";
    }
    // Volumes change, so they are no base.
    forest
        .members
        .retain(|member| member.kind == MemberKind::Snapshot || member.name.as_str() == "other");
    assert_eq!(forest.members.len(), all - 1);
    let bytes = sent(&forest, None, false);
    assert!(bytes.len() < 4 << 20, "{}", bytes.len());
    there.remove(&there.volume("a/other").unwrap()).unwrap();
    receive(&there, "a/", &bytes).unwrap();
    let copy = there.volume("a/other").unwrap();
    let other = forest.members.iter().find(|it| it.name.as_str() == "other");
    assert!(content(&copy) == content(&other.unwrap().volume));
    // A pool that lacks them says so.
    let (_, third) = fresh(128 * MIB);
    let error = receive(&third, "a/", &bytes).unwrap_err();
    assert!(matches!(error, Error::BaseMissing { .. }), "{error}");
    assert!(third.volumes().is_empty());
    // Sent again as a whole, a snapshot that is there stays.
    let before = there.volume("a/base").unwrap().id();
    for member in &mut forest.members {
        member.is_there = false;
    }
    there.remove(&copy).unwrap();
    receive(&there, "a/", &sent(&forest, None, false)).unwrap();
    assert_eq!(there.volume("a/base").unwrap().id(), before);
}

#[test]
fn a_set_that_cannot_be_received_is_refused_before_its_data() {
    let forest = forest(5);
    let bytes = sent(&forest, None, false);
    let (_, there) = fresh(128 * MIB);
    there.create_volume(&name("a/disk"), MIB).unwrap();
    let error = receive(&there, "a/", &bytes).unwrap_err();
    assert!(
        matches!(&error, Error::Pool(cowshed_engine::Error::Exists(name)) if name.as_str() == "a/disk"),
        "{error}"
    );
    assert_eq!(there.volumes().len(), 1);
    let (_, small) = fresh(12 * MIB);
    let error = receive(&small, "a/", &bytes).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(small.volumes().is_empty());
    // One snapshot is no set, and a set is not one snapshot.
    let error = crate::pools::refused(&there, "b", &bytes);
    assert!(matches!(error, Error::IsSet), "{error}");
    let base = forest.pool.volume("base").unwrap();
    let one = crate::pools::stream(&forest.pool, &base, None);
    let error = receive(&there, "b/", &one).unwrap_err();
    assert!(matches!(error, Error::IsSnapshot), "{error}");
}

#[test]
fn a_token_of_another_set_is_refused_and_later_snapshots_do_not_matter() {
    let mut here = forest(6);
    let (_, there) = fresh(128 * MIB);
    let bytes = sent(&here, None, false);
    receive(&there, "-", &bytes[..bytes.len() - 100]).unwrap_err();
    let Token::Set(kept) = token(&there, "-").unwrap() else {
        panic!("a token of one snapshot");
    };
    assert_eq!(kept.whole.count, 3);
    let other = forest(7);
    let refused = SetSending::new(&other.pool, &other.members, entries(), Some(&kept));
    assert!(matches!(refused.map(drop), Err(Error::OtherSet)));
    // A snapshot that was taken since comes after those that were sent.
    let disk = here.pool.volume("disk").unwrap();
    let later = here.pool.snapshot(&disk, &name("disk@9")).unwrap();
    here.members
        .push(member(&later, "disk@9", MemberKind::Snapshot));
    let rest = sent(&here, Some(&Token::Set(kept)), false);
    assert!(rest.len() < 6 << 20, "{}", rest.len());
    receive(&there, "-", &rest).unwrap();
    assert!(content(&there.volume("disk@9").unwrap()) == content(&later));
    assert!(content(&there.volume("base").unwrap()) == content(&here.pool.volume("base").unwrap()));
    // One of those that came was removed on the sending side.
    receive(&there, "b/", &bytes[..bytes.len() - 100]).unwrap_err();
    let Token::Set(kept) = token(&there, "b/").unwrap() else {
        panic!("a token of one snapshot");
    };
    here.members
        .retain(|member| member.name.as_str() != "disk@1");
    let refused = SetSending::new(&here.pool, &here.members, entries(), Some(&kept));
    assert!(matches!(refused.map(drop), Err(Error::OtherSet)));
    // From its start, the set without it still arrives.
    receive(&there, "b/", &sent(&here, None, false)).unwrap();
    assert!(there.volume("b/disk@1").is_err());
}

#[test]
fn a_base_that_gets_no_name_leaves_only_what_is_shared() {
    let forest = forest(8);
    let (_, there) = fresh(128 * MIB);
    let bytes = sent(&forest, None, false);
    let Incoming::Set(incoming) = Incoming::open(&bytes[..]).unwrap() else {
        panic!("one snapshot");
    };
    let mut fates = fates(incoming.head(), "");
    let mut base = incoming.head().members.iter();
    let base = base.position(|member| member.name.as_str() == "base");
    fates[base.unwrap()] = Fate::Base;
    let sources = incoming.head().members.iter();
    assert!(sources.into_iter().all(|it| it.source == Source::Stream));
    let arrived = incoming.receive(&there, "-", fates, &Unobserved).unwrap();
    let mut transaction = there.transaction();
    arrived.settle(&mut transaction).unwrap();
    transaction.commit().unwrap();
    assert!(there.volume("base").is_err());
    for member in &forest.members {
        if let Ok(copy) = there.volume(member.name.as_str()) {
            assert!(content(&copy) == content(&member.volume));
        }
    }
    assert_eq!(there.volumes().len(), forest.members.len() - 1);
}
