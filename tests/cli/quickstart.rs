//! The quickstart does what it reports, and leaves nothing behind.

use crate::harness::{Bench, Reaped, expect_failure, loops_below, mounts_below, program};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

fn quickstart(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("quickstart")
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("COWSHED_POOL");
    command
}

fn expect_nothing_left(bench: &Bench) {
    let folder = bench.path("");
    assert!(mounts_below(&folder).is_empty(), "mounts were left");
    assert!(loops_below(&folder).is_empty(), "loop devices were left");
}

#[test]
fn it_shows_everything_and_removes_it_again() {
    let bench = Bench::empty();
    let output = quickstart(&[])
        .env("TMPDIR", bench.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for step in [
        "Imported",
        "five containers",
        "one byte",
        "A /quickstart.txt",
        "A FULL COPY",
        "nothing wrong",
    ] {
        assert!(text.contains(step), "{step:?} is not in:\n{text}");
    }
    expect_nothing_left(&bench);
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 0);
}

#[test]
fn a_container_costs_little_and_a_byte_less_than_its_file() {
    let bench = Bench::empty();
    let dir = bench.path("here");
    let output = quickstart(&["--json", "-q", "--dir", dir.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let containers = report["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 5);
    for container in &containers[1..] {
        assert!(
            container["own_bytes"].as_u64().unwrap() < 100 << 10,
            "{container}"
        );
    }
    let (cost, file) = (&report["change_bytes"], &report["changed_file_bytes"]);
    assert!(
        cost.as_u64().unwrap() * 10 < file.as_u64().unwrap(),
        "{report}"
    );
    assert!(!dir.exists());
    expect_nothing_left(&bench);
}

#[test]
fn what_is_kept_can_be_used() {
    let bench = Bench::empty();
    let dir = bench.path("kept");
    let output = quickstart(&["--keep", "--dir", dir.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("COWSHED_POOL="));
    expect_nothing_left(&bench);
    fs::rename(dir.join("pool"), bench.pool()).unwrap();
    assert_eq!(bench.json(["container", "ls"]).as_array().unwrap().len(), 5);
    let diff = bench.ok(["container", "diff", "one"]);
    assert!(diff.contains("A /quickstart.txt"), "{diff}");
    bench.expect_sound();
}

#[test]
fn a_folder_with_something_in_it_is_not_touched() {
    let bench = Bench::empty();
    fs::write(bench.path("mine"), b"mine").unwrap();
    let output = quickstart(&["--dir", bench.path("").to_str().unwrap()])
        .output()
        .unwrap();
    expect_failure(&output, 1, "not empty");
    assert_eq!(fs::read(bench.path("mine")).unwrap(), b"mine");
}

#[test]
fn an_interrupt_anywhere_leaves_nothing() {
    for after_ms in [300, 900, 1500, 2500] {
        let bench = Bench::empty();
        let mut command = quickstart(&[]);
        let command = command
            .env("TMPDIR", bench.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = Reaped(command.spawn().unwrap());
        std::thread::sleep(Duration::from_millis(after_ms));
        crate::harness::host("kill", ["-INT", &child.0.id().to_string()]);
        let status = child.0.wait().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        expect_nothing_left(&bench);
        assert_eq!(
            fs::read_dir(bench.path("")).unwrap().count(),
            0,
            "after {after_ms} ms"
        );
    }
}
