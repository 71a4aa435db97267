//! The forms in which snapshots are handed out, their sizes, and several views of a running
//! snapshot.

use crate::client::{Client, labels};
use crate::harness::loops_below;
use crate::place::{Place, Snapshotter, layer};
use std::path::Path;

const MOUNTS: &str = "containerd.io/snapshot/cowshed.mounts";
const SIZE: &str = "containerd.io/snapshot/max-size";

fn life_of_a_device(snapshotter: Snapshotter, source: &str, options: &[&str]) {
    let mut client = snapshotter.client();
    let mount = client.prepare("k", "").unwrap();
    assert_eq!(mount.r#type, "ext4");
    assert!(mount.source.contains(source), "{mount:?}");
    assert_eq!(mount.options, options);
    assert_eq!(client.mounts("k").unwrap(), mount);
    let place = Place::mount(&snapshotter.bench, &mount, "k");
    place.write("a", "1");
    place.unmount();
    client.commit("base", "k").unwrap();
    let view = client.view("v", "base").unwrap();
    let first = Place::mount(&snapshotter.bench, &view, "v");
    assert_eq!(first.read("a"), "1");
    assert!(std::fs::write(first.path("b"), "").is_err());
    first.unmount();
    // A snapshot that was not unmounted is committed with everything written to it.
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    place.write("b", "2");
    client.commit("above", "c").unwrap();
    place.write("c", "3");
    let seen = client.view("w", "above").unwrap();
    let second = Place::mount(&snapshotter.bench, &seen, "w");
    assert_eq!(second.names(), ["a", "b"]);
    assert_eq!(second.read("b"), "2");
    second.unmount();
    place.unmount();
    for key in ["v", "w", "above", "base"] {
        client.remove(key).unwrap();
    }
    client.cleanup().unwrap();
    crate::harness::eventually("the last device's end", || {
        client.cleanup().unwrap();
        loops_below(snapshotter.daemon.mount.as_path()).is_empty()
    });
    snapshotter.end(0);
}

#[test]
fn snapshots_are_loop_devices_where_that_is_asked() {
    let snapshotter = Snapshotter::start_with("1G", &["--snapshot-mounts", "loop"]);
    life_of_a_device(snapshotter, "/dev/loop", &["rw", "errors=remount-ro"]);
}

#[test]
fn snapshots_are_files_where_that_is_asked() {
    let snapshotter = Snapshotter::start_with("1G", &["--snapshot-mounts", "file"]);
    life_of_a_device(
        snapshotter,
        "/snapshot%2F",
        &["rw", "loop", "errors=remount-ro"],
    );
}

#[test]
fn each_snapshot_may_say_what_it_is_handed_out_as() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let device = client
        .prepare_with("d", "base", labels(&[(MOUNTS, "loop")]))
        .unwrap();
    let folder = client.prepare("f", "base").unwrap();
    let file = client
        .make("View", "v", "base", labels(&[(MOUNTS, "file")]))
        .unwrap();
    assert!(device.source.starts_with("/dev/loop"), "{device:?}");
    assert!(Path::new(&folder.source).is_dir(), "{folder:?}");
    assert!(Path::new(&file.source).is_file(), "{file:?}");
    for (mount, name) in [(&device, "d"), (&folder, "f"), (&file, "v")] {
        let place = Place::mount(&snapshotter.bench, mount, name);
        assert_eq!(place.read("a"), "base");
        place.unmount();
    }
    // A restart hands them out again in the requested form.
    let snapshotter = snapshotter.restart();
    let mut client = snapshotter.client();
    for (key, kind) in [("d", "ext4"), ("f", "bind"), ("v", "ext4")] {
        let mount = client.mounts(key).unwrap();
        assert_eq!(mount.r#type, kind);
        let place = Place::mount(&snapshotter.bench, &mount, key);
        assert_eq!(place.read("a"), "base");
        place.unmount();
    }
    snapshotter.end(3);
}

fn root_size(snapshotter: &Snapshotter, client: &mut Client, key: &str) -> u64 {
    let mount = client.mounts(key).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, key);
    let size_bytes = place.size_bytes();
    place.unmount();
    size_bytes
}

