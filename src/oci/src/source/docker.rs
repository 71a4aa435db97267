//! The docker-archive: `manifest.json`, configurations and layers, as `docker save` writes them.

use super::blobs::{Blobs, lexical};
use super::{Content, Image, LayerInfo, PLAIN_LAYER, Select};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Part, Printable, Result};
use crate::limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use crate::reference::same_reference;
use serde::Deserialize;
use std::sync::Arc;

const MANIFEST: &[u8] = b"manifest.json";

/// One image of the archive.
#[derive(Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "Config")]
    pub(super) config: String,
    #[serde(rename = "RepoTags", default)]
    pub(super) tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

impl Entry {
    fn tags(&self) -> &[String] {
        self.tags.as_deref().unwrap_or_default()
    }
}

/// Returns the images that `manifest.json` lists; `None` if there is no such file, or if it is
/// another file, such as one of a root file system.
pub(super) fn read_manifest(blobs: &Blobs) -> Result<Option<Vec<Entry>>> {
    let bytes = match blobs.document(MANIFEST, Part::DockerManifest, MANIFEST_BYTES_MAX) {
        Ok(Some(bytes)) => bytes,
        Ok(None) | Err(Error::Document { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Opens the selected images.
pub(super) fn open(blobs: &Arc<Blobs>, entries: Vec<Entry>, select: &Select) -> Result<Vec<Image>> {
    let entries = choose(entries, select)?;
    let images = entries.iter().map(|entry| open_entry(blobs, entry));
    images.collect()
}

fn open_entry(blobs: &Arc<Blobs>, entry: &Entry) -> Result<Image> {
    let what = Part::Config;
    let missing = || Error::Missing {
        what,
        name: Printable::from(&*entry.config),
    };
    let path = lexical(&[], entry.config.as_bytes()).ok_or_else(missing)?;
    let raw = blobs
        .document(&path, what, CONFIG_BYTES_MAX)?
        .ok_or_else(missing)?;
    let config = ImageConfig::parse(raw)?;
    if let Some(expected) = digest_in_name(&entry.config)
        && expected != config.digest()
    {
        return Err(Error::DigestMismatch {
            what,
            expected,
            found: config.digest(),
        });
    }
    let paths = entry.layers.as_deref().unwrap_or_default();
    let diff_ids = config.diff_ids();
    if paths.len() != diff_ids.len() {
        return Err(Error::LayerCount {
            layers: paths.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let (mut layers, mut contents) = (Vec::new(), Vec::new());
    for (index, (path, diff_id)) in paths.iter().zip(diff_ids).enumerate() {
        let what = Part::layer(index);
        let name = || Printable::from(path.as_str());
        let place =
            lexical(&[], path.as_bytes()).ok_or_else(|| Error::Missing { what, name: name() })?;
        let blob = blobs.open(&place, what)?;
        layers.push(LayerInfo {
            diff_id: Some(*diff_id),
            media_type: PLAIN_LAYER.to_owned(),
            // Elsewhere the name is that of the uncompressed layer, or arbitrary.
            compressed_digest: path
                .strip_prefix("blobs/sha256/")
                .and_then(Digest::from_hex),
            size_bytes: Some(blob.size_bytes),
            origin: None,
        });
        contents.push(Content::Blob(Arc::clone(blobs), place));
    }
    let names = entry.tags().to_vec();
    Ok(Image {
        config: Some(config),
        names,
        manifest: None,
        stated_platform: None,
        other_platform: None,
        layers,
        contents,
    })
}

fn choose(mut entries: Vec<Entry>, select: &Select) -> Result<Vec<Entry>> {
    if entries.is_empty() {
        return Err(Error::NotAnImage("its manifest.json lists no image"));
    }
    // If there is only one image, the importer chooses its name.
    let Some(wanted) = select.reference.as_deref().filter(|_| entries.len() > 1) else {
        return Ok(entries);
    };
    let is_wanted = |entry: &Entry| entry.tags().iter().any(|tag| same_reference(tag, wanted));
    let Some(chosen) = entries.iter().position(is_wanted) else {
        return Err(Error::NoSuchReference {
            wanted: Printable::from(wanted),
            available: entries.iter().flat_map(Entry::tags).collect(),
        });
    };
    Ok(vec![entries.swap_remove(chosen)])
}

/// Returns the digest that the name of a configuration states: `HEX.json`, `blobs/sha256/HEX` or
/// `sha256:HEX`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.strip_suffix(".json").unwrap_or(name);
    Digest::from_hex(name.strip_prefix("sha256:").unwrap_or(name))
}
