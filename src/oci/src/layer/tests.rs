//! Tests of holes in layers, and of layers that are cancelled.

use super::*;
use crate::apply::{ApplyOptions, apply};
use cowshed_format::base::Cancel;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn folder() -> TempDir {
    // A file system that supports holes.
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn sparse_file(path: &Path, size_bytes: u64, data: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
    }
}

fn layer_of(folder: &Path, names: &[&str]) -> (Vec<u8>, LayerSummary) {
    let root = File::open(folder).unwrap();
    let mut writer = LayerWriter::new(Vec::new(), Compression::None).unwrap();
    for name in names {
        writer.add(root.as_fd(), name.as_bytes()).unwrap();
    }
    writer.finish().unwrap()
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn expect(path: &Path, size_bytes: u64, data: &[(u64, &[u8])]) {
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size_bytes, "{path:?}");
    let mut stored = 0;
    for (at, expected) in data {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, *at).unwrap();
        assert!(&found == expected, "{path:?} at {at}");
        stored += found.len() as u64;
    }
    let found = DataMap::of(&file, size_bytes).unwrap().data_bytes();
    assert!(found < stored + (1 << 20), "{path:?} holds {found} bytes");
}

#[test]
fn a_file_of_terabytes_with_holes_is_written_sparse_and_read_by_every_reader() {
    let folder = folder();
    let size_bytes = 2 << 40;
    let data: [(u64, &[u8]); 3] = [
        (0, &[1; 4096]),
        (1 << 40, &[2; 70_000]),
        (size_bytes - 5, &[3; 5]),
    ];
    let long = format!("{}ä", "n".repeat(120));
    sparse_file(&folder.path().join(&long), size_bytes, &data);
    sparse_file(&folder.path().join("all-hole"), 3 << 40, &[]);
    fs::write(folder.path().join("after"), "after").unwrap();
    let (tar, summary) = layer_of(folder.path(), &[&long, "all-hole", "after"]);
    assert!(summary.size_bytes < 1 << 20, "{summary:?}");
    assert!(holds(&tar, b"GNU.sparse.major=1"));

    let ours = self::folder();
    let root = File::open(ours.path()).unwrap();
    apply(root.as_fd(), &*tar, ApplyOptions::default()).unwrap();
    let theirs = self::folder();
    fs::write(theirs.path().join("layer.tar"), &tar).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xf", "layer.tar"])
        .current_dir(theirs.path())
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    for made in [ours.path(), theirs.path()] {
        expect(&made.join(&long), size_bytes, &data);
        expect(&made.join("all-hole"), 3 << 40, &[]);
        assert_eq!(fs::read(made.join("after")).unwrap(), b"after");
    }
}

#[test]
fn holes_are_zeros_as_long_as_a_layer_has_few() {
    let folder = folder();
    let mut whole = vec![0; 3 << 20];
    whole[1 << 20..][..5].copy_from_slice(b"bytes");
    sparse_file(&folder.path().join("file"), 3 << 20, &[(1 << 20, b"bytes")]);
    let (sparse, summary) = layer_of(folder.path(), &["file"]);
    assert!(!holds(&sparse, b"GNU.sparse"));
    let modified = fs::metadata(folder.path().join("file")).unwrap();
    fs::write(folder.path().join("file"), whole).unwrap();
    File::options()
        .write(true)
        .open(folder.path().join("file"))
        .unwrap()
        .set_modified(modified.modified().unwrap())
        .unwrap();
    assert_eq!(layer_of(folder.path(), &["file"]).1, summary);

    // The limit applies to the layer, not to each of its files.
    let names = ["1", "2", "3"];
    for name in names {
        sparse_file(&folder.path().join(name), PLAIN_HOLES_BYTES_MAX / 2, &[]);
    }
    let (tar, summary) = layer_of(folder.path(), &names);
    assert!(holds(&tar, b"GNU.sparse.name=3\n") && !holds(&tar, b"GNU.sparse.name=2\n"));
    assert!(summary.size_bytes < PLAIN_HOLES_BYTES_MAX + (1 << 20));
}

/// A writer that cancels the work after some bytes, and continues to count.
struct Cancelling {
    cancel: Cancel,
    left_bytes: usize,
    taken_bytes: usize,
}

impl Write for Cancelling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.taken_bytes += bytes.len();
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len());
        if self.left_bytes == 0 {
            self.cancel.cancel();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_layer_that_is_cancelled_ends_within_its_file_whether_that_is_data_or_a_hole() {
    const SIZE_BYTES: usize = 32 << 20;
    let folder = folder();
    fs::write(folder.path().join("data"), vec![7; SIZE_BYTES]).unwrap();
    sparse_file(&folder.path().join("hole"), SIZE_BYTES as u64, &[]);
    for name in ["data", "hole"] {
        let cancel = Cancel::default();
        let mut out = Cancelling {
            cancel: cancel.clone(),
            left_bytes: 1 << 20,
            taken_bytes: 0,
        };
        let root = File::open(folder.path()).unwrap();
        let ended = cancel.during(|| {
            LayerWriter::new(&mut out, Compression::None)
                .unwrap()
                .add(root.as_fd(), name.as_bytes())
        });
        assert!(
            matches!(ended, Err(Error::Cancelled(_))),
            "{name}: {ended:?}"
        );
        assert!(out.taken_bytes < SIZE_BYTES / 4, "{name}");
    }
}
