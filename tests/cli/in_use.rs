//! Commands that are refused on volumes in use, and on volumes that are not the user's: shrinking,
//! rolling back, removing, attaching twice.

use crate::harness::{Bench, Reaped, expect_failure, host, noise};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A test's mounted file system, unmounted in any case.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &str, place: PathBuf) -> Self {
        fs::create_dir_all(&place).unwrap();
        host("mount", [device, place.to_str().unwrap()]);
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

/// Returns commands that remove data of a volume, or let a second writer use it.
fn destroying<'a>(volume: &'a str, snapshot: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["volume", "resize", volume, "--size", "1M", "--shrink"],
        vec!["volume", "rollback", volume, snapshot],
        vec!["volume", "rm", volume],
    ]
}

fn content(bench: &Bench, volume: &str) -> Vec<u8> {
    bench.run(["volume", "export", volume, "-"]).stdout
}

/// Creates a full volume of 8 MiB with a snapshot.
fn full_volume(bench: &Bench) -> Vec<u8> {
    let bytes = noise(8 << 20, 41);
    fs::write(bench.path("in"), &bytes).unwrap();
    bench.ok([
        "volume",
        "import",
        "disk",
        bench.path("in").to_str().unwrap(),
    ]);
    bench.ok(["volume", "snapshot", "disk", "snap"]);
    bytes
}

#[test]
fn shrinking_says_what_is_lost_and_is_done_only_when_asked_for() {
    let bench = Bench::with_pool("256M");
    let bytes = full_volume(&bench);
    let smaller = ["volume", "resize", "disk", "--size", "3M"];
    let output = bench.run(smaller);
    expect_failure(&output, 1, "5.00 MiB of data beyond 3.00 MiB");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--shrink"));
    for unit in ["20", "4096", "1048575"] {
        let output = bench.run(["volume", "resize", "disk", "--size", unit, "--shrink"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("use {unit}G")), "{said}");
    }
    assert!(
        content(&bench, "disk") == bytes,
        "a refused command changed the volume"
    );
    bench.ok(smaller.into_iter().chain(["--shrink"]));
    // A volume that grows again has zeros there, in the middle of a block too.
    bench.ok(["volume", "resize", "disk", "--size", "2097153B", "--shrink"]);
    bench.ok(["volume", "resize", "disk", "--size", "4M"]);
    let mut wanted = bytes[..2_097_153].to_vec();
    wanted.resize(4 << 20, 0);
    assert!(content(&bench, "disk") == wanted);
    bench.expect_sound();
}