#[test]
fn a_root_has_the_size_that_is_asked_for_and_never_less_than_its_parent() {
    let snapshotter = Snapshotter::start_with("2G", &["--snapshot-size", "512M"]);
    let mut client = snapshotter.client();
    let size = |text: &str| labels(&[(SIZE, text)]);
    client.prepare_with("small", "", size("128M")).unwrap();
    let place = Place::mount(&snapshotter.bench, &client.mounts("small").unwrap(), "fill");
    place.write("a", "1");
    place.unmount();
    let small = root_size(&snapshotter, &mut client, "small");
    assert!((64 << 20..=128 << 20).contains(&small), "{small}");
    client.commit("base", "small").unwrap();
    client.prepare("default", "base").unwrap();
    client.prepare_with("large", "base", size("1G")).unwrap();
    client.prepare_with("same", "base", size("64M")).unwrap();
    let default = root_size(&snapshotter, &mut client, "default");
    let large = root_size(&snapshotter, &mut client, "large");
    assert!((400 << 20..=512 << 20).contains(&default), "{default}");
    assert!((900 << 20..=1 << 30).contains(&large), "{large}");
    assert_eq!(root_size(&snapshotter, &mut client, "same"), small);
    let place = Place::mount(
        &snapshotter.bench,
        &client.mounts("large").unwrap(),
        "large",
    );
    assert_eq!(place.read("a"), "1");
    place.unmount();
    snapshotter.end(4);
}

#[test]
fn what_runs_is_seen_from_several_places_and_committed() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let runs = Place::mount(&snapshotter.bench, &mount, "runs");
    let log = std::fs::File::create(runs.path("log")).unwrap();
    let again = client.mounts("c").unwrap();
    assert_eq!(again, mount);
    let looks = Place::mount(&snapshotter.bench, &again, "looks");
    runs.write("b", "2");
    assert_eq!(looks.read("b"), "2");
    let (one, two) = (
        client.view("v1", "base").unwrap(),
        client.view("v2", "base").unwrap(),
    );
    assert_eq!(
        one.source, two.source,
        "views of one snapshot share a mount"
    );
    let before = Place::mount(&snapshotter.bench, &one, "before");
    assert_eq!(before.names(), ["a"]);
    // Committed while it is open and being written to: it contains earlier writes, but not later
    // ones.
    client.commit("image", "c").unwrap();
    runs.write("after", "3");
    let image = client.view("v3", "image").unwrap();
    let place = Place::mount(&snapshotter.bench, &image, "image");
    assert_eq!(place.names(), ["a", "b", "log"]);
    place.unmount();
    client.remove("v1").unwrap();
    assert_eq!(before.names(), ["a"], "another view still looks");
    before.unmount();
    drop(log);
    looks.unmount();
    runs.unmount();
    for key in ["v2", "v3", "image", "base"] {
        client.remove(key).unwrap();
    }
    crate::harness::eventually("the end of what was left", || {
        client.cleanup().unwrap();
        loops_below(snapshotter.daemon.mount.as_path()).is_empty()
    });
    snapshotter.end(0);
}

#[test]
fn the_folder_of_volumes_shows_the_pools_room_and_is_never_out_of_files() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    let seen = || nix::sys::statvfs::statvfs(&snapshotter.daemon.mount).unwrap();
    let before = seen();
    let size_bytes = before.blocks() * before.fragment_size();
    assert!((900 << 20..=1 << 30).contains(&size_bytes), "{size_bytes}");
    assert!(before.files_free() * 10 > before.files());
    let mount = client.prepare("c", "").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    std::fs::write(place.path("big"), vec![7; 64 << 20]).unwrap();
    crate::harness::host("sync", ["-f", place.path("big").to_str().unwrap()]);
    let after = seen();
    let taken = (before.blocks_available() - after.blocks_available()) * after.fragment_size();
    assert!((64 << 20..80 << 20).contains(&taken), "{taken}");
    place.unmount();
    snapshotter.end(1);
}
