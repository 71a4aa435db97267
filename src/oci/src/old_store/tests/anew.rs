//! Layers that are made anew of their files: what a container sees is the same.

use super::super::anew::Files;
use super::*;
use crate::testing::{Tree, assert_same, make_every_kind, open_folder, set_time, set_xattr, tree};
use crate::{ApplyOptions, apply};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::os::fd::AsFd;

/// Applies the tar of `files` to the folder `root`.
fn apply_to(root: &Path, files: Files) {
    let tar = files.into_tar().unwrap();
    let root = open_folder(root);
    apply(root.as_fd(), tar, ApplyOptions::default()).unwrap();
}

/// Makes the trees of two layers, lower and upper: everything that a layer can do to another.
fn two_trees(store: &Store) {
    for name in ["lower", "upper"] {
        fs::create_dir(store.path(name)).unwrap();
        make_every_kind(&store.path(name));
    }
    store.write("lower/changed", "before");
    store.write("lower/removed", "x");
    store.write("lower/removed-folder/x", "x");
    store.write("lower/file-then-folder", "x");
    store.write("lower/folder-then-file/x", "x");
    store.write("upper/changed", "after!");
    store.write("upper/new/x", "x");
    store.write("upper/file-then-folder/x", "x");
    store.write("upper/folder-then-file", "x");
    for name in ["lower", "upper"] {
        // The same time does not make two contents the same.
        set_time(&store.path(name).join("changed"), 1_000_000_000, 5);
        set_time(&store.path(name), 1_000_000_000, 0);
    }
}

fn seen(store: &Store, name: &str) -> Tree {
    tree(&store.path(name))
}

#[test]
fn the_difference_of_two_trees_makes_one_of_the_other() {
    let store = Store::new();
    two_trees(&store);
    let made = store.path("made");
    fs::create_dir(&made).unwrap();
    let open = |name: &str| open_folder(&store.path(name));
    apply_to(
        &made,
        Files::Tree {
            tree: open("lower"),
            below: None,
        },
    );
    assert_same(&seen(&store, "made"), &seen(&store, "lower"));
    let difference = || Files::Tree {
        tree: open("upper"),
        below: Some(open("lower")),
    };
    apply_to(&made, difference());
    // A link to a file that is the same in both trees has its own content now.
    let (found, wanted) = (seen(&store, "made"), seen(&store, "upper"));
    assert_same(&found, &wanted);
    let mut tar = Vec::new();
    difference()
        .into_tar()
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    let mut reader = TarReader::new(&*tar);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert!(
        !names.iter().any(|name| name.contains("bin/ping")),
        "{names:?}"
    );
    assert!(names.contains(&".wh.removed".to_owned()), "{names:?}");
}

#[test]
fn whiteouts_of_overlayfs_become_those_of_an_image() {
    let store = Store::new();
    store.write("lower/removed", "x");
    store.write("lower/kept/x", "x");
    store.write("lower/hidden/x", "x");
    store.write("upper/hidden/y", "y");
    set_xattr(&store.path("upper/hidden"), c"trusted.overlay.opaque", b"y");
    set_xattr(&store.path("upper/hidden"), c"user.kept", b"k");
    let gone = store.path("upper/removed");
    mknod(&gone, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    let lower = store.path("lower");
    apply_to(&lower, Files::Overlay(open_folder(&store.path("upper"))));
    let mut found: Vec<PathBuf> = seen(&store, "lower").into_keys().collect();
    found.sort();
    let wanted = ["", "hidden", "hidden/y", "kept", "kept/x"].map(PathBuf::from);
    assert_eq!(found, wanted);
    let hidden = &seen(&store, "lower")[Path::new("hidden")];
    assert!(format!("{hidden:?}").contains("117, 115, 101, 114, 46, 107")); // "user.k"
}

#[test]
fn a_part_that_is_in_a_layer_below_is_not_left_out_silently() {
    for (attribute, name) in [
        (c"trusted.overlay.metacopy", "file"),
        (c"trusted.overlay.redirect", "folder"),
    ] {
        let store = Store::new();
        store.write("upper/file", "x");
        fs::create_dir(store.path("upper/folder")).unwrap();
        set_xattr(&store.path("upper").join(name), attribute, b"x");
        let mut tar = Files::Overlay(open_folder(&store.path("upper")))
            .into_tar()
            .unwrap();
        let read = tar.read_to_end(&mut Vec::new()).map_err(Error::archive);
        assert!(matches!(read, Err(Error::LayerFile { .. })), "{read:?}");
    }
}

#[test]
fn whiteouts_of_aufs_become_those_of_an_image_and_its_own_files_stay_out() {
    let store = Store::new();
    store.write("lower/removed", "x");
    store.write("lower/hidden/x", "x");
    store.write("upper/.wh.removed", "");
    store.write("upper/.wh..wh.aufs", "");
    store.write("upper/.wh..wh.plnk/1.2", "");
    store.write("upper/hidden/.wh..wh..opq", "");
    store.write("upper/hidden/y", "y");
    apply_to(
        &store.path("lower"),
        Files::Aufs(open_folder(&store.path("upper"))),
    );
    let mut found: Vec<PathBuf> = seen(&store, "lower").into_keys().collect();
    found.sort();
    assert_eq!(found, ["", "hidden", "hidden/y"].map(PathBuf::from));
}
