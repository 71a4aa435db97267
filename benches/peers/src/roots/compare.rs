//! The differences between two trees, found by walking both: by type, mode, owner, size and time of
//! change, like the differs of container runtimes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns the paths that were added, changed or removed, relative to the trees; for an added or
/// removed folder, with all its contents.
///
/// When something cannot be read.
/// When something cannot be read.
pub(super) fn differences(old: &Path, new: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let before = entries(&old.join(&folder))?;
        let after = entries(&new.join(&folder))?;
        let removed = before.keys().filter(|name| !after.contains_key(*name));
        found.extend(removed.map(|name| folder.join(name)));
        for (name, about) in &after {
            let path = folder.join(name);
            if before.get(name).is_none_or(|other| !is_same(other, about)) {
                found.push(path.clone());
            }
            if about.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(found)
}

/// Returns the entries of a folder; none if it does not exist or is not a folder.
fn entries(folder: &Path) -> anyhow::Result<BTreeMap<OsString, Metadata>> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        entries.insert(entry.file_name(), entry.metadata()?);
    }
    Ok(entries)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let facts = |about: &Metadata| {
        let size = if about.is_dir() { 0 } else { about.len() };
        let time = (about.mtime(), about.mtime_nsec());
        (about.mode(), about.uid(), about.gid(), size, time)
    };
    facts(one) == facts(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_changed_and_removed_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::create_dir_all(old.join("a/b")).unwrap();
        for name in ["a/kept", "a/b/changed", "a/removed"] {
            fs::write(old.join(name), "text").unwrap();
        }
        crate::host::run("cp", [Path::new("--archive"), &old, &new]).unwrap();
        assert!(differences(&old, &new).unwrap().is_empty());
        fs::write(new.join("a/b/changed"), "other").unwrap();
        fs::remove_file(new.join("a/removed")).unwrap();
        fs::create_dir(new.join("c")).unwrap();
        fs::write(new.join("c/added"), "").unwrap();
        let mut found = differences(&old, &new).unwrap();
        found.sort();
        let expected = ["a", "a/b/changed", "a/removed", "c", "c/added"].map(PathBuf::from);
        assert_eq!(found, expected);
    }
}
