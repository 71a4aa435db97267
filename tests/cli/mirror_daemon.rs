//! A daemon whose sides are lost, moved, added or removed while it runs, and whose worker then dies
//! or is replaced; and copies of sides.

use crate::harness::{Bench, Daemon, eventually, expect_failure, host, noise, program};
use crate::load::serving;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a mirrored pool; returns the path of its second side.
fn mirrored(bench: &Bench) -> PathBuf {
    let second = bench.path("second");
    bench.ok(["pool", "create", "--size", "64M", "--mirror", text(&second)]);
    second
}

/// Returns the names of the sides, each with its state.
fn sides(bench: &Bench) -> Vec<(String, String)> {
    let sides = bench.json(["pool", "mirror", "status"]);
    let sides = sides.as_array().unwrap().iter();
    let of = |side: &Value| {
        let path = Path::new(side["path"].as_str().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, side["state"].as_str().unwrap().to_owned())
    };
    sides.map(of).collect()
}

fn expect_sides(bench: &Bench, expected: &[(&str, &str)]) {
    let found = sides(bench);
    let found: Vec<_> = found
        .iter()
        .map(|(name, state)| (name.as_str(), state.as_str()))
        .collect();
    assert_eq!(found, expected);
}

fn import(bench: &Bench, name: &str, seed: u64) -> Vec<u8> {
    let bytes = noise(2 << 20, seed);
    let file = bench.path("import");
    fs::write(&file, &bytes).unwrap();
    bench.ok(["volume", "import", name, text(&file)]);
    bytes
}

fn expect(bench: &Bench, name: &str, bytes: &[u8]) {
    let file = bench.path("export");
    // A mirror may be degraded, and is said to be.
    bench.ok(["--quiet", "volume", "export", name, text(&file)]);
    assert!(fs::read(&file).unwrap() == bytes, "{name}");
    fs::remove_file(file).unwrap();
}

/// Kills the worker and waits until another one takes commands.
fn kill_worker(bench: &Bench, daemon: &Daemon) {
    let before = serving(bench)["worker"].clone();
    daemon.kill_worker();
    eventually("another worker", || {
        let status = bench.run(["pool", "status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        let worker = &status["daemon"]["worker"];
        worker.is_u64() && *worker != before
    });
}

/// Overwrites superblocks and labels.
fn ruin(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0; 16 * 4096], 0).unwrap();
}

fn upgrade(bench: &Bench) {
    let before = serving(bench)["worker"].clone();
    bench.json(["serve", "--upgrade"]);
    assert_ne!(serving(bench)["worker"], before);
}

/// Takes the lock of a file or device, and returns true if that works at once.
fn can_be_locked(path: &Path) -> bool {
    let status = Command::new("flock")
        .args(["--nonblock", text(path), "true"])
        .status();
    status.unwrap().success()
}

#[test]
fn workers_follow_when_the_first_side_is_lost() {
    let bench = Bench::empty();
    mirrored(&bench);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 1);
    ruin(&bench.pool());
    kill_worker(&bench, &daemon);
    let lost = [("pool", "missing"), ("second", "good")];
    expect_sides(&bench, &lost);
    expect(&bench, "data", &bytes);
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &lost);
    upgrade(&bench);
    expect_sides(&bench, &lost);
    expect(&bench, "data", &bytes);
    kill_worker(&bench, &daemon);
    expect(&bench, "data", &bytes);
    daemon.stop();
}

#[test]
fn sides_that_are_renamed_while_a_daemon_runs_stay_good() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 2);
    let (away, pool_away) = (bench.path("away"), bench.path("pool-away"));
    fs::rename(&second, &away).unwrap();
    fs::rename(bench.pool(), &pool_away).unwrap();
    // Something else in its place is not looked at.
    fs::write(&second, "something else").unwrap();
    let good = [("pool", "good"), ("second", "good")];
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &good);
    upgrade(&bench);
    expect_sides(&bench, &good);
    let more = import(&bench, "more", 3);
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &good);
    expect(&bench, "data", &bytes);
    daemon.stop();
    fs::rename(&away, &second).unwrap();
    fs::rename(&pool_away, bench.pool()).unwrap();
    expect_sides(&bench, &good);
    expect(&bench, "more", &more);
    bench.ok(["pool", "check", "--deep"]);
}

