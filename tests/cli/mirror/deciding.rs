//! Where the labels do not tell which side counts: what each side has is shown, and one is kept.

use super::{mirrored, ok_at, run_at, said, states, text};
use crate::harness::{Bench, expect_failure};
use cowshed_format::base::Generation;
use cowshed_format::device::mirror::newest_label;
use cowshed_format::device::{Device, FileDevice, FileOptions};
use cowshed_format::side::{Lack, SLOTS, SideState, label_places};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Makes a mirrored pool whose sides were used apart; returns the second one.
fn apart(bench: &Bench) -> PathBuf {
    let second = mirrored(bench);
    let (first, away) = (bench.pool(), bench.path("away"));
    fs::rename(&second, &away).unwrap();
    ok_at(&first, &["volume", "create", "alpha", "--size", "1M"]);
    fs::rename(&first, bench.path("hidden")).unwrap();
    fs::rename(&away, &second).unwrap();
    ok_at(&second, &["volume", "create", "beta", "--size", "1M"]);
    fs::rename(bench.path("hidden"), &first).unwrap();
    second
}

#[test]
fn sides_used_apart_are_refused_and_shown_until_one_is_kept() {
    let bench = Bench::empty();
    let second = apart(&bench);
    let first = bench.pool();
    let advice = "`cowshed --pool PATH pool mirror keep`";
    for arguments in [
        &["volume", "ls"][..],
        &["pool", "check"],
        &["pool", "dump"],
        &["serve"],
    ] {
        let output = bench.run(arguments);
        expect_failure(&output, 1, advice);
        assert!(said(&output).contains("--this-side"), "{output:?}");
    }
    for (side, has, lacks) in [(&first, "alpha", "beta"), (&second, "beta", "alpha")] {
        let before = fs::read(side).unwrap();
        let shown = ok_at(side, &["volume", "ls", "--this-side"]);
        assert!(shown.contains(has) && !shown.contains(lacks), "{shown}");
        ok_at(side, &["pool", "check", "--deep", "--this-side"]);
        let dumped = ok_at(side, &["pool", "dump", "--names", "--this-side"]);
        assert!(dumped.contains(has) && !dumped.contains(lacks), "{dumped}");
        let file = bench.path("export");
        ok_at(side, &["volume", "export", "--this-side", has, text(&file)]);
        assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
        fs::remove_file(file).unwrap();
        assert!(
            fs::read(side).unwrap() == before,
            "{has}: looking changed it"
        );
    }
    let repair = run_at(&first, &["pool", "check", "--repair", "--this-side"]);
    assert_eq!(repair.status.code(), Some(2));
    let kept = ok_at(&second, &["pool", "mirror", "keep"]);
    assert!(
        kept.contains("pool check --deep") && kept.contains(text(&first)),
        "{kept}"
    );
    let shown = ok_at(&first, &["volume", "ls"]);
    assert!(
        shown.contains("beta") && !shown.contains("alpha"),
        "{shown}"
    );
    // Both get equal by being opened.
    ok_at(&first, &["pool", "mirror", "add", text(&first)]);
    assert_eq!(states(&first), ["good", "good"]);
    for side in [&first, &second] {
        let shown = ok_at(side, &["volume", "ls", "--this-side"]);
        assert!(
            shown.contains("beta") && !shown.contains("alpha"),
            "{shown}"
        );
        ok_at(side, &["pool", "check", "--deep", "--this-side"]);
    }
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_decided() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let why = "nothing is to be decided";
    for pool in [&bench.pool(), &second] {
        expect_failure(&run_at(pool, &["pool", "mirror", "keep"]), 1, why);
        expect_failure(
            &run_at(pool, &["pool", "mirror", "keep", "--force"]),
            1,
            why,
        );
    }
    let away = bench.path("away");
    fs::rename(&second, &away).unwrap();
    ok_at(&bench.pool(), &["volume", "create", "one", "--size", "1M"]);
    bench.fails(["pool", "mirror", "keep"], 1, why);
    fs::rename(&away, &second).unwrap();
    let before = fs::read(bench.pool()).unwrap();
    // It is behind.
    expect_failure(&run_at(&second, &["pool", "mirror", "keep"]), 1, why);
    expect_failure(
        &run_at(&second, &["pool", "mirror", "keep", "--force"]),
        1,
        why,
    );
    assert!(fs::read(bench.pool()).unwrap() == before);
    let alone = Bench::with_pool("64M");
    alone.fails(["pool", "mirror", "keep"], 1, "the pool has no mirror");
}

