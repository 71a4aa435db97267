//! Names and texts from outside on the terminal: none moves its cursor, none forges a line.

use crate::harness::{Bench, host};
use serde_json::{Value, json};
use std::fs;

/// A file name that, printed raw, would clear the screen and add a line to a list.
const EVIL: &str = "x\nD /etc/passwd\u{1b}[2J\u{202e}";
const SHOWN: &str = "x\\nD /etc/passwd\\u{1b}[2J\\u{202e}";

/// Creates a pool with the image `image:1` and the container `c` of it.
fn prepared() -> Bench {
    let bench = Bench::with_pool("256M");
    fs::create_dir_all(bench.path("root/etc")).unwrap();
    fs::write(bench.path("root/etc/passwd"), "x").unwrap();
    let root = bench.path("root");
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "image:1",
    ]);
    bench.ok(["container", "create", "image:1", "--name", "c"]);
    bench
}

fn is_plain(text: &str) -> bool {
    !text.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}')
}

#[test]
fn a_diff_shows_each_name_on_one_line_and_json_has_it_exactly() {
    let bench = prepared();
    let folder = bench.path("folder");
    fs::create_dir_all(&folder).unwrap();
    // The name's slash cannot be part of a file name.
    let name = EVIL.replace('/', "-");
    fs::write(folder.join(&name), "x").unwrap();
    let from = folder.join(&name);
    bench.ok(["container", "cp", from.to_str().unwrap(), "c:/"]);
    let text = bench.ok(["container", "diff", "c"]);
    assert!(is_plain(&text), "{text:?}");
    let line = format!("A /{}", SHOWN.replace("/etc/", "-etc-"));
    assert!(text.lines().any(|found| found == line), "{text:?}");
    let changes = bench.json(["container", "diff", "c"]);
    let wanted = format!("/{name}");
    let has = |change: &Value| change["path"] == wanted.as_str();
    assert!(changes.as_array().unwrap().iter().any(has), "{changes}");
}

#[test]
fn an_error_that_names_a_file_is_one_plain_line() {
    let bench = prepared();
    let missing = format!("c:/{EVIL}");
    let output = bench.run(["container", "cp", &missing, "/tmp"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && is_plain(&text), "{text:?}");
    assert_eq!(text.lines().count(), 1, "{text:?}");
}

#[test]
fn what_an_image_says_of_itself_stays_in_its_cell() {
    let bench = prepared();
    let folder = bench.path("archive");
    fs::create_dir_all(&folder).unwrap();
    let place = folder.to_str().unwrap();
    let root = bench.path("root");
    let layer = format!("{place}/layer.tar");
    host("tar", ["-cf", &layer, "-C", root.to_str().unwrap(), "."]);
    let digest = host("sha256sum", [&layer]);
    let diff_id = format!("sha256:{}", &digest[..64]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": EVIL, "comment": EVIL}],
    });
    let manifest = json!([
        {"Config": "config.json", "RepoTags": ["evil:1"], "Layers": ["layer.tar"]}
    ]);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = bench.path("evil.tar");
    let archive = archive.to_str().unwrap();
    host(
        "tar",
        [
            "-cf",
            archive,
            "-C",
            place,
            "config.json",
            "manifest.json",
            "layer.tar",
        ],
    );
    bench.ok(["image", "import", archive]);
    let text = bench.ok(["image", "history", "evil:1"]);
    assert!(is_plain(&text), "{text:?}");
    assert!(text.contains(SHOWN), "{text:?}");
    assert!(
        !text.lines().any(|line| line.starts_with("D /etc")),
        "{text:?}"
    );
    let steps = bench.json(["image", "history", "evil:1"]);
    assert_eq!(steps[0]["created_by"], EVIL, "{steps}");
}
