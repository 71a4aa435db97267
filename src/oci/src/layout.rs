//! Writing images as an archive that all common tools read: an OCI layout that is also a
//! docker-archive.
//!
//! The documents come first and the layers after them, so that a reader of a pipe knows the layers
//! in advance. The same images give the same bytes. Every layer is verified while it is copied;
//! blobs that several images share are stored once.
//!
//! Names are written as `docker save` writes them: the full name for containerd, which uses it
//! unchanged, the tag alone for readers of the OCI layout, and the short name in Docker's own
//! manifest.

use super::config::ImageConfig;
use super::digest::{Digest, HashingReader};
use super::error::{Error, Part, Result};
use super::limits::COPY_BUFFER_BYTES;
use super::reference::Reference;
use super::tarball::RECORD_BYTES;
use cowshed_format::base::cancel;
use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{BufWriter, Read, Write};
use tar::{EntryType, Header};

/// The media type of the manifests that are written.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// The annotation in which containerd and docker look for the full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const BLOBS: &str = "blobs/sha256/";

/// What a manifest states about a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDescriptor<'a> {
    /// Its media type, such as [`super::Compression::layer_media_type`] returns.
    pub media_type: &'a str,
    /// The digest of its stored bytes.
    pub digest: Digest,
    /// The number of its stored bytes.
    pub size_bytes: u64,
}

/// One layer in its stored form.
pub struct LayerBlob<'a> {
    /// Its media type, such as [`super::Compression::layer_media_type`] returns.
    pub media_type: &'a str,
    /// The digest of its stored bytes.
    pub digest: Digest,
    /// The number of its stored bytes.
    pub size_bytes: u64,
    /// The stored bytes.
    pub content: Box<dyn Read + 'a>,
}

/// One image of the archive.
pub struct LayoutImage<'a> {
    /// The image's configuration.
    pub config: &'a ImageConfig,
    /// Its names, which may be none; those without a tag are not written.
    pub names: &'a [Reference],
    /// Its layers, lowest first, as many as the configuration has diff ids.
    pub layers: Vec<LayerBlob<'a>>,
}

/// Writes `image` as a tar archive; returns the writer and the manifest's digest.
///
/// # Errors
/// As [`write_layouts`].
pub fn write_layout<W: Write>(out: W, image: LayoutImage<'_>) -> Result<(W, Digest)> {
    let config = image.config.digest();
    let (out, manifests) = write_layouts(out, vec![image])?;
    // One image has one manifest.
    Ok((out, manifests.first().copied().unwrap_or(config)))
}

/// Writes `images` as one tar archive; returns the writer and the manifests' digests.
///
/// # Errors
/// `LayerCount`, `DigestMismatch` or `SizeMismatch` if the layers do not match their descriptions,
/// `Io` if reading or writing fails.
pub fn write_layouts<W: Write>(out: W, images: Vec<LayoutImage<'_>>) -> Result<(W, Vec<Digest>)> {
    let mut manifests = Vec::with_capacity(images.len());
    for image in &images {
        let layers = image.layers.iter().map(LayerBlob::descriptor);
        manifests.push(manifest_of(image.config, &layers.collect::<Vec<_>>())?);
    }
    let all = images.iter().zip(&manifests);
    let entries: Vec<Value> = all
        .flat_map(|(image, bytes)| descriptors(image, bytes))
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
    let docker: Vec<Value> = images.iter().map(docker_manifest_of).collect();
    let mut archive = Archive {
        out: BufWriter::with_capacity(COPY_BUFFER_BYTES, out),
    };
    archive.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.document("index.json", &to_bytes(Part::Index, &index)?)?;
    let docker = to_bytes(Part::DockerManifest, &Value::Array(docker))?;
    archive.document("manifest.json", &docker)?;
    archive.header("blobs/", EntryType::Directory, 0)?;
    archive.header(BLOBS, EntryType::Directory, 0)?;
    let mut stored = HashSet::new();
    let digests: Vec<Digest> = manifests.iter().map(|bytes| Digest::of(bytes)).collect();
    for ((image, manifest), digest) in images.iter().zip(&manifests).zip(&digests) {
        for (digest, bytes) in [
            (*digest, &**manifest),
            (image.config.digest(), image.config.raw()),
        ] {
            if stored.insert(digest) {
                archive.document(&blob_path(digest), bytes)?;
            }
        }
    }
    for image in images {
        for (index, layer) in image.layers.into_iter().enumerate() {
            if stored.insert(layer.digest) {
                archive.layer(index, layer)?;
            }
        }
    }
    Ok((archive.finish()?, digests))
}

/// Returns the manifest of an image, whose layers are given lowest first. The same image has the same
/// manifest.
///
/// # Errors
/// `LayerCount` if the configuration has another number of layers.
pub fn manifest_of(config: &ImageConfig, layers: &[LayerDescriptor<'_>]) -> Result<Vec<u8>> {
    let (found, diff_ids) = (layers.len(), config.diff_ids().len());
    if found != diff_ids {
        return Err(Error::LayerCount {
            layers: found,
            diff_ids,
        });
    }
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size_bytes})
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE, "digest": config.digest(), "size": config.raw().len(),
        },
        "layers": layers,
    });
    to_bytes(Part::Manifest, &manifest)
}

impl LayerBlob<'_> {
    const fn descriptor(&self) -> LayerDescriptor<'_> {
        LayerDescriptor {
            media_type: self.media_type,
            digest: self.digest,
            size_bytes: self.size_bytes,
        }
    }
}

/// Returns the image's entries in the index: the manifest once for each name, as the layout's
/// specification requires.
fn descriptors(image: &LayoutImage<'_>, manifest: &[u8]) -> Vec<Value> {
    let mut descriptor = json!({
        "mediaType": MANIFEST_TYPE, "digest": Digest::of(manifest), "size": manifest.len(),
    });
    let config = image.config;
    if !config.os().is_empty() && !config.architecture().is_empty() {
        descriptor["platform"] = json!({"architecture": config.architecture(), "os": config.os()});
        if !config.variant().is_empty() {
            descriptor["platform"]["variant"] = json!(config.variant());
        }
    }
    let named = |name: &Reference| {
        let mut named = descriptor.clone();
        named["annotations"] =
            json!({ANNOTATION_REF_NAME: name.tag(), CONTAINERD_NAME: name.full()});
        named
    };
    let named: Vec<Value> = tagged(image).map(named).collect();
    if named.is_empty() {
        vec![descriptor]
    } else {
        named
    }
}

fn docker_manifest_of(image: &LayoutImage<'_>) -> Value {
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| blob_path(layer.digest))
        .collect();
    let tags: Vec<String> = tagged(image).map(Reference::short).collect();
    json!({"Config": blob_path(image.config.digest()), "RepoTags": tags, "Layers": layers})
}

/// Returns the names that are written. One with a digest would state the digest of another
/// manifest.
fn tagged<'a>(image: &LayoutImage<'a>) -> impl Iterator<Item = &'a Reference> + use<'a> {
    image.names.iter().filter(|name| !name.has_digest())
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
        // One byte more than stated is enough to detect excess data.
        let limit = layer.size_bytes.saturating_add(1);
        let mut content = HashingReader::new(layer.content.take(limit));
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            cancel::check()?;
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
        // Every path is chosen here and shorter than 100 bytes; a size beyond 8 GiB becomes
        // base-256, which only a GNU header allows.
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