#[test]
fn nothing_is_taken_from_a_volume_that_somebody_uses() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let bytes = full_volume(&bench);
    let refused = |state: &str| {
        for command in destroying("disk", "snap") {
            let output = bench.run(&command);
            assert_eq!(output.status.code(), Some(1), "{state}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("in use"), "{state}: {command:?}: {said}");
        }
    };
    for read_only in [false, true] {
        for kind in ["file", "loop"] {
            let mut attach = vec!["attach", "disk", "--as", kind];
            attach.extend(read_only.then_some("--read-only"));
            bench.ok(attach);
            refused(&format!("attached as {kind}, read-only: {read_only}"));
            bench.ok(["detach", "disk"]);
        }
    }
    let open = File::open(daemon.mount.join("disk")).unwrap();
    refused("its file is open");
    drop(open);
    bench.ok(["attach", "disk"]);
    bench.ok(["detach", "disk"]);
    assert!(content(&bench, "disk") == bytes);

    // Mounted, then frozen.
    bench.ok(["volume", "create", "fs", "--size", "64M"]);
    bench.ok(["volume", "snapshot", "fs", "empty"]);
    let device = bench.ok(["attach", "fs"]);
    host("mkfs.ext4", ["-q", device.trim()]);
    let mounted = Mounted::at(device.trim(), bench.path("at"));
    let place = mounted.0.to_str().unwrap().to_owned();
    fs::write(mounted.0.join("file"), noise(1 << 20, 42)).unwrap();
    for frozen in [false, true] {
        if frozen {
            host("fsfreeze", ["-f", &place]);
        }
        let outputs: Vec<_> = destroying("fs", "empty")
            .into_iter()
            .chain([vec!["detach", "fs"]])
            .map(|command| bench.run(command))
            .collect();
        if frozen {
            host("fsfreeze", ["-u", &place]);
        }
        for output in outputs {
            assert_eq!(
                output.status.code(),
                Some(1),
                "frozen: {frozen}: {output:?}"
            );
        }
    }
    assert!(fs::read(mounted.0.join("file")).unwrap() == noise(1 << 20, 42));
    drop(mounted);
    bench.ok(["detach", "fs"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn no_volume_command_changes_what_containers_and_images_keep() {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), noise(1 << 20, 43)).unwrap();
    let daemon = bench.serve();
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "i:1"]);
    bench.ok(["container", "create", "i:1", "--name", "idle"]);
    let create = ["container", "create", "i:1", "--name", "used", "--mount"];
    let place = PathBuf::from(bench.ok(create).trim());
    let kept: Vec<String> = bench
        .volumes()
        .into_iter()
        .filter(|name| name.contains('/'))
        .collect();
    let kinds = ["layer/", "container/", "template/"];
    for kind in kinds {
        assert!(
            kept.iter().any(|name| name.starts_with(kind)),
            "{kind}: {kept:?}"
        );
    }
    bench.ok(["volume", "create", "own", "--size", "1M"]);
    bench.ok(["volume", "snapshot", "own", "own@1"]);
    for name in &kept {
        let id = bench.json(["volume", "show", name])["id"].to_string();
        // Using the id does not circumvent the refusal.
        for volume in [name.as_str(), &id] {
            for command in [
                vec!["volume", "resize", volume, "--size", "1M"],
                vec!["volume", "resize", volume, "--size", "1M", "--shrink"],
                vec!["volume", "resize", volume, "--size", "1T"],
                vec!["volume", "rollback", volume, "own@1"],
                vec!["volume", "rm", volume],
                vec!["volume", "rename", volume, "mine"],
                vec!["volume", "rename", "own", name],
                vec!["volume", "snapshot", volume, "mine"],
                vec!["volume", "snapshot", "own", name],
                vec!["volume", "clone", "own@1", name],
                vec!["volume", "create", name, "--size", "1M"],
                vec!["volume", "import", name, "/dev/null"],
                vec!["attach", volume],
                vec!["attach", volume, "--shared"],
                vec!["attach", volume, "--as", "file"],
            ] {
                let output = bench.run(&command);
                expect_failure(&output, 1, "use that command");
            }
            // A user cannot detach what a container has attached.
            assert_eq!(
                bench.run(["detach", volume]).status.code(),
                Some(1),
                "{volume}"
            );
        }
    }
    // Reading is allowed, and detaching does not affect other users.
    let layer = kept.iter().find(|name| name.starts_with("layer/")).unwrap();
    bench.ok(["attach", layer, "--read-only"]);
    bench.ok(["detach", layer]);
    bench.ok(["volume", "clone", layer, "copy"]);
    assert!(fs::read(place.join("file")).unwrap() == noise(1 << 20, 43));
    fs::write(place.join("more"), "more").unwrap();
    bench.ok(["container", "commit", "used", "i:2"]);
    bench.ok(["container", "unmount", "used"]);
    bench.ok(["container", "rm", "used"]);
    bench.ok(["container", "rm", "idle"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_container_that_is_being_committed_keeps_what_the_image_is_made_of() {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), noise(1 << 20, 43)).unwrap();
    let daemon = bench.serve();
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "i:1"]);
    let create = ["container", "create", "i:1", "--name", "c", "--mount"];
    let place = PathBuf::from(bench.ok(create).trim());
    let bytes = noise(64 << 20, 44);
    fs::write(place.join("large"), &bytes).unwrap();
    let mut commit = bench.command(["container", "commit", "c", "i:2"]);
    commit.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut commit = commit.spawn().unwrap();
    crate::harness::eventually("the commit's own volume", || {
        let is_over = commit.try_wait().unwrap().is_some();
        let made = |name: &String| name.starts_with("work/") || name.starts_with("layer/");
        is_over || bench.volumes().iter().filter(|name| made(name)).count() > 1
    });
    // The volumes that the commit reads from and writes to, under their names.
    for name in bench.volumes() {
        for mut command in destroying(&name, "i:1") {
            command.push("--json");
            let output = bench.run(&command);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
        }
    }
    // These commands wait for the commit.
    bench.ok(["container", "commit", "c", "i:3"]);
    bench.ok(["container", "rm", "c"]);
    let output = commit.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for image in ["i:2", "i:3"] {
        let create = ["container", "create", image, "--name", "d", "--mount"];
        let place = PathBuf::from(bench.ok(create).trim());
        assert!(fs::read(place.join("large")).unwrap() == bytes, "{image}");
        bench.ok(["container", "unmount", "d"]);
        bench.ok(["container", "rm", "d"]);
    }
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_mounted_device_is_not_written_over_by_an_export() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    full_volume(&bench);
    bench.ok(["volume", "create", "fs", "--size", "64M"]);
    let device = bench.ok(["attach", "fs"]);
    let device = device.trim();
    host("mkfs.ext4", ["-q", device]);
    let mounted = Mounted::at(device, bench.path("at"));
    fs::write(mounted.0.join("file"), noise(1 << 20, 42)).unwrap();
    bench.fails(["volume", "export", "disk", device], 1, "mounted");
    let place = mounted.0.to_str().unwrap().to_owned();
    host("sync", ["-f", &place]);
    drop(mounted);
    host("e2fsck", ["-fn", device]);
    // The volume is no longer in use.
    bench.ok(["volume", "export", "disk", device]);
    assert!(content(&bench, "fs")[..8 << 20] == noise(8 << 20, 41));
    bench.ok(["detach", "fs"]);
    daemon.stop();
}

