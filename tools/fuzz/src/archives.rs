//! Untrusted archives: nothing outside the root is touched, and nothing grows without bound.

use crate::recipes::apply_and_rebuild;
use cowshed_oci::{
    Compression, Digest, Image, ImageConfig, LayerOrigin, LayerWriter, Select, SourceInput,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The maximum number of bytes read of a layer, as a protection from decompression bombs.
const LAYER_BYTES_MAX: u64 = 16 << 20;
const RECORD: usize = 512;

/// Corrects the checksum of every record that claims to be a header.
fn seal_headers(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(RECORD) {
        if header[257..262] == *b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Returns every file around the root, with the properties that must not change.
fn around(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if path.file_name().is_some_and(|name| name == "root") {
            continue;
        }
        if metadata.is_dir() {
            found.extend(around(&path));
        }
        let content = if metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let mode = u64::from(std::os::unix::fs::MetadataExt::mode(&metadata));
        found.insert(path, (mode, content));
    }
    found
}

/// Applies an uncompressed layer twice to one root.
pub fn run_layer(data: &[u8]) {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-fuzz-")
        .tempdir()
        .unwrap();
    let (root, beside) = (folder.path().join("root"), folder.path().join("beside"));
    fs::create_dir_all(&beside).unwrap();
    fs::create_dir(&root).unwrap();
    fs::write(folder.path().join("file"), b"outside").unwrap();
    fs::write(beside.join("file"), b"outside").unwrap();
    // Links that lead outside, as a lower layer may have left them.
    std::os::unix::fs::symlink("../beside", root.join("out")).unwrap();
    std::os::unix::fs::symlink(&beside, root.join("absolute")).unwrap();
    let before = around(folder.path());
    let mut bytes = data.to_vec();
    seal_headers(&mut bytes);
    for _ in 0..2 {
        let _ = apply_and_rebuild(&root, &bytes);
    }
    assert_eq!(
        around(folder.path()),
        before,
        "something outside the root changed"
    );
}

/// Returns a tar with an entry of each kind.
pub fn layer_seeds() -> Vec<Vec<u8>> {
    use tar::EntryType;
    let kinds = [
        ("d", EntryType::Directory, ""),
        ("d/f", EntryType::Regular, ""),
        ("d/hard", EntryType::Link, "d/f"),
        ("d/soft", EntryType::Symlink, "../../beside"),
        ("d/soft/in", EntryType::Regular, ""),
        ("out/file", EntryType::Regular, ""),
        ("absolute/new", EntryType::Regular, ""),
        (".wh.out", EntryType::Regular, ""),
        ("d/.wh..wh..opq", EntryType::Regular, ""),
        ("fifo", EntryType::Fifo, ""),
        ("long", EntryType::GNULongName, ""),
        ("pax", EntryType::XHeader, ""),
        ("sparse", EntryType::GNUSparse, ""),
    ];
    let entry = |builder: &mut tar::Builder<Vec<u8>>, kind: (&str, EntryType, &str)| {
        let mut header = if kind.1 == EntryType::GNUSparse {
            tar::Header::new_gnu()
        } else {
            tar::Header::new_ustar()
        };
        let data: &[u8] = match kind.1 {
            EntryType::Regular => b"content",
            EntryType::XHeader => b"28 SCHILY.xattr.user.a=value\n20 path=some/where\n",
            EntryType::GNULongName => b"a/rather/long/name\0",
            _ => b"",
        };
        header.set_entry_type(kind.1);
        header.set_path(kind.0).unwrap();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        if !kind.2.is_empty() {
            header.set_link_name(kind.2).unwrap();
        }
        header.set_cksum();
        builder.append(&header, data).unwrap();
    };
    let mut all = tar::Builder::new(Vec::new());
    let mut seeds = Vec::new();
    for kind in kinds {
        entry(&mut all, kind);
        let mut one = tar::Builder::new(Vec::new());
        entry(&mut one, kind);
        seeds.push(one.into_inner().unwrap());
    }
    seeds.push(all.into_inner().unwrap());
    seeds
}

/// Runs an archive that holds an image: the input has the documents, in which marks are replaced by
/// the digests and sizes of the parts that they refer to. Parts are separated by 0xff: a byte that
/// selects the form, the layer, the configuration, the manifest, and the index.
pub fn run_source(data: &[u8]) {
    let mut parts = data.splitn(5, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let form = part().first().copied().unwrap_or(0);
    let layer = part();
    let config = filled(part(), &[(b"@L", layer)]);
    let manifest = filled(part(), &[(b"@L", layer), (b"@C", &config)]);
    let index = filled(part(), &[(b"@M", &manifest)]);
    let bytes = match form % 4 {
        0 => archive(&[
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", &index),
            (&blob(&manifest), &manifest),
            (&blob(&config), &config),
            (&blob(layer), layer),
        ]),
        1 => archive(&[
            ("manifest.json", &manifest),
            ("config.json", &config),
            ("layer.tar", layer),
            ("repositories", &index),
        ]),
        2 => layer.to_vec(),
        _ => data[1.min(data.len())..].to_vec(),
    };
    let folder = tempfile::Builder::new()
        .prefix("cowshed-fuzz-")
        .tempdir()
        .unwrap();
    let input = SourceInput::Stream(Box::new(std::io::Cursor::new(bytes)));
    let Ok(image) = Image::open(input, folder.path(), &Select::default()) else {
        return;
    };
    for number in 0..image.layers().len().min(4) {
        if let Ok(layer) = image.open_layer(number) {
            let _ = std::io::copy(&mut layer.take(LAYER_BYTES_MAX), &mut std::io::sink());
        }
    }
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", Digest::of(bytes).to_string().replace(':', "/"))
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Returns `text` with each mark replaced by the digest of its part, and each mark followed by `n`
/// by the part's size.
pub(crate) fn filled(text: &[u8], marks: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = text;
    'next: while let Some(first) = rest.first() {
        for (mark, content) in marks {
            if let Some(behind) = rest.strip_prefix(*mark) {
                if let Some(behind) = behind.strip_prefix(b"n") {
                    filled.extend(content.len().to_string().bytes());
                    rest = behind;
                } else {
                    filled.extend(Digest::of(content).to_string().bytes());
                    rest = behind;
                }
                continue 'next;
            }
        }
        filled.push(*first);
        rest = &rest[1..];
    }
    filled
}

/// Returns layers in each compression, in an OCI layout and in a docker-archive.
pub fn source_seeds() -> Vec<Vec<u8>> {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["@L"]},"config":{}}"#;
    let manifest = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@C","size":@Cn},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@L","size":@Ln}]}"#;
    let index = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@M","size":@Mn,"annotations":{"org.opencontainers.image.ref.name":"a:b"}}]}"#;
    let docker = br#"[{"Config":"config.json","RepoTags":["a:b"],"Layers":["layer.tar"]}]"#;
    let mut seeds = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let writer = LayerWriter::new(Vec::new(), compression).unwrap();
        let (mut layer, _) = writer.finish().unwrap();
        layer.retain(|byte| *byte != 0xff);
        for (form, manifest) in [(0, &manifest[..]), (1, docker), (2, docker)] {
            seeds.push([&[form], &layer[..], config, manifest, index].join(&0xff));
        }
    }
    seeds
}

/// Runs a configuration by itself: if it is accepted, it must give the same layers again.
pub fn run_config(data: &[u8]) {
    let Ok(config) = ImageConfig::parse(data.to_vec()) else {
        return;
    };
    assert_eq!(config.chain_ids().len(), config.diff_ids().len());
    let _ = (
        config.os(),
        config.architecture(),
        config.created(),
        config.history(),
    );
    let origin = LayerOrigin {
        created: "2026-01-01T00:00:00Z",
        created_by: "fuzz",
    };
    if let Ok(more) = config.with_layer(Digest::of(data), origin) {
        assert_eq!(more.diff_ids().len(), config.diff_ids().len() + 1);
        let again = ImageConfig::parse(more.raw().to_vec()).expect("our own");
        assert_eq!(again.diff_ids(), more.diff_ids());
    }
}

/// Returns configurations with and without the optional fields.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"layer");
    vec![
        format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x","empty_layer":true}},{{"created":"2026-01-01T00:00:00Z"}}],"config":{{"Env":["A=b"],"Cmd":["sh"]}}}}"#).into_bytes(),
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec(),
    ]
}
