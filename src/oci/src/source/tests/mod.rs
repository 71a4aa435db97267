//! Tests of images in every form, and of images that do not match their statements.

mod choosing;
mod forms;
mod tampered;

use super::*;
use crate::compression::Compression;
use crate::config::LayerOrigin;
use crate::error::HeaderFault;
use crate::layer::LayerWriter;
use crate::layout::{LayerBlob, LayoutImage, write_layout};
use crate::testing::{Tarball, Tree, assert_same, gnu_extract, make_every_kind, open_folder, tree};
use crate::{ApplyOptions, Reference, apply};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use tempfile::TempDir;

const ORIGIN: LayerOrigin<'_> = LayerOrigin {
    created: "2026-01-02T03:04:05Z",
    created_by: "test",
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of an OCI layout under construction.
#[derive(Clone, Default)]
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    /// Returns a layout with one image of these layers, each a media type's suffix, the stored
    /// bytes and the uncompressed ones.
    fn of(layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Self {
        let mut layout = Self::default();
        let manifest = layout.image(layers, &json!({"architecture": "amd64", "os": "linux"}));
        layout.manifests.push(manifest);
        layout
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.files
            .push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, &serde_json::to_vec(document).unwrap())
    }

    fn image(&mut self, layers: &[(&str, Vec<u8>, Vec<u8>)], platform: &Value) -> Value {
        let diff_ids: Vec<Digest> = layers
            .iter()
            .map(|(_, _, plain)| Digest::of(plain))
            .collect();
        let mut config = platform.clone();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let layers: Vec<Value> = layers
            .iter()
            .map(|(suffix, stored, _)| {
                self.blob(
                    &format!("application/vnd.oci.image.layer.v1.{suffix}"),
                    stored,
                )
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = self.document("application/vnd.oci.image.manifest.v1+json", &manifest);
        manifest["platform"] = platform.clone();
        manifest
    }

    fn with_index(mut self) -> Self {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        let layout = br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec();
        self.files.push(("oci-layout".to_owned(), layout));
        self.files
            .push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
        self
    }

    fn tar(&self) -> Vec<u8> {
        let files = self.files.iter();
        files
            .fold(Tarball::new(), |tar, (path, bytes)| tar.file(path, bytes))
            .bytes()
    }
}

fn two_layers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let lower = Tarball::new().file("a", b"1").file("b", b"2").bytes();
    let upper = Tarball::new().file(".wh.a", b"").file("c", b"3").bytes();
    let zstd = zstd::encode_all(upper.as_slice(), 3).unwrap();
    vec![("tar+gzip", gzip(&lower), lower), ("tar+zstd", zstd, upper)]
}

fn select(reference: Option<&str>) -> Select {
    Select {
        reference: reference.map(str::to_owned),
        host: Platform::new("linux", "amd64", "v3"),
        ..Select::default()
    }
}

fn open_bytes(bytes: &[u8], reference: Option<&str>) -> Result<Image> {
    let spool = tempfile::tempdir().unwrap();
    let input = SourceInput::Stream(Box::new(std::io::Cursor::new(bytes.to_vec())));
    let image = Image::open(input, spool.path(), &select(reference));
    // No named file is left there, not even while the image is open.
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    image
}

fn open_path(path: &Path) -> Result<Image> {
    Image::open(
        SourceInput::Path(path.to_owned()),
        path.parent().unwrap(),
        &select(None),
    )
}

/// Applies all layers, as an importer does.
fn unpack(image: &Image) -> Result<(TempDir, Tree, Vec<Digest>)> {
    let root = tempfile::tempdir().unwrap();
    let mut diff_ids = Vec::new();
    for (index, layer) in image.layers().iter().enumerate() {
        let mut reader = image.open_layer(index)?;
        let options = ApplyOptions {
            require_end_marker: layer.diff_id.is_none(),
            is_plain_tar: false,
        };
        apply(open_folder(root.path()).as_fd(), &mut reader, options)?;
        diff_ids.push(reader.finish()?.diff_id);
    }
    let tree = tree(root.path());
    Ok((root, tree, diff_ids))
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.keys()
        .filter_map(|path| path.to_str())
        .filter(|path| !path.is_empty())
        .collect()
}

