//! Docker's own image store, since 1.10: `image/DRIVER` with the images and layers by digest, and a
//! folder for each layer's files below `DRIVER`.
//!
//! Source: <https://github.com/moby/moby>, `image/fs.go`, `layer/filestore.go`, `reference/store.go`.

use super::drivers;
use super::folder::{Folder, damaged, is_plain_name, missing};
use super::in_use::Locks;
use super::layer::OldLayer;
use super::{Found, OldImage};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Part, Result};
use crate::limits::{CONFIG_BYTES_MAX, STORE_LIST_BYTES_MAX};
use crate::source::Image;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Databases that the daemon has locked as long as it runs.
const DATABASES: [&str; 3] = [
    "volumes/metadata.db",
    "network/files/local-kv.db",
    "buildkit/cache.db",
];
/// The daemon, as messages name it.
const DAEMON: &str = "Docker";

/// The names of images: for each repository its references, each with the image's id.
#[derive(Default, Deserialize)]
pub(super) struct Repositories {
    #[serde(rename = "Repositories", default)]
    pub(super) repositories: BTreeMap<String, BTreeMap<String, String>>,
}

/// Makes sure that Docker does not run on this store.
pub(super) fn lock(store: &Folder, locks: &mut Locks) -> Result<()> {
    let (mut is_locked, mut link) = (false, None);
    for path in DATABASES {
        match locks.database(store, path, DAEMON) {
            Ok(locked) => is_locked |= locked,
            // Nothing else is read there, and one lock is enough.
            Err(error @ Error::StoreLink(_)) => link = Some(error),
            Err(error) => return Err(error),
        }
    }
    match link {
        Some(error) if !is_locked => Err(error),
        _ => Ok(()),
    }
}

/// Returns the images of all storage drivers; `None` if this is not such a store.
pub(super) fn read(store: &Folder) -> Result<Option<Found>> {
    let mut found = None;
    for driver in store.names("image")? {
        if store.folder(&format!("image/{driver}/imagedb"))?.is_some() {
            let driver = Driver {
                store,
                name: &driver,
            };
            found
                .get_or_insert_with(Found::new)
                .extend(driver.images()?);
        }
    }
    Ok(found)
}

/// The images of one storage driver.
struct Driver<'s> {
    store: &'s Folder,
    name: &'s str,
}

impl Driver<'_> {
    /// Returns the images that have a name, and those that no other image was made of.
    fn images(&self) -> Result<Found> {
        let name = self.name;
        let images = format!("image/{name}/imagedb/content/sha256");
        let ids = self.store.names(&images)?;
        let mut names = self.image_names()?;
        let mut parents = BTreeSet::new();
        let mut faults = BTreeMap::new();
        for id in &ids {
            let path = format!("image/{name}/imagedb/metadata/sha256/{id}/parent");
            match self.store.text(&path) {
                Ok(parent) => parents.extend(parent),
                Err(cancelled @ Error::Cancelled(_)) => return Err(cancelled),
                Err(error) => drop(faults.insert(id, error)),
            }
        }
        let mut found = Found::new();
        for hex in &ids {
            let Some(id) = Digest::from_hex(hex) else {
                continue;
            };
            let names = names.remove(&id.to_string()).unwrap_or_default();
            if names.is_empty() && parents.contains(&id.to_string()) {
                continue;
            }
            let image = match faults.remove(hex) {
                Some(error) => Err(error),
                None => self.image(&format!("{images}/{hex}"), id, names.clone()),
            };
            found.push(OldImage::new(id.to_string(), names, image));
        }
        // An image that has a name and is missing is named as the others are.
        for (id, names) in names {
            let path = format!("{images}/{}", id.trim_start_matches("sha256:"));
            found.push(OldImage::new(id, names, Err(missing(&path))));
        }
        Ok(found)
    }

    /// Returns the names of each image.
    fn image_names(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let path = format!("image/{}/repositories.json", self.name);
        let stored: Option<Repositories> = self.store.json(&path, STORE_LIST_BYTES_MAX)?;
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let references = stored.unwrap_or_default().repositories.into_values();
        for (reference, id) in references.flatten() {
            names.entry(id).or_default().push(reference);
        }
        Ok(names)
    }

    fn image(&self, path: &str, id: Digest, names: Vec<String>) -> Result<Image> {
        let raw = self.store.document(path, CONFIG_BYTES_MAX)?;
        let config = ImageConfig::parse(raw.ok_or_else(|| missing(path))?)?;
        if config.digest() != id {
            return Err(Error::DigestMismatch {
                what: Part::Config,
                expected: id,
                found: config.digest(),
            });
        }
        let mut layers = Vec::new();
        let mut below = None;
        for (chain_id, diff_id) in config.chain_ids().iter().zip(config.diff_ids()) {
            let layer = self.layer(*chain_id, *diff_id, below)?;
            below = Some(layer.folder.clone());
            layers.push((layer.is_exact().then_some(*diff_id), layer));
        }
        Image::of_old_store(config, names, layers)
    }

    fn layer(&self, chain_id: Digest, diff_id: Digest, below: Option<String>) -> Result<OldLayer> {
        let place = format!("image/{}/layerdb/sha256/{}", self.name, chain_id.hex());
        let text = |name: &str| {
            let path = format!("{place}/{name}");
            self.store.text(&path)?.ok_or_else(|| missing(&path))
        };
        if text("diff")? != diff_id.to_string() {
            let path = format!("{place}/diff");
            return Err(damaged(&path, "it is not the digest that the image states"));
        }
        let id = text("cache-id")?;
        if !is_plain_name(&id) {
            let path = format!("{place}/cache-id");
            return Err(damaged(&path, "it is not the name of a folder"));
        }
        let (folder, form) = drivers::of_docker(self.name, &id, below)?;
        OldLayer::new(
            self.store,
            folder,
            form,
            format!("{place}/tar-split.json.gz"),
        )
    }
}
