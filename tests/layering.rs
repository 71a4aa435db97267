//! The rules of the source that no compiler checks: which crate, and which module of the engine and
//! of the host, may use which others, where `unsafe` may stand, how each file begins and how long it may be.
//!
//! A crate cannot use what its manifest does not name, so the test reads the manifests. A module of
//! a crate can use every other module, so the test searches the modules of these two for paths that
//! lead upwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each crate under `src` and the crates of ours that it uses, from the lowest layer up.
const CRATES: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("format", &["sys"]),
    ("engine", &["format"]),
    ("check", &["format"]),
    ("export", &["engine", "format", "sys"]),
    ("stream", &["engine", "format"]),
    // Layers come from outside: every path is resolved beneath the root by a system call.
    ("oci", &["format", "sys"]),
    // No pool and no trees: blobs are files in a folder.
    ("registry", &["format", "oci", "sys"]),
    // No pool and no layers: file systems are read from any source of blocks.
    ("ext4diff", &["format", "sys"]),
    (
        "host",
        &[
            "engine", "export", "ext4diff", "format", "oci", "stream", "sys",
        ],
    ),
    (
        "daemon",
        &["engine", "export", "format", "host", "oci", "stream", "sys"],
    ),
];

/// Each module of the engine and those that it uses.
const ENGINE: &[(&str, &[&str])] = &[
    ("space", &[]),
    ("log", &[]),
    ("map", &["space"]),
    ("pool", &["space", "log", "map"]),
];

/// Each module of the host and those that it uses. `layers` is what images, containers and roots
/// share.
const HOST: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("time", &[]),
    ("record", &["error"]),
    ("mounts", &["error"]),
    ("layers", &["error", "mounts"]),
    ("images", &["error", "time", "record", "mounts", "layers"]),
    (
        "containers",
        &["error", "time", "record", "mounts", "layers", "images"],
    ),
    // Neither knows images and containers.
    ("roots", &["error", "mounts", "layers"]),
    ("data", &["error", "mounts"]),
    (
        "host",
        &[
            "error",
            "mounts",
            "layers",
            "images",
            "containers",
            "roots",
            "data",
        ],
    ),
    (
        "transfer",
        &["error", "record", "mounts", "containers", "host"],
    ),
];

/// Crates that must never be among the engine's dependencies, at any depth.
const NOT_IN_THE_ENGINE: &[&str] = &["clap", "hyper", "serde", "tokio", "tonic"];

/// Crates that must never be among the daemon's dependencies, at any depth: what it is asked to do
/// has types of its own, what it does is printed by the command line, and it has no network.
const NOT_IN_THE_DAEMON: &[&str] = &["clap", "comfy-table", "indicatif", "reqwest", "rustls"];

/// The maximum number of lines of a file.
const LINES_MAX: usize = 600;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn each_crate_uses_only_those_below_it() {
    let mut found: Vec<String> = fs::read_dir(src())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // The command line, which is the package at the top, uses what it likes; and so do tests.
        .filter(|name| name != "cowshed" && name != "testkit")
        .collect();
    found.sort();
    let mut known: Vec<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known, "the crates under src");
    for (name, uses) in CRATES {
        let manifest = src().join(name).join("Cargo.toml");
        let text = fs::read_to_string(manifest).unwrap();
        assert_eq!(our_dependencies(&text), *uses, "what {name} uses");
    }
}

/// Returns the crates of ours that a manifest names under `[dependencies]`, sorted.
fn our_dependencies(manifest: &str) -> Vec<&str> {
    let (_, rest) = manifest.split_once("[dependencies]\n").unwrap();
    let mut found: Vec<&str> = rest
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.strip_prefix("cowshed-"))
        .map(|line| line.split(['.', ' ']).next().unwrap())
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn the_engine_needs_no_runtime_no_protocol_and_no_serialiser() {
    refuse_dependencies("cowshed-engine", "cowshed-format", NOT_IN_THE_ENGINE);
}

#[test]
fn the_daemon_knows_no_command_line() {
    refuse_dependencies("cowshed-daemon", "cowshed-host", NOT_IN_THE_DAEMON);
}

