use super::*;
use crate::apply::{ApplyOptions, Room, apply_recording};
use crate::compression::Compression;
use crate::error::Result;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use tempfile::TempDir;

struct Enough;

impl Room for Enough {
    fn fits(&mut self, _: u64) -> bool {
        true
    }

    fn make(&mut self) -> Result<OwnedFd> {
        unreachable!("everything fits")
    }
}

#[derive(Clone, Default)]
struct Kept(Rc<RefCell<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Applies a tar in a new folder; returns that and the recipe.
fn recorded(tar: &[u8]) -> (TempDir, Vec<u8>) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let kept = Kept::default();
    let mut recorder = Recorder::new(Box::new(kept.clone())).unwrap();
    let root = File::open(folder.path()).unwrap();
    apply_recording(
        root.into(),
        tar,
        ApplyOptions::default(),
        &mut Enough,
        &mut recorder,
    )
    .unwrap();
    recorder.finish().unwrap();
    let stream = kept.0.take();
    let head = head(stream.len() as u64, Digest::of(tar));
    (folder, [&head[..], &stream].concat())
}

/// Makes the tar with the digest in the head of the recipe.
fn rebuilt(recipe: &[u8], root: &Path) -> Result<Vec<u8>, RecipeError> {
    rebuilt_up_to(recipe, root, None)
}

fn rebuilt_up_to(
    recipe: &[u8],
    root: &Path,
    size_bytes: Option<u64>,
) -> Result<Vec<u8>, RecipeError> {
    rebuilt_from(recipe, &in_head(recipe, size_bytes), root)
}

fn in_head(recipe: &[u8], size_bytes: Option<u64>) -> Tar {
    let mut digest = [0; 32];
    if let Some(stated) = recipe.get(HEAD_BYTES - 32..HEAD_BYTES) {
        digest.copy_from_slice(stated);
    }
    Tar {
        digest: Digest::from_bytes(digest),
        size_bytes,
    }
}

fn rebuilt_from(recipe: impl Read, tar: &Tar, root: &Path) -> Result<Vec<u8>, RecipeError> {
    let root = File::open(root).unwrap();
    let (made, summary) = rebuild(recipe, *tar, root.as_fd(), Vec::new(), Compression::None)?;
    assert_eq!(summary.diff_id, Digest::of(&made));
    Ok(made)
}

/// Returns what `tar` makes of a tree with all kinds of objects.
fn made(options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("usr/lib/deep")).unwrap();
    std::os::unix::fs::symlink("usr/lib", path("lib")).unwrap();
    for (name, len) in [("empty", 0), ("small", 5), ("usr/lib/large", 70_001)] {
        fs::write(path(name), vec![7; len]).unwrap();
    }
    fs::hard_link(path("small"), path("usr/lib/deep/other name")).unwrap();
    let long = format!("usr/lib/{}", "long-".repeat(40));
    fs::write(path(&long), "a long name").unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 20).unwrap();
    let output = Command::new("tar")
        .args(["--create", "--directory"])
        .arg(folder.path())
        .args(options)
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn every_tar_is_rebuilt_byte_by_byte_and_a_recipe_has_none_of_the_content() {
    let plain = made(&["--format=gnu"]);
    let mut all = vec![
        made(&["--format=gnu", "--sparse"]),
        made(&["--format=pax", "--sparse", "--sparse-version=1.0"]),
        made(&["--format=pax", "--sparse", "--sparse-version=0.1"]),
        made(&["--format=pax", "--blocking-factor=100"]),
        [&plain[..], b"something behind the end"].concat(),
        [&plain[..], &[0; 100_000]].concat(),
        // Without its end marker.
        plain[..plain.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512 + 512].to_vec(),
        vec![0; 1024],
    ];
    all.push(plain);
    for (number, tar) in all.iter().enumerate() {
        let (folder, recipe) = recorded(tar);
        assert!(rebuilt(&recipe, folder.path()).unwrap() == *tar, "{number}");
        assert!(recipe.len() < 4096, "{number}: {} bytes", recipe.len());
    }
}

