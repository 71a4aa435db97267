//! `cowshed doctor`: what it says of this host, and that it changes nothing.

use crate::harness::Bench;
use serde_json::Value;
use std::fs;

/// The checks, in their order; those of files are there where a file can be made.
const CHECKS: [&str; 19] = [
    "kernel",
    "rights",
    "fuse",
    "fuse-io-uring",
    "io-uring",
    "loop-devices",
    "ublk",
    "open-files",
    "mounts",
    "control-groups",
    "programs",
    "file-system",
    "free-space",
    "holes",
    "direct-io",
    "reflinks",
    "pool",
    "daemon",
    "systemd",
];

fn report(bench: &Bench) -> Vec<Value> {
    let output = bench.command(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = report.as_array().unwrap().clone();
    let fails = report.iter().any(|check| check["state"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{output:?}");
    for check in &report {
        let remedy = check["remedy"].as_str();
        assert_eq!(check["state"] == "ok", remedy.is_none(), "{check}");
        assert!(!check["detail"].as_str().unwrap().is_empty(), "{check}");
    }
    report
}

fn find<'r>(report: &'r [Value], name: &str) -> &'r Value {
    let found = report.iter().find(|check| check["check"] == name);
    found.unwrap_or_else(|| panic!("there is no {name} in {report:?}"))
}

#[test]
fn each_check_has_a_state_and_what_is_not_well_a_remedy() {
    let bench = Bench::with_pool("64M");
    let report = report(&bench);
    let names: Vec<&str> = report
        .iter()
        .filter_map(|it| it["check"].as_str())
        .collect();
    assert_eq!(names[..CHECKS.len()], CHECKS);
    assert_eq!(names[CHECKS.len()..], ["containerd", "docker"]);
    assert_eq!(find(&report, "pool")["state"], "ok");
    assert_eq!(find(&report, "daemon")["state"], "warn");
    let text = bench.run(["doctor"]);
    let text = String::from_utf8(text.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.contains("  kernel  "), "{text}");
}

#[test]
fn a_missing_pool_a_wrong_one_and_a_damaged_one_are_told_apart() {
    let bench = Bench::empty();
    let missing = report(&bench);
    let missing = find(&missing, "pool");
    assert_eq!(missing["state"], "warn");
    assert!(missing["remedy"].as_str().unwrap().contains("pool create"));
    fs::write(bench.pool(), vec![7; 1 << 20]).unwrap();
    let wrong = report(&bench);
    assert_eq!(find(&wrong, "pool")["state"], "fail");
    assert!(wrong.iter().any(|check| check["state"] == "fail"));
}

#[test]
fn nothing_is_written_to_a_pool_or_left_beside_it() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    let before = fs::read(bench.pool()).unwrap();
    report(&bench);
    assert!(fs::read(bench.pool()).unwrap() == before);
    let names: Vec<_> = fs::read_dir(bench.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["pool"]);
}

#[test]
fn a_daemon_is_asked_for_its_pool() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    let report = report(&bench);
    assert_eq!(find(&report, "daemon")["state"], "ok");
    let pool = find(&report, "pool");
    assert!(pool["detail"].as_str().unwrap().contains("open"), "{pool}");
    daemon.stop();
}
