//! containers/storage, the store of Podman, Buildah, skopeo and CRI-O: `DRIVER-images/images.json` and
//! `DRIVER-layers/layers.json`, beside them what tar-split keeps of each layer's tar, and a folder for
//! each layer's files below `DRIVER`.
//!
//! Source: <https://github.com/containers/storage>, `images.go`, `layers.go`.

use super::drivers;
use super::folder::{Folder, damaged, is_plain_name, missing};
use super::in_use::Locks;
use super::layer::OldLayer;
use super::{Found, OldImage, without_steps};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Part, Printable, Result};
use crate::limits::{CONFIG_BYTES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX, STORE_LIST_BYTES_MAX};
use crate::source::Image;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashMap;

/// Programs that use such a store, as messages name them.
const PROGRAMS: &str = "Podman, Buildah or CRI-O";
const IMAGES: &str = "-images";

/// An image in the list of images.
#[derive(Deserialize)]
struct StoredImage {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// The highest layer.
    #[serde(default)]
    layer: String,
}

/// A layer in the list of layers.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StoredLayer {
    id: String,
    #[serde(default)]
    parent: String,
    /// The digest of its tar.
    #[serde(default)]
    diff_digest: Option<String>,
    /// Other owners in its files than in its tar.
    #[serde(default, rename = "uidmap")]
    owners: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    flags: Option<Flags>,
}

#[derive(Deserialize)]
struct Flags {
    /// The layer was being made, and is not whole.
    #[serde(default)]
    incomplete: bool,
}

/// What a manifest says of the configuration.
#[derive(Deserialize)]
struct Manifest {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    digest: Digest,
}

/// Returns the images of all storage drivers; `None` if this is not such a store.
pub(super) fn read(store: &Folder, locks: &mut Locks) -> Result<Option<Found>> {
    let mut found = None;
    for folder in store.names(".")? {
        let Some(driver) = folder.strip_suffix(IMAGES) else {
            continue;
        };
        let list = format!("{folder}/images.json");
        locks.lock_file(store, &format!("{folder}/images.lock"), PROGRAMS)?;
        locks.lock_file(store, &format!("{driver}-layers/layers.lock"), PROGRAMS)?;
        let Some(images) = store.json::<Vec<StoredImage>>(&list, STORE_LIST_BYTES_MAX)? else {
            continue;
        };
        let driver = Driver::open(store, driver)?;
        found
            .get_or_insert_with(Found::new)
            .extend(driver.images(images));
    }
    Ok(found)
}

/// The layers of one storage driver.
struct Driver<'s> {
    store: &'s Folder,
    name: &'s str,
    layers: HashMap<String, StoredLayer>,
}

impl<'s> Driver<'s> {
    fn open(store: &'s Folder, name: &'s str) -> Result<Self> {
        let mut layers = HashMap::new();
        for list in ["layers.json", "volatile-layers.json"] {
            let path = format!("{name}-layers/{list}");
            let stored: Option<Vec<StoredLayer>> = store.json(&path, STORE_LIST_BYTES_MAX)?;
            let stored = stored.into_iter().flatten();
            layers.extend(stored.map(|layer| (layer.id.clone(), layer)));
        }
        Ok(Self {
            store,
            name,
            layers,
        })
    }

    fn images(&self, images: Vec<StoredImage>) -> Found {
        let images = images.into_iter().map(|mut stored| {
            let names = stored.names.take().unwrap_or_default();
            let image = self.image(&stored, names.clone());
            OldImage::new(stored.id, names, image)
        });
        without_steps(images.collect())
    }

    fn image(&self, stored: &StoredImage, names: Vec<String>) -> Result<Image> {
        let config = self.config(&stored.id)?;
        let chain = self.chain(&stored.layer)?;
        if chain.len() != config.diff_ids().len() {
            return Err(Error::LayerCount {
                layers: chain.len(),
                diff_ids: config.diff_ids().len(),
            });
        }
        let mut layers = Vec::new();
        let mut below = None;
        for (layer, diff_id) in chain.iter().zip(config.diff_ids()) {
            let opened = self.layer(layer, *diff_id, below)?;
            below = Some(opened.folder.clone());
            layers.push((opened.is_exact().then_some(*diff_id), opened));
        }
        Image::of_old_store(config, names, layers)
    }

    fn config(&self, id: &str) -> Result<ImageConfig> {
        if !is_plain_name(id) {
            return Err(damaged(
                &self.list("images"),
                "an id is not the name of a folder",
            ));
        }
        let folder = format!("{}{IMAGES}/{id}", self.name);
        let manifest: Option<Manifest> = self
            .store
            .json(&format!("{folder}/manifest"), MANIFEST_BYTES_MAX)?;
        let manifest = manifest.ok_or_else(|| missing(&format!("{folder}/manifest")))?;
        let expected = manifest.config.digest;
        let path = format!("{folder}/={}", STANDARD.encode(expected.to_string()));
        let raw = self.store.document(&path, CONFIG_BYTES_MAX)?;
        let config = ImageConfig::parse(raw.ok_or_else(|| missing(&path))?)?;
        if config.digest() != expected {
            return Err(Error::DigestMismatch {
                what: Part::Config,
                expected,
                found: config.digest(),
            });
        }
        Ok(config)
    }

    /// Returns the layers up to this one, lowest first.
    fn chain(&self, highest: &str) -> Result<Vec<&StoredLayer>> {
        let mut chain = Vec::new();
        let mut next = highest;
        while !next.is_empty() {
            let list = self.list("layers");
            if chain.len() == LAYERS_MAX {
                return Err(damaged(
                    &list,
                    "there are too many layers, or one is its own parent",
                ));
            }
            let layer = self.layers.get(next).ok_or_else(|| Error::NotInStore {
                file: Printable::from(&*format!("the layer {next}")),
            })?;
            chain.push(layer);
            next = &layer.parent;
        }
        chain.reverse();
        Ok(chain)
    }

    fn layer(
        &self,
        stored: &StoredLayer,
        diff_id: Digest,
        below: Option<String>,
    ) -> Result<OldLayer> {
        let fault = |fault| Err(damaged(&self.list("layers"), fault));
        if !is_plain_name(&stored.id) {
            return fault("an id is not the name of a folder");
        }
        if stored.flags.as_ref().is_some_and(|flags| flags.incomplete) {
            return fault("the layer is not whole");
        }
        let stated = stored.diff_digest.as_deref().unwrap_or_default();
        if !stated.is_empty() && stated != diff_id.to_string() {
            return fault("the digest of a layer is not the one that the image states");
        }
        let (folder, form) = drivers::of_containers(self.name, &stored.id, below)?;
        let split = format!("{}-layers/{}.tar-split.gz", self.name, stored.id);
        let layer = OldLayer::new(self.store, folder, form, split)?;
        let has_other_owners = stored.owners.as_ref().is_some_and(|map| !map.is_empty());
        if has_other_owners && !layer.is_exact() {
            return fault("the owners of a layer's files are mapped, and its tar is not kept");
        }
        Ok(layer)
    }

    fn list(&self, what: &str) -> String {
        format!("{}-{what}/{what}.json", self.name)
    }
}