#[test]
fn a_layout_reads_the_same_in_every_wrapping() {
    let layout = Layout::of(&two_layers()).with_index();
    let tar = layout.tar();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image");
    fs::write(&archive, &tar).unwrap();
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    gnu_extract(&archive, &unpacked);
    let packed = folder.path().join("packed.txt");
    fs::write(&packed, gzip(&tar)).unwrap();
    let images = [
        open_path(&archive).unwrap(),
        open_path(&unpacked).unwrap(),
        open_path(&packed).unwrap(),
        open_bytes(&tar, None).unwrap(),
        open_bytes(&zstd::encode_all(tar.as_slice(), 1).unwrap(), None).unwrap(),
    ];
    for image in &images {
        let (_root, tree, diff_ids) = unpack(image).unwrap();
        assert_eq!(names(&tree), ["b", "c"]);
        assert_eq!(image.config().unwrap().diff_ids(), diff_ids);
        assert_eq!(image.manifest_digest(), images[0].manifest_digest());
        assert_eq!(
            image.config().unwrap().digest(),
            images[0].config().unwrap().digest()
        );
        // A spooled or seekable layer can be read any number of times.
        unpack(image).unwrap();
    }
}

#[test]
fn a_root_file_system_reads_the_same_in_every_wrapping() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    make_every_kind(&root);
    let archive = folder.path().join("root.tar");
    crate::testing::gnu_tar(&[
        "-cf",
        archive.to_str().unwrap(),
        "-C",
        root.to_str().unwrap(),
        "--format=pax",
        "--xattrs",
        "--xattrs-include=*",
        ".",
    ]);
    let expected = tree(&root);
    let bytes = fs::read(&archive).unwrap();
    let images = [
        open_path(&root).unwrap(),
        open_path(&archive).unwrap(),
        open_bytes(&bytes, None).unwrap(),
        open_bytes(&gzip(&bytes), None).unwrap(),
    ];
    for image in &images {
        assert!(image.config().is_none());
        let (_root, found, diff_ids) = unpack(image).unwrap();
        assert_same(&found, &expected);
        let config = ImageConfig::of_single_layer(diff_ids[0], ORIGIN).unwrap();
        assert_eq!(config.diff_ids(), diff_ids);
    }
    // The stream of a folder is always the same, and that of a pipe can be read once.
    assert_eq!(unpack(&images[0]).unwrap().2, unpack(&images[0]).unwrap().2);
    assert!(matches!(images[2].open_layer(0), Err(Error::AlreadyRead)));
}

#[test]
fn an_unfinished_reading_of_a_folder_ends_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), vec![1; 8 << 20]).unwrap();
    let image = open_path(folder.path()).unwrap();
    let mut reader = image.open_layer(0).unwrap();
    reader.read_exact(&mut [0; 512]).unwrap();
    // Joins the thread, so this would hang if the thread did not end.
    drop(reader);
}

#[test]
fn a_pipe_that_stalls_does_not_hold_up_whoever_gives_up() {
    let (pipe, mut writer) = std::io::pipe().unwrap();
    let layer = Tarball::new().file("a", &vec![1; 3 << 19]).bytes();
    let feeder = std::thread::spawn(move || {
        writer.write_all(&layer[..layer.len() - 4096]).unwrap();
        writer
    });
    let spool = tempfile::tempdir().unwrap();
    let input = SourceInput::Stream(Box::new(pipe));
    let image = Image::open(input, spool.path(), &select(None)).unwrap();
    let mut reader = image.open_layer(0).unwrap();
    reader.read_exact(&mut [0; 512]).unwrap();
    // All written bytes fit into the read-ahead, so the reading thread waits for more now.
    let writer = feeder.join().unwrap();
    // Would hang for as long as the writer neither writes nor closes.
    drop(reader);
    drop(writer);
}

#[test]
fn a_folder_that_cannot_be_stored_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".wh.x"), b"").unwrap();
    let error = unpack(&open_path(folder.path()).unwrap()).unwrap_err();
    assert!(matches!(error, Error::ReservedName(_)), "{error}");
}

