//! Snapshots that are handed out as overlays of their parents.

use crate::client::{Client, labels, refused};
use crate::harness::{eventually, loops_below};
use crate::place::{Place, Snapshotter, layer};
use crate::wire::Mount;
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Code;

const MOUNTS: &str = "containerd.io/snapshot/cowshed.mounts";
const REF: &str = "containerd.io/snapshot.ref";

fn start() -> Snapshotter {
    Snapshotter::start_with("1G", &["--snapshot-mounts", "overlay"])
}

/// Returns the folder that an option of an overlay names.
fn folder(mount: &Mount, name: &str) -> PathBuf {
    let prefix = format!("{name}=");
    let mut all = mount.options.iter();
    let value = all.find_map(|option| option.strip_prefix(&prefix));
    value.unwrap_or_else(|| panic!("{mount:?}")).into()
}

fn end_when_unused(snapshotter: Snapshotter, client: &mut Client, snapshots: usize) {
    eventually("the last device's end", || {
        client.cleanup().unwrap();
        loops_below(snapshotter.daemon.mount.as_path()).is_empty()
    });
    snapshotter.end(snapshots);
}

#[test]
fn overlays_and_views_of_one_snapshot_share_its_mount_and_it_ends_with_the_last() {
    let snapshotter = start();
    let mut client = snapshotter.client();
    // Without a parent there is nothing to share.
    layer(&snapshotter, &mut client, "base", "", "a");
    let one = client.prepare("one", "base").unwrap();
    let two = client.prepare("two", "base").unwrap();
    let view = client.view("v", "base").unwrap();
    assert_eq!(
        (one.r#type.as_str(), one.source.as_str()),
        ("overlay", "overlay")
    );
    assert_eq!(client.mounts("one").unwrap(), one);
    let lower = folder(&one, "lowerdir");
    assert_eq!(lower, folder(&two, "lowerdir"));
    assert_eq!(lower, Path::new(&view.source));
    assert_ne!(folder(&one, "upperdir"), folder(&two, "upperdir"));
    let (first, second) = (
        Place::mount(&snapshotter.bench, &one, "one"),
        Place::mount(&snapshotter.bench, &two, "two"),
    );
    assert_eq!(first.read("a"), "base");
    first.write("a", "changed");
    first.write("b", "new");
    assert_eq!(
        (second.read("a").as_str(), second.names()),
        ("base", vec!["a".to_owned()])
    );
    for key in ["v", "two"] {
        client.remove(key).unwrap();
    }
    client.cleanup().unwrap();
    assert!(lower.join("a").exists(), "an overlay reads it");
    assert_eq!(second.read("a"), "base", "what is mounted goes on");
    second.unmount();
    first.unmount();
    client.remove("one").unwrap();
    eventually("the end of the lower layer", || {
        client.cleanup().unwrap();
        !lower.exists()
    });
    end_when_unused(snapshotter, &mut client, 1);
}

#[test]
fn what_an_overlay_changed_is_committed_onto_its_parent() {
    let snapshotter = start();
    let mut client = snapshotter.client();
    let mount = client.prepare("first", "").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "first");
    fs::create_dir_all(place.path("dir/deep")).unwrap();
    fs::create_dir(place.path("opaque")).unwrap();
    for name in ["a", "b", "dir/c", "dir/deep/d", "opaque/e"] {
        place.write(name, name);
    }
    place.unmount();
    client.commit("base", "first").unwrap();
    let mount = client.prepare("c", "base").unwrap();
    assert_eq!(mount.r#type, "overlay");
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    place.write("a", "changed");
    fs::remove_file(place.path("b")).unwrap();
    fs::remove_dir_all(place.path("opaque")).unwrap();
    fs::create_dir(place.path("opaque")).unwrap();
    place.write("opaque/new", "new");
    fs::remove_dir_all(place.path("dir")).unwrap();
    place.write("dir", "a file now");
    let used = client.usage("c").unwrap();
    assert!(used.inodes >= 4 && used.size > 0, "{used:?}");
    // It is mounted and goes on.
    client.commit("above", "c").unwrap();
    place.write("later", "not in it");
    for (name, parent) in [("v", "above"), ("w", "base")] {
        client.view(name, parent).unwrap();
    }
    let seen = Place::mount(&snapshotter.bench, &client.mounts("v").unwrap(), "v");
    assert_eq!(seen.names(), ["a", "dir", "opaque"]);
    assert_eq!(seen.read("a") + &seen.read("dir"), "changeda file now");
    assert_eq!(fs::read_dir(seen.path("opaque")).unwrap().count(), 1);
    let before = Place::mount(&snapshotter.bench, &client.mounts("w").unwrap(), "w");
    assert_eq!(before.names(), ["a", "b", "dir", "opaque"]);
    for place in [seen, before, place] {
        place.unmount();
    }
    // The next layer is a volume as any other.
    let block = client
        .prepare_with("block", "above", labels(&[(MOUNTS, "dir")]))
        .unwrap();
    assert_eq!(block.r#type, "bind");
    let over = client.prepare("over", "above").unwrap();
    let (place, over) = (
        Place::mount(&snapshotter.bench, &block, "block"),
        Place::mount(&snapshotter.bench, &over, "over"),
    );
    assert_eq!(
        place.read("opaque/new") + &over.read("opaque/new"),
        "newnew"
    );
    place.unmount();
    over.unmount();
    for key in ["block", "over", "v", "w"] {
        client.remove(key).unwrap();
    }
    refused(client.remove("base"), Code::FailedPrecondition);
    end_when_unused(snapshotter, &mut client, 2);
}

#[test]
fn a_layer_that_is_unpacked_and_a_snapshot_that_says_so_are_no_overlays() {
    let snapshotter = start();
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let filled = labels(&[(REF, "sha256:1")]);
    let mount = client
        .prepare_with("extract-1 sha256:1", "base", filled)
        .unwrap();
    assert_eq!(mount.r#type, "bind");
    let device = client
        .prepare_with("d", "base", labels(&[(MOUNTS, "loop")]))
        .unwrap();
    assert_eq!(device.r#type, "ext4");
    for key in ["d", "extract-1 sha256:1"] {
        client.remove(key).unwrap();
    }
    client.cleanup().unwrap();
    snapshotter.end(1);
    // And one may be an overlay where others are not.
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let size = ("containerd.io/snapshot/max-size", "128M");
    let mount = client
        .prepare_with("o", "base", labels(&[(MOUNTS, "overlay"), size]))
        .unwrap();
    assert_eq!(mount.r#type, "overlay");
    let place = Place::mount(&snapshotter.bench, &mount, "o");
    assert!(place.size_bytes() <= 128 << 20, "{}", place.size_bytes());
    let full = fs::write(place.path("large"), vec![1; 200 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    place.unmount();
    client.remove("o").unwrap();
    end_when_unused(snapshotter, &mut client, 1);
}

#[test]
fn overlays_survive_a_dead_worker_an_upgrade_a_stop_and_a_crash() {
    let snapshotter = start();
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    for round in 0..4 {
        place.write("round", &round.to_string());
        if round < 2 {
            snapshotter.daemon.kill_worker();
        } else {
            snapshotter.bench.ok(["serve", "--upgrade"]);
        }
        let again = client.persist(|client| client.mounts("c")).unwrap();
        assert_eq!(again, mount);
        assert_eq!(
            place.read("round") + &place.read("a"),
            format!("{round}base")
        );
    }
    client.view("v", "base").unwrap();
    client.remove("v").unwrap();
    client.cleanup().unwrap();
    assert_eq!(place.read("a"), "base");
    place.unmount();
    let snapshotter = snapshotter.restart();
    let mut client = snapshotter.client();
    let place = Place::mount(&snapshotter.bench, &client.mounts("c").unwrap(), "c");
    assert_eq!(place.read("round") + &place.read("a"), "3base");
    crate::harness::host("sync", ["-f", place.path("round").to_str().unwrap()]);
    // The whole daemon dies while it is mounted: the overlay is gone, what was synced is not.
    let snapshotter = snapshotter.crash();
    let mut client = snapshotter.client();
    refused(client.commit("no", "c"), Code::FailedPrecondition);
    drop(place);
    let place = Place::mount(&snapshotter.bench, &client.mounts("c").unwrap(), "c");
    assert_eq!(place.read("round") + &place.read("a"), "3base");
    place.unmount();
    client.commit("image", "c").unwrap();
    let view = client.view("v", "image").unwrap();
    let place = Place::mount(&snapshotter.bench, &view, "v");
    assert_eq!(place.names(), ["a", "round"]);
    place.unmount();
    client.remove("v").unwrap();
    end_when_unused(snapshotter, &mut client, 2);
}
