//! The OCI image layout: from `index.json` to the manifest of the image that is meant, and to its
//! configuration and layers.

use super::blobs::Blobs;
use super::{Content, Image, LayerInfo, Select, docker, same_reference};
use crate::oci::config::ImageConfig;
use crate::oci::digest::Digest;
use crate::oci::error::{Error, Part, Printable, PrintableList, Result};
use crate::oci::limits::{CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX};
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const ATTESTATION: &str = "vnd.docker.reference.type";
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Whether the layout's two documents are there.
pub(super) fn is_layout(blobs: &Blobs) -> Result<bool> {
    Ok(blobs.find(b"oci-layout")?.is_some() && blobs.find(b"index.json")?.is_some())
}

/// Opens the image that is meant; a docker `manifest.json` beside the index adds its names.
pub(super) fn open(
    blobs: &Arc<Blobs>,
    docker: Option<&[docker::Entry]>,
    select: &Select,
) -> Result<Image> {
    let what = Part::LayoutFile;
    let bytes = blobs
        .document(b"oci-layout", what, MANIFEST_BYTES_MAX)?
        .unwrap_or_default();
    let layout: LayoutFile = parse(what, &bytes)?;
    if !layout.image_layout_version.starts_with("1.") {
        return Err(Error::Document {
            what,
            fault: "its version is not 1",
        });
    }
    let bytes = blobs
        .document(b"index.json", Part::Index, MANIFEST_BYTES_MAX)?
        .unwrap_or_default();
    let index: ImageIndex = parse(Part::Index, &bytes)?;
    let (descriptor, mut names) = choose(&candidates(&index), select)?;
    let descriptor = descend(blobs, descriptor, select)?;
    let mut image = open_manifest(blobs, &descriptor)?;
    add_docker_names(&mut names, docker, image.config().map(ImageConfig::digest));
    image.names = names;
    Ok(image)
}

/// An image, or an index of it for several platforms, with the names that the index gives it.
struct Candidate<'a> {
    descriptor: &'a Descriptor,
    names: Vec<String>,
}

fn candidates(index: &ImageIndex) -> Vec<Candidate<'_>> {
    let images = index
        .manifests()
        .iter()
        .filter(|descriptor| !is_attestation(descriptor));
    images
        .map(|descriptor| Candidate {
            descriptor,
            names: names_of(descriptor),
        })
        .collect()
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor
        .annotations()
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    annotation(descriptor, ATTESTATION).is_some()
}

fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let full = annotation(descriptor, CONTAINERD_NAME);
    let reference = annotation(descriptor, ANNOTATION_REF_NAME)
        // Docker repeats the tag of the full name here.
        .filter(|tag| full.is_none_or(|full| *tag != full && !full.ends_with(&format!(":{tag}"))));
    full.into_iter()
        .chain(reference)
        .map(str::to_owned)
        .collect()
}

