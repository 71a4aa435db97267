//! Tests that apply layers, compared with GNU tar's results.

mod corpus;
mod hostile;

use super::*;
use crate::tarball::put_record;
use crate::testing::{
    CAPABILITY, Tarball, Tree, assert_same, gnu_extract, gnu_tar, make_every_kind, open,
    open_folder, set_time, set_xattr, tree,
};
use nix::fcntl::OFlag;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::EntryType;
use tempfile::TempDir;

fn apply_to(root: &Path, layer: &[u8]) -> Result<Applied> {
    apply(
        open_folder(root).as_fd(),
        layer,
        ApplyOptions {
            require_end_marker: true,
            is_plain_tar: false,
        },
    )
}

/// Returns a root with these layers applied.
fn root_of(layers: &[Tarball]) -> (TempDir, Tree) {
    let root = tempfile::tempdir().unwrap();
    apply_all(root.path(), layers);
    let tree = tree(root.path());
    (root, tree)
}

fn apply_all(root: &Path, layers: &[Tarball]) {
    for layer in layers {
        apply_to(root, &layer.bytes_so_far()).unwrap();
    }
}

fn paths(tree: &Tree) -> Vec<&str> {
    tree.keys()
        .map(|path| path.to_str().unwrap())
        .filter(|path| !path.is_empty())
        .collect()
}

/// Applies a layer that must fail; a file beside the root must stay.
fn refuse(layer: &Tarball) -> Error {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outer.path().join("secret"), b"untouched").unwrap();
    let error = apply_to(&root, &layer.bytes_so_far()).unwrap_err();
    assert_eq!(fs::read(outer.path().join("secret")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    error
}

fn compare_with_gnu_tar(create: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (source, theirs, ours) = (at("source"), at("theirs"), at("ours"));
    make_every_kind(&source);
    let archive = folder.path().join("layer.tar");
    let mut arguments = vec![
        "-cf",
        archive.to_str().unwrap(),
        "-C",
        source.to_str().unwrap(),
    ];
    arguments.extend_from_slice(create);
    arguments.push(".");
    gnu_tar(&arguments);
    gnu_extract(&archive, &theirs);
    let layer = fs::read(&archive).unwrap();
    let applied = apply_to(&ours, &layer).unwrap();
    assert_eq!(applied.dropped, Dropped::default());
    assert_same(&tree(&ours), &tree(&theirs));
    for (file, blocks) in [("home/who/sparse", 30 * 24), ("home/who/zeros", 0)] {
        let made = fs::metadata(ours.join(file)).unwrap().blocks();
        assert!(made <= blocks, "{file} takes {made} sectors");
    }
}

#[test]
fn a_pax_archive_becomes_what_gnu_tar_makes_of_it() {
    compare_with_gnu_tar(&["--format=pax", "--xattrs", "--xattrs-include=*"]);
}

#[test]
fn every_way_to_store_sparse_files_becomes_what_gnu_tar_makes_of_it() {
    compare_with_gnu_tar(&["--format=gnu", "--sparse"]);
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        compare_with_gnu_tar(&[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "-S",
            &version,
        ]);
    }
}

#[test]
fn what_gnu_tar_stores_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (source, ours) = (folder.path().join("source"), folder.path().join("ours"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&ours).unwrap();
    make_every_kind(&source);
    let archive = folder.path().join("layer.tar");
    gnu_tar(&[
        "-cf",
        archive.to_str().unwrap(),
        "-C",
        source.to_str().unwrap(),
        "--format=pax",
        "--xattrs",
        "--xattrs-include=*",
        "-S",
        ".",
    ]);
    apply(
        open_folder(&ours).as_fd(),
        File::open(&archive).unwrap(),
        ApplyOptions::default(),
    )
    .unwrap();
    assert_same(&tree(&ours), &tree(&source));
}

