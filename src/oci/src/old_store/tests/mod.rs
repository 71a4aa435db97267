//! Tests of old stores that are laid out here as their programs do, whole and damaged.

mod anew;
mod bolt;
mod containerd;
mod containers;
mod docker;
mod graph;
mod hostile;

use super::crc64::Crc64;
use super::{OldImage, OldStore};
use crate::digest::{Digest, chain_id};
use crate::error::{Error, Result};
use crate::tarball::{Kind, TarReader};
use crate::testing::{Tarball, gnu_extract};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A store under construction.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/var/tmp").unwrap())
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Unpacks a layer's tar, and keeps the rest of it as tar-split does.
    fn layer(&self, tar: &[u8], folder: &str, split: &str) {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        let archive = self.path("layer.tar");
        fs::write(&archive, tar).unwrap();
        gnu_extract(&archive, &folder);
        fs::remove_file(archive).unwrap();
        self.write(split, gzip(split_of(tar).as_bytes()));
    }

    fn open(&self) -> Result<OldStore> {
        OldStore::open(self.0.path())
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns what tar-split keeps of a tar.
fn split_of(tar: &[u8]) -> String {
    let mut lines = Vec::new();
    let bytes = |bytes: &[u8]| json!({"type": 2, "payload": STANDARD.encode(bytes)});
    let (mut reader, mut at) = (TarReader::new(Cursor::new(tar)), 0);
    while let Some(entry) = reader.next_entry_seeking().unwrap() {
        if entry.kind != Kind::File {
            continue;
        }
        let (offset, len) = reader.data_place();
        let offset = usize::try_from(offset).unwrap();
        let len = usize::try_from(len).unwrap();
        lines.push(bytes(&tar[at..offset]));
        at = offset + len;
        let mut crc = Crc64::default();
        crc.update(&tar[offset..at]);
        let name = String::from_utf8(entry.path).unwrap();
        let checksum = STANDARD.encode(crc.value().to_be_bytes());
        lines.push(json!({"type": 1, "name": name, "size": len, "payload": checksum}));
    }
    lines.push(bytes(&tar[at..]));
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    lines.join("\n") + "\n"
}

/// Returns two layers: the first with files and links, the second with one file more and a whiteout.
fn two_layers() -> [Vec<u8>; 2] {
    let lower = Tarball::new()
        .folder("bin/")
        .file("bin/busybox", &[7; 5000])
        .symlink("bin/sh", "busybox")
        .hard_link("bin/ash", "bin/busybox")
        .folder("etc/")
        .file("etc/empty", b"")
        .file("etc/one", b"one\n");
    let upper = Tarball::new()
        .folder("etc/")
        .file("etc/.wh.one", b"")
        .file("etc/two", b"two\n");
    [lower.bytes(), upper.bytes()]
}

/// Returns the configuration of an image of these layers.
fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let root = json!({"type": "layers", "diff_ids": diff_ids});
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": root});
    config.to_string().into_bytes()
}

/// Returns the image with this name alone.
fn named<'s>(store: &'s OldStore, name: &str) -> &'s OldImage {
    let mut images = store.images().iter();
    images.find(|image| image.names() == [name]).unwrap()
}

/// Copies a store into an empty folder.
fn host_copy(from: &Store, to: &Store) {
    let source = from.path(".");
    let copied = std::process::Command::new("cp")
        .args([
            "-a",
            source.to_str().unwrap(),
            to.path("").to_str().unwrap(),
        ])
        .status();
    assert!(copied.unwrap().success());
}

/// Reads a layer to its end.
fn read(image: &OldImage, index: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = image.image().unwrap().open_layer(index)?;
    reader.read_to_end(&mut bytes).map_err(Error::archive)?;
    Ok(bytes)
}

/// Returns the message of the fault with which an image or one of its layers cannot be read.
fn fault_of(image: &OldImage) -> String {
    let image = match image.image() {
        Ok(image) => image,
        Err(error) => return error.to_string(),
    };
    let mut layers = 0..image.layers().len();
    let fault = layers.find_map(|index| {
        let finished = image.open_layer(index).and_then(|layer| layer.finish());
        finished.err()
    });
    fault.expect("a fault").to_string()
}

#[test]
fn a_folder_without_a_store_is_told_apart() {
    let store = Store::new();
    store.write("etc/passwd", "root");
    assert!(matches!(store.open(), Err(Error::NotAStore)));
    let file = OldStore::open(&store.path("etc/passwd"));
    assert!(matches!(file, Err(Error::NotAStore)));
    let nothing = OldStore::open(&store.path("nothing"));
    assert!(matches!(nothing, Err(Error::Io { .. })));
}
