//! Mounts and devices that another process keeps, hides or removes.

use crate::client::labels;
use crate::harness::{eventually, host, loops_below};
use crate::place::{Place, Snapshotter, layer};
use std::process::{Child, Command, Stdio};

/// A mount namespace with copies of a daemon's roots, kept by a sleeping process.
struct Elsewhere(Child);

/// Unmounts the mounts of all other tests, and then reports by its name that it is ready.
const SCRIPT: &str = r#"while read -r _ _ _ _ at _; do
    case "$at" in
        "$0"/*) ;;
        /run/cowshed/* | /var/tmp/* | /tmp/*) umount -l "$at" 2> /dev/null ;;
    esac
done < /proc/self/mountinfo
exec sleep 600"#;

impl Elsewhere {
    /// Keeps the mounts at `root`.
    fn new(root: &str) -> Self {
        let roots = std::path::Path::new(root).parent().unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
            .arg(roots)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let name = format!("/proc/{}/comm", child.id());
        eventually("another mount namespace", || {
            std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n")
        });
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_is_still_mounted_in_another_namespace_is_shown_again() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    client.view("v", "base").unwrap();
    let active = client.prepare("c", "base").unwrap();
    let elsewhere = Elsewhere::new(&active.source);
    // Not visible here, but not gone.
    client.remove("v").unwrap();
    client.cleanup().unwrap();
    host("umount", [&active.source]);
    let check = |client: &mut crate::client::Client, key: &str| {
        let view = client.view(key, "base").unwrap();
        assert_eq!(client.mounts(key).unwrap(), view);
        let place = Place::mount(&snapshotter.bench, &view, key);
        assert_eq!(place.names(), ["a"]);
        place.unmount();
        client.remove(key).unwrap();
        client.cleanup().unwrap();
    };
    check(&mut client, "w");
    assert_eq!(client.mounts("c").unwrap(), active);
    let place = Place::mount(&snapshotter.bench, &active, "c");
    place.write("b", "2");
    place.unmount();
    // A successor finds a device without a mount.
    snapshotter.daemon.kill_worker();
    client.persist(|client| client.stat("base")).unwrap();
    check(&mut client, "x");
    client.commit("image", "c").unwrap();
    let image = client.view("y", "image").unwrap();
    let place = Place::mount(&snapshotter.bench, &image, "y");
    assert_eq!(place.names(), ["a", "b"]);
    place.unmount();
    drop(elsewhere);
    for key in ["y", "image", "base"] {
        client.remove(key).unwrap();
    }
    eventually("the last device's end", || {
        client.cleanup().unwrap();
        loops_below(snapshotter.daemon.mount.as_path()).is_empty()
    });
    snapshotter.end(0);
}

#[test]
fn a_device_that_somebody_has_detached_is_not_handed_out_again() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let device = labels(&[("containerd.io/snapshot/cowshed.mounts", "loop")]);
    let mount = client.prepare_with("d", "base", device).unwrap();
    host("losetup", ["-d", &mount.source]);
    let other = snapshotter.bench.path("other");
    std::fs::write(&other, vec![0; 1 << 20]).unwrap();
    // The device's number now belongs to another: to this file, unless another process of this host
    // was faster.
    let taken = Command::new("losetup")
        .args([mount.source.as_str(), other.to_str().unwrap()])
        .stderr(Stdio::null())
        .status();
    let taken = taken.unwrap().success();
    let again = client.mounts("d").unwrap();
    if taken {
        host("losetup", ["-d", &mount.source]);
        assert_ne!(again.source, mount.source);
    }
    let place = Place::mount(&snapshotter.bench, &again, "d");
    assert_eq!(place.read("a"), "base");
    place.unmount();
    client.commit("image", "d").unwrap();
    snapshotter.end(2);
}

#[test]
fn another_file_system_over_a_root_is_neither_measured_nor_held_nor_committed() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    place.write("b", "2");
    host("mount", ["-t", "tmpfs", "none", &mount.source]);
    for number in 0..9 {
        std::fs::write(format!("{}/{number}", mount.source), "").unwrap();
    }
    assert!(client.usage("c").unwrap().inodes < 9);
    client.commit("image", "c").unwrap();
    let view = client.view("v", "image").unwrap();
    let seen = Place::mount(&snapshotter.bench, &view, "v");
    assert_eq!(seen.names(), ["a", "b"]);
    seen.unmount();
    place.unmount();
    client.remove("v").unwrap();
    eventually("the end of what was left", || {
        client.cleanup().unwrap();
        loops_below(snapshotter.daemon.mount.as_path()).is_empty()
    });
    snapshotter.end(2);
}

#[test]
fn what_is_written_to_a_layer_after_its_commit_is_not_in_the_next_one() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    let layer = |name: &str| labels(&[("containerd.io/snapshot.ref", name)]);
    let mount = client.prepare_with("k1", "", layer("sha256:1")).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "k1");
    place.write("a", "1");
    client.commit("one", "k1").unwrap();
    place.write("late", "");
    place.unmount();
    let mount = client.prepare_with("k2", "one", layer("sha256:2")).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "k2");
    assert_eq!(place.names(), ["a"]);
    place.write("b", "2");
    place.unmount();
    client.commit("two", "k2").unwrap();
    // The next layer continues on the mounted volume, unless a device is asked for.
    let mut device = layer("sha256:3");
    device.extend(labels(&[("containerd.io/snapshot/cowshed.mounts", "loop")]));
    let mount = client.prepare_with("k3", "two", device).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "k3");
    assert_eq!(place.names(), ["a", "b"]);
    place.unmount();
    client.commit("three", "k3").unwrap();
    snapshotter.end(3);
}
