//! The OCI image layout: from `index.json` to the manifests of the selected images, and to their
//! configurations and layers. Skopeo's folder has the same documents under other names.

use super::blobs::Blobs;
use super::remote::Remote;
use super::store::Store;
use super::{Content, Image, LayerInfo, Select, Target, docker, old};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Part, Printable, Result};
use crate::limits::{CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX};
use crate::platform::Platform;
use crate::reference::same_reference;
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::IgnoredAny;
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
/// The last four are forms that registries gave Docker's type, and that Docker accepts since
/// (distribution/issues/1621).
const CONFIG_TYPES: [&str; 6] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "application/json",
    "text/html",
    "",
];
/// Number of images of an index whose configuration is read because the index does not state their
/// platform: a registry could list thousands.
const UNSTATED_MAX: usize = 32;
/// The start of a layer's media type; the compression follows, and is detected from the first
/// bytes. Layers that must not be distributed are ordinary ones if they are present.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_COMPRESSIONS: [&str; 9] = [
    "", "+gzip", ".gzip", "+zstd", ".zstd", "+xz", ".xz", "+bzip2", ".bzip2",
];

fn is_layer_type(media_type: &str) -> bool {
    LAYER_TYPES
        .iter()
        .filter_map(|base| media_type.strip_prefix(base))
        .any(|compression| LAYER_COMPRESSIONS.contains(&compression))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Opens the selected images; a docker `manifest.json` beside the index adds its names.
pub(super) fn open(
    blobs: &Arc<Blobs>,
    docker: Option<&[docker::Entry]>,
    select: &Select,
) -> Result<Vec<Image>> {
    let what = Part::LayoutFile;
    if let Some(bytes) = blobs.document(b"oci-layout", what, MANIFEST_BYTES_MAX)? {
        let layout: LayoutFile = parse(what, &bytes)?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(Error::Document {
                what,
                fault: "its version is not 1",
            });
        }
    }
    let bytes = blobs
        .document(b"index.json", Part::Index, MANIFEST_BYTES_MAX)?
        .unwrap_or_default();
    let index: ImageIndex = parse(Part::Index, &bytes)?;
    let store = Store::Files {
        blobs: Arc::clone(blobs),
        is_directory: false,
    };
    let chosen = choose(candidates(&index), select)?;
    let images = chosen.into_iter().map(|candidate| {
        let mut image = open_platform(&store, &candidate.platforms, select)?;
        image.names = candidate.names;
        let id = image.config().map(ImageConfig::digest);
        add_docker_names(&mut image.names, docker, id);
        Ok(image)
    });
    images.collect()
}

/// Opens the image that a record outside of the blobs refers to.
pub(super) fn open_target(store: &Store, target: &Target, select: &Select) -> Result<Image> {
    let digest: oci_spec::image::Digest =
        target
            .digest
            .to_string()
            .parse()
            .map_err(|_| Error::Document {
                what: Part::Manifest,
                fault: "its digest is not one",
            })?;
    let media_type = MediaType::from(&*target.media_type);
    let descriptor = Descriptor::new(media_type, target.size_bytes, digest);
    open_platform(store, &[&descriptor], select)
}

/// Opens the image of skopeo's folder, whose `manifest.json` is `bytes`.
pub(super) fn open_directory(
    blobs: &Arc<Blobs>,
    bytes: &[u8],
    select: &Select,
) -> Result<Vec<Image>> {
    let store = Store::Files {
        blobs: Arc::clone(blobs),
        is_directory: true,
    };
    Ok(vec![open_top(&store, bytes, select)?])
}

/// Opens the image of a registry, whose manifest or index is `bytes`.
pub(super) fn open_remote(
    remote: &Arc<dyn Remote>,
    bytes: &[u8],
    select: &Select,
) -> Result<Image> {
    open_top(&Store::Remote(Arc::clone(remote)), bytes, select)
}

/// Opens the image whose manifest is `bytes`.
pub(super) fn open_chosen(remote: &Arc<dyn Remote>, bytes: &[u8]) -> Result<Image> {
    open_manifest(&Store::Remote(Arc::clone(remote)), bytes)
}

/// Opens the image whose manifest, or index of platforms, is `bytes`.
fn open_top(store: &Store, bytes: &[u8], select: &Select) -> Result<Image> {
    let kind: ManifestKind = parse_kind(Part::Manifest, bytes)?;
    if kind.schema_version == 1 {
        let old = "application/vnd.docker.distribution.manifest.v1+json";
        return Err(unsupported(Part::Manifest, old));
    }
    if kind.manifests.is_none() {
        return open_manifest(store, bytes);
    }
    let index: ImageIndex = parse(Part::Index, bytes)?;
    let images: Vec<&Descriptor> = images_of(&index).collect();
    open_platform(store, &images, select)
}

/// The fields that distinguish a manifest from an index if no media type is stated.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestKind {
    schema_version: u32,
    manifests: Option<Vec<serde_json::Value>>,
}

