//! Containers with overlay roots: what they share, and that they live as those with block roots do.

use crate::stage::{Stage, pool_of, shell, small_image};
use crate::trees;
use cowshed_format::base::Name;
use cowshed_host::{CopySide, CreateContainer, Error, Host, ImportOptions, RootKind};
use cowshed_oci::SourceInput;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn prepared() -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    stage
}

fn options(name: &str) -> CreateContainer {
    CreateContainer {
        name: Some(Name::new(name).unwrap()),
        root: RootKind::Overlay,
        ..Default::default()
    }
}

/// Creates a container with an overlay root and mounts it.
fn overlay(stage: &Stage, image: &str, name: &str) -> PathBuf {
    let containers = stage.host.containers();
    containers.create(image, &options(name)).unwrap();
    containers.mount(name, None).unwrap().path
}

/// Returns the mounts in the state folder, as `TYPE PATH` with the path below that folder.
fn mounts(state: &Path) -> Vec<String> {
    let all = cowshed_sys::mount::mounts().unwrap().into_iter();
    let inside = all.filter_map(|entry| {
        let path = entry.mount_point.strip_prefix(state).ok()?.to_owned();
        let top = path.components().next()?.as_os_str().to_owned();
        Some(format!("{} {}", entry.fs_type.display(), top.display()))
    });
    inside.collect()
}

#[test]
fn overlays_of_one_image_share_one_mount_of_it_and_it_ends_with_the_last() {
    let stage = prepared();
    let state = stage.host.mounts().state_dir().to_owned();
    let first = overlay(&stage, "small:1", "one");
    let second = overlay(&stage, "small:1", "two");
    let shown = stage.container("small:1", "block");
    trees::assert_same(&first, &shown);
    assert_eq!(
        fs::metadata(first.join("bin/busybox")).unwrap().ino(),
        fs::metadata(second.join("bin/busybox")).unwrap().ino()
    );
    shell(
        &first,
        "echo changed > etc/one; rm etc/two || true; rm -r var; echo x > etc/passwd",
    );
    trees::assert_same(&second, &shown);
    let of_lower = |state: &Path| {
        let all = mounts(state);
        all.iter().filter(|line| *line == "ext4 lower").count()
    };
    assert_eq!(of_lower(&state), 1, "{:?}", mounts(&state));
    let listed = stage.host.containers().list().unwrap();
    let mut roots: Vec<_> = listed
        .iter()
        .map(|it| (it.name.as_str(), it.root))
        .collect();
    roots.sort_unstable_by_key(|(name, _)| *name);
    assert_eq!(
        roots,
        [
            ("block", RootKind::Block),
            ("one", RootKind::Overlay),
            ("two", RootKind::Overlay),
        ]
    );
    let named = |name: &str| listed.iter().find(|it| it.name == name).unwrap();
    let (block, two) = (named("block"), named("two"));
    assert!(two.virtual_bytes >= block.virtual_bytes, "{listed:?}");
    assert!(two.own_bytes < 1 << 20, "{listed:?}");
    stage.host.containers().remove("one").unwrap();
    assert_eq!(of_lower(&state), 1);
    assert!(stage.host.images().remove("small:1").is_err());
    stage.host.containers().unmount("two").unwrap();
    assert_eq!(of_lower(&state), 0);
    // What was written is there the next time.
    let second = stage.host.containers().mount("two", None).unwrap().path;
    trees::assert_same(&second, &shown);
    for name in ["two", "block"] {
        stage.host.containers().remove(name).unwrap();
    }
    assert!(mounts(&state).is_empty(), "{:?}", mounts(&state));
    assert!(stage.export.attachments().is_empty());
    stage.host.images().remove("small:1").unwrap();
}

#[test]
fn programs_set_user_ids_and_devices_work_in_an_overlay() {
    let stage = prepared();
    let root = overlay(&stage, "small:1", "one");
    shell(
        &root,
        "chroot . /bin/busybox true; cp \"$(command -v id)\" set-id; chmod 4755 set-id
         [[ $(setpriv --reuid 1234 --regid 1234 --clear-groups ./set-id -u) == 0 ]]
         mknod null c 1 3; echo x > null; mkdir full; [[ $(cat null) == '' ]]",
    );
}