/// Writes a label that calls the side itself behind, as if copying to it had been cut off.
fn call_behind(side: &Path, since: u64) {
    let device = FileDevice::open(side, FileOptions::default()).unwrap();
    let (mut label, slot) = newest_label(&device).unwrap();
    let own = label.side;
    label.set.entry_mut(own).unwrap().state = SideState::Behind(Lack::since(Generation(since)));
    label.set.advance();
    for place in label_places(slot ^ 1) {
        device
            .write_at(&label.encode(), place.offset_bytes())
            .unwrap();
    }
    device.flush().unwrap();
}

#[test]
fn a_side_that_is_behind_is_kept_only_by_force() {
    for (since, lacks) in [
        (1, "lacks what was written since checkpoint 1"),
        (0, "may lack anything"),
    ] {
        let bench = Bench::empty();
        let second = mirrored(&bench);
        bench.ok(["volume", "create", "one", "--size", "1M"]);
        call_behind(&second, since);
        fs::rename(bench.pool(), bench.path("lost")).unwrap();
        let refused = run_at(&second, &["volume", "ls"]);
        expect_failure(&refused, 1, "pool mirror keep --force");
        assert!(said(&refused).contains(text(&bench.pool())), "{refused:?}");
        let before = fs::read(&second).unwrap();
        let refused = run_at(&second, &["pool", "mirror", "keep"]);
        expect_failure(&refused, 1, lacks);
        assert!(said(&refused).contains("--force"), "{refused:?}");
        assert!(fs::read(&second).unwrap() == before);
        ok_at(&second, &["pool", "mirror", "keep", "--force"]);
        assert!(ok_at(&second, &["volume", "ls"]).contains("one"));
        assert_eq!(states(&second), ["missing", "good"]);
    }
}

/// Writes zeros over the labels of a side.
fn lose_labels(side: &Path) {
    let file = File::options().write(true).open(side).unwrap();
    for place in (0..SLOTS).flat_map(label_places) {
        file.write_all_at(&[0; 4096], place.offset_bytes()).unwrap();
    }
}

#[test]
fn a_side_that_has_lost_its_label_is_written_only_by_force() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    bench.ok(["volume", "create", "one", "--size", "1M"]);
    lose_labels(&bench.pool());
    let before = fs::read(bench.pool()).unwrap();
    let third = bench.path("third");
    for arguments in [
        &["volume", "ls"][..],
        &["pool", "mirror", "add", text(&third)],
        &["pool", "check", "--repair"],
        &["pool", "upgrade"],
    ] {
        bench.fails(arguments, 1, "give the path of another side with --pool");
    }
    bench.fails(["pool", "mirror", "keep"], 1, "use --force");
    let checked = bench.run(["pool", "check", "--deep"]);
    expect_failure(&checked, 4, "whose label is damaged");
    assert!(fs::read(bench.pool()).unwrap() == before && !third.exists());
    let dumped = ok_at(&bench.pool(), &["volume", "ls", "--this-side"]);
    assert!(dumped.contains("one"), "{dumped}");
    // The other side goes on, and makes it one again only if that is asked for.
    assert_eq!(states(&second), ["missing", "good"]);
    fs::rename(&second, bench.path("away")).unwrap();
    bench.ok(["pool", "mirror", "keep", "--force"]);
    assert_eq!(states(&bench.pool()), ["good"]);
    bench.ok(["volume", "create", "two", "--size", "1M"]);
    // The one that was away is not taken for older than this one.
    fs::rename(bench.path("away"), &second).unwrap();
    let refused = run_at(&second, &["volume", "ls"]);
    expect_failure(&refused, 1, "were written apart from each other");
}

#[test]
fn a_named_side_that_is_gone_or_empty_leads_to_the_others() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    fs::rename(bench.pool(), bench.path("away")).unwrap();
    bench.fails(["volume", "ls"], 1, "path of another side with --pool");
    bench.fails(["serve"], 1, "path of another side with --pool");
    File::create(bench.pool())
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    bench.fails(["volume", "ls"], 1, "path of another side with --pool");
    assert_eq!(states(&second), ["missing", "good"]);
}
