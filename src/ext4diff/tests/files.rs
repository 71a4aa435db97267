//! Two file systems in plain files are compared: no pool, no mount and no privilege is needed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_ext4diff::{BlockSource, Fault, Indexes, Sides, TreeChange, is_settled};
use cowshed_format::base::Result;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

const BLOCK: usize = 4096;
const SIZE_BYTES: u64 = 32 << 20;

/// A file system in memory.
struct Content(Vec<u8>);

impl BlockSource for Content {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let start = usize::try_from(offset_bytes).unwrap();
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.size_bytes())
    }

    fn identity(&self) -> Option<u64> {
        None
    }
}

fn differing(base: &Content, now: &Content) -> Vec<Range<u64>> {
    let pairs = base.0.chunks(BLOCK).zip(now.0.chunks(BLOCK));
    let changed = pairs.enumerate().filter(|(_, (base, now))| base != now);
    let bytes = |index: usize| (index * BLOCK) as u64..((index + 1) * BLOCK) as u64;
    changed.map(|(index, _)| bytes(index)).collect()
}

fn run(program: &str, arguments: &[&str]) {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let done = Command::new(program)
        .env("PATH", path)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {said}");
}

/// Makes a file system with the files in `tree`.
fn make(image: &Path, tree: &Path) {
    fs::File::create(image)
        .unwrap()
        .set_len(SIZE_BYTES)
        .unwrap();
    let features = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,\
                    sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,\
                    resize_inode";
    let (image, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
    run(
        "mkfs.ext4",
        &[
            "-q", "-F", "-b", "4096", "-I", "256", "-O", features, "-d", tree, image,
        ],
    );
}

fn debugfs(image: &Path, request: &str) {
    run("debugfs", &["-w", "-R", request, image.to_str().unwrap()]);
}

#[test]
fn changes_between_two_files_are_found_without_a_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/old"), "old").unwrap();
    fs::write(tree.join("same"), "same").unwrap();
    let image = folder.path().join("image");
    make(&image, &tree);
    let base = Content(fs::read(&image).unwrap());
    debugfs(&image, "rm etc/old");
    debugfs(&image, "mkdir etc/new");
    let now = Content(fs::read(&image).unwrap());
    assert!(is_settled(&base).unwrap() && is_settled(&now).unwrap());
    let sides = Sides::open(&base, &now, &differing(&base, &now)).unwrap();
    let changes = sides.changes(&Indexes::default()).unwrap();
    let listed: Vec<_> = changes
        .iter()
        .map(|(path, change)| (path.as_path().to_str().unwrap(), *change))
        .collect();
    let expected = [
        ("etc", TreeChange::Changed),
        ("etc/new", TreeChange::Added),
        ("etc/old", TreeChange::Removed),
    ];
    assert_eq!(listed, expected);
}

#[test]
fn file_systems_of_another_origin_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let made = ["one", "two"].map(|name| {
        let image = folder.path().join(name);
        make(&image, &tree);
        Content(fs::read(&image).unwrap())
    });
    let opened = Sides::open(&made[0], &made[1], &differing(&made[0], &made[1]));
    assert!(matches!(opened.err(), Some(Fault::Unsupported(_))));
}
