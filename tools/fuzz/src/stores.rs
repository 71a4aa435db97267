//! Untrusted stores of other programs: nothing outside the store is read.

use crate::archives::filled;
use cowshed_oci::Digest;
use cowshed_oci::old_store::OldStore;
use flate2::write::GzEncoder;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

/// The content of a file outside the store.
const SECRET: &[u8] = b"this is outside";
/// The maximum number of bytes that are read of a layer.
const LAYER_BYTES_MAX: u64 = 1 << 20;
const PAGE: usize = 4096;
/// The numbers of bytes of a page's header, and of a meta page before its checksum.
const HEADER: usize = 16;
const META: usize = 56;

/// Runs a store: a byte that selects the form, then its documents, separated by 0xff, or containerd's
/// database, whose checksums are repaired.
pub fn run(data: &[u8]) {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-fuzz-")
        .tempdir()
        .unwrap();
    let store = folder.path().join("store");
    fs::write(folder.path().join("secret"), SECRET).unwrap();
    let form = data.first().copied().unwrap_or_default();
    let data = data.get(1..).unwrap_or_default();
    match form % 3 {
        0 => lay_out_containerd(&store, data),
        1 => lay_out_graph(&store, data),
        _ => lay_out_containers(&store, data),
    }
    let Ok(opened) = OldStore::open(&store) else {
        return;
    };
    let images = opened.images().iter();
    for image in images.filter_map(|image| image.image().ok()) {
        for index in 0..image.layers().len() {
            let Ok(layer) = image.open_layer(index) else {
                continue;
            };
            let mut bytes = Vec::new();
            let _ = layer.take(LAYER_BYTES_MAX).read_to_end(&mut bytes);
            let leaks = bytes.windows(SECRET.len()).any(|window| window == SECRET);
            assert!(!leaks, "a file outside the store was read");
        }
    }
}

fn write(store: &Path, path: &str, bytes: &[u8]) {
    let path = store.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Writes a file of a layer, and links out of it.
fn fill_layer(store: &Path, folder: &str) {
    write(store, &format!("{folder}/file"), b"content");
    let secret = store.parent().unwrap().join("secret");
    std::os::unix::fs::symlink(secret, store.join(folder).join("absolute")).unwrap();
    let up = "../../../../../../secret";
    std::os::unix::fs::symlink(up, store.join(folder).join("relative")).unwrap();
}

fn lay_out_containerd(store: &Path, data: &[u8]) {
    let mut bytes = data.to_vec();
    for page in bytes.chunks_mut(PAGE).take(2) {
        if let Some(meta) = page.get_mut(HEADER..HEADER + META + 8) {
            let (body, checksum) = meta.split_at_mut(META);
            let sum = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            });
            checksum.copy_from_slice(&sum.to_le_bytes());
        }
    }
    write(store, "io.containerd.metadata.v1.bolt/meta.db", &bytes);
    let snapshotter = "io.containerd.snapshotter.v1.overlayfs";
    write(store, &format!("{snapshotter}/metadata.db"), &bytes);
    fs::create_dir_all(store.join("io.containerd.content.v1.content")).unwrap();
}

/// Compresses what tar-split keeps, as only that is read.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lay_out_graph(store: &Path, data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (description, names, split) = (part(), part(), part());
    let id = "1".repeat(64);
    write(store, &format!("graph/{id}/json"), description);
    write(store, &format!("graph/{id}/tar-data.json.gz"), &gzip(split));
    write(store, "repositories-aufs", names);
    fill_layer(store, &format!("aufs/diff/{id}"));
}