#[test]
fn an_overlay_keeps_what_was_written_and_is_busy_while_it_is_used() {
    let stage = prepared();
    let place = stage.folder("place");
    stage
        .host
        .containers()
        .create("small:1", &options("one"))
        .unwrap();
    let mounted = stage.host.containers().mount("one", Some(&place)).unwrap();
    assert_eq!(mounted.path, place);
    let open = fs::File::create(place.join("open")).unwrap();
    for _ in 0..2 {
        let busy = stage.host.containers().unmount("one");
        assert!(matches!(busy, Err(Error::MountBusy { .. })), "{busy:?}");
        let busy = stage.host.containers().remove("one");
        assert!(matches!(busy, Err(Error::MountBusy { .. })), "{busy:?}");
    }
    drop(open);
    fs::write(place.join("kept"), "yes").unwrap();
    // Somebody else unmounts it, and what lies below.
    let below = stage.host.mounts().state_dir().join("own");
    shell(
        &place,
        &format!(
            "umount -l {}; umount {}/*",
            place.display(),
            below.display()
        ),
    );
    let lines = stage.host.containers().diff("one").unwrap();
    let paths: Vec<_> = lines
        .iter()
        .map(|line| line.path.display().to_string())
        .collect();
    assert_eq!(paths, ["/kept", "/open"]);
    let root = stage.host.containers().mount("one", None).unwrap().path;
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "yes");
    // Only the folder below it is unmounted: what runs is still compared and committed.
    shell(
        &root,
        &format!("echo x > later; umount {}/*", below.display()),
    );
    assert_eq!(stage.host.containers().diff("one").unwrap().len(), 3);
    stage.host.containers().unmount("one").unwrap();
}

#[test]
fn files_are_copied_into_and_out_of_an_overlay_that_is_not_mounted() {
    let stage = prepared();
    let containers = stage.host.containers();
    containers.create("small:1", &options("one")).unwrap();
    let folder = stage.folder("copied");
    fs::write(folder.join("in"), "content").unwrap();
    let inside = |path: &str| CopySide::Container {
        container: "one".to_owned(),
        path: path.into(),
    };
    let host = |name: &str| CopySide::Host(folder.join(name));
    containers.copy(&host("in"), &inside("/etc/in")).unwrap();
    containers.copy(&inside("/etc/in"), &host("out")).unwrap();
    containers.copy(&inside("/etc/one"), &host("one")).unwrap();
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "content");
    assert_eq!(fs::read_to_string(folder.join("one")).unwrap(), "one\n");
    let lines = containers.diff("one").unwrap();
    let lines: Vec<_> = lines
        .iter()
        .map(|it| it.path.display().to_string())
        .collect();
    assert_eq!(lines, ["/etc", "/etc/in"]);
    assert!(stage.export.attachments().is_empty());
}

