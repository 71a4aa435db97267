//! Pools on several files: made, used without one of them, and given a new one.

mod checking;
mod deciding;
mod devices;
mod failing;
mod full;
mod refusals;
mod starting_side;

use crate::harness::{Bench, eventually, expect_failure, noise, program};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the command on the pool with a side at `pool`.
fn run_at(pool: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.env_remove("COWSHED_POOL").env_remove("COWSHED_LOG");
    command
        .arg("--pool")
        .arg(pool)
        .args(arguments)
        .output()
        .unwrap()
}

/// As `run_at`; the command must succeed. Returns its output.
fn ok_at(pool: &Path, arguments: &[&str]) -> String {
    let output = run_at(pool, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Makes a mirrored pool; returns the path of its second side.
fn mirrored(bench: &Bench) -> PathBuf {
    let second = bench.path("second");
    bench.ok(["pool", "create", "--size", "64M", "--mirror", text(&second)]);
    second
}

/// Returns the states of the sides.
fn sides(pool: &Path) -> Vec<Value> {
    let shown = ok_at(pool, &["pool", "mirror", "status", "--json"]);
    serde_json::from_str(&shown).unwrap()
}

fn states(pool: &Path) -> Vec<String> {
    let state = |side: &Value| side["state"].as_str().unwrap().to_owned();
    sides(pool).iter().map(state).collect()
}

fn has_side(pool: &Path, path: &str) -> bool {
    let is_it = |side: &Value| side["path"] == path && side["state"] == "good";
    sides(pool).iter().any(is_it)
}

fn import(bench: &Bench, name: &str, seed: u64) -> Vec<u8> {
    let bytes = noise(3 << 20, seed);
    let file = bench.path("import");
    fs::write(&file, &bytes).unwrap();
    // A degraded mirror is told on the error stream.
    bench.ok_quietly(["volume", "import", name, text(&file)]);
    bytes
}

fn expect(pool: &Path, name: &str, bytes: &[u8]) {
    let file = pool.with_extension("export");
    ok_at(pool, &["volume", "export", name, text(&file)]);
    assert!(fs::read(&file).unwrap() == bytes, "{name}");
    fs::remove_file(file).unwrap();
}

/// Asserts that a side is sound by itself and has a volume with these bytes.
fn expect_alone(bench: &Bench, side: &Path, name: &str, bytes: &[u8]) {
    let file = bench.path("export");
    ok_at(
        side,
        &["volume", "export", "--this-side", name, text(&file)],
    );
    assert!(fs::read(&file).unwrap() == bytes, "{}", side.display());
    fs::remove_file(file).unwrap();
    ok_at(side, &["pool", "check", "--deep", "--this-side"]);
}

#[test]
fn a_side_goes_and_comes_back_and_is_replaced() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let before = import(&bench, "before", 1);
    let away = bench.path("away");
    fs::rename(&second, &away).unwrap();
    let meanwhile = import(&bench, "meanwhile", 2);
    assert_eq!(states(&bench.pool()), ["good", "missing"]);
    let status = bench.run(["pool", "status", "--check"]);
    assert_eq!(status.status.code(), Some(4));
    let told = said(&bench.run(["volume", "ls"]));
    let path = text(&second);
    assert!(
        told.contains(&format!("the side at {path} is missing")) && told.lines().count() == 1,
        "{told}"
    );
    bench.ok(["volume", "ls", "-q"]);
    fs::rename(&away, &second).unwrap();
    bench.ok(["pool", "mirror", "add", text(&second)]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    // It is one already now.
    bench.fails(
        ["pool", "mirror", "add", text(&second)],
        1,
        "is a side of the pool already",
    );

    // The first side is not needed any more.
    let third = bench.path("third");
    bench.ok([
        "pool",
        "mirror",
        "replace",
        text(&bench.pool()),
        text(&third),
    ]);
    assert_eq!(states(&third), ["good", "good"]);
    ok_at(&third, &["pool", "check", "--deep"]);
    // Each of the two has everything.
    for [kept, other] in [[&third, &second], [&second, &third]] {
        fs::rename(other, &away).unwrap();
        let this = |name, bytes: &[u8]| {
            let file = bench.path("export");
            let export = ["volume", "export", "--this-side", name, text(&file)];
            ok_at(kept, &export);
            assert!(fs::read(&file).unwrap() == bytes, "{name}");
            fs::remove_file(file).unwrap();
        };
        this("before", &before);
        this("meanwhile", &meanwhile);
        fs::rename(&away, other).unwrap();
    }
    assert_eq!(states(&third), ["good", "good"]);
    ok_at(&third, &["pool", "mirror", "rm", text(&second)]);
    let refused = said(&run_at(&third, &["pool", "mirror", "rm", text(&third)]));
    assert!(refused.contains("the last side"), "{refused}");
}

#[test]
fn a_daemon_serves_all_sides_and_its_worker_may_die() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 4);
    let worker = || bench.json(["pool", "status"])["daemon"]["worker"].clone();
    let first = worker();
    daemon.kill_worker();
    eventually("another worker", || worker() != first);
    expect(&bench.pool(), "data", &bytes);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    // A new side while it serves, and the death of a worker again.
    let third = bench.path("third");
    bench.ok(["pool", "mirror", "replace", text(&second), text(&third)]);
    let more = import(&bench, "more", 5);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    let now = worker();
    daemon.kill_worker();
    eventually("another worker", || worker() != now);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    expect(&bench.pool(), "more", &more);
    // The daemon answers where it was started; another side's path leads there.
    let other = run_at(&third, &["volume", "ls"]);
    expect_failure(&other, 1, text(&bench.pool()));
    daemon.stop();
    // The new side has everything by itself.
    fs::rename(bench.pool(), bench.path("away")).unwrap();
    expect(&third, "data", &bytes);
    expect(&third, "more", &more);
    assert_eq!(states(&third), ["missing", "good"]);
}