fn lay_out_containers(store: &Path, data: &[u8]) {
    const CONFIG: &[u8] = br#"{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"]}}"#;
    /// The name of its file: its digest in base64.
    const CONFIG_FILE: &str = "=c2hhMjU2OjVhZmFhNThhY2I5Yzg2YjFhYjE1YTYyNTZkNGNiYjIwYzE0MjM1NmE2YjA4YzkzZDJhNThmYmUyYmNjYTBlNTY=";
    let mut parts = data.splitn(4, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (images, layers, manifest, split) = (part(), part(), part(), part());
    write(store, "overlay-images/images.json", images);
    write(
        store,
        "overlay-images/1/manifest",
        &filled(manifest, &[(b"@C", CONFIG)]),
    );
    write(store, &format!("overlay-images/1/{CONFIG_FILE}"), CONFIG);
    write(store, "overlay-layers/layers.json", layers);
    write(store, "overlay-layers/1.tar-split.gz", &gzip(split));
    fill_layer(store, "overlay/1/diff");
}

/// A value of a page's key.
enum Value<'v> {
    Bytes(&'v [u8]),
    /// A bucket's page.
    Bucket(Vec<u8>),
}

fn leaf(number: u64, entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let mut page = [&number.to_le_bytes()[..], &[2, 0], &count, &[0; 4]].concat();
    let mut data = Vec::new();
    for (index, (key, value)) in entries.iter().enumerate() {
        let (flags, value) = match value {
            Value::Bytes(bytes) => (0, bytes.to_vec()),
            Value::Bucket(page) => (1, [&[0; HEADER], &**page].concat()),
        };
        let at = (entries.len() - index) * HEADER + data.len();
        for field in [flags, at, key.len(), value.len()] {
            page.extend_from_slice(&u32::try_from(field).unwrap().to_le_bytes());
        }
        data.extend_from_slice(key.as_bytes());
        data.extend_from_slice(&value);
    }
    page.extend_from_slice(&data);
    page
}

/// Returns a database with an image and a snapshot.
fn database() -> Vec<u8> {
    use Value::{Bucket, Bytes};
    let digest = Digest::of(b"x").to_string();
    let media_type = b"application/vnd.oci.image.manifest.v1+json";
    let target = leaf(
        0,
        &[
            ("digest", Bytes(digest.as_bytes())),
            ("mediatype", Bytes(media_type)),
            ("size", Bytes(&[2])),
        ],
    );
    let image = leaf(0, &[("target", Bucket(target))]);
    let images = leaf(0, &[("t:1", Bucket(image))]);
    let record = || leaf(0, &[("name", Bytes(b"k")), ("id", Bytes(&[1]))]);
    let snapshots = || leaf(0, &[("k", Bucket(record())), (&digest, Bucket(record()))]);
    let of_snapshotter = leaf(0, &[("overlayfs", Bucket(snapshots()))]);
    let namespace = leaf(
        0,
        &[
            ("images", Bucket(images)),
            ("snapshots", Bucket(of_snapshotter)),
        ],
    );
    let form = leaf(
        0,
        &[("n", Bucket(namespace)), ("snapshots", Bucket(snapshots()))],
    );
    let mut file = Vec::new();
    for number in 0..2_u64 {
        file.extend_from_slice(&[&number.to_le_bytes()[..], &[4, 0], &[0; 6]].concat());
        for field in [0xed0c_daed_u32, 2, 4096, 0] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        for field in [2, 0, 3, 4, number] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(PAGE), 0);
    }
    file.extend_from_slice(&leaf(2, &[("v1", Bucket(form))]));
    file.resize(file.len().next_multiple_of(PAGE), 0);
    file
}

/// Returns a seed for each form.
pub fn seeds() -> Vec<Vec<u8>> {
    let id = "1".repeat(64);
    let split = concat!(
        r#"{"type":2,"payload":"AAAA"}"#,
        "\n",
        r#"{"type":1,"name":"file","size":7,"payload":"AAAAAAAAAAA="}"#,
        "\n",
        r#"{"type":1,"name":"absolute","size":15}"#,
        "\n",
        r#"{"type":1,"name_raw":"cmVsYXRpdmU=","size":15}"#,
        "\n",
    );
    let description = format!(r#"{{"id":"{id}","parent":"","os":"linux","config":{{}}}}"#);
    let names = format!(r#"{{"Repositories":{{"a":{{"1":"{id}"}}}}}}"#);
    let parts = |form: u8, parts: &[&str]| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        [&[form], &*parts.join(&0xff)].concat()
    };
    let images = r#"[{"id":"1","names":["a:1"],"layer":"1"}]"#;
    let manifest = r#"{"config":{"digest":"@C"}}"#;
    let mut seeds = vec![
        [&[0], &*database()].concat(),
        parts(1, &[&*description, &*names, split]),
        parts(2, &[images, r#"[{"id":"1"}]"#, manifest, split]),
    ];
    // A fault ends a layer, so each line is alone in one, too.
    let alone = split
        .lines()
        .map(|line| parts(1, &[&*description, &*names, line]));
    seeds.extend(alone);
    seeds
}