/// The image that is meant among those of `index.json`, with all the names that it has there.
fn choose(all: &[Candidate<'_>], select: &Select) -> Result<(Descriptor, Vec<String>)> {
    let available = || {
        all.iter()
            .flat_map(|c| c.names.clone())
            .collect::<BTreeSet<_>>()
    };
    let wanted = select.reference.as_deref();
    let is_wanted = |candidate: &&Candidate<'_>| {
        wanted.is_some_and(|wanted| {
            candidate
                .names
                .iter()
                .any(|name| same_reference(name, wanted))
        })
    };
    let mut left: Vec<&Candidate<'_>> = all.iter().filter(is_wanted).collect();
    let found = !left.is_empty();
    if !found {
        left = all.iter().collect();
    }
    if left
        .iter()
        .any(|candidate| fits(candidate.descriptor, select))
    {
        left.retain(|candidate| fits(candidate.descriptor, select));
    }
    let Some(first) = left.first() else {
        return Err(Error::NotAnImage("its index lists no image"));
    };
    let same_names = left.iter().all(|candidate| candidate.names == first.names);
    let one = left
        .iter()
        .all(|other| other.descriptor.digest() == first.descriptor.digest());
    match wanted {
        // The name of the only image is for its importer to choose.
        _ if one => {}
        _ if same_names && !fits(first.descriptor, select) => {
            return Err(no_platform(
                left.iter().map(|candidate| candidate.descriptor),
                select,
            ));
        }
        Some(_) if found => {}
        Some(wanted) => {
            return Err(Error::NoSuchReference {
                wanted: Printable::from(wanted),
                available: available().into_iter().collect(),
            });
        }
        // Platforms of one image that stand in the index side by side.
        None if same_names && first.descriptor.platform().is_some() => {}
        None => {
            return Err(Error::SeveralImages {
                available: describe(&left),
            });
        }
    }
    let same = |other: &&&Candidate<'_>| other.descriptor.digest() == first.descriptor.digest();
    let names: BTreeSet<String> = left
        .iter()
        .filter(same)
        .flat_map(|c| c.names.clone())
        .collect();
    Ok((first.descriptor.clone(), names.into_iter().collect()))
}

/// The names of what can be chosen; for what has none, its digest.
fn describe(candidates: &[&Candidate<'_>]) -> PrintableList {
    let texts = candidates.iter().map(|candidate| {
        let digest = || candidate.descriptor.digest().to_string();
        candidate.names.first().cloned().unwrap_or_else(digest)
    });
    texts.collect()
}

/// Whether it is for the wanted platform, or does not say.
fn fits(descriptor: &Descriptor, select: &Select) -> bool {
    descriptor.platform().as_ref().is_none_or(|platform| {
        platform.os().to_string() == "linux"
            && platform.architecture().to_string() == select.architecture
    })
}

/// From an index of platforms, possibly of further indexes, to a manifest.
fn descend(blobs: &Blobs, mut descriptor: Descriptor, select: &Select) -> Result<Descriptor> {
    for _ in 0..INDEX_DEPTH_MAX {
        let media_type = descriptor.media_type().to_string();
        if MANIFEST_TYPES.contains(&&*media_type) {
            return Ok(descriptor);
        }
        if !INDEX_TYPES.contains(&&*media_type) {
            return Err(unsupported(Part::Manifest, &media_type));
        }
        let bytes = read_verified(blobs, &descriptor, Part::Index, MANIFEST_BYTES_MAX)?;
        let index: ImageIndex = parse(Part::Index, &bytes)?;
        let images: Vec<&Descriptor> = index
            .manifests()
            .iter()
            .filter(|inner| !is_attestation(inner))
            .collect();
        let fitting = images.iter().find(|inner| fits(inner, select));
        let next = match (fitting, images.as_slice()) {
            (Some(fitting), _) => *fitting,
            (None, [only]) => only,
            (None, _) => return Err(no_platform(images.into_iter(), select)),
        };
        descriptor = next.clone();
    }
    Err(Error::Document {
        what: Part::Index,
        fault: "it refers to further indexes without end",
    })
}

fn no_platform<'a>(images: impl Iterator<Item = &'a Descriptor>, select: &Select) -> Error {
    let platforms = images.filter_map(|image| image.platform().as_ref());
    let texts = platforms.map(|platform| format!("{}/{}", platform.os(), platform.architecture()));
    Error::NoPlatform {
        wanted: Printable::from(format!("linux/{}", select.architecture).as_str()),
        available: texts.collect(),
    }
}