#[test]
fn a_file_that_a_program_has_open_is_busy_and_becomes_no_second_writer() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let path = bench
        .ok(["attach", "disk", "--as", "file"])
        .trim()
        .to_owned();
    let open = File::options().read(true).write(true).open(&path).unwrap();
    let mut command = Command::new("sleep");
    command.arg("60").stdin(Stdio::from(open));
    let sleeper = Reaped(command.spawn().unwrap());
    // The process has the file open, too.
    drop(command);
    let pid = format!("process {} (sleep)", sleeper.0.id());
    bench.fails(["detach", "disk"], 1, &pid);
    bench.fails(["attach", "disk"], 1, "already attached writable");
    drop(sleeper);
    bench.ok(["detach", "disk"]);

    // The same applies if the volume is not attached.
    let open = File::options().write(true).open(&path).unwrap();
    bench.fails(["attach", "disk"], 1, "in use by");
    bench.fails(["attach", "disk", "--read-only"], 1, "in use by");
    drop(open);
    // The other way round: first a device, then a program that opens the file for writing.
    bench.ok(["attach", "disk"]);
    let error = File::options().write(true).open(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
    drop(File::open(&path).unwrap());
    // The refused open has left nothing behind.
    bench.ok(["detach", "disk"]);
    drop(File::options().write(true).open(&path).unwrap());

    // Users that coordinate their writes declare it.
    let open = File::options().write(true).open(&path).unwrap();
    bench.ok(["attach", "disk", "--shared"]);
    drop(File::options().write(true).open(&path).unwrap());
    bench.ok(["attach", "disk", "--as", "file", "--shared"]);
    bench.ok(["detach", "disk"]);
    drop(open);
    bench.ok(["detach", "disk"]);
    assert_eq!(bench.json(["attach", "--ls"]), Value::Array(Vec::new()));
    daemon.stop();
}

#[test]
fn a_killed_worker_leaves_writers_known_to_its_successor() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let path = daemon.mount.join("disk");
    let open = File::options().write(true).open(&path).unwrap();
    daemon.kill_worker();
    open.write_all_at(&[1; 4096], 0).unwrap();
    bench.fails(["attach", "disk"], 1, "in use by");
    drop(open);
    bench.ok(["attach", "disk"]);
    daemon.kill_worker();
    crate::harness::eventually("the refusal", || {
        let opened = File::options().write(true).open(&path);
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    });
    bench.ok(["detach", "disk"]);
    daemon.stop();
}

#[test]
fn attaching_again_says_how_often_and_takes_as_many_detaches() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    for kind in ["file", "loop"] {
        let attach = ["attach", "disk", "--as", kind];
        let path = bench.ok(attach);
        let output = bench.run(attach);
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), path);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("attached 2 times"), "{said}");
        assert_eq!(bench.json(["attach", "--ls"])[0]["count"], 2);
        let first = bench.run(["detach", "disk"]);
        let said = String::from_utf8_lossy(&first.stderr).into_owned();
        assert!(
            first.status.success() && said.contains("still attached 1 time"),
            "{said}"
        );
        assert!(Path::new(path.trim()).exists());
        assert_eq!(bench.json(["detach", "disk"])["still_attached"], 0);
        bench.fails(["detach", "disk"], 1, "not attached");
    }
    daemon.stop();
}