#[test]
fn a_mirror_grows_and_is_upgraded_on_all_sides() {
    let bench = Bench::empty();
    let second = bench.path("second");
    bench.ok([
        "pool",
        "create",
        "--size",
        "64M",
        "--metadata-copies",
        "1",
        "--mirror",
        text(&second),
    ]);
    let bytes = import(&bench, "data", 7);
    let upgraded = bench.json(["pool", "upgrade"]);
    assert_eq!(upgraded["to_copies"], 2);
    assert!(upgraded["rewritten_blocks"].as_u64().unwrap() > 0);
    bench.ok(["pool", "grow", "--size", "128M"]);
    for side in [&bench.pool(), &second] {
        assert_eq!(fs::metadata(side).unwrap().len(), 128 << 20);
        let checked = ["pool", "check", "--deep", "--this-side", "--json"];
        let checked: Value = serde_json::from_str(&ok_at(side, &checked)).unwrap();
        assert_eq!(checked["clean"], true, "{checked}");
    }
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    expect(&second, "data", &bytes);
}

#[test]
fn a_side_is_named_by_any_of_its_names() {
    let bench = Bench::empty();
    let second = mirrored(&bench);
    let name = bench.path("name");
    std::os::unix::fs::symlink(&second, &name).unwrap();
    let third = bench.path("third");
    bench.ok(["pool", "mirror", "replace", text(&name), text(&third)]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    let hard = bench.path("hard");
    fs::hard_link(&third, &hard).unwrap();
    bench.ok(["pool", "mirror", "rm", text(&hard)]);
    assert_eq!(states(&bench.pool()), ["good"]);
}

#[test]
fn a_pool_gets_its_first_mirror_while_a_daemon_serves_it() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 6);
    let small = bench.path("small");
    fs::write(&small, vec![0; 1 << 20]).unwrap();
    let refused = bench.run(["pool", "mirror", "add", text(&small)]);
    assert!(said(&refused).contains("has 1 MiB"), "{refused:?}");
    assert_eq!(refused.status.code(), Some(1));
    assert!(states(&bench.pool()).is_empty());
    let worker = || bench.json(["pool", "status"])["daemon"]["worker"].clone();
    let before = worker();
    let second = bench.path("second");
    bench.ok(["pool", "mirror", "add", text(&second)]);
    assert_ne!(worker(), before);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    // Another one needs no other worker.
    let now = worker();
    bench.ok(["pool", "mirror", "add", text(&bench.path("third"))]);
    assert_eq!(worker(), now);
    assert_eq!(states(&bench.pool()), ["good", "good", "good"]);
    bench.ok(["pool", "mirror", "rm", text(&bench.path("third"))]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    daemon.stop();
    expect(&second, "data", &bytes);
}

/// `pool mirror add` and `replace` are killed again and again while they copy, and go on.
#[test]
fn copying_that_is_killed_again_and_again_goes_on() {
    let bench = Bench::with_pool("256M");
    let mut contents = Vec::new();
    for number in 0..6 {
        let name = format!("v{number}");
        let bytes = noise(20 << 20, number);
        let file = bench.path("import");
        fs::write(&file, &bytes).unwrap();
        bench.ok(["volume", "import", &name, text(&file)]);
        contents.push((name, bytes));
    }
    let (second, third) = (bench.path("second"), bench.path("third"));
    let commands: [&[&str]; 2] = [
        &["add", text(&second)],
        &["replace", text(&second), text(&third)],
    ];
    for arguments in commands {
        let mut killed = 0;
        for pause in (1..).map(|round| Duration::from_millis(round * 15)) {
            let mut child = Command::new(program())
                .args(["--pool", text(&bench.pool()), "pool", "mirror"])
                .args(arguments)
                .env_remove("COWSHED_POOL")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            thread::sleep(pause);
            // It may have ended.
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                break;
            }
            // The one before may have been killed when all was done.
            let is_refused = output.status.code() == Some(1) && killed > 0;
            if is_refused && has_side(&bench.pool(), arguments[arguments.len() - 1]) {
                break;
            }
            assert_eq!(output.status.code(), None, "{}", said(&output));
            killed += 1;
            // What is there can be used in between.
            let states = states(&bench.pool());
            assert!(
                states.is_empty() || states.contains(&"good".to_owned()),
                "{states:?}"
            );
        }
        println!("{arguments:?} was killed {killed} times");
        assert!(killed > 0);
        assert_eq!(states(&bench.pool()), ["good", "good"]);
    }
    bench.ok(["pool", "check", "--deep"]);
    ok_at(&third, &["pool", "mirror", "rm", text(&bench.pool())]);
    fs::remove_file(bench.pool()).unwrap();
    ok_at(&third, &["pool", "check", "--deep"]);
    for (name, bytes) in contents {
        expect(&third, &name, &bytes);
    }
}