#[test]
fn a_file_that_has_changed_is_told_apart() {
    let tar = made(&["--format=gnu"]);
    let (folder, recipe) = recorded(&tar);
    let file = folder.path().join("usr/lib/large");
    let wrong = |change: &dyn Fn()| {
        change();
        rebuilt(&recipe, folder.path()).unwrap_err()
    };
    let error = wrong(&|| fs::write(&file, vec![8; 70_001]).unwrap());
    assert!(matches!(error, RecipeError::Digest), "{error}");
    let error = wrong(&|| fs::write(&file, "short").unwrap());
    assert!(matches!(error, RecipeError::File), "{error}");
    let error = wrong(&|| fs::remove_file(&file).unwrap());
    assert!(matches!(error, RecipeError::File), "{error}");
    let error = wrong(&|| fs::create_dir(&file).unwrap());
    assert!(matches!(error, RecipeError::File), "{error}");
}

#[test]
fn what_is_no_recipe_is_damaged_and_one_of_a_newer_version_is_told_apart() {
    let tar = made(&["--format=gnu"]);
    let (folder, recipe) = recorded(&tar);
    for len in 0..recipe.len() {
        let error = rebuilt(&recipe[..len], folder.path()).unwrap_err();
        assert!(matches!(error, RecipeError::Damaged), "{len}: {error}");
    }
    let mut newer = recipe.clone();
    newer[8] = 2;
    let error = rebuilt(&newer, folder.path()).unwrap_err();
    assert!(matches!(error, RecipeError::Version), "{error}");

    // A flipped bit may change nothing, but never the tar.
    for place in 0..recipe.len() {
        let mut flipped = recipe.clone();
        flipped[place] ^= 0x40;
        match rebuilt(&flipped, folder.path()) {
            Ok(found) => assert!(found == tar, "{place}"),
            Err(error) => assert!(!matches!(error, RecipeError::Failed(_)), "{place}: {error}"),
        }
    }

    let steps: [&[u8]; 6] = [
        &[7],
        &[BYTES],
        &[
            BYTES, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        &[CONTENT, 0xff, 0xff, 0x7f],
        &[CONTENT, 1, b'x', 0xff, 0xff, 0xff, 0x7f],
        &[BYTES, 4, 1, 2],
    ];
    File::create(folder.path().join("x")).unwrap();
    for steps in steps {
        let stream = zstd::encode_all(steps, 1).unwrap();
        let head = head(stream.len() as u64, Digest::of(b""));
        let wrong = [&head[..], &stream].concat();
        let error = rebuilt(&wrong, folder.path()).unwrap_err();
        assert!(matches!(error, RecipeError::Damaged), "{steps:?}: {error}");
    }
}

#[test]
fn a_recipe_of_another_tar_is_told_apart_before_anything_is_written() {
    let tar = made(&["--format=gnu"]);
    let (folder, recipe) = recorded(&tar);
    let other = Tar {
        digest: Digest::of(b"other"),
        size_bytes: None,
    };
    let error = rebuilt_from(&recipe[..HEAD_BYTES], &other, folder.path()).unwrap_err();
    assert!(matches!(error, RecipeError::Digest), "{error}");
}

#[test]
fn no_more_is_written_than_the_tar_has() {
    let tar = made(&["--format=gnu"]);
    let (folder, recipe) = recorded(&tar);
    let len = tar.len() as u64;
    assert!(rebuilt_up_to(&recipe, folder.path(), Some(len)).unwrap() == tar);
    let error = rebuilt_up_to(&recipe, folder.path(), Some(len - 1)).unwrap_err();
    assert!(matches!(error, RecipeError::Damaged), "{error}");
}

/// A reader that fails after what it has.
struct Failing<'a>(&'a [u8], io::ErrorKind);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(self.1.into());
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_host_that_fails_is_not_a_recipe_that_does_not_fit() {
    let tar = made(&["--format=gnu"]);
    let (folder, recipe) = recorded(&tar);
    let wanted = in_head(&recipe, None);
    for len in [0, 8, HEAD_BYTES, HEAD_BYTES + 20, recipe.len() - 1] {
        let failing = |kind| {
            let reader = Failing(&recipe[..len], kind);
            rebuilt_from(reader, &wanted, folder.path()).unwrap_err()
        };
        let error = failing(io::ErrorKind::Other);
        assert!(matches!(error, RecipeError::Failed(_)), "{len}: {error}");
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof] {
            let error = failing(kind);
            assert!(matches!(error, RecipeError::Damaged), "{len}: {error}");
        }
    }
}