#[test]
fn an_overlay_has_the_size_that_is_asked_for_and_is_full_then() {
    let stage = prepared();
    let containers = stage.host.containers();
    let sized = CreateContainer {
        size_bytes: Some(128 << 20),
        ..options("one")
    };
    containers.create("small:1", &sized).unwrap();
    let root = containers.mount("one", None).unwrap().path;
    let size = nix::sys::statvfs::statvfs(&root).unwrap();
    let size_bytes = size.blocks() * size.fragment_size();
    assert!((64 << 20..=128 << 20).contains(&size_bytes), "{size_bytes}");
    let full = fs::write(root.join("large"), vec![1; 200 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    fs::remove_file(root.join("large")).unwrap();
    fs::write(root.join("small"), "fits").unwrap();
    // The pool refused nothing, so that it can be committed.
    containers
        .commit("one", &Name::new("made:1").unwrap(), None)
        .unwrap();
    let made = overlay(&stage, "made:1", "two");
    assert_eq!(fs::read_to_string(made.join("small")).unwrap(), "fits");
    let small = CreateContainer {
        size_bytes: Some(1 << 20),
        ..options("three")
    };
    assert!(containers.create("small:1", &small).is_err());
}

#[test]
fn an_overlay_that_the_pool_refused_a_write_is_never_committed() {
    let stage = Stage::on(pool_of(256 << 20));
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let root = overlay(&stage, "small:1", "one");
    let written = fs::write(root.join("large"), vec![7; 400 << 20]);
    drop(written);
    // An overlay does not always report what its file system could not write.
    let _ = Command::new("sync").arg("-f").arg(&root).status().unwrap();
    let name = Name::new("made:1").unwrap();
    let refused = stage.host.containers().commit("one", &name, None);
    assert!(matches!(refused, Err(Error::Incomplete(_))), "{refused:?}");
    // The device reports once that writes to it have failed.
    let remove = || stage.host.containers().remove("one");
    remove().or_else(|_| remove()).unwrap();
    let root = overlay(&stage, "small:1", "two");
    fs::write(root.join("small"), "x").unwrap();
    stage.host.containers().commit("two", &name, None).unwrap();
}

#[test]
fn a_successor_takes_over_mounted_overlays_and_undoes_those_half_mounted() {
    let stage = prepared();
    let state = stage.host.mounts().state_dir().to_owned();
    let place = stage.folder("place");
    let containers = stage.host.containers();
    containers.create("small:1", &options("one")).unwrap();
    let root = containers.mount("one", Some(&place)).unwrap().path;
    let second = overlay(&stage, "small:1", "two");
    fs::write(root.join("kept"), "yes").unwrap();
    // This one was being mounted: the overlay is missing.
    shell(&second, &format!("cd /; umount {}", second.display()));
    stage.host.leave();
    let resumed = Host::resume(stage.pool.clone(), &state, Arc::clone(&stage.export)).unwrap();
    let listed = resumed.containers().list().unwrap();
    let mounted: Vec<_> = listed.iter().map(|it| it.mounted.clone()).collect();
    assert_eq!(mounted, [Some(place), None]);
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "yes");
    assert_eq!(mounts(&state), ["ext4 lower", "ext4 own"]);
    fs::write(root.join("more"), "yes").unwrap();
    assert_eq!(resumed.containers().diff("one").unwrap().len(), 2);
    let name = Name::new("made:1").unwrap();
    resumed.containers().commit("one", &name, None).unwrap();
    resumed.containers().mount("two", None).unwrap();
    resumed.containers().unmount("two").unwrap();
    assert_eq!(mounts(&state), ["ext4 lower", "ext4 own"]);
    resumed.containers().remove("one").unwrap();
    assert!(mounts(&state).is_empty(), "{:?}", mounts(&state));
    assert!(stage.export.attachments().is_empty());
    resumed.close().unwrap();
}

#[test]
fn a_successor_drops_a_lower_layer_that_nobody_uses() {
    let stage = prepared();
    let state = stage.host.mounts().state_dir().to_owned();
    let root = overlay(&stage, "small:1", "one");
    let own = state.join("own");
    let lost = format!(
        "cd /; umount {}; umount {}/*",
        root.display(),
        own.display()
    );
    shell(&root, &lost);
    stage.host.leave();
    let resumed = Host::resume(stage.pool.clone(), &state, Arc::clone(&stage.export)).unwrap();
    assert!(mounts(&state).is_empty(), "{:?}", mounts(&state));
    assert!(stage.export.attachments().is_empty());
    assert!(!state.join("lower").read_dir().unwrap().any(|_| true));
    resumed.close().unwrap();
}

#[test]
fn after_a_restart_an_overlay_is_mounted_again_on_demand() {
    let (device, pool) = pool_of(2 << 30);
    let folder = tempfile::tempdir().unwrap();
    let image = small_image({
        let path = folder.path().join("small");
        fs::create_dir(&path).unwrap();
        path
    });
    let state = folder.path().join("state");
    let host = Host::new(pool.clone(), &state).unwrap();
    let opened = host.images().open(SourceInput::Path(image), None).unwrap();
    let named = ImportOptions {
        name: Some(Name::new("small:1").unwrap()),
        ..Default::default()
    };
    host.images()
        .import(&opened, &named, &mut |_| true)
        .unwrap();
    host.containers()
        .create("small:1", &options("one"))
        .unwrap();
    let root = host.containers().mount("one", None).unwrap().path;
    fs::write(root.join("kept"), "yes").unwrap();
    host.close().unwrap();
    drop(host);
    let host = Host::new(pool.clone(), &state).unwrap();
    assert!(host.containers().list().unwrap()[0].mounted.is_none());
    assert_eq!(host.containers().diff("one").unwrap().len(), 1);
    let root = host.containers().mount("one", None).unwrap().path;
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "yes");
    host.close().unwrap();
    drop(host);
    pool.close().unwrap();
    drop(device);
}
