//! containerd's and runc's containers on snapshots: the operations of a client.

use crate::fixtures::{self, listing, reference, run};
use crate::harness::is_mounted;
use crate::images;
use crate::packages::Release;
use crate::world::{Mounts, Setting, Snapshotter, World};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "test/shell";
const IMAGE: &str = "test/shell:latest";

/// Imports an image, and does everything with its containers that `ctr` can do.
pub(crate) fn live(setting: &Setting) {
    let world = World::open(setting);
    let before = world.used_bytes();
    layers_become_the_tree_that_tar_makes(&world, &setting.folder);
    let archive = images::Image::new(setting.folder.join("shell"))
        .filled(images::shell_root)
        .filled(|root| {
            fs::write(root.join("one"), "one\n").unwrap();
            let large = fs::File::create(root.join("large")).unwrap();
            drop(large);
            fs::write(root.join("large"), crate::harness::noise(32 << 20, 1)).unwrap();
        })
        .write();
    fixtures::output(&mut world.containerd.import(&archive, NAME));
    containers_do_not_see_each_other(&world, setting);
    a_first_write_copies_what_it_should(&world, setting);
    the_change_of_a_running_container_is_seen(&world, &setting.folder, setting.mounts);
    what_is_committed_is_a_parent(&world, &setting.folder);
    for id in ["one", "two"] {
        world.containerd.remove_container(id);
    }
    if setting.release == Release::Sid {
        containerds_default_still_unpacks(&world, &archive);
    }
    world.clear();
    if let (Some(before), Some(after)) = (before, world.used_bytes()) {
        // The template of empty file systems stays.
        assert!(
            after < before + (8 << 20),
            "{after} bytes are used, and were {before}"
        );
    }
    world.close();
}

/// The configuration for cowshed does not impair containerd's own snapshotter.
fn containerds_default_still_unpacks(world: &World, archive: &Path) {
    let ctr = &world.containerd;
    let mut command = ctr.ctr(["images", "import", "--snapshotter", "overlayfs"]);
    command.args(["--base-name", "test/default", "--digests"]);
    fixtures::output(command.arg(archive));
    let table = ctr.ok(["snapshots", "--snapshotter", "overlayfs", "ls"]);
    assert!(table.lines().count() > 1, "nothing was unpacked: {table}");
}

/// Every kind of entry of a layer, unpacked by containerd with our snapshots and our differ.
fn layers_become_the_tree_that_tar_makes(world: &World, folder: &Path) {
    let image = fixtures::busybox::image();
    let ctr = &world.containerd;
    fixtures::output(&mut ctr.import(&image.oci_tar, "test/kinds"));
    let wanted = folder.join("wanted");
    fs::create_dir(&wanted).unwrap();
    reference::apply(&image.layers, &wanted);
    let view = folder.join("view");
    fs::create_dir(&view).unwrap();
    let target = view.to_str().unwrap();
    ctr.ok([
        "images",
        "mount",
        "--snapshotter",
        ctr.snapshotter,
        "test/kinds:latest",
        target,
    ]);
    let found = listing::of(&view);
    assert!(
        fs::write(view.join("new"), "x").is_err(),
        "a view can be written to"
    );
    ctr.ok([
        "images",
        "unmount",
        "--rm",
        "--snapshotter",
        ctr.snapshotter,
        target,
    ]);
    assert!(!is_mounted(&view));
    // containerd's own differ loses holes, trusted attributes and the root's times.
    if world.service.is_some() && ctr.asks_differs() {
        listing::assert_same(&found, &listing::of(&wanted), "the image's tree");
    }
    assert_eq!(
        ctr.run(
            "test/kinds:latest",
            "kinds",
            ["/bin/busybox", "cat", "/etc/passwd"]
        ),
        "root:x:0:0:root:/root:/bin/ash\n"
    );
    ctr.ok(["images", "rm", "--sync", "test/kinds:latest"]);
}

fn containers_do_not_see_each_other(world: &World, setting: &Setting) {
    let ctr = &world.containerd;
    assert_eq!(ctr.run(IMAGE, "passing", ["/bin/cat", "/one"]), "one\n");
    ctr.start_container(IMAGE, "one");
    ctr.start_container(IMAGE, "two");
    ctr.exec(
        "one",
        "w",
        "echo mine > /mine; rm /one; mkdir /folder; echo in > /folder/in",
    );
    let seen = ctr.exec("two", "r", "ls /mine 2>/dev/null || echo none; cat /one");
    assert_eq!(seen, "none\none\n");
    assert_eq!(ctr.exec("one", "r", "cat /mine /folder/in"), "mine\nin\n");
    if setting.mounts == Mounts::Loop {
        // To look the user up, the client mounts a read-only view; a device that is mounted for
        // writing refuses that.
        return;
    }
    // Another user can access the folder that cowshed mounted.
    let mut asked = ctr.ctr(["tasks", "exec", "--exec-id", "u", "--user", "1000", "one"]);
    asked.args(["/bin/cat", "/mine"]);
    assert_eq!(fixtures::output(&mut asked), "mine\n");
}

