//! The main features on real images: import, mount, compare byte by byte with the tree that GNU tar
//! makes of the same layers, change, diff, commit, and check the resulting pool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_testkit::fixtures;

use fixtures::service::Service;
use fixtures::{busybox, debian, listing, reference};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Returns the tree of the image's layers as GNU tar applies them.
fn reference_root(layers: &[PathBuf], folder: &Path) -> listing::Listing {
    let root = folder.join("reference");
    fs::create_dir(&root).unwrap();
    reference::apply(layers, &root);
    listing::of(&root)
}

#[test]
fn the_reference_itself_is_what_the_layers_mean() {
    let image = busybox::image();
    let folder = tempfile::tempdir().unwrap();
    let root = reference_root(&image.layers, folder.path());
    let there = |path: &str| root.contains_key(Path::new(path));
    for gone in [
        "var/keep/b",
        "var/doomed/x",
        "var/opaque/old",
        "var/opaque/sub",
    ] {
        assert!(!there(gone), "{gone}");
    }
    for kept in [
        "var/keep/a",
        "var/doomed/again",
        "var/opaque/new",
        "changes/from-file/now",
    ] {
        assert!(there(kept), "{kept}");
    }
    assert!(!there("changes/other-name") && there("changes/linked"));
    let of = |path: &str| &root[Path::new(path)];
    assert_eq!(of("sbin/init").first_name, Path::new("bin/busybox"));
    assert_eq!(of("home/huge-owner").owner, (4_294_967_290, 3_000_000));
    assert!(matches!(
        of("var/sparse").kind,
        listing::Kind::File { sparse: true, .. }
    ));
    assert!(
        of("usr/bin/ping")
            .attributes
            .contains_key("security.capability")
    );
    assert_eq!(of("srv/attributes").attributes.len(), 3);
    assert_eq!(of("usr/bin/su").mode, 0o4750);
    assert!(image.oci.is_dir() && image.oci_tar.is_file() && image.docker.is_file());
}

#[test]
fn a_listing_sees_every_kind_of_difference() {
    let image = busybox::image();
    let folder = tempfile::tempdir().unwrap();
    let wanted = reference_root(&image.layers, folder.path());
    let root = folder.path().join("reference");
    for (change, path) in [
        ("chmod 600 etc/passwd", "etc/passwd"),
        ("chown 5:6 var/keep/a", "var/keep/a"),
        ("touch var/empty", "var/empty"),
        ("setfattr -n user.x -v y var/opaque/new", "var/opaque/new"),
        (
            "setfattr -x security.capability usr/bin/ping",
            "usr/bin/ping",
        ),
        ("cp --remove-destination -p bin/ls sbin/init", "sbin/init"),
        (
            "printf X | dd status=none conv=notrunc bs=1 seek=20971525 of=var/sparse",
            "var/sparse",
        ),
        ("rm dev/null", "dev/null"),
        ("mkdir stray", "stray"),
    ] {
        let mut shell = std::process::Command::new("sh");
        fixtures::output(shell.args(["-c", change]).current_dir(&root));
        let said = listing::differences(&listing::of(&root), &wanted).join("\n");
        assert!(said.contains(path), "{change} was not seen: {said}");
    }
}

/// Imports the image in one of its forms; returns its layers.
fn import(service: &Service, source: &Path, name: &str) -> Vec<serde_json::Value> {
    let answer = service.json(["image", "import", source.to_str().unwrap(), "--name", name]);
    answer["layers"].as_array().expect("layers").clone()
}

fn assert_root(service: &Service, container: &str, wanted: &listing::Listing) {
    let root = service.mount(container);
    listing::assert_same(&listing::of(&root), wanted, container);
    service.cowshed(["container", "unmount", container]);
}

#[test]
fn a_busybox_image_becomes_the_root_that_tar_makes() {
    let image = busybox::image();
    let folder = tempfile::tempdir().unwrap();
    let wanted = reference_root(&image.layers, folder.path());
    let mut service = Service::open("2G");
    let layers = import(&service, &image.oci, "first:1");
    assert_eq!(layers.len(), image.layers.len());
    assert!(
        layers.iter().all(|layer| layer["reused"] == false),
        "{layers:?}"
    );
    for container in ["one", "two"] {
        service.cowshed(["container", "create", "first:1", "--name", container]);
        assert_root(&service, container, &wanted);
    }
    service.check_file_systems();
    service.check_pool();
}

#[test]
fn layers_that_are_there_already_are_not_applied_again_whatever_brings_them() {
    let image = busybox::image();
    let mut service = Service::open("2G");
    import(&service, &image.docker, "docker:1");
    let used = |service: &Service| {
        service.cowshed(["pool", "checkpoint"]);
        service.json(["pool", "status"])["used_bytes"]
            .as_u64()
            .unwrap()
    };
    let before = used(&service);
    for (source, name) in [(&image.oci, "folder:1"), (&image.oci_tar, "tar:1")] {
        let layers = import(&service, source, name);
        assert!(
            layers.iter().all(|layer| layer["reused"] == true),
            "{name}: {layers:?}"
        );
    }
    service.fed(&image.docker, ["image", "import", "-", "--name", "pipe:1"]);
    assert_eq!(
        service.json(["image", "ls"]).as_array().unwrap().len(),
        1,
        "one image, four names"
    );
    assert!(
        used(&service) < before + (1 << 20),
        "{} bytes more",
        used(&service) - before
    );
    service.check_file_systems();
    service.check_pool();
}

