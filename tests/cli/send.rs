//! Snapshots sent as streams through real pipes, between two pools, with and without daemons.

use crate::harness::{Bench, Daemon, eventually, expect_failure, noise};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Output, Stdio};

const MIB: usize = 1 << 20;

/// Creates a volume with `bytes`.
fn import(bench: &Bench, name: &str, bytes: &[u8]) {
    fs::write(bench.path("raw"), bytes).unwrap();
    bench.ok([
        "volume".as_ref(),
        "import".as_ref(),
        name.as_ref(),
        bench.path("raw").as_os_str(),
    ]);
}

/// Returns the bytes of a volume.
fn content(bench: &Bench, name: &str) -> Vec<u8> {
    let output = bench.run(["volume", "export", name, "-"]);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Writes `bytes` into a volume through the file that a daemon presents.
fn change(daemon: &Daemon, volume: &str, offset: usize, bytes: &[u8]) {
    let file = fs::File::options()
        .write(true)
        .open(daemon.mount.join(volume))
        .unwrap();
    file.write_all_at(bytes, offset as u64).unwrap();
    file.sync_all().unwrap();
}

/// Returns the stream of a command.
fn stream<const N: usize>(bench: &Bench, arguments: [&str; N]) -> Vec<u8> {
    let output = bench.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    output.stdout
}

fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Receives `bytes` as `name`.
fn receive(bench: &Bench, name: &str, bytes: &[u8]) -> Output {
    let mut child = start(bench.command(["volume", "receive", name, "--json"]));
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A receiver that refuses the stream does not read all of it.
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output().unwrap()
    })
}

fn received(bench: &Bench, name: &str, bytes: &[u8]) -> Value {
    let output = receive(bench, name, bytes);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(bench: &Bench, name: &str, bytes: &[u8], why: &str) {
    let mut child = start(bench.command(["volume", "receive", name]));
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output().unwrap()
    });
    expect_failure(&output, 1, why);
}

/// Connects `send` of one pool with `receive` of another by a pipe.
fn pipe(from: &Bench, send: &[&str], to: &Bench, name: &str) {
    let mut sender = from.command(["volume", "send"]);
    sender.args(send).stdout(Stdio::piped());
    let mut sender = sender.spawn().unwrap();
    let mut receiver = to.command(["volume", "receive", name]);
    receiver.stdin(sender.stdout.take().unwrap());
    let output = receiver.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(sender.wait().unwrap().success());
}

#[test]
fn a_snapshot_and_its_changes_go_through_a_pipe_without_a_daemon() {
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    let mut bytes = noise(9 * MIB + 777, 1);
    bytes[2 * MIB..5 * MIB].fill(0);
    import(&here, "disk", &bytes);
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    pipe(&here, &["disk@1"], &there, "copy@1");
    assert!(content(&there, "copy@1") == bytes);
    let (sent, got) = (
        here.json(["volume", "show", "disk@1"]),
        there.json(["volume", "show", "copy@1"]),
    );
    for field in [
        "size_bytes",
        "referenced_bytes",
        "created",
        "labels",
        "kind",
    ] {
        assert_eq!(sent[field], got[field], "{field}");
    }
    assert_eq!(got["received"]["name"], "disk@1");

    here.ok(["volume", "resize", "disk", "--size", "20M"]);
    here.ok(["volume", "snapshot", "disk", "disk@2"]);
    let whole = stream(&here, ["volume", "send", "disk@2"]);
    let difference = stream(&here, ["volume", "send", "disk@2", "--from", "disk@1"]);
    assert!(difference.len() < 64 << 10, "{}", difference.len());
    let packed = ["volume", "send", "disk@2", "--compress", "zstd"];
    assert!(stream(&here, packed).len() < whole.len() + 4096);
    let document = received(&there, "copy@2", &difference);
    assert_eq!(document["name"], "copy@2");
    assert_eq!(document["base"], "copy@1");
    assert!(document["bytes"].as_u64().unwrap() < 64 << 10);
    assert!(content(&there, "copy@2") == content(&here, "disk@2"));
    assert_eq!(there.volumes(), ["copy@1", "copy@2"]);
    there.expect_sound();
    here.expect_sound();
}

