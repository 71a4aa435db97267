//! Snapshots of volumes with mounted file systems: of every kind, frozen by their user, and with a
//! worker killed in between.

use crate::harness::{Bench, Daemon, eventually, host};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount of a test, which ends with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &str, at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        host("mount", ["-o", options, device, at.to_str().unwrap()]);
        Self(at)
    }

    fn freeze(&self) {
        host("fsfreeze", ["--freeze", self.0.to_str().unwrap()]);
    }

    /// Thaws it; returns true if it was frozen.
    fn thaw(&self) -> bool {
        let mut thaw = Command::new("fsfreeze");
        let thaw = thaw.arg("--unfreeze").arg(&self.0).output();
        thaw.unwrap().status.success()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.thaw();
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Attaches a volume as a loop device.
fn attached(bench: &Bench, name: &str) -> String {
    bench.ok(["volume", "create", name, "--size", "300M"]);
    bench.ok(["attach", name]).trim().to_owned()
}

fn stop(bench: &Bench, daemon: Daemon) {
    daemon.stop();
    bench.expect_sound();
}

/// Asserts that `file` in a clone of the snapshot `of` contains `text`.
fn expect_in_clone(bench: &Bench, of: &str, options: &str, text: &str) {
    bench.ok(["volume", "clone", of, "copy"]);
    let device = bench.ok(["attach", "copy"]).trim().to_owned();
    let copy = Mounted::new(&device, bench.path("copy"), options);
    assert_eq!(fs::read_to_string(copy.0.join("file")).unwrap(), text);
    drop(copy);
    bench.ok(["detach", "copy"]);
}

#[test]
fn a_snapshot_of_a_frozen_file_system_leaves_its_users_freeze() {
    let bench = Bench::with_pool("1G");
    let daemon = bench.serve();
    let device = attached(&bench, "v");
    host("mkfs.ext4", ["-q", &device]);
    let mounted = Mounted::new(&device, bench.path("at"), "defaults");
    fs::write(mounted.0.join("file"), "before").unwrap();
    mounted.freeze();
    bench.ok(["volume", "snapshot", "v", "s"]);
    // A worker's death in between does not thaw it either: nothing shows that the freeze was ours.
    daemon.kill_worker();
    bench.ok(["volume", "snapshot", "v", "t"]);
    assert!(mounted.thaw(), "the user's freeze was lifted");
    fs::write(mounted.0.join("file"), "after").unwrap();
    // Our own freeze is not left behind.
    bench.ok(["volume", "snapshot", "v", "u"]);
    assert!(!mounted.thaw(), "a freeze was left behind");
    expect_in_clone(&bench, "s", "defaults", "before");
    drop(mounted);
    bench.ok(["detach", "v"]);
    stop(&bench, daemon);
}

#[test]
fn a_snapshot_holds_what_was_written_to_a_mounted_file_system_of_any_kind() {
    for (make, options, clone_options) in [
        (&["mkfs.ext4", "-q"][..], "defaults", "defaults"),
        (&["mkfs.xfs", "-q"], "defaults", "nouuid"),
    ] {
        let bench = Bench::with_pool("1G");
        let daemon = bench.serve();
        let device = attached(&bench, "v");
        host(make[0], make[1..].iter().chain([&device.as_str()]));
        let mounted = Mounted::new(&device, bench.path("at"), options);
        fs::write(mounted.0.join("file"), make[0]).unwrap();
        bench.ok(["volume", "snapshot", "v", "s"]);
        assert!(!mounted.thaw(), "{}: a freeze was left behind", make[0]);
        expect_in_clone(&bench, "s", clone_options, make[0]);
        drop(mounted);
        bench.ok(["detach", "v"]);
        stop(&bench, daemon);
    }
}

/// The kernel identifies a btrfs by its id, so a copy can be mounted only after the original is
/// unmounted.
#[test]
fn a_snapshot_of_a_mounted_btrfs_holds_what_was_written_to_any_of_its_subvolumes() {
    let bench = Bench::with_pool("1G");
    let daemon = bench.serve();
    let device = attached(&bench, "v");
    host("mkfs.btrfs", ["-q", &device]);
    let top = Mounted::new(&device, bench.path("top"), "defaults");
    let part = top.0.join("part");
    host("btrfs", ["subvolume", "create", part.to_str().unwrap()]);
    drop(top);
    let mounted = Mounted::new(&device, bench.path("at"), "subvol=part");
    fs::write(mounted.0.join("file"), "btrfs").unwrap();
    bench.ok(["volume", "snapshot", "v", "s"]);
    assert!(!mounted.thaw(), "a freeze was left behind");
    drop(mounted);
    bench.ok(["detach", "v"]);
    forget_btrfs(&device);
    expect_in_clone(&bench, "s", "subvol=part", "btrfs");
    stop(&bench, daemon);
}

fn forget_btrfs(device: &str) {
    let _ = Command::new("btrfs")
        .args(["device", "scan", "--forget", device])
        .output();
}

#[test]
fn a_btrfs_on_two_volumes_is_snapshotted_only_while_its_user_has_frozen_it() {
    let bench = Bench::with_pool("1G");
    let daemon = bench.serve();
    let devices = ["v", "w"].map(|name| attached(&bench, name));
    host("mkfs.btrfs", ["-q", &devices[0], &devices[1]]);
    let mounted = Mounted::new(&devices[0], bench.path("at"), "defaults");
    let refused = ["volume", "snapshot", "w", "s"];
    bench.fails(refused, 1, "take a snapshot of each");
    assert!(!mounted.thaw(), "a freeze was left behind");
    mounted.freeze();
    bench.ok(["volume", "snapshot", "v", "s"]);
    bench.ok(["volume", "snapshot", "w", "t"]);
    assert!(mounted.thaw(), "the user's freeze was lifted");
    drop(mounted);
    for (name, device) in ["v", "w"].iter().zip(&devices) {
        forget_btrfs(device);
        bench.ok(["detach", name]);
    }
    stop(&bench, daemon);
}

/// A partition of a volume's device, created by the kernel on request.
struct Partition<'a>(&'a str);

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        let _ = Command::new("partx").args(["--delete", self.0]).output();
    }
}