#[test]
fn a_damaged_layer_leaves_nothing_behind() {
    let image = busybox::image();
    let mut service = Service::open("2G");
    let blobs = image.oci.join("blobs/sha256");
    let largest = fs::read_dir(blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let largest = largest
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(largest)
        .unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
    let found = service.attempt([
        "image",
        "import",
        image.oci.to_str().unwrap(),
        "--name",
        "bad:1",
    ]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let said = String::from_utf8(found.stderr).unwrap();
    assert!(
        said.trim_end().lines().count() == 1 && !said.contains("panic"),
        "{said}"
    );
    assert_eq!(service.json(["image", "ls"]), serde_json::json!([]));
    service.check_pool();
    let names = service.json(["volume", "ls"]);
    let left = names
        .as_array()
        .unwrap()
        .iter()
        .filter(|volume| volume["kind"] == "volume");
    assert_eq!(left.count(), 0, "half-made volumes are left: {names}");
}

#[test]
fn what_a_container_changed_is_told_and_committed() {
    let image = busybox::image();
    let mut service = Service::open("2G");
    import(&service, &image.oci, "first:1");
    service.cowshed(["container", "create", "first:1", "--name", "changed"]);
    let root = service.mount("changed");
    fs::write(root.join("srv/new"), "new").unwrap();
    fs::remove_file(root.join("var/keep/a")).unwrap();
    fs::set_permissions(root.join("etc/passwd"), fs::Permissions::from_mode(0o600)).unwrap();
    let large = fs::File::options()
        .write(true)
        .open(root.join("usr/lib/large"))
        .unwrap();
    large.write_all_at(b"!", 1_000_000).unwrap();
    drop(large);
    fs::remove_dir_all(root.join("var/opaque")).unwrap();
    fs::create_dir(root.join("var/opaque")).unwrap();
    fs::write(root.join("var/opaque/fresh"), "fresh").unwrap();
    let changes = service.cowshed(["container", "diff", "changed"]);
    for line in [
        "A /srv/new",
        "D /var/keep/a",
        "C /etc/passwd",
        "C /usr/lib/large",
        "A /var/opaque/fresh",
        "D /var/opaque/new",
    ] {
        assert!(
            changes.lines().any(|found| found == line),
            "{line} is not in:\n{changes}"
        );
    }
    for untouched in ["busybox", "sparse", "attributes"] {
        assert!(
            !changes.contains(untouched),
            "{untouched} is in:\n{changes}"
        );
    }
    let wanted = listing::of(&root);
    service.cowshed(["container", "commit", "changed", "changed:1"]);
    service.cowshed(["container", "create", "changed:1", "--name", "copy"]);
    assert_root(&service, "copy", &wanted);
    service.cowshed(["container", "unmount", "changed"]);
    service.check_file_systems();
    service.check_pool();
}

#[test]
fn containers_of_a_debian_root_start_equal_cost_little_and_change_alone() {
    let tar = debian::root_tar();
    let folder = tempfile::tempdir().unwrap();
    let wanted = reference_root(std::slice::from_ref(&tar), folder.path());
    assert!(
        wanted.len() > 3000,
        "only {} paths in a Debian root",
        wanted.len()
    );
    let mut service = Service::open("4G");
    service.fed(&tar, ["image", "import", "-", "--name", "debian"]);
    for number in 0..5 {
        let name = format!("c{number}");
        service.cowshed(["container", "create", "debian", "--name", &name]);
        let root = service.mount(&name);
        if number > 0 {
            fs::write(root.join("etc/hostname"), &name).unwrap();
            continue;
        }
        let libc = fs::canonicalize(root.join("bin/bash")).unwrap();
        let file = fs::File::options().write(true).open(libc).unwrap();
        file.write_all_at(b"!", 500_000).unwrap();
    }
    for number in 0..5 {
        service.cowshed(["container", "unmount", &format!("c{number}")]);
    }
    let list = service.json(["container", "ls"]);
    for container in list.as_array().expect("a list") {
        let own = container["own_bytes"].as_u64().expect("a number");
        assert!(
            own < 1 << 20,
            "a small change cost {own} bytes: {container}"
        );
    }
    service.cowshed(["container", "create", "debian", "--name", "fresh"]);
    assert_root(&service, "fresh", &wanted);
    service.check_file_systems();
    let names = ["c0", "c1", "c2", "c3", "c4", "fresh"];
    service.cowshed(["container", "rm"].into_iter().chain(names));
    service.cowshed(["image", "rm", "debian"]);
    service.check_pool();
}