/// Fails if one of `refused` is among the dependencies of `package`, or `expected` is not.
fn refuse_dependencies(package: &str, expected: &str, refused: &[&str]) {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", package])
        .args(["--edges", "normal", "--prefix", "none"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(names.contains(&expected), "{tree}");
    for name in refused {
        assert!(!names.contains(name), "{name} is in\n{tree}");
    }
}

#[test]
fn each_module_of_the_engine_uses_only_those_below_it() {
    let faults = upward_paths(&src().join("engine/src"), ENGINE);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert_eq!(
        modules_used(
            "// crate::pool\nuse crate::log::Log;\nfn f() { crate::map::g() }\n\
             use super::super::pool::Pool;\nuse super::read::Reader;\n",
            ENGINE
        ),
        ["log", "map", "pool"]
    );
}

#[test]
fn each_module_of_the_host_uses_only_those_below_it() {
    let host = src().join("host/src");
    let mut found: Vec<String> = fs::read_dir(&host)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.trim_end_matches(".rs").to_owned())
        .filter(|name| name != "lib")
        .collect();
    found.sort();
    let mut known: Vec<&str> = HOST.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known, "the modules of the host");
    let faults = upward_paths(&host, HOST);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    // A table that allows nothing finds something in every module that uses another.
    let none: Vec<(&str, &[&str])> = HOST.iter().map(|(name, _)| (*name, &[][..])).collect();
    assert!(upward_paths(&host, &none).len() > HOST.len());
}

/// Returns a line for each use of a module that the table does not allow.
fn upward_paths(crate_src: &Path, table: &[(&str, &[&str])]) -> Vec<String> {
    let mut faults = Vec::new();
    for (module, uses) in table {
        let file = crate_src.join(format!("{module}.rs"));
        let files = if file.exists() {
            vec![file]
        } else {
            source_files(&crate_src.join(module))
        };
        // The tests of what a container changed need the whole host.
        let host_tests = crate_src.join("containers/diff/tests");
        for file in files.iter().filter(|file| !file.starts_with(&host_tests)) {
            let text = fs::read_to_string(file).unwrap();
            for used in modules_used(&text, table) {
                if used != *module && !uses.contains(&used) {
                    faults.push(format!("{}: uses {used}", file.display()));
                }
            }
        }
    }
    faults
}

/// Returns the names after `crate::` outside of comments.
fn modules_used<'t>(text: &'t str, table: &[(&str, &[&str])]) -> Vec<&'t str> {
    let mut used = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        used.extend(line.split("crate::").skip(1).map(first_word));
        // No file names a module of its own folder that has one of these names in this way.
        let above = line.split("super::").skip(1).map(first_word);
        used.extend(above.filter(|word| table.iter().any(|(name, _)| name == word)));
    }
    used
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn each_file_says_what_it_is_is_not_too_long_and_holds_unsafe_code_only_in_sys() {
    let files = source_files(&src());
    assert!(files.len() > 100, "only {} files", files.len());
    let mut faults = Vec::new();
    for file in files {
        let inside = file.strip_prefix(src()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for fault in faults_of(inside, &text) {
            faults.push(format!("src/{}: {fault}", inside.display()));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn faults_of(inside: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    // The tests of a module are described by the module.
    if !inside.ends_with("tests.rs") && !text.starts_with("//!") {
        faults.push("does not start with //! and what it is".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{lines} lines; split it by verb"));
    }
    // The lint denies it where it is not allowed.
    if !inside.starts_with("sys") && text.contains("allow(unsafe_code") {
        faults.push("unsafe code outside of src/sys".to_owned());
    }
    faults
}

#[test]
fn planted_faults_are_found() {
    let engine = Path::new("engine/src/pool/mod.rs");
    for (text, wanted) in [
        ("use std::fs;\n".to_owned(), "//!"),
        ("//! x\n#![allow(unsafe_code)]\n".to_owned(), "unsafe"),
        (format!("//! x\n{}", "\n".repeat(LINES_MAX)), "lines"),
    ] {
        let found = faults_of(engine, &text).join("\n");
        assert!(found.contains(wanted), "{text:?} gave {found:?}");
    }
    let sys = Path::new("sys/src/mount.rs");
    assert!(faults_of(sys, "//! x\n#![allow(unsafe_code)]\n").is_empty());
}

/// Returns all `.rs` files below `folder`, sorted.
fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
