//! The examples, as a newcomer runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

fn run(example: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--example", example])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{example}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_snapshot_and_what_changed_since() {
    let said = run("snapshot_and_diff");
    assert_eq!(
        said,
        "changed: 4096 bytes from 524288\nchanged: 4096 bytes from 5368709120\n"
    );
}

#[test]
fn a_volume_of_ones_own_as_a_file() {
    assert!(run("serve_volume").ends_with("/numbers\n"));
}
