//! Malicious or damaged layers.

use super::*;
use crate::testing::exists;
use proptest::prelude::*;
use std::os::unix::fs::symlink;

#[test]
fn whiteouts_that_name_the_parent_are_refused() {
    for name in [".wh...", "d/.wh...", ".wh.."] {
        assert!(matches!(
            refuse(&Tarball::new().folder("d/").file(name, b"")),
            Error::Escapes { .. }
        ));
    }
    let empty = refuse(&Tarball::new().file(".wh.", b""));
    assert!(matches!(
        empty,
        Error::Header {
            fault: HeaderFault::Path,
            ..
        }
    ));
    // The bookkeeping files of AUFS are skipped.
    let (_root, tree) = root_of(&[Tarball::new()
        .folder(".wh..wh.plnk/")
        .file(".wh..wh.aufs", b"")]);
    assert!(tree.len() == 1);
}

#[test]
fn links_inside_the_image_resolve_as_in_a_chroot() {
    let layer = Tarball::new()
        .symlink("run", "/var/run")
        .symlink("up", "../../../../../../../var")
        .file("run/pid", b"1")
        .file("up/log", b"2")
        .symlink("loop", "loop");
    let (root, tree) = root_of(&[layer]);
    assert_eq!(
        paths(&tree),
        [
            "loop",
            "run",
            "up",
            "var",
            "var/log",
            "var/run",
            "var/run/pid"
        ]
    );
    assert!(!exists(&root.path().join("../var")));
    let through = refuse(&Tarball::new().symlink("loop", "loop").file("loop/x", b""));
    assert_eq!(through.raw_os_error(), Some(libc::ELOOP));
    let through = refuse(&Tarball::new().file("file", b"").file("file/x", b""));
    assert!(matches!(
        through,
        Error::Header {
            fault: HeaderFault::Parent,
            ..
        }
    ));
}

#[test]
fn no_entry_leaves_the_root() {
    for layer in [
        Tarball::new().file("../secret", b"stolen"),
        Tarball::new().file("d/../../secret", b"stolen"),
        Tarball::new().hard_link("mine", "../secret"),
        Tarball::new()
            .symlink("out", "..")
            .hard_link("mine", "out/../secret"),
        Tarball::new().folder("d/").folder("d/../"),
    ] {
        assert!(matches!(refuse(&layer), Error::Escapes { .. }));
    }
    // A link target that is absolute or goes through a link is relative to the root.
    for layer in [
        Tarball::new().hard_link("mine", "/secret"),
        Tarball::new()
            .symlink("out", "..")
            .hard_link("mine", "out/secret"),
        Tarball::new()
            .symlink("host", "/etc")
            .hard_link("mine", "host/passwd"),
    ] {
        assert_eq!(refuse(&layer).raw_os_error(), Some(libc::ENOENT));
    }
}

#[test]
fn writing_through_a_link_stays_inside() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::create_dir(outer.path().join("etc")).unwrap();
    let target = outer.path().join("etc");
    let layer = Tarball::new()
        .symlink("a", target.to_str().unwrap())
        .file("a/passwd", b"mine")
        .symlink("b", "../etc")
        .file("b/shadow", b"mine")
        .file("/absolute", b"mine")
        .symlink("last", "/etc/victim")
        .file("last", b"replaced, not followed");
    apply_to(&root, &layer.bytes()).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    let inside = root.join(target.strip_prefix("/").unwrap()).join("passwd");
    assert_eq!(fs::read(inside).unwrap(), b"mine");
    assert_eq!(fs::read(root.join("etc/shadow")).unwrap(), b"mine");
    assert_eq!(fs::read(root.join("absolute")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(root.join("last")).unwrap().is_file());
    // A whiteout through a link that leads outside removes nothing there either.
    fs::write(target.join("victim"), b"").unwrap();
    let root = outer.path().join("second");
    fs::create_dir(&root).unwrap();
    symlink(&target, root.join("a")).unwrap();
    let layer = Tarball::new()
        .file("a/.wh.victim", b"")
        .file("a/.wh..wh..opq", b"");
    apply_to(&root, &layer.bytes()).unwrap();
    assert!(target.join("victim").exists());
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    let whole = Tarball::new()
        .file("a", &[1; 1000])
        .folder("d/")
        .file("d/b", b"2")
        .bytes();
    let content_end = whole.len() - 1024;
    for len in (0..content_end).step_by(100).chain([content_end]) {
        let root = tempfile::tempdir().unwrap();
        let error = apply_to(root.path(), &whole[..len]).unwrap_err();
        let is_cut = matches!(
            error,
            Error::Archive(_)
                | Error::Header {
                    fault: HeaderFault::NoEnd,
                    ..
                }
        );
        assert!(is_cut, "{len}: {error}");
    }
}

#[test]
fn claimed_sizes_cost_neither_memory_nor_space() {
    for size in [1 << 40, u64::MAX >> 1, u64::MAX] {
        let mut layer = Tarball::new().file("huge", b"").bytes();
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&layer[..512]);
        header.set_size(size);
        header.set_cksum();
        layer[..512].copy_from_slice(header.as_bytes());
        let root = tempfile::tempdir().unwrap();
        assert!(apply_to(root.path(), &layer).is_err());
    }
    for (kind, size) in [
        (EntryType::XHeader, 2 << 20),
        (EntryType::GNULongName, 5000),
    ] {
        let layer = Tarball::new().raw(kind, "x", "", &vec![b'x'; size]);
        assert!(matches!(
            refuse(&layer),
            Error::Header {
                fault: HeaderFault::PaxSize,
                ..
            }
        ));
    }
    let deep = "d/".repeat(40);
    let mut layer = Tarball::new();
    let mut through = String::new();
    for number in 0..39 {
        // Each link shortens the path to the place from which the next one leads deeper.
        layer = layer.file(&format!("{through}{deep}x"), b"");
        let target = format!("{through}{deep}");
        layer = layer.symlink(&format!("l{number}"), target.trim_end_matches('/'));
        through = format!("l{number}/");
    }
    layer = layer.file("d", b"");
    // Deeper than the limit on a process's descriptors, if each level held one.
    let root = tempfile::tempdir().unwrap();
    apply_to(root.path(), &layer.bytes()).unwrap();
    assert!(root.path().join("d").is_file());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let root = tempfile::tempdir().unwrap();
        let _ = apply_to(root.path(), &bytes);
    }

    #[test]
    fn a_damaged_archive_never_panics_nor_escapes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut layer = Tarball::new()
            .raw(EntryType::XHeader, "x", "", b"19 GNU.sparse.map=0\n")
            .symlink("l", "/")
            .file("l/a", &[1; 600])
            .file("l/.wh.b", b"")
            .bytes();
        for (place, value) in flips {
            let place = place.index(layer.len());
            layer[place] = value;
            // Fix the checksum, so that the damage is not detected by it.
            let start = place / 512 * 512;
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(&layer[start..start + 512]);
            header.set_cksum();
            layer[start..start + 512].copy_from_slice(header.as_bytes());
        }
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir(&root).unwrap();
        let _ = apply_to(&root, &layer);
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