/// Writes one byte of a file of 32 MiB in a container.
fn a_first_write_copies_what_it_should(world: &World, setting: &Setting) {
    let ctr = &world.containerd;
    ctr.exec(
        "two",
        "first",
        "printf x | dd of=/large bs=1 seek=20000000 conv=notrunc 2>/dev/null; sync",
    );
    let (one, two) = (usage(world, "one"), usage(world, "two"));
    match setting.snapshotter {
        Snapshotter::Cowshed => {
            assert!(one < 512 << 10, "a few small files take {one} bytes");
            // An overlay copies the file, whoever made it.
            let copied = if setting.mounts == Mounts::Overlay {
                32 << 20
            } else {
                0
            };
            assert!(
                (copied..copied + (512 << 10)).contains(&two),
                "one byte of a large file takes {two} bytes"
            );
        }
        // cowshed exists to avoid this.
        Snapshotter::Overlayfs => assert!(two > 32 << 20),
        _ => {}
    }
}

/// Returns the space of a snapshot, as `ctr snapshots usage` reports it.
fn usage(world: &World, key: &str) -> u64 {
    let table = world.containerd.snapshot(["usage", "-b", key]);
    let line = table.lines().nth(1).expect("a line for the snapshot");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes the layer of a running container's changes twice: compressed, and as a plain tar.
fn the_change_of_a_running_container_is_seen(world: &World, folder: &Path, mounts: Mounts) {
    let ctr = &world.containerd;
    if matches!(mounts, Mounts::Loop | Mounts::File) && !ctr.asks_differs() {
        // The client mounts both sides read-only, which a device in use refuses.
        return;
    }
    let tar = folder.join("diff.tar");
    let media = "application/vnd.oci.image.layer.v1.tar";
    for (suffix, program) in [("", "cat"), ("+gzip", "zcat")] {
        let media = format!("{media}{suffix}");
        let mut command = ctr.snapshot_command(["diff", "--media-type", &media, "one"]);
        let answer = command.output().unwrap();
        assert!(answer.status.success(), "{answer:?}");
        let packed = folder.join("diff");
        fs::write(&packed, answer.stdout).unwrap();
        let plain = Command::new(program).arg(&packed).output().unwrap();
        assert!(plain.status.success(), "{media}: {plain:?}");
        fs::write(&tar, plain.stdout).unwrap();
        let mut names: Vec<String> = run("tar", ["-tf", tar.to_str().unwrap()])
            .lines()
            .map(|name| {
                name.trim_start_matches('/')
                    .trim_end_matches('/')
                    .to_owned()
            })
            .filter(|name| !name.is_empty() && name != ".")
            .collect();
        names.sort();
        // A runtime creates mount points, some of which the image lacks.
        names.retain(|name| {
            !["dev", "proc", "sys", "run", "etc"]
                .iter()
                .any(|top| name.starts_with(top))
        });
        assert_eq!(names, [".wh.one", "folder", "folder/in", "mine"], "{media}");
    }
}

/// Commits, clones, views and removes a snapshot, by keys.
fn what_is_committed_is_a_parent(world: &World, folder: &Path) {
    let ctr = &world.containerd;
    let parent = ctr.snapshot(["info", "one"]);
    let parent: serde_json::Value = serde_json::from_str(&parent).unwrap();
    let parent = parent["Parent"].as_str().unwrap().to_owned();
    ctr.snapshot(["prepare", "work", &parent]);
    with_mounted(world, folder, "work", |root| {
        assert_eq!(fs::read_to_string(root.join("one")).unwrap(), "one\n");
        fs::write(root.join("committed"), "so\n").unwrap();
        fs::remove_file(root.join("large")).unwrap();
    });
    ctr.snapshot(["commit", "done", "work"]);
    for key in ["child", "other-child"] {
        ctr.snapshot(["prepare", key, "done"]);
        with_mounted(world, folder, key, |root| {
            assert_eq!(fs::read_to_string(root.join("committed")).unwrap(), "so\n");
            assert!(!root.join("large").exists());
            fs::write(root.join("committed"), "otherwise\n").unwrap();
        });
    }
    let refused = ctr.snapshot_command(["rm", "done"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("child"),
        "{said}"
    );
    ctr.snapshot(["rm", "other-child"]);
    ctr.snapshot(["rm", "child"]);
    ctr.snapshot(["rm", "done"]);
}

/// Mounts a snapshot as its mounts say; unmounts it before returning.
fn with_mounted(world: &World, folder: &Path, key: &str, look: impl FnOnce(&Path)) {
    let root = folder.join(format!("mounted-{key}"));
    fs::create_dir_all(&root).unwrap();
    let said = world
        .containerd
        .snapshot(["mounts", root.to_str().unwrap(), key]);
    run("sh", ["-euc", &said]);
    let mounted = Mounted(root);
    look(&mounted.0);
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", [&self.0]);
    }
}