fn open_manifest(blobs: &Arc<Blobs>, descriptor: &Descriptor) -> Result<Image> {
    let what = Part::Manifest;
    let bytes = read_verified(blobs, descriptor, what, MANIFEST_BYTES_MAX)?;
    let manifest: ImageManifest = parse(what, &bytes)?;
    if manifest.schema_version() != 2 {
        return Err(Error::Document {
            what,
            fault: "its schema version is not 2",
        });
    }
    let media_type = manifest.config().media_type().to_string();
    if !CONFIG_TYPES.contains(&&*media_type) {
        return Err(unsupported(Part::Config, &media_type));
    }
    let raw = read_verified(blobs, manifest.config(), Part::Config, CONFIG_BYTES_MAX)?;
    let config = ImageConfig::parse(raw)?;
    let (stated, diff_ids) = (manifest.layers(), config.diff_ids());
    if stated.len() != diff_ids.len() {
        return Err(Error::LayerCount {
            layers: stated.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let (mut layers, mut contents) = (Vec::new(), Vec::new());
    for (index, (layer, diff_id)) in stated.iter().zip(diff_ids).enumerate() {
        let (info, path) = check_layer(blobs, layer, index, *diff_id)?;
        layers.push(info);
        contents.push(Content::Blob(Arc::clone(blobs), path));
    }
    let manifest_digest = Some(Digest::of(&bytes));
    Ok(Image {
        config: Some(config),
        names: Vec::new(),
        manifest_digest,
        layers,
        contents,
    })
}

/// Whether the layer can be read, as far as that shows before reading it.
fn check_layer(
    blobs: &Blobs,
    layer: &Descriptor,
    index: usize,
    diff_id: Digest,
) -> Result<(LayerInfo, Vec<u8>)> {
    let what = Part::layer(index);
    let media_type = layer.media_type().to_string();
    if !LAYER_TYPES.contains(&&*media_type) {
        return Err(unsupported(what, &media_type));
    }
    let (digest, path) = place_of(layer)?;
    let found_bytes = blobs.open(&path, what)?.size_bytes;
    if found_bytes != layer.size() {
        return Err(Error::SizeMismatch {
            what,
            expected_bytes: layer.size(),
            found_bytes,
        });
    }
    let info = LayerInfo {
        diff_id: Some(diff_id),
        media_type,
        compressed_digest: Some(digest),
        size_bytes: Some(layer.size()),
    };
    Ok((info, path))
}

fn place_of(descriptor: &Descriptor) -> Result<(Digest, Vec<u8>)> {
    let digest: Digest = descriptor.digest().to_string().parse()?;
    Ok((
        digest,
        format!("blobs/sha256/{}", digest.hex()).into_bytes(),
    ))
}

/// The document that `descriptor` refers to, if it is what the descriptor says.
fn read_verified(blobs: &Blobs, descriptor: &Descriptor, what: Part, max: u64) -> Result<Vec<u8>> {
    let (expected, path) = place_of(descriptor)?;
    let name = || Printable::from(&*path);
    let bytes = blobs
        .document(&path, what, max)?
        .ok_or_else(|| Error::Missing { what, name: name() })?;
    let found_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if found_bytes != descriptor.size() {
        return Err(Error::SizeMismatch {
            what,
            expected_bytes: descriptor.size(),
            found_bytes,
        });
    }
    let found = Digest::of(&bytes);
    if found == expected {
        Ok(bytes)
    } else {
        Err(Error::DigestMismatch {
            what,
            expected,
            found,
        })
    }
}

/// The tags that a docker manifest gives the image with this configuration.
fn add_docker_names(
    names: &mut Vec<String>,
    docker: Option<&[docker::Entry]>,
    config: Option<Digest>,
) {
    let Some(path) = config.map(|digest| format!("blobs/sha256/{}", digest.hex())) else {
        return;
    };
    for entry in docker
        .unwrap_or_default()
        .iter()
        .filter(|entry| entry.config == path)
    {
        for tag in entry.tags.iter().flatten() {
            if !names.iter().any(|name| same_reference(name, tag)) {
                names.push(tag.clone());
            }
        }
    }
}

fn unsupported(what: Part, media_type: &str) -> Error {
    Error::UnsupportedMediaType {
        what,
        media_type: Printable::from(media_type),
    }
}

fn parse<T: DeserializeOwned>(what: Part, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}
