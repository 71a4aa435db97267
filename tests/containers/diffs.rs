//! The changes of containers, and images made of them.

use crate::stage::{Stage, shell, small_image};
use crate::trees;
use cowshed_format::base::Name;
use cowshed_host::{Comparison, CreateContainer, Error};
use cowshed_oci::Compression;
use std::fs::{self, File};
use std::io::Write;

fn prepared() -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    stage
}

fn diff(stage: &Stage, container: &str) -> Vec<String> {
    let changes = stage.host.containers().diff(container).unwrap();
    changes
        .iter()
        .map(|change| format!("{} {}", change.kind, change.path.display()))
        .collect()
}

const CHANGES: &str = "echo new > etc/new; echo two > etc/passwd; rm -r var/lib/data
    mkdir -p srv/deep; echo x > srv/deep/x; ln srv/deep/x srv/y; rm bin/sh; mkdir bin/sh
    ln etc/one etc/one-third; chmod 700 tmp; mkfifo tmp/fifo; truncate -s 8M srv/sparse";

const LISTED: [&str; 19] = [
    "C /bin",
    "C /bin/sh",
    "C /etc",
    "A /etc/new",
    "C /etc/one",
    "C /etc/one-again",
    "A /etc/one-third",
    "C /etc/passwd",
    "A /srv",
    "A /srv/deep",
    "A /srv/deep/x",
    "A /srv/sparse",
    "A /srv/y",
    "C /tmp",
    "A /tmp/fifo",
    "C /var",
    "C /var/lib",
    "D /var/lib/data",
    "",
];

fn listed() -> Vec<String> {
    LISTED
        .iter()
        .filter(|line| !line.is_empty())
        .map(|line| (*line).to_owned())
        .collect()
}

#[test]
fn a_new_container_has_no_changes_mounted_or_not() {
    let stage = prepared();
    stage
        .host
        .containers()
        .create(
            "small:1",
            &CreateContainer {
                name: Some(Name::new("one").unwrap()),
                ..Default::default()
            },
        )
        .unwrap();
    assert!(diff(&stage, "one").is_empty());
    stage.host.containers().mount("one", None).unwrap();
    assert!(diff(&stage, "one").is_empty());
    stage.host.containers().unmount("one").unwrap();
    assert!(diff(&stage, "one").is_empty());
}

#[test]
fn changes_of_a_running_container_are_listed_as_docker_lists_them() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    let volumes = stage.volumes();
    shell(&root, CHANGES);
    assert_eq!(diff(&stage, "one"), listed());
    stage.host.layers().set_comparison(Comparison::Trees);
    assert_eq!(diff(&stage, "one"), listed());
    stage.host.layers().set_comparison(Comparison::Blocks);
    // With a file that is open and deleted, the copy must be settled first.
    let mut open = File::create(root.join("deleted")).unwrap();
    open.write_all(&[1; 100_000]).unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    assert_eq!(diff(&stage, "one"), listed());
    open.write_all(b"the container goes on").unwrap();
    drop(open);
    stage.host.containers().unmount("one").unwrap();
    assert_eq!(diff(&stage, "one"), listed());
    assert_eq!(stage.volumes(), volumes, "nothing is left in work");
    stage.check_file_systems();
}

#[test]
fn changes_of_a_grown_container_are_listed() {
    let stage = prepared();
    let options = CreateContainer {
        name: Some(Name::new("one").unwrap()),
        size_bytes: Some(40 << 30),
        ..Default::default()
    };
    stage.host.containers().create("small:1", &options).unwrap();
    assert!(diff(&stage, "one").is_empty());
    let root = stage.host.containers().mount("one", None).unwrap().path;
    shell(&root, CHANGES);
    assert_eq!(diff(&stage, "one"), listed());
}

#[test]
fn a_committed_container_is_an_image_that_imports_elsewhere_identically() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    shell(&root, CHANGES);
    let open = File::create(root.join("deleted")).unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    let name = Name::new("committed:1").unwrap();
    let committed = stage
        .host
        .containers()
        .commit("one", &name, Some("a test"))
        .unwrap();
    assert_eq!(committed.layers.len(), 3);
    assert_eq!(
        committed
            .layers
            .iter()
            .map(|layer| layer.reused)
            .collect::<Vec<_>>(),
        [true, true, false]
    );
    drop(open);
    let two = stage.container("committed:1", "two");
    trees::assert_same(&two, &root);
    assert!(diff(&stage, "two").is_empty());
    assert_eq!(
        diff(&stage, "one"),
        listed(),
        "it is still compared with its own image"
    );
    let steps = stage.host.images().history("committed:1").unwrap();
    assert_eq!(steps[0].created_by.as_deref(), Some("a test"));
    assert_eq!(steps.len(), 3);
    let path = stage.folder("out").join("committed.tar");
    let file = File::create(&path).unwrap();
    let (_, exported) = stage
        .host
        .images()
        .export("committed:1", Compression::Zstd, file)
        .unwrap();
    // The committed layer is reproduced byte by byte, whatever happened to those below.
    assert_eq!(
        exported.layers[2].diff_id,
        exported.layers[2].original_diff_id
    );
    let other = Stage::new();
    other.import(&path, "committed:1");
    trees::assert_same(&other.container("committed:1", "there"), &root);
    for name in ["one", "two"] {
        stage.host.containers().remove(name).unwrap();
    }
    stage.host.images().remove("small:1").unwrap();
    trees::assert_same(
        &stage.container("committed:1", "three"),
        &other.host.containers().mount("there", None).unwrap().path,
    );
    stage.host.containers().unmount("three").unwrap();
    stage.check_file_systems();
    assert!(!stage.volumes().iter().any(|name| name.starts_with("work/")));
}

#[test]
fn a_name_that_a_layer_cannot_hold_is_refused_and_nothing_is_left() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    fs::write(root.join("etc/.wh.odd"), "x").unwrap();
    let volumes = stage.volumes();
    let name = Name::new("odd:1").unwrap();
    let refused = stage.host.containers().commit("one", &name, None);
    assert!(matches!(refused, Err(Error::Oci(_))), "{refused:?}");
    assert_eq!(stage.volumes(), volumes);
    assert!(stage.host.images().inspect("odd:1").is_err());
}

#[test]
fn a_diff_reads_only_what_changed() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    fs::write(root.join("large"), vec![5; 256 << 20]).unwrap();
    let name = Name::new("large:1").unwrap();
    stage.host.containers().commit("one", &name, None).unwrap();
    let two = stage.container("large:1", "two");
    fs::write(two.join("etc/one"), "changed").unwrap();
    let before = read_bytes();
    assert_eq!(
        diff(&stage, "two"),
        ["C /etc", "C /etc/one", "C /etc/one-again"]
    );
    let read = read_bytes() - before;
    assert!(read < 64 << 20, "{read} bytes were read");
}

/// Returns the number of bytes that this process has read with system calls.
fn read_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .unwrap();
    line.parse().unwrap()
}
