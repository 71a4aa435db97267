//! Files below a root of the test's own: set, set again, changed by others, undone.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> Root {
        Root::new(self.folder.path())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(folder)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn act(&self, wanted: &Wanted<'_>, undo: bool) -> Action {
        let change = self.root().plan(wanted, undo).unwrap();
        change.make().unwrap();
        change.action
    }
}

/// The setting is a line `ours`.
fn settings<'e>(path: &str) -> Wanted<'e> {
    let set = |text: &str| {
        anyhow::ensure!(!text.contains("bad"), "line 1: bad");
        let is_set = text.lines().any(|line| line == "ours");
        Ok(if is_set {
            text.to_owned()
        } else {
            format!("{text}ours\n")
        })
    };
    let unset = |text: &str, _: &str| Ok(text.replace("ours\n", ""));
    Wanted {
        path: PathBuf::from(path),
        content: Content::Settings(Box::new(set), Box::new(unset), |text| text.contains("ours")),
    }
}

fn whole<'e>(path: &str, text: &str) -> Wanted<'e> {
    Wanted {
        path: PathBuf::from(path),
        content: Content::Whole(format!("{MARK}{text}")),
    }
}

#[test]
fn settings_are_made_once_and_undone_to_the_same_file() {
    let host = Host::new();
    host.put("etc/c", "theirs\n");
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(host.at("etc/c"), mode).unwrap();
    let inode = fs::metadata(host.at("etc/c")).unwrap().ino();
    let wanted = settings("/etc/c");
    assert_eq!(host.act(&wanted, false), Action::Changed);
    assert_eq!(host.act(&wanted, false), Action::Unchanged);
    assert_eq!(host.text("etc/c").unwrap(), "theirs\nours\n");
    assert_eq!(host.text("etc/c.before-cowshed").unwrap(), "theirs\n");
    let metadata = fs::metadata(host.at("etc/c")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!(host.act(&wanted, true), Action::Restored);
    assert_eq!(host.act(&wanted, true), Action::Unchanged);
    assert_eq!(fs::metadata(host.at("etc/c")).unwrap().ino(), inode);
    assert_eq!(host.names("etc"), ["c"]);
}

#[test]
fn a_file_that_was_missing_is_missing_again() {
    let host = Host::new();
    let wanted = settings("/etc/deep/c");
    assert_eq!(host.act(&wanted, false), Action::Created);
    assert_eq!(host.act(&wanted, true), Action::Removed);
    assert_eq!(host.act(&wanted, true), Action::Unchanged);
    assert!(host.names("etc/deep").is_empty());
}

#[test]
fn a_change_that_came_since_stays_when_settings_are_undone() {
    let host = Host::new();
    let wanted = settings("/c");
    host.put("c", "theirs\n");
    host.act(&wanted, false);
    host.put("c", "theirs\nours\nnew\n");
    assert_eq!(host.act(&wanted, true), Action::Changed);
    assert_eq!(host.text("c").unwrap(), "theirs\nnew\n");
    assert_eq!(host.names(""), ["c"]);
}

/// They may be what the documents describe, set by hand.
#[test]
fn settings_that_others_made_are_not_undone() {
    let host = Host::new();
    let wanted = settings("/c");
    host.put("c", "theirs\nours\n");
    assert_eq!(host.act(&wanted, true), Action::Unchanged);
    assert_eq!(host.act(&wanted, false), Action::Unchanged);
    assert_eq!(host.act(&wanted, true), Action::Unchanged);
    assert_eq!(host.text("c").unwrap(), "theirs\nours\n");
    assert_eq!(host.names(""), ["c"]);
}

#[test]
fn a_file_that_was_kept_before_is_never_overwritten() {
    let host = Host::new();
    let wanted = settings("/c");
    host.put("c", "first\n");
    host.act(&wanted, false);
    host.put("c", "second\n");
    assert_eq!(host.act(&wanted, false), Action::Changed);
    assert_eq!(host.text("c.before-cowshed").unwrap(), "second\n");
    assert_eq!(host.text("c.before-cowshed.1").unwrap(), "first\n");
    assert_eq!(host.act(&wanted, true), Action::Restored);
    assert_eq!(host.text("c").unwrap(), "second\n");
}

#[test]
fn a_file_that_cannot_be_changed_is_named_and_nothing_is_done() {
    let host = Host::new();
    host.put("c", "bad\n");
    let fault = host.root().plan(&settings("/c"), false).unwrap_err();
    assert_eq!(format!("{fault:#}"), "/c: line 1: bad");
    fs::create_dir(host.at("d")).unwrap();
    assert!(host.root().plan(&settings("/d"), false).is_err());
    fs::write(host.at("e"), b"\xff").unwrap();
    assert!(host.root().plan(&settings("/e"), false).is_err());
    assert_eq!(host.names(""), ["c", "d", "e"]);
}

#[test]
fn symbolic_links_lead_to_the_file_and_never_out_of_the_root() {
    let host = Host::new();
    host.put("usr/share/c", "theirs\n");
    fs::create_dir(host.at("etc")).unwrap();
    symlink("/usr/share/c", host.at("etc/c")).unwrap();
    symlink("../../../../../outside", host.at("etc/up")).unwrap();
    symlink("loop", host.at("etc/loop")).unwrap();
    assert_eq!(host.act(&settings("/etc/c"), false), Action::Changed);
    assert_eq!(host.text("usr/share/c").unwrap(), "theirs\nours\n");
    assert!(fs::symlink_metadata(host.at("etc/c")).unwrap().is_symlink());
    assert_eq!(host.act(&settings("/etc/c"), true), Action::Restored);
    assert_eq!(host.act(&settings("/etc/up"), false), Action::Created);
    assert_eq!(host.text("outside").unwrap(), "ours\n");
    assert!(host.root().plan(&settings("/etc/loop"), false).is_err());
}

#[test]
fn a_file_of_our_own_replaces_another_and_gives_it_back() {
    let host = Host::new();
    host.put("u", "theirs\n");
    let wanted = whole("/u", "new\n");
    assert_eq!(host.act(&wanted, false), Action::Changed);
    assert_eq!(host.act(&wanted, false), Action::Unchanged);
    assert_eq!(host.act(&wanted, true), Action::Restored);
    assert_eq!(host.text("u").unwrap(), "theirs\n");
    // Now it is theirs, and stays.
    assert_eq!(host.act(&wanted, true), Action::Unchanged);
    assert_eq!(host.names(""), ["u"]);
}

#[test]
fn a_file_of_our_own_that_was_changed_is_set_aside() {
    let host = Host::new();
    let old = whole("/x.d/u", "old\n");
    assert_eq!(host.act(&old, false), Action::Created);
    assert_eq!(host.act(&old, true), Action::Removed);
    assert!(!host.at("x.d").exists());
    host.act(&old, false);
    // A newer version of it, which somebody changes then.
    let new = whole("/x.d/u", "new\n");
    assert_eq!(host.act(&new, false), Action::Changed);
    host.put("x.d/u", &format!("{MARK}edited\n"));
    assert_eq!(host.act(&new, true), Action::Removed);
    assert_eq!(
        host.names("x.d"),
        ["u.before-cowshed", "u.before-cowshed.1"]
    );
    let kept = host.text("x.d/u.before-cowshed.1").unwrap();
    assert!(kept.ends_with("edited\n"));
}

#[test]
fn a_link_is_made_and_removed_and_that_of_others_stays() {
    let host = Host::new();
    let link = |to: &str| Wanted {
        path: PathBuf::from("/a.wants/x"),
        content: Content::Link(PathBuf::from(to)),
    };
    assert_eq!(host.act(&link("/b"), false), Action::Created);
    assert_eq!(host.act(&link("/b"), false), Action::Unchanged);
    assert!(host.root().plan(&link("/c"), false).is_err());
    assert_eq!(host.act(&link("/c"), true), Action::Unchanged);
    assert_eq!(host.act(&link("/b"), true), Action::Removed);
    assert!(!host.at("a.wants").exists());
}
