//! Creates, mounts and removes containers.

use crate::stage::{Stage, small_image};
use cowshed_format::base::Name;
use cowshed_host::{CreateContainer, Error, Host};
use std::fs::{self, File};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

fn prepared() -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    stage
}

#[test]
fn a_mounted_container_costs_less_than_100_kib_and_runs_programs() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    let listed = stage.host.containers().list().unwrap();
    assert_eq!(listed.len(), 1);
    assert!(
        listed[0].own_bytes < 100 << 10,
        "{} bytes",
        listed[0].own_bytes
    );
    assert!(listed[0].virtual_bytes > 500 << 10);
    assert_eq!(listed[0].mounted.as_deref(), Some(root.as_path()));
    let script = "echo $((6*7)) > /tmp/x";
    let ran = Command::new("chroot")
        .arg(&root)
        .args(["/bin/sh", "-c", script])
        .status();
    assert!(ran.unwrap().success());
    assert_eq!(fs::read_to_string(root.join("tmp/x")).unwrap(), "42\n");
}

#[test]
fn containers_of_one_image_do_not_see_each_other_and_keep_what_is_theirs() {
    let stage = prepared();
    let (one, two) = (
        stage.container("small:1", "one"),
        stage.container("small:1", "two"),
    );
    fs::write(one.join("etc/passwd"), "mine").unwrap();
    fs::remove_file(two.join("etc/passwd")).unwrap();
    stage.host.containers().unmount("one").unwrap();
    stage.host.containers().unmount("two").unwrap();
    assert!(matches!(
        stage.host.containers().unmount("one"),
        Err(Error::NotMounted(_))
    ));
    stage.check_file_systems();
    let dir = stage.folder("elsewhere");
    let one = stage
        .host
        .containers()
        .mount("one", Some(&dir))
        .unwrap()
        .path;
    assert_eq!(one, dir);
    assert_eq!(fs::read_to_string(one.join("etc/passwd")).unwrap(), "mine");
    assert_eq!(
        stage
            .host
            .containers()
            .mount("one", Some(&dir))
            .unwrap()
            .path,
        dir
    );
    assert_eq!(
        stage.host.containers().mount("one", None).unwrap().path,
        dir
    );
    let other = stage.folder("other");
    let refused = stage.host.containers().mount("one", Some(&other));
    assert!(
        matches!(refused, Err(Error::MountedElsewhere { .. })),
        "{refused:?}"
    );
    let two = stage.host.containers().mount("two", None).unwrap().path;
    assert!(!two.join("etc/passwd").exists());
    let three = stage.container("small:1", "three");
    assert_eq!(
        fs::read_to_string(three.join("etc/passwd")).unwrap(),
        "root:x:0:0\n"
    );
}

#[test]
fn a_busy_container_is_named_and_stays() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    let open = File::open(root.join("etc/passwd")).unwrap();
    for refused in [
        stage.host.containers().unmount("one").map(drop),
        stage.host.containers().remove("one").map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, Error::MountBusy { .. }), "{refused}");
        assert!(
            refused.to_string().contains(&*root.to_string_lossy()),
            "{refused}"
        );
    }
    assert!(root.join("etc/passwd").exists());
    drop(open);
    let id = stage.host.containers().remove("one").unwrap().id;
    assert!(!stage.volumes().iter().any(|name| name.contains(&id)));
    assert!(stage.host.containers().list().unwrap().is_empty());
}

#[test]
fn names_are_unique_and_ids_can_be_shortened() {
    let stage = prepared();
    let name = Some(Name::new("one").unwrap());
    let options = CreateContainer {
        name,
        ..Default::default()
    };
    let one = stage.host.containers().create("small:1", &options).unwrap();
    assert_eq!(one.id.len(), 64);
    let taken = stage.host.containers().create("small:1", &options);
    assert!(matches!(taken, Err(Error::ContainerExists(_))));
    let unnamed = stage
        .host
        .containers()
        .create("small", &CreateContainer::default());
    assert!(
        matches!(unnamed, Err(Error::NotFound { .. })),
        "the tag is not latest"
    );
    let two = stage
        .host
        .containers()
        .create("small:1", &CreateContainer::default())
        .unwrap();
    assert_ne!(two.name, "one");
    stage.host.containers().remove(&one.id[..12]).unwrap();
    assert!(
        stage.host.containers().create("small:1", &options).is_ok(),
        "the name is free again"
    );
}

#[test]
fn a_container_may_be_larger_than_its_image() {
    let stage = prepared();
    let size_bytes = Some(20 << 30);
    let options = CreateContainer {
        name: Some(Name::new("big").unwrap()),
        size_bytes,
        ..Default::default()
    };
    stage.host.containers().create("small:1", &options).unwrap();
    let root = stage.host.containers().mount("big", None).unwrap().path;
    let space = nix::sys::statvfs::statvfs(&root).unwrap();
    let total = space.blocks() * space.fragment_size();
    assert!(total > 18 << 30, "{total}");
    stage.host.containers().unmount("big").unwrap();
    stage.check_file_systems();
    let small = CreateContainer {
        name: None,
        size_bytes: Some(1 << 30),
        ..Default::default()
    };
    let refused = stage.host.containers().create("small:1", &small);
    assert!(matches!(refused, Err(Error::TooSmall { min_bytes }) if min_bytes == 10 << 30));
}

#[test]
fn a_mount_that_somebody_else_took_away_is_tidied_up() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    fs::write(root.join("kept"), "x").unwrap();
    assert!(
        Command::new("umount")
            .arg(&root)
            .status()
            .unwrap()
            .success()
    );
    let again = stage.host.containers().mount("one", None).unwrap().path;
    assert_eq!(fs::read_to_string(again.join("kept")).unwrap(), "x");
}

#[test]
fn a_second_host_after_the_first_finds_everything_again() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    fs::write(root.join("kept"), "x").unwrap();
    stage.host.close().unwrap();
    let state = stage.host.mounts().state_dir().to_owned();
    let second = Host::with_export(stage.pool.clone(), &state, Arc::clone(&stage.export)).unwrap();
    let root = second.containers().mount("one", None).unwrap().path;
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "x");
}

#[test]
fn deleting_a_file_gives_its_space_back_to_the_pool() {
    let stage = prepared();
    let root = stage.container("small:1", "one");
    let own_bytes = || stage.host.containers().list().unwrap()[0].own_bytes;
    fs::write(root.join("large"), vec![7; 32 << 20]).unwrap();
    let sync = || {
        assert!(
            Command::new("sync")
                .arg("-f")
                .arg(&root)
                .status()
                .unwrap()
                .success()
        )
    };
    sync();
    assert!(own_bytes() > 32 << 20);
    fs::remove_file(root.join("large")).unwrap();
    // The kernel discards in the background, after the transaction that freed the blocks.
    let started = Instant::now();
    while own_bytes() >= 4 << 20 {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{} bytes",
            own_bytes()
        );
        sync();
        thread::sleep(Duration::from_millis(50));
    }
}
