//! A full pool reports that it is full, harms nothing, and goes on once it has space.

use crate::client::{Client, labels, refused};
use crate::harness::{eventually, host, noise};
use crate::place::{Place, Snapshotter, layer};
use std::io::Write;
use std::path::Path;
use tonic::Code;

const REFUSING: [&str; 4] = ["--snapshot-size", "1G", "--full-policy", "error"];

/// Writes more than the pool can hold: the file system has the space, but its device does not,
/// which shows when the data is written back.
fn overfill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut bytes = noise(1 << 20, 7);
    for round in 0..200_u8 {
        bytes[0] = round;
        if file.write_all(&bytes).is_err() {
            break;
        }
    }
}

/// Prepares a snapshot once removed volumes are settled in the background.
fn prepare_again(client: &mut Client, key: &str) -> crate::wire::Mount {
    let mut prepared = None;
    eventually("room for another", || {
        prepared = client.prepare(key, "base").ok();
        prepared.is_some()
    });
    prepared.unwrap()
}

#[test]
fn a_full_pool_refuses_a_commit_of_what_it_could_not_take_and_lets_things_be_removed() {
    a_commit_is_refused("dir");
}

#[test]
fn a_full_pool_refuses_a_commit_of_an_overlay_that_it_could_not_take() {
    a_commit_is_refused("overlay");
}

fn a_commit_is_refused(mode: &str) {
    let snapshotter = Snapshotter::start_with("128M", &REFUSING);
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mounts = labels(&[("containerd.io/snapshot/cowshed.mounts", mode)]);
    let mount = client.prepare_with("c", "base", mounts).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    overfill(&place.path("big"));
    refused(client.commit("image", "c"), Code::FailedPrecondition);
    refused(client.stat("image"), Code::NotFound);
    // Lost data does not come back, and the host reports it only once.
    let again = client.commit("image", "c").unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(again.message().contains("does not hold all"), "{again}");
    client.stat("c").unwrap();
    place.unmount();
    client.remove("c").unwrap();
    client.cleanup().unwrap();
    snapshotter.bench.ok(["pool", "checkpoint"]);
    let mount = prepare_again(&mut client, "d");
    let place = Place::mount(&snapshotter.bench, &mount, "d");
    assert_eq!(place.read("a"), "base");
    place.write("b", "2");
    place.unmount();
    client.commit("image", "d").unwrap();
    snapshotter.end(2);
}

/// Asserts that a refused write of a snapshot that is handed out in this way is remembered after
/// there is space again, the worker dies, or the daemon restarts.
fn a_refusal_stays(mode: &str) {
    let snapshotter = Snapshotter::start_with("128M", &REFUSING);
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mounts = labels(&[("containerd.io/snapshot/cowshed.mounts", mode)]);
    let mount = client.prepare_with("c", "base", mounts).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    overfill(&place.path("big"));
    // The client gets the error, and the host reports it to no other process.
    let sync = std::process::Command::new("sync")
        .arg("-f")
        .arg(place.path("a"))
        .output();
    // syncfs of an overlay does not report errors of its upper file system (the kernel keeps them
    // there); the commit is refused all the same.
    assert!(!sync.unwrap().status.success() || mode == "overlay");
    snapshotter.daemon.kill_worker();
    let after = client.persist(|client| client.commit("image", "c"));
    refused(after, Code::FailedPrecondition);
    // Free space does not bring the data back.
    let _ = std::fs::remove_file(place.path("big"));
    host("sync", std::iter::empty::<&str>());
    place.unmount();
    refused(client.commit("image", "c"), Code::FailedPrecondition);
    let snapshotter = snapshotter.restart();
    let mut client = snapshotter.client();
    // Replaying the journal of a file system takes space, which a full pool may not have.
    if let Err(refusal) = client.mounts("c") {
        assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    }
    refused(client.commit("image", "c"), Code::FailedPrecondition);
    client.remove("c").unwrap();
    client.cleanup().unwrap();
    snapshotter.bench.ok(["pool", "checkpoint"]);
    let mount = prepare_again(&mut client, "d");
    let place = Place::mount(&snapshotter.bench, &mount, "d");
    place.write("b", "2");
    place.unmount();
    client.commit("image", "d").unwrap();
    snapshotter.end(2);
}

#[test]
fn a_refused_write_to_a_folder_is_never_forgotten() {
    a_refusal_stays("dir");
}

#[test]
fn a_refused_write_to_a_device_is_never_forgotten() {
    a_refusal_stays("loop");
}

#[test]
fn a_refused_write_to_a_file_is_never_forgotten() {
    a_refusal_stays("file");
}

#[test]
fn a_refused_write_to_an_overlay_is_never_forgotten() {
    a_refusal_stays("overlay");
}

#[test]
fn a_write_that_waited_for_room_and_got_it_was_not_refused() {
    let options = ["--snapshot-size", "1G", "--full-policy", "wait=60"];
    let snapshotter = Snapshotter::start_with("128M", &options);
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    overfill(&place.path("big"));
    let committing = {
        let mut client = snapshotter.client();
        std::thread::spawn(move || client.commit("image", "c"))
    };
    std::thread::sleep(std::time::Duration::from_secs(2));
    snapshotter.bench.ok(["pool", "grow", "--size", "512M"]);
    committing.join().unwrap().unwrap();
    place.unmount();
    let view = client.view("v", "image").unwrap();
    let place = Place::mount(&snapshotter.bench, &view, "v");
    assert_eq!(
        std::fs::metadata(place.path("big")).unwrap().len(),
        200 << 20
    );
    place.unmount();
    client.remove("v").unwrap();
    snapshotter.end(2);
}

#[test]
fn a_container_that_had_a_write_refused_makes_no_image() {
    let snapshotter = Snapshotter::start("128M");
    let bench = &snapshotter.bench;
    let root = bench.path("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("a"), "1").unwrap();
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "i"]);
    bench.ok(["container", "create", "i", "--name", "c"]);
    let place = bench.ok(["container", "mount", "c"]);
    let place = Path::new(place.trim());
    bench.ok(["container", "commit", "c", "before:1"]);
    overfill(&place.join("big"));
    let sync = |path: &Path| {
        std::process::Command::new("sync")
            .arg("-f")
            .arg(path)
            .output()
    };
    assert!(!sync(&place.join("a")).unwrap().status.success());
    let _ = std::fs::remove_file(place.join("big"));
    let _ = sync(&place.join("a"));
    for _ in 0..2 {
        bench.fails(
            ["container", "commit", "c", "after:1"],
            1,
            "does not hold all",
        );
    }
    let _ = bench.run(["container", "unmount", "c"]);
    let snapshotter = snapshotter.restart();
    let bench = &snapshotter.bench;
    bench.fails(
        ["container", "commit", "c", "after:1"],
        1,
        "does not hold all",
    );
    bench.ok(["container", "rm", "c"]);
    for image in ["before:1", "i"] {
        bench.ok(["image", "rm", image]);
    }
    snapshotter.end(0);
}