#[test]
fn a_whiteout_removes_what_lower_layers_put_there() {
    let lower = Tarball::new()
        .folder("d/")
        .file("d/gone", b"1")
        .file("d/stays", b"2")
        .folder("d/tree/")
        .file("d/tree/deep/file", b"3");
    let upper = Tarball::new()
        .file("d/.wh.gone", b"")
        .file("d/.wh.tree", b"")
        .file("d/.wh.never-was", b"")
        .file("nowhere/.wh.x", b"");
    let (_root, tree) = root_of(&[lower, upper]);
    assert_eq!(paths(&tree), ["d", "d/stays"]);
}

#[test]
fn a_whiteout_spares_what_its_own_layer_added() {
    let lower = || {
        Tarball::new()
            .file("f", b"old")
            .folder("d/")
            .file("d/old", b"")
    };
    let upper = Tarball::new()
        .file("f", b"new")
        .file(".wh.f", b"")
        .folder("d/")
        .file("d/new", b"")
        .file(".wh.d", b"");
    let (root, tree) = root_of(&[lower(), upper]);
    assert_eq!(paths(&tree), ["d", "d/new", "f"]);
    assert_eq!(fs::read(root.path().join("f")).unwrap(), b"new");
    // The same if the parents of the added objects are not described.
    let upper = Tarball::new().file("d/new", b"").file(".wh.d", b"");
    assert_eq!(paths(&root_of(&[lower(), upper]).1), ["d", "d/new", "f"]);
}

#[test]
fn an_opaque_folder_hides_lower_layers_wherever_its_marker_stands() {
    let lower = || {
        Tarball::new()
            .file("d/old", b"")
            .file("d/sub/old", b"")
            .file("other", b"")
    };
    let before = Tarball::new()
        .folder("d/")
        .file("d/.wh..wh..opq", b"")
        .file("d/sub/new", b"");
    let after = Tarball::new()
        .folder("d/")
        .file("d/sub/new", b"")
        .file("d/.wh..wh..opq", b"");
    for upper in [before, after] {
        let (_root, tree) = root_of(&[lower(), upper]);
        assert_eq!(paths(&tree), ["d", "d/sub", "d/sub/new", "other"]);
    }
    // Through a symbolic link it is the same folder.
    let link = Tarball::new()
        .symlink("link", "d")
        .file("link/new", b"")
        .file("d/.wh..wh..opq", b"");
    assert_eq!(
        paths(&root_of(&[lower(), link]).1),
        ["d", "d/new", "link", "other"]
    );
}

#[test]
fn files_folders_and_links_replace_each_other() {
    let lower = Tarball::new()
        .folder("was-folder/")
        .file("was-folder/x", b"")
        .file("was-file", b"")
        .symlink("was-link", "kept")
        .folder("kept/")
        .file("kept/x", b"x");
    let upper = Tarball::new()
        .file("was-folder", b"file")
        .folder("was-file/")
        .file("was-file/y", b"")
        .folder("was-link/")
        .folder("kept/")
        .file("twice", b"first")
        .file("twice", b"second");
    let (root, tree) = root_of(&[lower, upper]);
    let expected = [
        "kept",
        "kept/x",
        "twice",
        "was-file",
        "was-file/y",
        "was-folder",
        "was-link",
    ];
    assert_eq!(paths(&tree), expected);
    assert_eq!(fs::read(root.path().join("twice")).unwrap(), b"second");
    assert!(
        fs::symlink_metadata(root.path().join("was-link"))
            .unwrap()
            .is_dir()
    );
}

#[test]
fn a_replaced_name_leaves_its_hard_links_alone() {
    let lower = Tarball::new().file("a", b"old").hard_link("b", "a");
    let upper = Tarball::new()
        .file("a", b"new")
        .hard_link("c", "/b")
        .hard_link("./c", "c");
    let (root, tree) = root_of(&[lower, upper]);
    assert_eq!(paths(&tree), ["a", "b", "c"]);
    assert_eq!(fs::read(root.path().join("a")).unwrap(), b"new");
    assert_eq!(fs::read(root.path().join("b")).unwrap(), b"old");
    let inode = |name| fs::metadata(root.path().join(name)).unwrap().ino();
    assert_eq!(inode("b"), inode("c"));
}