#[test]
fn changes_go_through_a_pipe_between_two_daemons_while_the_volume_is_written() {
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    let mut bytes = noise(12 * MIB, 1);
    import(&here, "disk", &bytes);
    let (sends, receives) = (here.serve(), there.serve());
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    pipe(&here, &["disk@1"], &there, "copy@1");
    for (round, name) in ["disk@2", "disk@3"].iter().enumerate() {
        let new = noise(100_000, 7 + round as u64);
        bytes[round * 5 * MIB + 123..][..new.len()].copy_from_slice(&new);
        change(&sends, "disk", round * 5 * MIB + 123, &new);
        here.ok(["volume", "snapshot", "disk", name]);
        let base = format!("disk@{}", round + 1);
        let copy = format!("copy@{}", round + 2);
        let send = [*name, "--from", &base, "--limit", "50M"];
        pipe(&here, &send, &there, &copy);
        assert!(content(&there, &copy) == bytes);
    }
    sends.stop();
    receives.stop();
    there.expect_sound();
}

#[test]
fn a_killed_receiver_and_a_killed_sender_leave_what_came_and_the_rest_follows() {
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    let bytes = noise(60 * MIB, 3);
    import(&here, "disk", &bytes);
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    let whole = stream(&here, ["volume", "send", "disk@1"]);

    // The receiver is killed: what it had recorded is there.
    let mut receiver = start(there.command(["volume", "receive", "copy"]));
    let mut input = receiver.stdin.take().unwrap();
    input.write_all(&whole[..40 * MIB]).unwrap();
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    drop(input);
    there.fails(["volume", "show", "copy"], 1, "there is no volume copy");
    let token = there.json(["volume", "receive", "copy", "--token"]);
    assert!(token["position"].as_u64().unwrap() >= 16 << 20, "{token}");
    there.expect_sound();
    let token = there.ok(["volume", "receive", "copy", "--token"]);
    let rest = stream(
        &here,
        ["volume", "send", "disk@1", "--resume", token.trim()],
    );
    assert!(rest.len() < 45 * MIB, "{}", rest.len());

    // The sender is killed in the middle of the rest.
    let mut sender = here.command(["volume", "send", "--resume", token.trim(), "--limit", "8M"]);
    let mut sender = sender.stdout(Stdio::piped()).spawn().unwrap();
    let mut receiver = there.command(["volume", "receive", "copy"]);
    receiver.stdin(sender.stdout.take().unwrap());
    receiver.stdout(Stdio::piped()).stderr(Stdio::piped());
    let receiver = receiver.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(900));
    sender.kill().unwrap();
    sender.wait().unwrap();
    let output = receiver.wait_with_output().unwrap();
    expect_failure(&output, 1, "the stream ends too early");
    expect_failure(&output, 1, "--token copy");
    let later = there.ok(["volume", "receive", "copy", "--token"]);
    assert_ne!(later, token);
    here.expect_sound();

    // The token of another stream is refused, and changes nothing.
    here.ok(["volume", "clone", "disk@1", "other"]);
    here.ok(["volume", "snapshot", "other", "other@1"]);
    let wrong = ["volume", "send", "other@1", "--resume", later.trim()];
    here.fails(wrong, 1, "another snapshot");
    here.fails(["volume", "send", "--resume", "00ff"], 1, "not a token");
    let rest = stream(&here, ["volume", "send", "--resume", later.trim()]);
    refused(&there, "elsewhere", &rest, "no interrupted receive");
    received(&there, "copy", &rest);
    assert!(content(&there, "copy") == bytes);
    assert_eq!(there.volumes(), ["copy"]);
    there.fails(
        ["volume", "receive", "copy", "--token"],
        1,
        "no interrupted receive",
    );
    there.expect_sound();
}

#[test]
fn a_client_that_goes_away_leaves_what_came_in_the_daemons_pool() {
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    import(&here, "disk", &noise(40 * MIB, 5));
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    let whole = stream(&here, ["volume", "send", "disk@1"]);
    let daemon = there.serve();
    let mut receiver = start(there.command(["volume", "receive", "copy"]));
    let mut input = receiver.stdin.take().unwrap();
    input.write_all(&whole[..20 * MIB]).unwrap();
    // A second one into the name is refused while the first one runs.
    there.fails(
        ["volume", "receive", "copy", "--token"],
        1,
        "being received",
    );
    refused(&there, "copy", &whole, "being received");
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    drop(input);
    eventually("the end of the receive", || {
        there
            .run(["volume", "receive", "copy", "--token"])
            .status
            .success()
    });
    let token = there.ok(["volume", "receive", "copy", "--token"]);
    received(
        &there,
        "copy",
        &stream(&here, ["volume", "send", "--resume", token.trim()]),
    );
    assert!(content(&there, "copy") == content(&here, "disk@1"));
    daemon.stop();
    there.expect_sound();
}

