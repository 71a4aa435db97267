//! Checks, repairs, upgrades and dumps of a mirror: what one side lacks is no loss.

use super::{expect, import, mirrored, run_at, said, states, text};
use crate::harness::Bench;
use serde_json::Value;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

/// Writes over blocks of a file; the data lies in the first group, from block 1044 on.
pub(super) fn damage(path: &Path, blocks: Range<u64>) {
    let file = File::options().write(true).open(path).unwrap();
    for block in blocks {
        file.write_all_at(&[0xab; 512], block * 4096).unwrap();
    }
}

/// Runs a command that prints JSON and ends with `status`.
fn json(bench: &Bench, arguments: &[&str], status: i32) -> Value {
    let output = bench.command(arguments).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn errors(document: &Value) -> usize {
    document["errors"].as_array().unwrap().len()
}

#[test]
fn rot_of_one_side_is_told_by_a_check_and_healed_by_a_scrub() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let bytes = import(&bench, "data", 3);
    damage(&second, 1100..1500);
    let checked = bench.run(["pool", "check", "--deep"]);
    let told = said(&checked);
    assert_eq!(checked.status.code(), Some(4), "{told}");
    assert!(told.contains("nothing is lost"), "{told}");
    expect(&bench.pool(), "data", &bytes);
    bench.ok(["pool", "scrub"]);
    bench.expect_sound();
}

#[test]
fn sides_damaged_in_different_places_have_everything_together() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let bytes = import(&bench, "data", 8);
    damage(&bench.pool(), 1100..1200);
    damage(&second, 1300..1400);
    let checked = json(&bench, &["pool", "check", "--deep"], 4);
    assert_eq!((errors(&checked), &checked["clean"]), (0, &false.into()));
    let sides = checked["sides"].as_array().unwrap();
    assert_eq!(sides.len(), 2);
    for (side, path) in sides.iter().zip([&bench.pool(), &second]) {
        assert_eq!(side["path"], text(path));
        assert_eq!(side["state"], "good");
        assert!(errors(side) > 0, "{side}");
    }
    let repaired = json(&bench, &["pool", "check", "--repair"], 0);
    assert!(repaired["healed"].as_u64().unwrap() >= 200, "{repaired}");
    let checked = json(&bench, &["pool", "check", "--deep"], 0);
    assert!(
        checked["sides"]
            .as_array()
            .unwrap()
            .iter()
            .all(|side| errors(side) == 0)
    );
    expect(&second, "data", &bytes);
}

#[test]
fn what_no_side_has_is_lost_and_a_repair_says_so() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    import(&bench, "data", 9);
    for side in [&bench.pool(), &second] {
        damage(side, 1200..1202);
    }
    let checked = json(&bench, &["pool", "check", "--deep"], 3);
    assert!(errors(&checked) > 0, "{checked}");
    // The scrub before the repair reads all data, so it is told although only the structure was to
    // be checked.
    let repaired = json(&bench, &["pool", "check", "--repair"], 3);
    assert!(errors(&repaired) > 0, "{repaired}");
}

#[test]
fn a_degraded_mirror_is_told_by_a_check() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    fs::rename(&second, bench.path("away")).unwrap();
    import(&bench, "data", 10);
    let checked = json(&bench, &["pool", "check"], 4);
    let states: Vec<_> = checked["sides"].as_array().unwrap().iter().collect();
    let states: Vec<_> = states.iter().map(|side| &side["state"]).collect();
    assert_eq!(states, ["good", "missing"]);
    assert_eq!((errors(&checked), &checked["clean"]), (0, &false.into()));
    // Only the side itself is looked at.
    json(&bench, &["pool", "check", "--this-side"], 0);
    let repaired = bench.run(["pool", "check", "--repair"]);
    let told = said(&repaired);
    assert_eq!(repaired.status.code(), Some(4), "{told}");
    assert!(told.contains("is missing"), "{told}");
    let advised = bench.run(["doctor"]);
    let advised = String::from_utf8_lossy(&advised.stdout).into_owned();
    assert!(advised.contains("pool mirror add"), "{advised}");
}

/// Returns the generations since which the labels of the dumped sides say that one is behind.
fn behind_since(bench: &Bench) -> Vec<u64> {
    let lines = dump(&bench.run(["pool", "dump"]));
    let labels = lines.iter().filter(|line| line["counts"] == true);
    let labels = labels.filter(|line| line["type"] == "label");
    let sides = labels.flat_map(|line| line["found"]["sides"].as_array().unwrap().clone());
    let behind = sides.filter(|side| side["good"] == false);
    behind.map(|side| side["since"].as_u64().unwrap()).collect()
}

fn dump(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn only_an_upgrade_that_writes_makes_a_missing_side_lack_everything() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let away = bench.path("away");
    fs::rename(&second, &away).unwrap();
    let bytes = import(&bench, "data", 11);
    let since = behind_since(&bench);
    assert!(
        !since.is_empty() && since.iter().all(|it| *it > 0),
        "{since:?}"
    );
    // The copies of the superblocks.
    let tail = (64 << 20) / 4096 - 2;
    let mut before = vec![0; 8192];
    let file = File::options().read(true).open(bench.pool()).unwrap();
    file.read_exact_at(&mut before, tail * 4096).unwrap();
    damage(&bench.pool(), tail..tail + 2);
    let refused = bench.run(["pool", "upgrade", "--metadata-copies", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("it is damaged"), "{refused:?}");
    assert_eq!(behind_since(&bench), since);
    let file = File::options().write(true).open(bench.pool()).unwrap();
    file.write_all_at(&before, tail * 4096).unwrap();
    bench.ok_quietly(["pool", "upgrade", "--metadata-copies", "1"]);
    assert!(behind_since(&bench).iter().all(|it| *it == 0));
    fs::rename(&away, &second).unwrap();
    bench.ok(["pool", "mirror", "add", text(&second)]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    fs::rename(bench.pool(), &away).unwrap();
    expect(&second, "data", &bytes);
}

#[test]
fn a_dump_has_the_labels_and_paths_only_if_asked() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let labels = |output: &Output| {
        let lines = dump(output);
        let labels = lines.into_iter().filter(|line| line["type"] == "label");
        labels.collect::<Vec<_>>()
    };
    let plain = bench.run(["pool", "dump"]);
    assert_eq!(labels(&plain).len(), 8);
    assert!(!String::from_utf8_lossy(&plain.stdout).contains(text(&second)));
    let named = labels(&bench.run(["pool", "dump", "--names"]));
    assert_eq!(named[7]["path"], text(&second));
    let own = labels(&run_at(&second, &["pool", "dump", "--this-side"]));
    assert_eq!(own.len(), 4);
    assert!(own.iter().any(|line| line["counts"] == true), "{own:?}");
}
