//! `cowshed container cp` on the command line: pipes, options, and the meaning of a path's end.

use crate::harness::{Bench, expect_failure, host};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::Stdio;

fn prepared() -> Bench {
    let bench = Bench::with_pool("512M");
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc/d")).unwrap();
    fs::write(root.join("etc/d/f"), "inside\n").unwrap();
    std::os::unix::fs::symlink("d/f", root.join("etc/link")).unwrap();
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    bench.ok(["container", "create", "mine:1", "--name", "c"]);
    bench
}

#[test]
fn a_dash_is_a_tar_archive_on_the_standard_output_or_input() {
    let bench = prepared();
    let copied = bench.run(["container", "cp", "c:/etc/d", "-"]);
    assert!(copied.status.success(), "{copied:?}");
    fs::write(bench.path("out.tar"), &copied.stdout).unwrap();
    let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    assert_eq!(host("tar", ["-tf", &path("out.tar")]), "d/\nd/f\n");

    fs::write(bench.path("new"), "new\n").unwrap();
    host("tar", ["-czf", &path("in.tar"), "-C", &path(""), "new"]);
    let mut command = bench.command(["container", "cp", "-q", "-", "c:/etc/d"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(&fs::read(bench.path("in.tar")).unwrap())
        .unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    bench.ok(["container", "cp", "c:/etc/d/new", &path("back")]);
    assert_eq!(fs::read_to_string(bench.path("back")).unwrap(), "new\n");

    let json = bench.run(["--json", "container", "cp", "c:/etc/d", "-"]);
    let failure: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(json.status.code(), Some(2), "{json:?}");
    assert!(
        failure["error"]
            .as_str()
            .unwrap()
            .contains("standard output")
    );
    let both = bench.run(["container", "cp", "-", "-"]);
    expect_failure(&both, 1, "exactly one side");
    let file = bench.run(["container", "cp", "-", "c:/etc/d/f"]);
    expect_failure(&file, 1, "not a directory");
    bench.expect_sound();
}

#[test]
fn the_options_of_docker_are_known_and_a_dot_means_the_contents() {
    let bench = prepared();
    let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    bench.ok(["container", "cp", "-a", "c:/etc/link", &path("as-link")]);
    assert!(
        fs::symlink_metadata(bench.path("as-link"))
            .unwrap()
            .is_symlink()
    );
    bench.ok(["container", "cp", "-aL", "c:/etc/link", &path("as-file")]);
    assert_eq!(
        fs::read_to_string(bench.path("as-file")).unwrap(),
        "inside\n"
    );
    fs::create_dir(bench.path("site")).unwrap();
    fs::write(bench.path("site/page"), "page\n").unwrap();
    bench.ok(["container", "cp", &path("site/."), "c:/etc/d"]);
    bench.ok(["container", "cp", &path("site"), "c:/etc/d"]);
    for there in ["c:/etc/d/page", "c:/etc/d/site/page"] {
        bench.ok(["container", "cp", there, &path("page")]);
        assert_eq!(fs::read_to_string(bench.path("page")).unwrap(), "page\n");
    }
}

#[test]
fn a_device_of_the_host_is_not_replaced_by_a_file() {
    let bench = prepared();
    let null = bench.path("null");
    host("mknod", [null.to_str().unwrap(), "c", "1", "3"]);
    let refused = bench.run(["container", "cp", "c:/etc/d/f", null.to_str().unwrap()]);
    expect_failure(&refused, 1, "a device");
    use std::os::unix::fs::FileTypeExt;
    assert!(fs::metadata(&null).unwrap().file_type().is_char_device());
}