#[test]
fn a_bookmark_is_a_base_after_its_snapshot_was_removed() {
    let (here, there) = (Bench::with_pool("256M"), Bench::with_pool("256M"));
    let mut bytes = noise(6 * MIB, 1);
    import(&here, "disk", &bytes);
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    pipe(&here, &["disk@1"], &there, "copy@1");
    let mark = here.json(["volume", "bookmark", "disk@1", "mark"]);
    assert_eq!(mark["kind"], "bookmark");
    assert_eq!(mark["marks"], "disk@1");
    here.ok(["volume", "rm", "disk@1"]);
    let daemon = here.serve();
    bytes[..5000].copy_from_slice(&noise(5000, 9));
    change(&daemon, "disk", 0, &bytes[..5000]);
    here.ok(["volume", "snapshot", "disk", "disk@2"]);
    let difference = stream(&here, ["volume", "send", "disk@2", "--from", "mark"]);
    assert!(difference.len() < 100_000, "{}", difference.len());
    received(&there, "copy@2", &difference);
    assert!(content(&there, "copy@2") == bytes);
    // It has no contents.
    for refused in [
        &["volume", "clone", "mark", "c"][..],
        &["volume", "export", "mark", "-"],
        &["volume", "send", "mark"],
        &["volume", "diff", "mark", "disk"],
        &["volume", "rollback", "disk", "mark"],
        &["volume", "bookmark", "mark", "m"],
        &["attach", "mark", "--read-only"],
    ] {
        here.fails(refused, 1, "mark is a bookmark, which has no contents");
    }
    daemon.stop();
    here.ok(["volume", "rm", "mark"]);
    here.expect_sound();
    there.expect_sound();
}

#[test]
fn a_held_volume_stays_until_it_is_released() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    bench.ok(["volume", "hold", "disk", "backup"]);
    bench.ok(["volume", "hold", "disk", "audit"]);
    bench.fails(["volume", "rm", "disk"], 1, "disk is held by audit, backup");
    let shown = bench.json(["volume", "show", "disk"]);
    assert_eq!(shown["holds"], serde_json::json!(["audit", "backup"]));
    bench.ok(["volume", "release", "disk", "audit"]);
    bench.fails(["volume", "rm", "disk"], 1, "held by backup");
    bench.fails(
        ["volume", "release", "disk", "audit"],
        1,
        "it is not held by audit; it is held by backup",
    );
    bench.fails(["volume", "hold", "disk", "two words"], 1, "a name is");
    bench.fails(
        ["volume", "hold", "nobody", "backup"],
        1,
        "there is no volume nobody",
    );
    bench.ok(["volume", "release", "disk", "backup"]);
    bench.ok(["volume", "rm", "disk"]);
    bench.expect_sound();
}

#[test]
fn bad_streams_are_refused_in_one_line_and_leave_nothing() {
    let (here, there) = (Bench::with_pool("128M"), Bench::with_pool("64M"));
    import(&here, "disk", &noise(2 * MIB, 1));
    here.ok(["volume", "snapshot", "disk", "disk@1"]);
    here.ok(["volume", "resize", "disk", "--size", "3M"]);
    here.ok(["volume", "snapshot", "disk", "disk@2"]);
    let whole = stream(&here, ["volume", "send", "disk@1"]);
    let difference = stream(&here, ["volume", "send", "disk@2", "--from", "disk@1"]);
    refused(&there, "copy", b"", "it was cut off");
    refused(
        &there,
        "copy",
        b"\x7fELF\x02\x01\x01\0",
        "not a cowshed stream",
    );
    let mut newer = whole.clone();
    newer[8] = 2;
    refused(&there, "copy", &newer, "version 2");
    refused(&there, "copy", &difference, "receive disk@1 first");
    let mut altered = whole.clone();
    altered[100_000] ^= 1;
    refused(&there, "copy", &altered, "was altered");
    refused(&there, "no space", &whole, "a name is");
    refused(&there, "layer/x", &whole, "cowshed image");
    assert!(there.volumes().is_empty());

    import(&here, "big", &noise(100 * MIB, 2));
    here.ok(["volume", "snapshot", "big", "big@1"]);
    let big = stream(&here, ["volume", "send", "big@1"]);
    refused(&there, "copy", &big, "of free space; remove something");
    there.ok(["volume", "create", "copy", "--size", "1M"]);
    refused(&there, "copy", &whole, "copy already exists");
    here.fails(["volume", "send", "disk"], 1, "not a snapshot");
    here.fails(
        ["volume", "send", "disk@1", "--from", "disk"],
        1,
        "neither a snapshot",
    );
    let output = here.run(["volume", "send", "disk@1", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    // What came of a stream can be given up.
    let mut partly = whole;
    partly.truncate(MIB + MIB / 2);
    refused(&there, "part", &partly, "what came is kept");
    there.ok(["volume", "receive", "part", "--discard"]);
    assert_eq!(there.volumes(), ["copy"]);
    there.expect_sound();
}