/// The fields of which a document has one or the others.
#[derive(Deserialize)]
struct OneKind {
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

/// Parses an index or a manifest. One that is both is refused: it would be another image for whoever
/// takes it for the other kind.
fn parse_kind<T: DeserializeOwned>(what: Part, bytes: &[u8]) -> Result<T> {
    let kind: OneKind = parse(what, bytes)?;
    if kind.manifests.is_some() && (kind.layers.is_some() || kind.config.is_some()) {
        return Err(Error::Document {
            what,
            fault: "it is an index and a manifest at once",
        });
    }
    parse(what, bytes)
}

/// An image with the names that the index gives it.
struct Candidate<'a> {
    names: Vec<String>,
    /// The same image for one or several platforms.
    platforms: Vec<&'a Descriptor>,
}

fn images_of(index: &ImageIndex) -> impl Iterator<Item = &Descriptor> {
    index
        .manifests()
        .iter()
        .filter(|descriptor| !is_attestation(descriptor))
}

/// Returns the images of an index: entries with the same digest are one image with several names,
/// and entries with the same names are one image for several platforms.
fn candidates(index: &ImageIndex) -> Vec<Candidate<'_>> {
    let mut by_digest: Vec<(&Descriptor, BTreeSet<String>)> = Vec::new();
    for descriptor in images_of(index) {
        let names = names_of(descriptor);
        let same = |(other, _): &&mut (&Descriptor, _)| other.digest() == descriptor.digest();
        match by_digest.iter_mut().find(same) {
            Some((_, known)) => known.extend(names),
            None => by_digest.push((descriptor, names.into_iter().collect())),
        }
    }
    let unnamed = by_digest.iter().filter(|(_, names)| names.is_empty());
    let are_platforms = have_different_platforms(unnamed.map(|(descriptor, _)| *descriptor));
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for (descriptor, names) in by_digest {
        let names: Vec<String> = names.into_iter().collect();
        let is_known = !names.is_empty() || are_platforms;
        match candidates
            .iter_mut()
            .find(|known| is_known && known.names == names)
        {
            Some(known) => known.platforms.push(descriptor),
            None => candidates.push(Candidate {
                names,
                platforms: vec![descriptor],
            }),
        }
    }
    candidates
}

/// Returns true if no two are for the same platform.
fn have_different_platforms<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> bool {
    let mut seen = Vec::new();
    for descriptor in descriptors {
        let Some(platform) = stated_platform(descriptor).filter(|one| !seen.contains(one)) else {
            return false;
        };
        seen.push(platform);
    }
    true
}

fn stated_platform(descriptor: &Descriptor) -> Option<Platform> {
    let platform = descriptor.platform().as_ref()?;
    let variant = platform.variant().as_deref().unwrap_or_default();
    let (os, architecture) = (
        platform.os().to_string(),
        platform.architecture().to_string(),
    );
    Some(Platform::new(&os, &architecture, variant))
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

/// Returns the selected images among those of `index.json`.
fn choose<'a>(mut all: Vec<Candidate<'a>>, select: &Select) -> Result<Vec<Candidate<'a>>> {
    if all.is_empty() {
        return Err(Error::NotAnImage("its index lists no image"));
    }
    // If there is only one image, the importer chooses its name.
    let Some(wanted) = select.reference.as_deref().filter(|_| all.len() > 1) else {
        return Ok(all);
    };
    let is_wanted = |one: &Candidate<'_>| one.names.iter().any(|name| same_reference(name, wanted));
    let Some(chosen) = all.iter().position(is_wanted) else {
        let available: BTreeSet<&String> = all.iter().flat_map(|one| &one.names).collect();
        return Err(Error::NoSuchReference {
            wanted: Printable::from(wanted),
            available: available.into_iter().collect(),
        });
    };
    Ok(vec![all.swap_remove(chosen)])
}

/// Opens the image for the platform that suits best among `images`, which may be indexes of further
/// platforms.
fn open_platform(store: &Store, images: &[&Descriptor], select: &Select) -> Result<Image> {
    let mut descriptor = choose_platform(store, images, select)?.clone();
    let mut platform = stated_platform(&descriptor);
    for _ in 0..INDEX_DEPTH_MAX {
        let media_type = descriptor.media_type().to_string();
        if MANIFEST_TYPES.contains(&&*media_type) {
            let bytes = store.read_verified(&descriptor, Part::Manifest, MANIFEST_BYTES_MAX)?;
            let mut image = open_manifest(store, &bytes)?;
            image.stated_platform = platform;
            return Ok(image);
        }
        if !INDEX_TYPES.contains(&&*media_type) {
            return Err(unsupported(Part::Manifest, &media_type));
        }
        let bytes = store.read_verified(&descriptor, Part::Index, MANIFEST_BYTES_MAX)?;
        let index: ImageIndex = parse_kind(Part::Index, &bytes)?;
        let images: Vec<&Descriptor> = images_of(&index).collect();
        let next = choose_platform(store, &images, select)?.clone();
        platform = stated_platform(&next).or(platform);
        descriptor = next;
    }
    Err(Error::Document {
        what: Part::Index,
        fault: "its indexes are nested too deeply",
    })
}