#[test]
fn a_written_layout_is_read_back_by_both_of_its_manifests() {
    let source = tempfile::tempdir().unwrap();
    make_every_kind(source.path());
    let root = open_folder(source.path());
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut writer = LayerWriter::new(Vec::new(), compression).unwrap();
        for path in tree(source.path()).keys() {
            use std::os::unix::ffi::OsStrExt;
            let path = path.as_os_str().as_bytes();
            assert!(
                writer
                    .add(root.as_fd(), if path.is_empty() { b"./" } else { path })
                    .unwrap()
            );
        }
        let (blob, summary) = writer.finish().unwrap();
        assert_eq!(summary.blob_digest, Digest::of(&blob));
        let config = ImageConfig::of_single_layer(summary.diff_id, ORIGIN).unwrap();
        let write = |names: &[Reference]| {
            let layer = LayerBlob {
                media_type: compression.layer_media_type(),
                digest: summary.blob_digest,
                size_bytes: summary.blob_size_bytes,
                content: Box::new(blob.as_slice()),
            };
            let image = LayoutImage {
                config: &config,
                names,
                layers: vec![layer],
            };
            write_layout(Vec::new(), image).unwrap()
        };
        let texts = ["example.org/a:1", "other:2"];
        let names = texts.map(|text| Reference::parse(text).unwrap());
        let (archive, manifest_digest) = write(&names);
        assert_eq!(
            write(&names).0,
            archive,
            "the same image gives the same bytes"
        );
        let image = open_bytes(&archive, None).unwrap();
        // The index has the full names, as containerd requires.
        let full = ["docker.io/library/other:2", "example.org/a:1"];
        assert_eq!(image.reference_names(), full);
        assert_eq!(image.manifest_digest(), Some(manifest_digest));
        assert_eq!(image.config().unwrap().digest(), config.digest());
        assert_same(&unpack(&image).unwrap().1, &tree(source.path()));
        // Without its index it is a docker-archive.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tar"), &archive).unwrap();
        let unpacked = folder.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        gnu_extract(&folder.path().join("tar"), &unpacked);
        fs::remove_file(unpacked.join("oci-layout")).unwrap();
        fs::remove_file(unpacked.join("index.json")).unwrap();
        let image = open_path(&unpacked).unwrap();
        assert_eq!(
            (image.reference_names(), image.manifest_digest()),
            (&texts.map(str::to_owned)[..], None)
        );
        assert_same(&unpack(&image).unwrap().1, &tree(source.path()));
    }
}

#[test]
fn a_layer_written_by_us_is_read_by_gnu_tar_as_by_us() {
    let (source, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_every_kind(source.path());
    let image = open_path(source.path()).unwrap();
    let mut layer = Vec::new();
    image
        .open_layer(0)
        .unwrap()
        .read_to_end(&mut layer)
        .unwrap();
    let archive = theirs.path().join("layer.tar");
    fs::write(&archive, layer).unwrap();
    let root = theirs.path().join("root");
    fs::create_dir(&root).unwrap();
    gnu_extract(&archive, &root);
    assert_same(&tree(&root), &tree(source.path()));
}

#[test]
fn a_written_whiteout_removes_what_it_names() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("d/gone")).unwrap();
    fs::write(root.path().join("d/stays"), b"").unwrap();
    let mut writer = LayerWriter::new(Vec::new(), Compression::None).unwrap();
    writer.whiteout(b"d/gone").unwrap();
    writer.whiteout(b"top").unwrap();
    let (layer, _) = writer.finish().unwrap();
    apply(
        open_folder(root.path()).as_fd(),
        &*layer,
        ApplyOptions::default(),
    )
    .unwrap();
    assert_eq!(names(&tree(root.path())), ["d", "d/stays"]);
}

/// Returns a docker-archive of the old kind, whose second layer is a link to another image's.
fn docker_archive(config_name: Option<&str>, tags: &[&str], gzipped: bool) -> Vec<u8> {
    let layers = two_layers();
    let diff_ids: Vec<Digest> = layers
        .iter()
        .map(|(_, _, plain)| Digest::of(plain))
        .collect();
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    let own_name = format!("{}.json", Digest::of(&config).hex());
    let config_name = config_name.unwrap_or(&own_name);
    let manifest = json!([{
        "Config": config_name, "RepoTags": tags, "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    let first = if gzipped {
        gzip(&layers[0].2)
    } else {
        layers[0].2.clone()
    };
    Tarball::new()
        .folder(&format!("{}/", Digest::of(b"one").hex()))
        .folder("one/")
        .file("one/layer.tar", &first)
        .file("other/layer.tar", &layers[1].2)
        .symlink("two/layer.tar", "../other/layer.tar")
        .file(config_name, &config)
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
        .bytes()
}

#[test]
fn a_docker_archive_is_read_with_its_links() {
    for gzipped in [false, true] {
        let bytes = docker_archive(None, &["busybox:1", "busybox:latest"], gzipped);
        let image = open_bytes(&bytes, Some("any name, for there is only one")).unwrap();
        assert_eq!(image.reference_names(), ["busybox:1", "busybox:latest"]);
        assert_eq!(names(&unpack(&image).unwrap().1), ["b", "c"]);
    }
    assert!(open_bytes(&docker_archive(Some("config.json"), &[], false), None).is_ok());
}