#[test]
fn a_snapshot_holds_what_was_written_to_a_mounted_partition() {
    let bench = Bench::with_pool("1G");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "v", "--size", "300M"]);
    let device = bench.ok(["attach", "v", "--sector-size", "512"]);
    let device = device.trim().to_owned();
    // One partition of 200 MiB that starts at 1 MiB, in a master boot record.
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&409_600_u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    write_start(Path::new(&device), &table);
    host("partx", ["--add", &device]);
    let made = Partition(&device);
    let partition = format!("{device}p1");
    eventually("the partition's node", || Path::new(&partition).exists());
    host("mkfs.ext4", ["-q", &partition]);
    let mounted = Mounted::new(&partition, bench.path("at"), "defaults");
    fs::write(mounted.0.join("file"), "in a partition").unwrap();
    bench.ok(["volume", "snapshot", "v", "s"]);
    assert!(!mounted.thaw(), "a freeze was left behind");
    let file = daemon.mount.join("s");
    let copy = Mounted::new(
        file.to_str().unwrap(),
        bench.path("copy"),
        "ro,loop,offset=1048576,sizelimit=209715200",
    );
    let found = fs::read_to_string(copy.0.join("file")).unwrap();
    assert_eq!(found, "in a partition");
    drop((copy, mounted, made));
    bench.ok(["detach", "v"]);
    stop(&bench, daemon);
}

fn write_start(device: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let device = fs::File::options().write(true).open(device).unwrap();
    device.write_all_at(bytes, 0).unwrap();
    device.sync_all().unwrap();
}