#[test]
fn a_described_folder_loses_lower_attributes_and_an_undescribed_one_keeps_its_time() {
    let root = tempfile::tempdir().unwrap();
    for name in ["described", "undescribed"] {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        set_xattr(&path, c"user.lower", b"1");
        set_time(&path, 77, 88);
    }
    let layer = Tarball::new()
        .folder("described/")
        .file("described/x", b"")
        .file("undescribed/x", b"")
        .file("made/for/x", b"");
    apply_to(root.path(), &layer.bytes()).unwrap();
    let metadata = |name| fs::metadata(root.path().join(name)).unwrap();
    let xattrs = |name| {
        cowshed_sys::xattr::list(open(&root.path().join(name), OFlag::O_PATH))
            .unwrap()
            .len()
    };
    assert_eq!(
        (metadata("described").mtime(), xattrs("described")),
        (1_000_000_000, 0)
    );
    let kept = metadata("undescribed");
    assert_eq!(
        (kept.mtime(), kept.mtime_nsec(), xattrs("undescribed")),
        (77, 88, 1)
    );
    assert_eq!(metadata("made/for").mode() & 0o7777, 0o755);
    assert_eq!(metadata("made/for").mtime(), 1_000_000_000);
}

#[test]
fn nothing_inherits_a_default_acl() {
    let root = tempfile::tempdir().unwrap();
    // Version 2; user, group, mask and others have all permissions, and so has user 1000.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, id) in [
        (1_u16, u32::MAX),
        (2, 1000),
        (4, u32::MAX),
        (16, u32::MAX),
        (32, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&7_u16.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    fs::create_dir(root.path().join("d")).unwrap();
    set_xattr(&root.path().join("d"), c"system.posix_acl_default", &acl);
    let layer = Tarball::new()
        .file("d/f", b"")
        .folder("d/s/")
        .raw(EntryType::Fifo, "d/p", "", b"");
    apply_to(root.path(), &layer.bytes()).unwrap();
    for (name, mode) in [("d/f", 0o644), ("d/s", 0o755), ("d/p", 0o644)] {
        let path = root.path().join(name);
        let fd = open(&path, OFlag::O_PATH);
        assert!(cowshed_sys::xattr::list(fd).unwrap().is_empty(), "{name}");
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn a_full_file_system_keeps_its_errno() {
    let limit = 1 << 20;
    let root = tempfile::tempdir().unwrap();
    let options = format!("size={limit}");
    nix::mount::mount(
        Some("tmpfs"),
        root.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let unmount = Unmount(root.path());
    let error = apply_to(
        root.path(),
        &Tarball::new().file("f", &vec![1; 2 * limit]).bytes(),
    );
    assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    drop(unmount);
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn numbers_beyond_the_header_and_attributes_come_through_pax() {
    let root = tempfile::tempdir().unwrap();
    let mut record = Vec::new();
    put_record(&mut record, b"SCHILY.xattr.security.capability", CAPABILITY);
    put_record(&mut record, b"uid", b"4294967294");
    put_record(&mut record, b"mtime", b"-1.000000001");
    let layer = Tarball::new()
        .raw(EntryType::XHeader, "x", "", &record)
        .file("f", b"content");
    apply_to(root.path(), &layer.bytes()).unwrap();
    let metadata = fs::metadata(root.path().join("f")).unwrap();
    assert_eq!(metadata.uid(), 4_294_967_294);
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-2, 999_999_999));
    let fd = open(&root.path().join("f"), OFlag::O_PATH);
    assert_eq!(
        cowshed_sys::xattr::get(fd, c"security.capability").unwrap(),
        CAPABILITY
    );
    for wrong in ["4294967295", "70000000000", "-1", "x"] {
        let mut record = Vec::new();
        put_record(&mut record, b"gid", wrong.as_bytes());
        let layer = Tarball::new()
            .raw(EntryType::XHeader, "x", "", &record)
            .file("f", b"");
        assert!(matches!(refuse(&layer), Error::Header { .. }), "{wrong}");
    }
}