/// Returns the one that suits best. Images that the input lists but does not contain count only if
/// it contains none.
fn choose_platform<'a>(
    store: &Store,
    images: &[&'a Descriptor],
    select: &Select,
) -> Result<&'a Descriptor> {
    if let [only] = images {
        return Ok(only);
    }
    let held: Vec<&Descriptor> = images
        .iter()
        .copied()
        .filter(|one| store.has(one))
        .collect();
    let images = if held.is_empty() { images } else { &held };
    let mut platforms = Vec::with_capacity(images.len());
    let mut unstated = 0;
    for one in images {
        let mut platform = stated_platform(one);
        if platform.is_none() && unstated < UNSTATED_MAX {
            unstated += 1;
            platform = configured_platform(store, one)?;
        }
        platforms.push(platform);
    }
    let rank = |platform: &Option<Platform>| match platform {
        Some(platform) => select.rank(platform),
        // It states no platform, so others come first.
        None => Some(usize::MAX),
    };
    let ranked = images.iter().zip(&platforms);
    let fitting = ranked.filter_map(|(one, platform)| Some((rank(platform)?, *one)));
    if let Some((_, best)) = fitting.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    match images {
        [] => Err(Error::NotAnImage("its index lists no image")),
        // Once it is read, it is refused or reported.
        [only] => Ok(only),
        _ => {
            let available: BTreeSet<String> = platforms
                .iter()
                .flatten()
                .map(Platform::to_string)
                .collect();
            Err(Error::NoPlatform {
                wanted: Printable::from(&*select.wanted().to_string()),
                available: available.into_iter().collect(),
            })
        }
    }
}

/// Returns the platform in an image's configuration. An image that is damaged has none: that is
/// reported if it is chosen.
///
/// # Errors
/// Those of the place that has the image.
fn configured_platform(store: &Store, descriptor: &Descriptor) -> Result<Option<Platform>> {
    let media_type = descriptor.media_type().to_string();
    if !MANIFEST_TYPES.contains(&&*media_type) {
        return Ok(None);
    }
    let read = || {
        let what = Part::Manifest;
        let bytes = store.read_verified(descriptor, what, MANIFEST_BYTES_MAX)?;
        let manifest: ImageManifest = parse_kind(what, &bytes)?;
        let raw = store.read_verified(manifest.config(), Part::Config, CONFIG_BYTES_MAX)?;
        Ok(ImageConfig::parse(raw)?.platform())
    };
    match read() {
        Err(error @ (Error::Remote(_) | Error::Cancelled(_))) => Err(error),
        read => Ok(read.ok().flatten()),
    }
}

fn open_manifest(store: &Store, bytes: &[u8]) -> Result<Image> {
    let what = Part::Manifest;
    let manifest: ImageManifest = parse_kind(what, bytes)?;
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
    let raw = store.read_verified(manifest.config(), Part::Config, CONFIG_BYTES_MAX)?;
    let config = ImageConfig::parse(raw)?;
    let (stated, diff_ids) = (manifest.layers(), config.diff_ids());
    if stated.len() != diff_ids.len() {
        return Err(Error::LayerCount {
            layers: stated.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let (mut layers, mut contents) = (Vec::new(), Vec::new());
    let chain_ids = config.chain_ids().into_iter();
    for (index, ((layer, diff_id), chain_id)) in
        stated.iter().zip(diff_ids).zip(chain_ids).enumerate()
    {
        let (info, content) = match check_layer(store, layer, index, *diff_id) {
            Err(missing @ Error::Missing { .. }) => match store.unpacked(chain_id)? {
                Some(unpacked) => old::layer(None, unpacked)?,
                None => return Err(missing),
            },
            found => found?,
        };
        layers.push(info);
        contents.push(content);
    }
    Ok(Image {
        config: Some(config),
        names: Vec::new(),
        manifest: Some(bytes.to_vec()),
        stated_platform: None,
        other_platform: None,
        layers,
        contents,
    })
}

/// Returns the layer's data and place if it can be read, as far as that is known before reading it.
fn check_layer(
    store: &Store,
    layer: &Descriptor,
    index: usize,
    diff_id: Digest,
) -> Result<(LayerInfo, Content)> {
    let what = Part::layer(index);
    let media_type = layer.media_type().to_string();
    if !is_layer_type(&media_type) {
        return Err(unsupported(what, &media_type));
    }
    let (digest, content) = store.layer(layer, index)?;
    let info = LayerInfo {
        diff_id: Some(diff_id),
        media_type,
        compressed_digest: Some(digest),
        size_bytes: Some(layer.size()),
        origin: None,
    };
    Ok((info, content))
}

/// Adds the tags that a docker manifest gives the image with this configuration.
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
