//! Helpers of this crate's tests: trees to compare, archives built as needed, GNU tar.

use super::digest::Digest;
use cowshed_sys::{beneath, xattr};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

/// All properties of one object that an image must keep.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    mode: u32,
    uid: u32,
    gid: u32,
    device: u64,
    size: Option<i64>,
    mtime: (i64, i64),
    content: Option<Digest>,
    link: Option<PathBuf>,
    /// The first path of the same inode.
    same_as: PathBuf,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) type Tree = BTreeMap<PathBuf, Object>;

/// Returns the tree in `root`, with the root itself as the empty path.
pub(crate) fn tree(root: &Path) -> Tree {
    let (mut tree, mut inodes) = (Tree::new(), BTreeMap::new());
    visit(root, Path::new(""), &mut tree, &mut inodes);
    tree
}

fn visit(root: &Path, path: &Path, tree: &mut Tree, inodes: &mut BTreeMap<u64, PathBuf>) {
    let full = if path.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(path)
    };
    let fd = open(&full, OFlag::O_PATH | OFlag::O_NOFOLLOW);
    let stat = beneath::stat_itself(&fd).unwrap();
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let xattrs = xattr::list(&fd).unwrap();
    let object = Object {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: stat.st_rdev,
        size: (kind != SFlag::S_IFDIR).then_some(stat.st_size),
        mtime: (stat.st_mtime, stat.st_mtime_nsec),
        content: (kind == SFlag::S_IFREG).then(|| Digest::of(&fs::read(&full).unwrap())),
        link: (kind == SFlag::S_IFLNK).then(|| fs::read_link(&full).unwrap()),
        same_as: inodes
            .entry(stat.st_ino)
            .or_insert_with(|| path.to_owned())
            .clone(),
        xattrs: xattrs
            .iter()
            .map(|name| (name.to_bytes().to_vec(), xattr::get(&fd, name).unwrap()))
            .collect(),
    };
    tree.insert(path.to_owned(), object);
    if kind == SFlag::S_IFDIR {
        let mut names: Vec<_> = fs::read_dir(&full)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            visit(root, &path.join(name), tree, inodes);
        }
    }
}

/// Fails with the first difference, which is more useful than two whole trees.
pub(crate) fn assert_same(found: &Tree, expected: &Tree) {
    for (path, object) in expected {
        assert_eq!(found.get(path), Some(object), "at {}", path.display());
    }
    for path in found.keys() {
        assert!(
            expected.contains_key(path),
            "{} should not be there",
            path.display()
        );
    }
}

pub(crate) fn open(path: &Path, flags: OFlag) -> OwnedFd {
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

pub(crate) fn open_folder(path: &Path) -> OwnedFd {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

pub(crate) fn set_xattr(path: &Path, name: &CStr, value: &[u8]) {
    xattr::set(open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW), name, value).unwrap();
}

pub(crate) fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(
        AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .unwrap();
}

/// A capability as the kernel stores it: `cap_net_raw+ep`, which contains zero bytes.
pub(crate) const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Creates a tree with every kind of object that a root file system may hold.
pub(crate) fn make_every_kind(root: &Path) {
    let at = |path: &str| root.join(path);
    for folder in ["bin", "dev", "tmp", "home/who", "empty"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("bin/su"), b"#!/bin/sh\n").unwrap();
    lchown(at("bin/su"), Some(0), Some(50)).unwrap();
    fs::set_permissions(at("bin/su"), PermissionsExt::from_mode(0o6755)).unwrap();
    fs::write(at("bin/ping"), vec![7; 100_000]).unwrap();
    set_xattr(&at("bin/ping"), c"security.capability", CAPABILITY);
    set_xattr(&at("bin/ping"), c"user.binary", b"a\0=\n\xff");
    fs::hard_link(at("bin/ping"), at("bin/zping")).unwrap();
    fs::set_permissions(at("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    set_xattr(&at("tmp"), c"user.folder", b"");
    symlink("/etc/../etc/passwd", at("absolute")).unwrap();
    symlink("x".repeat(300), at("long-link")).unwrap();
    lchown(at("long-link"), Some(70_000), Some(4_000_000_000)).unwrap();
    set_xattr(&at("absolute"), c"trusted.of-the-link", b"yes");
    fs::hard_link(at("absolute"), at("absolute-too")).unwrap();
    for (name, kind, device) in [
        ("dev/null", SFlag::S_IFCHR, makedev(1, 3)),
        ("dev/large", SFlag::S_IFBLK, makedev(259, 1_000_000)),
        ("dev/pipe", SFlag::S_IFIFO, 0),
    ] {
        mknod(&at(name), kind, Mode::from_bits_truncate(0o640), device).unwrap();
        lchown(at(name), Some(3), Some(2_097_152)).unwrap();
    }
    fs::set_permissions(at("dev/null"), PermissionsExt::from_mode(0o666)).unwrap();
    let long = ["d".repeat(200), "e".repeat(200), "f".repeat(200)].join("/");
    fs::create_dir_all(at(&long)).unwrap();
    fs::write(at(&long).join("ü ä\n"), b"name").unwrap();
    fs::write(
        at(&long).join(OsStr::from_bytes(b"not \xff utf-8")),
        b"name",
    )
    .unwrap();
    make_sparse(&at("home/who/sparse"), 30);
    fs::write(at("home/who/zeros"), vec![0; 40_960]).unwrap();
    fs::write(at("home/who/none"), b"").unwrap();
    lchown(at("home/who"), Some(4_000_000_000), Some(2_097_151)).unwrap();
    let every: Vec<PathBuf> = tree(root).into_keys().collect();
    for (number, path) in every.iter().rev().enumerate() {
        let number = i64::try_from(number).unwrap();
        set_time(
            &root.join(path),
            1_000_000_000 + number * 86_400,
            123_456_789 * (number % 7),
        );
    }
}

/// Creates a file with many holes, one of them at its end; more than four data segments do not fit
/// into a GNU header, more than 25 not into its first continuation.
pub(crate) fn make_sparse(path: &Path, segments: u64) {
    let file = File::create(path).unwrap();
    for number in 0..segments {
        file.write_all_at(
            &[u8::try_from(number + 1).unwrap(); 5000],
            number * 65_536 + 8192,
        )
        .unwrap();
    }
    file.set_len(segments * 65_536 + 1_000_001).unwrap();
}

/// Runs GNU tar; on failure, panics with its output.
pub(crate) fn gnu_tar(arguments: &[&str]) {
    let output = Command::new("tar").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn gnu_extract(archive: &Path, root: &Path) {
    let (archive, root) = (archive.to_str().unwrap(), root.to_str().unwrap());
    gnu_tar(&[
        "-xpf",
        archive,
        "-C",
        root,
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--same-owner",
        "--delay-directory-restore",
    ]);
}

/// An archive under construction.
pub(crate) struct Tarball(Builder<Vec<u8>>);

impl Tarball {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry under exactly this name, however unusual.
    pub(crate) fn raw(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.raw(EntryType::Regular, path, "", content)
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path, target, b"")
    }

    /// Returns the whole archive.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    /// Returns the archive as if nothing more were added.
    pub(crate) fn bytes_so_far(&self) -> Vec<u8> {
        let mut bytes = self.0.get_ref().clone();
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }
}

/// Returns true if an object exists at `path`, even a dangling link.
pub(crate) fn exists(path: &Path) -> bool {
    nix::sys::stat::fstatat(AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}
