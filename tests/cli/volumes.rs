//! Volumes without a daemon: each command opens the pool itself.

use crate::harness::{Bench, expect_failure, noise};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

/// Creates a sparse file with some data, in which nothing is aligned.
fn sparse_file(bench: &Bench, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; (9 << 20) + 12_288];
    let (head, middle) = (noise(5000, 1), noise(1 << 20, 2));
    bytes[..head.len()].copy_from_slice(&head);
    bytes[(4 << 20) + 777..][..middle.len()].copy_from_slice(&middle);
    let file = File::create(bench.path(name)).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&head, 0).unwrap();
    file.write_all_at(&middle, (4 << 20) + 777).unwrap();
    bytes
}

#[test]
fn a_new_pool_says_what_it_is_and_is_not_made_twice() {
    let bench = Bench::with_pool("256M");
    let status = bench.json(["pool", "status"]);
    for field in [
        "size_bytes",
        "used_bytes",
        "free_bytes",
        "pending_free_bytes",
        "metadata_bytes",
        "host_bytes",
        "volumes",
        "generation",
        "log_used_bytes",
    ] {
        assert!(status[field].is_u64(), "{field} of {status}");
    }
    assert_eq!(status["size_bytes"], 256 << 20);
    assert_eq!(status["state"], "open");
    assert_eq!(status["volumes"], 0);
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    bench.fails(["pool", "create", "--size", "256M"], 1, "--force");
    assert_eq!(bench.volumes(), ["disk"]);
    bench.ok(["pool", "create", "--size", "256M", "--force"]);
    assert!(bench.volumes().is_empty());
}

#[test]
fn a_volumes_life_is_told_in_json() {
    let bench = Bench::with_pool("256M");
    let made = bench.json(["volume", "create", "disk", "--size", "1G"]);
    let id = made["id"].as_u64().unwrap();
    assert_eq!(made["size_bytes"], 1 << 30);
    assert_eq!(made["kind"], "volume");
    assert_eq!(made["parent"], Value::Null);
    assert_eq!(made["labels"], json!({}));
    assert!(made["created"].as_str().unwrap().ends_with('Z'));
    let snapshot = bench.json(["volume", "snapshot", "disk", "disk@1"]);
    assert_eq!(snapshot["kind"], "snapshot");
    assert_eq!(
        bench.json(["volume", "show", "disk"])["parent"],
        snapshot["id"]
    );
    let clone = bench.json(["volume", "clone", "disk@1", "copy"]);
    assert_eq!(clone["parent"], snapshot["id"]);
    // An id is accepted wherever a name is.
    let by_id = bench.json(["volume", "show", &id.to_string()]);
    assert_eq!(by_id["name"], "disk");
    bench.ok(["volume", "rename", "disk", "disc"]);
    bench.ok(["volume", "resize", "disc", "--size", "2G"]);
    assert_eq!(
        bench.json(["volume", "show", "disc"])["size_bytes"],
        2_u64 << 30
    );
    assert_eq!(bench.volumes(), ["copy", "disc", "disk@1"]);
    bench.ok(["volume", "rm", "disk@1", "copy", "disc"]);
    assert!(bench.volumes().is_empty());
    bench.expect_sound();
}

