//! Tests of the comparison on plain directories: copies, so that no two inodes are the same.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    /// Creates a small tree and an exact copy of it.
    fn new() -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let base = pair.base();
        fs::create_dir_all(base.join("etc/deep/deeper")).unwrap();
        fs::create_dir(base.join("gone")).unwrap();
        for name in [
            "a",
            "etc/b",
            "etc/deep/c",
            "etc/deep/deeper/d",
            "gone/e",
            "gone/f",
        ] {
            fs::write(base.join(name), format!("this is {name}")).unwrap();
        }
        symlink("a", base.join("link")).unwrap();
        fs::hard_link(base.join("a"), base.join("etc/a-again")).unwrap();
        pair.copy();
        pair
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn new_side(&self) -> PathBuf {
        self.folder.path().join("new")
    }

    fn copy(&self) {
        let copied = Command::new("cp")
            .arg("-a")
            .args([self.base(), self.new_side()])
            .status();
        assert!(copied.unwrap().success());
    }

    fn changes(&self) -> Vec<String> {
        let changes = compare(&self.base(), &self.new_side()).unwrap();
        let letter = |change| match change {
            TreeChange::Added => 'A',
            TreeChange::Changed => 'C',
            TreeChange::Removed => 'D',
        };
        changes
            .iter()
            .map(|(path, change)| format!("{} /{}", letter(*change), path.as_path().display()))
            .collect()
    }
}

#[test]
fn a_copy_has_no_changes() {
    assert_eq!(Pair::new().changes(), Vec::<String>::new());
}

#[test]
fn directories_above_a_change_are_listed_before_it() {
    let pair = Pair::new();
    let time = fs::metadata(pair.base().join("etc/deep/deeper/d"))
        .unwrap()
        .modified()
        .unwrap();
    let path = pair.new_side().join("etc/deep/deeper/d");
    // The same length and time, so that only the content differs.
    fs::write(&path, "THIS is etc/deep/deeper/d").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    let expected = [
        "C /etc",
        "C /etc/deep",
        "C /etc/deep/deeper",
        "C /etc/deep/deeper/d",
    ];
    assert_eq!(pair.changes(), expected);
}

#[test]
fn a_removed_directory_is_listed_alone_and_an_added_one_in_full() {
    let pair = Pair::new();
    let new = pair.new_side();
    fs::remove_dir_all(new.join("gone")).unwrap();
    fs::create_dir_all(new.join("fresh/inner")).unwrap();
    fs::write(new.join("fresh/inner/x"), "x").unwrap();
    let expected = [
        "C /",
        "A /fresh",
        "A /fresh/inner",
        "A /fresh/inner/x",
        "D /gone",
    ];
    assert_eq!(pair.changes(), expected);
}

#[test]
fn a_change_of_type_is_one_change_and_its_content_is_added() {
    let pair = Pair::new();
    let new = pair.new_side();
    fs::remove_file(new.join("etc/b")).unwrap();
    fs::create_dir(new.join("etc/b")).unwrap();
    fs::write(new.join("etc/b/inside"), "x").unwrap();
    fs::remove_dir_all(new.join("gone")).unwrap();
    symlink("a", new.join("gone")).unwrap();
    let expected = ["C /", "C /etc", "C /etc/b", "A /etc/b/inside", "C /gone"];
    assert_eq!(pair.changes(), expected);
}

#[test]
fn metadata_attributes_and_link_targets_count() {
    let pair = Pair::new();
    let new = pair.new_side();
    fs::set_permissions(new.join("etc/deep/c"), fs::Permissions::from_mode(0o4755)).unwrap();
    let object = File::open(new.join("gone/e")).unwrap();
    xattr::set(&object, c"user.mark", b"1").unwrap();
    fs::remove_file(new.join("link")).unwrap();
    symlink("b", new.join("link")).unwrap();
    let expected = [
        "C /",
        "C /etc",
        "C /etc/deep",
        "C /etc/deep/c",
        "C /gone",
        "C /gone/e",
        "C /link",
    ];
    assert_eq!(pair.changes(), expected);
}

#[test]
fn a_new_name_of_a_file_lists_all_its_names() {
    let pair = Pair::new();
    let new = pair.new_side();
    fs::hard_link(new.join("a"), new.join("third")).unwrap();
    assert_eq!(
        pair.changes(),
        ["C /", "C /a", "C /etc", "C /etc/a-again", "A /third"]
    );
}

#[test]
fn a_name_that_became_a_file_of_its_own_is_listed() {
    let pair = Pair::new();
    let path = pair.new_side().join("etc/a-again");
    let copied = Command::new("sh")
        .arg("-c")
        .arg("cp -p \"$0\" \"$0.x\" && mv \"$0.x\" \"$0\" && touch -r \"$1\" \"$2\"")
        .args([
            &path,
            &pair.base().join("etc"),
            &pair.new_side().join("etc"),
        ])
        .status();
    assert!(copied.unwrap().success());
    assert_eq!(pair.changes(), ["C /etc", "C /etc/a-again"]);
}

#[test]
fn a_removed_name_of_a_file_does_not_list_the_other() {
    let pair = Pair::new();
    fs::remove_file(pair.new_side().join("etc/a-again")).unwrap();
    assert_eq!(pair.changes(), ["C /etc", "D /etc/a-again"]);
}
