//! Writing an image as an archive that everyone reads: an OCI layout, which is a docker-archive as
//! well.
//!
//! The documents come first and the layers after them, so that a reader of a pipe knows what is
//! coming. The same image gives the same bytes. Every layer is verified while it is copied.

use super::config::ImageConfig;
use super::digest::{Digest, HashingReader};
use super::error::{Error, Part, Result};
use super::limits::COPY_BUFFER_BYTES;
use super::tarball::RECORD_BYTES;
use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{BufWriter, Read, Write};
use tar::{EntryType, Header};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Where containerd and docker look for the full name; the reference name may be a tag only.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const BLOBS: &str = "blobs/sha256/";

/// One layer as it will be stored.
pub struct LayerBlob<'a> {
    /// Its media type, such as [`super::Compression::layer_media_type`] answers.
    pub media_type: &'a str,
    /// The digest of its stored bytes.
    pub digest: Digest,
    /// How many they are.
    pub size_bytes: u64,
    /// Those bytes.
    pub content: Box<dyn Read + 'a>,
}

/// What goes into the archive.
pub struct LayoutImage<'a> {
    /// The image's configuration.
    pub config: &'a ImageConfig,
    /// Its names; none is fine.
    pub names: &'a [String],
    /// Its layers, lowest first, as many as the configuration has diff ids.
    pub layers: Vec<LayerBlob<'a>>,
}

/// Writes `image` as a tar archive; answers the writer and the manifest's digest.
///
/// # Errors
/// `LayerCount`, `DigestMismatch` or `SizeMismatch` where the layers are not what was said of them,
/// `Io` where reading or writing fails.
pub fn write_layout<W: Write>(out: W, image: LayoutImage<'_>) -> Result<(W, Digest)> {
    let (layers, diff_ids) = (image.layers.len(), image.config.diff_ids().len());
    if layers != diff_ids {
        return Err(Error::LayerCount { layers, diff_ids });
    }
    let manifest = to_bytes(Part::Manifest, &manifest_of(&image))?;
    let manifest_digest = Digest::of(&manifest);
    let index = to_bytes(Part::Index, &index_of(&image, &manifest))?;
    let docker = to_bytes(Part::DockerManifest, &docker_manifest_of(&image))?;
    let mut archive = Archive {
        out: BufWriter::with_capacity(COPY_BUFFER_BYTES, out),
    };
    archive.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.document("index.json", &index)?;
    archive.document("manifest.json", &docker)?;
    archive.header("blobs/", EntryType::Directory, 0)?;
    archive.header(BLOBS, EntryType::Directory, 0)?;
    archive.document(&blob_path(manifest_digest), &manifest)?;
    archive.document(&blob_path(image.config.digest()), image.config.raw())?;
    let mut stored = HashSet::new();
    for (index, layer) in image.layers.into_iter().enumerate() {
        if stored.insert(layer.digest) {
            archive.layer(index, layer)?;
        }
    }
    Ok((archive.finish()?, manifest_digest))
}

fn manifest_of(image: &LayoutImage<'_>) -> Value {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| {
            json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size_bytes})
        })
        .collect();
    let config = image.config;
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE, "digest": config.digest(), "size": config.raw().len(),
        },
        "layers": layers,
    })
}

/// The index: the manifest once for each name, as the layout's specification has it.
fn index_of(image: &LayoutImage<'_>, manifest: &[u8]) -> Value {
    let mut descriptor = json!({
        "mediaType": MANIFEST_TYPE, "digest": Digest::of(manifest), "size": manifest.len(),
    });
    let config = image.config;
    if !config.os().is_empty() && !config.architecture().is_empty() {
        descriptor["platform"] = json!({"architecture": config.architecture(), "os": config.os()});
    }
    let named = |name: &String| {
        let mut named = descriptor.clone();
        named["annotations"] = json!({ANNOTATION_REF_NAME: name, CONTAINERD_NAME: name});
        named
    };
    let manifests: Vec<Value> = if image.names.is_empty() {
        vec![descriptor]
    } else {
        image.names.iter().map(named).collect()
    };
    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
}

fn docker_manifest_of(image: &LayoutImage<'_>) -> Value {
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| blob_path(layer.digest))
        .collect();
    // Docker refuses a name without a tag.
    let tags: Vec<&String> = image.names.iter().filter(|name| has_tag(name)).collect();
    json!([{"Config": blob_path(image.config.digest()), "RepoTags": tags, "Layers": layers}])
}

fn has_tag(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.contains(':') && !last.contains('@')
}

fn blob_path(digest: Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

fn to_bytes(what: Part, value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Json { what, source })
}

struct Archive<W: Write> {
    out: BufWriter<W>,
}

impl<W: Write> Archive<W> {
    fn document(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.header(path, EntryType::Regular, len)?;
        self.write(bytes)?;
        self.pad(len)
    }

    fn layer(&mut self, index: usize, layer: LayerBlob<'_>) -> Result<()> {
        let what = Part::layer(index);
        self.header(
            &blob_path(layer.digest),
            EntryType::Regular,
            layer.size_bytes,
        )?;
        // One byte more than stated is enough to see that there is more.
        let limit = layer.size_bytes.saturating_add(1);
        let mut content = HashingReader::new(layer.content.take(limit));
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let len = content
                .read(&mut buffer)
                .map_err(|source| Error::io("read the layer", source))?;
            if len == 0 {
                break;
            }
            self.write(&buffer[..len])?;
        }
        let (expected_bytes, found_bytes) = (layer.size_bytes, content.hasher().len_bytes());
        if expected_bytes != found_bytes {
            return Err(Error::SizeMismatch {
                what,
                expected_bytes,
                found_bytes,
            });
        }
        let (expected, found) = (layer.digest, content.hasher().digest());
        if expected != found {
            return Err(Error::DigestMismatch {
                what,
                expected,
                found,
            });
        }
        self.pad(layer.size_bytes)
    }

    fn header(&mut self, path: &str, kind: EntryType, size_bytes: u64) -> Result<()> {
        // Every path is ours and shorter than 100 bytes; a size beyond 8 GiB becomes base-256, which
        // only a GNU header allows.
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size_bytes);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, len_bytes: u64) -> Result<()> {
        let padding = len_bytes.wrapping_neg() % 512;
        let padding = usize::try_from(padding).unwrap_or_default();
        self.write(&[0; RECORD_BYTES][..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|source| Error::io("write the archive", source))
    }

    fn finish(mut self) -> Result<W> {
        self.write(&[0; 2 * RECORD_BYTES])?;
        self.out
            .into_inner()
            .map_err(|error| Error::io("write the archive", error.into_error()))
    }
}