#[test]
fn names_and_sizes_that_cannot_be_are_refused_in_one_line() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    bench.fails(
        ["volume", "create", "disk", "--size", "1M"],
        1,
        "disk already exists",
    );
    bench.fails(
        ["volume", "create", "no space", "--size", "1M"],
        1,
        "a name is",
    );
    bench.fails(
        ["volume", "create", "huge", "--size", "4000000T"],
        1,
        "must be",
    );
    bench.fails(["volume", "show", "nobody"], 1, "there is no volume nobody");
    bench.fails(["volume", "clone", "disk", "copy"], 1, "not a snapshot");
    bench.fails(
        ["volume", "create", "layer/x", "--size", "1M"],
        1,
        "cowshed image",
    );
    // What can be removed is removed, and the rest is named.
    bench.ok(["volume", "create", "other", "--size", "1M"]);
    let output = bench.run(["volume", "rm", "nobody", "other"]);
    expect_failure(&output, 1, "remove volume nobody");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "other\n");
    assert_eq!(bench.volumes(), ["disk"]);
    let output = bench.run(["volume", "rm", "nobody", "nothing", "../x"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().collect();
    let [first, second, third] = lines[..] else {
        panic!("{said}");
    };
    assert_eq!(
        first,
        "cowshed: remove volume nobody: there is no volume nobody"
    );
    assert_eq!(
        second,
        "cowshed: remove volume nothing: there is no volume nothing"
    );
    assert!(
        third.starts_with("cowshed: remove volume ../x: "),
        "{third}"
    );
}

#[test]
fn import_and_export_are_exact_and_sparse_both_ways() {
    let bench = Bench::with_pool("256M");
    let bytes = sparse_file(&bench, "in");
    let (input, output) = (bench.path("in"), bench.path("out"));
    bench.ok(["volume", "import", "disk", input.to_str().unwrap()]);
    let info = bench.json(["volume", "show", "disk"]);
    assert_eq!(info["size_bytes"], bytes.len());
    assert!(
        info["own_bytes"].as_u64().unwrap() < 2 << 20,
        "holes were stored: {info}"
    );
    bench.ok(["volume", "export", "disk", output.to_str().unwrap()]);
    assert!(fs::read(&output).unwrap() == bytes, "the bytes differ");
    let blocks = fs::metadata(&output).unwrap().blocks();
    assert!(
        blocks * 512 < 3 << 20,
        "holes were written: {blocks} sectors"
    );
    // A second export replaces the first; nothing else is left in the folder.
    bench.ok(["volume", "export", "disk", output.to_str().unwrap()]);
    let names = fs::read_dir(bench.path("")).unwrap().count();
    assert_eq!(names, 3, "something was left beside the export");
    bench.expect_sound();
}

#[test]
fn pipes_carry_volumes_of_unknown_size() {
    let bench = Bench::with_pool("512M");
    let bytes = noise((70 << 20) + 4096, 3);
    let mut import = bench.command(["volume", "import", "disk", "-"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(
        bench.json(["volume", "show", "disk"])["size_bytes"],
        bytes.len()
    );
    let output = bench.run(["volume", "export", "disk", "-"]);
    assert!(output.stdout == bytes, "the bytes differ");
    // A file opened for appending must not be mistaken for one in which holes can be left.
    let appended = bench.path("appended");
    fs::write(&appended, b"before").unwrap();
    let target = File::options().append(true).open(&appended).unwrap();
    let exported = bench
        .command(["volume", "export", "disk", "-"])
        .stdout(target)
        .status();
    assert!(exported.unwrap().success());
    assert!(
        fs::read(&appended).unwrap()[6..] == bytes,
        "the appended bytes differ"
    );
    bench.fails(["volume", "import", "none", "/dev/null"], 1, "it is empty");
    assert_eq!(bench.volumes(), ["disk"]);
}

#[test]
fn an_import_that_fails_or_is_stopped_leaves_no_volume() {
    let bench = Bench::with_pool("64M");
    let large = bench.path("large");
    fs::write(&large, noise(128 << 20, 4)).unwrap();
    bench.fails(
        ["volume", "import", "disk", large.to_str().unwrap()],
        1,
        "no space left",
    );
    assert!(bench.volumes().is_empty());
    bench.fails(
        ["volume", "import", "disk", "/no/such/file"],
        1,
        "No such file",
    );

    let mut import = bench.command(["volume", "import", "disk", "-"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&noise(2 << 20, 5)).unwrap();
    crate::harness::host("kill", ["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap();
    expect_failure(&output, 1, "interrupted");
    drop(input);
    assert!(bench.volumes().is_empty());

    let mut child = bench
        .command(["volume", "import", "disk", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&noise(2 << 20, 6))
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(bench.volumes().is_empty());
    bench.expect_sound();
}

#[test]
fn a_full_pool_still_removes_and_then_takes_more() {
    let bench = Bench::with_pool("64M");
    let (half, more) = (bench.path("half"), bench.path("more"));
    fs::write(&half, noise(20 << 20, 7)).unwrap();
    fs::write(&more, noise(40 << 20, 8)).unwrap();
    bench.ok(["volume", "import", "kept", half.to_str().unwrap()]);
    bench.fails(
        ["volume", "import", "more", more.to_str().unwrap()],
        1,
        "no space left",
    );
    let kept = bench.run(["volume", "export", "kept", "-"]).stdout;
    assert!(
        kept == fs::read(&half).unwrap(),
        "what was there before was harmed"
    );
    bench.ok(["volume", "rm", "kept"]);
    bench.ok(["pool", "trim"]);
    bench.ok(["volume", "import", "again", half.to_str().unwrap()]);
    bench.ok(["pool", "grow", "--size", "256M"]);
    bench.ok(["volume", "import", "more", more.to_str().unwrap()]);
    bench.expect_sound();
}

#[test]
fn differences_and_rollback_are_exact() {
    let bench = Bench::with_pool("256M");
    let input = bench.path("in");
    fs::write(&input, noise(1 << 20, 9)).unwrap();
    bench.ok(["volume", "import", "base", input.to_str().unwrap()]);
    bench.ok(["volume", "create", "empty", "--size", "1M"]);
    bench.ok(["volume", "snapshot", "base", "base@1"]);
    assert_eq!(bench.json(["volume", "diff", "base@1", "base"]), json!([]));
    let whole = json!([{ "offset": 0, "length": 1 << 20, "kind": "data" }]);
    assert_eq!(bench.json(["volume", "diff", "empty", "base"]), whole);
    let gone = json!([{ "offset": 0, "length": 1 << 20, "kind": "zero" }]);
    assert_eq!(bench.json(["volume", "diff", "base", "empty"]), gone);
    bench.ok(["volume", "resize", "base", "--size", "512K", "--shrink"]);
    bench.ok(["volume", "rollback", "base", "base@1"]);
    let back = bench.run(["volume", "export", "base", "-"]).stdout;
    assert!(
        back == fs::read(&input).unwrap(),
        "the rollback is not exact"
    );
    bench.expect_sound();
}

#[test]
fn a_second_opener_gets_a_clear_error() {
    let bench = Bench::with_pool("64M");
    let held = File::options()
        .read(true)
        .write(true)
        .open(bench.pool())
        .unwrap();
    held.try_lock().unwrap();
    bench.fails(
        ["volume", "ls"],
        1,
        "in use by another process (no daemon answers on",
    );
    bench.fails(["pool", "check"], 1, "in use by another process");
    bench.fails(
        ["pool", "create", "--size", "64M", "--force"],
        1,
        "in use by another process",
    );
    drop(held);
    bench.ok(["volume", "ls"]);
}

#[test]
fn scrub_and_trim_say_what_they_did() {
    let bench = Bench::with_pool("256M");
    let input = bench.path("in");
    fs::write(&input, noise(8 << 20, 10)).unwrap();
    bench.ok(["volume", "import", "disk", input.to_str().unwrap()]);
    let scrubbed = bench.json(["pool", "scrub"]);
    assert!(scrubbed["blocks"].as_u64().unwrap() >= 2048, "{scrubbed}");
    assert_eq!(scrubbed["bad"], json!([]));
    bench.ok(["volume", "rm", "disk"]);
    bench.ok(["pool", "checkpoint"]);
    assert!(bench.json(["pool", "trim"])["trimmed_bytes"].is_u64());
    let status = bench.json(["pool", "status"]);
    assert!(status["used_bytes"].as_u64().unwrap() < 8 << 20, "{status}");
}

#[test]
fn a_reader_of_the_output_that_goes_away_is_no_failure_to_shout_about() {
    let bench = Bench::with_pool("256M");
    let input = bench.path("in");
    fs::write(&input, noise(8 << 20, 11)).unwrap();
    bench.ok(["volume", "import", "disk", input.to_str().unwrap()]);
    let mut export = bench.command(["volume", "export", "disk", "-"]);
    let mut child = export
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        !output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn the_environment_names_the_pool() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    let output = Command::new(crate::harness::program())
        .args(["volume", "ls"])
        .env("COWSHED_POOL", bench.pool())
        .output()
        .unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("disk"));
}
