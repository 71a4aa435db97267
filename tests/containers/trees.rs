//! Comparison of two trees in everything that they can differ in.

use cowshed_oci::Digest;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The properties of an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    device: u64,
    size_bytes: u64,
    /// The first path of the same file.
    first_name: PathBuf,
    link: Option<PathBuf>,
    content: Option<Digest>,
}

/// Returns all objects below `root`, including the root, by path.
pub(crate) fn list(root: &Path) -> BTreeMap<PathBuf, Object> {
    let mut objects = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let data = fs::symlink_metadata(&full).unwrap();
        if data.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            pending.extend(names.iter().rev().map(|name| path.join(name)));
        }
        let names_anew = data.is_dir() || data.nlink() == 1;
        let first = first_names
            .entry(data.ino())
            .or_insert_with(|| path.clone());
        let object = Object {
            mode: data.mode(),
            owner: (data.uid(), data.gid()),
            modified: (data.mtime(), data.mtime_nsec()),
            device: data.rdev(),
            size_bytes: if data.is_dir() { 0 } else { data.len() },
            first_name: if names_anew {
                path.clone()
            } else {
                first.clone()
            },
            link: data.is_symlink().then(|| fs::read_link(&full).unwrap()),
            content: data
                .is_file()
                .then(|| Digest::of(&fs::read(&full).unwrap())),
        };
        objects.insert(path, object);
    }
    objects
}

/// Returns all extended attributes of a tree as text.
fn xattrs(root: &Path) -> String {
    let listed = Command::new("getfattr")
        .args(["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "."])
        .current_dir(root)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut sections: Vec<&str> = text.split("\n\n").collect();
    sections.sort_unstable();
    sections.join("\n\n")
}

/// Asserts that two trees are equal in everything.
pub(crate) fn assert_same(found: &Path, expected: &Path) {
    assert_eq!(xattrs(found), xattrs(expected));
    let (found, expected) = (list(found), list(expected));
    for (path, object) in &expected {
        let other = found
            .get(path)
            .unwrap_or_else(|| panic!("{} is missing", path.display()));
        assert_eq!(other, object, "{}", path.display());
    }
    for path in found.keys() {
        assert!(
            expected.contains_key(path),
            "{} is too much",
            path.display()
        );
    }
}