#[test]
fn a_side_that_was_added_while_a_daemon_runs_carries_the_next_worker() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 4);
    let third = bench.path("third");
    bench.ok(["pool", "mirror", "add", text(&third)]);
    let more = import(&bench, "more", 5);
    fs::rename(&third, bench.path("third-away")).unwrap();
    upgrade(&bench);
    kill_worker(&bench, &daemon);
    expect_sides(
        &bench,
        &[("pool", "good"), ("second", "good"), ("third", "good")],
    );
    ruin(&bench.pool());
    ruin(&second);
    kill_worker(&bench, &daemon);
    expect_sides(
        &bench,
        &[
            ("pool", "missing"),
            ("second", "missing"),
            ("third", "good"),
        ],
    );
    expect(&bench, "data", &bytes);
    expect(&bench, "more", &more);
    let last = import(&bench, "last", 6);
    kill_worker(&bench, &daemon);
    expect(&bench, "last", &last);
    daemon.stop();
}

#[test]
fn a_side_that_a_worker_finds_is_held_for_the_next_one() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let away = bench.path("away");
    fs::rename(&second, &away).unwrap();
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 11);
    expect_sides(&bench, &[("pool", "good"), ("second", "missing")]);
    fs::rename(&away, &second).unwrap();
    kill_worker(&bench, &daemon);
    let good = [("pool", "good"), ("second", "good")];
    eventually("the copying's end", || {
        sides(&bench).iter().all(|(_, state)| state == "good")
    });
    fs::rename(&second, &away).unwrap();
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &good);
    expect(&bench, "data", &bytes);
    daemon.stop();
    assert!(can_be_locked(&away));
}

#[test]
fn a_side_that_is_taken_out_is_free_at_once() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 7);
    let third = bench.path("third");
    bench.ok(["pool", "mirror", "add", text(&third)]);
    for side in [&second, &third] {
        assert!(!can_be_locked(side));
        bench.ok(["pool", "mirror", "rm", text(side)]);
        assert!(can_be_locked(side));
        let mut create = Command::new(program());
        create.env_remove("COWSHED_POOL").env_remove("COWSHED_LOG");
        let created = create
            .args(["--pool", text(side)])
            .args(["pool", "create", "--force", "--size", "64M"])
            .output()
            .unwrap();
        assert!(created.status.success(), "{created:?}");
    }
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &[("pool", "good")]);
    expect(&bench, "data", &bytes);
    // Its path can be another side's.
    fs::remove_file(&second).unwrap();
    bench.ok(["pool", "mirror", "add", text(&second)]);
    let more = import(&bench, "more", 8);
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &[("pool", "good"), ("second", "good")]);
    daemon.stop();
    fs::rename(bench.pool(), bench.path("away")).unwrap();
    fs::rename(&second, bench.pool()).unwrap();
    expect(&bench, "data", &bytes);
    expect(&bench, "more", &more);
}

#[test]
fn a_device_that_is_refused_as_a_side_is_free_at_once() {
    let bench = Bench::empty();
    mirrored(&bench);
    let daemon = bench.serve();
    let small = bench.path("small");
    fs::write(&small, vec![0; 1 << 20]).unwrap();
    bench.fails(["pool", "mirror", "add", text(&small)], 1, "has 1 MiB");
    assert!(can_be_locked(&small));
    kill_worker(&bench, &daemon);
    expect_sides(&bench, &[("pool", "good"), ("second", "good")]);
    daemon.stop();
}

#[test]
fn a_copy_of_a_side_is_refused_with_both_paths() {
    let bench = Bench::empty();
    mirrored(&bench);
    let before = import(&bench, "before", 9);
    let copy = bench.path("copy");
    host("cp", ["--sparse=always", text(&bench.pool()), text(&copy)]);
    let expect_refusal = || {
        let mut command = Command::new(program());
        command.env_remove("COWSHED_POOL").env_remove("COWSHED_LOG");
        command.args(["--pool", text(&copy), "volume", "ls"]);
        let output = command.output().unwrap();
        expect_failure(&output, 1, "hold the same side");
        let said = String::from_utf8(output.stderr).unwrap();
        for path in [&copy, &bench.pool()] {
            assert!(said.contains(text(path)), "{said}");
        }
    };
    let bytes = fs::read(&copy).unwrap();
    let after = import(&bench, "after", 10);
    expect_refusal();
    let daemon = bench.serve();
    expect_refusal();
    daemon.stop();
    assert!(fs::read(&copy).unwrap() == bytes, "the copy was changed");
    expect_sides(&bench, &[("pool", "good"), ("second", "good")]);
    expect(&bench, "before", &before);
    expect(&bench, "after", &after);
}
