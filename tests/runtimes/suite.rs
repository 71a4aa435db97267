//! containerd's own tests of snapshotters, run by Debian's Go over our socket.

use crate::fixtures::output;
use crate::harness::program;
use crate::packages::Release;
use crate::world::Setting;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Number of tests in the suite of containerd 1.6; the suite itself skips one of them.
const TESTS: usize = 21;
const LEFT_OUT: &str = "Rename";

/// Runs each test with its own daemon and a new pool.
pub(crate) fn passes(setting: &Setting) {
    let suite = compiled();
    let answer = Command::new(&suite)
        .args(["-test.v", "-test.timeout", "5m"])
        .current_dir(&setting.folder)
        .env("COWSHED", program())
        .env("COWSHED_SNAPSHOT_MOUNTS", setting.mounts.word())
        .env("TMPDIR", &setting.folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&answer.stdout);
    let errors = String::from_utf8_lossy(&answer.stderr);
    let verdicts = |word: &str| -> Vec<&str> {
        let lines = said.lines().map(str::trim_start);
        let named = lines.filter_map(|line| line.strip_prefix(word)?.strip_prefix(": "));
        let names = named.filter_map(|name| name.split_once('/'));
        names
            .map(|(_, test)| test.split(' ').next().unwrap())
            .collect()
    };
    let (passed, failed, skipped) = (
        verdicts("--- PASS"),
        verdicts("--- FAIL"),
        verdicts("--- SKIP"),
    );
    println!(
        "{} passed, {failed:?} failed, {skipped:?} left out by the suite",
        passed.len()
    );
    assert!(
        answer.status.success() && failed.is_empty(),
        "{said}\n{errors}"
    );
    assert!(skipped.iter().all(|name| *name == LEFT_OUT), "{skipped:?}");
    assert_eq!(passed.len() + skipped.len(), TESTS, "{said}");
}

/// Returns the suite's program, built once for each version of the packages.
fn compiled() -> std::path::PathBuf {
    let root = Release::Bookworm.root();
    let cache = crate::fixtures::cache();
    let program = cache.join("snapshotter-suite");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/snapshotter-suite");
    fs::create_dir_all(&cache).unwrap();
    output(
        Command::new(root.join("usr/lib/go-1.19/bin/go"))
            .args(["test", "-c", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(source)
            .env("GOROOT", root.join("usr/lib/go-1.19"))
            .env("GOPATH", root.join("usr/share/gocode"))
            .env("GOCACHE", cache.join("go"))
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            // A bare machine has no C compiler that Go could use.
            .env("CGO_ENABLED", "0"),
    );
    program
}
