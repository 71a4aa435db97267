//! The image store of Docker 1.9 and earlier: `graph/ID/json` for each layer, whose id says nothing of
//! its content, and `repositories-DRIVER` with the names. Since 1.8, `tar-data.json.gz` is what
//! tar-split keeps of the layer's tar.
//!
//! Docker 1.10 and later converts such a store when it starts, and keeps `graph`. If that was
//! interrupted, what it has converted is read from the new store, and the rest from here.
//! Source: <https://github.com/moby/moby>, `graph` of 1.9, `migrate/v1` of 1.10.

use super::docker::Repositories;
use super::drivers;
use super::folder::{Folder, damaged, missing};
use super::layer::OldLayer;
use super::{Found, OldImage};
use crate::digest::Digest;
use crate::error::{Error, Part, Result};
use crate::limits::{CONFIG_BYTES_MAX, LAYERS_MAX, STORE_LIST_BYTES_MAX};
use crate::source::{Image, legacy};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Exists once Docker has converted everything, the names last.
const CONVERTED: &str = ".migration-v1-tags";
/// The new id of each image that Docker has converted.
const CONVERTED_IMAGES: &str = ".migration-v1-images.json";
const REPOSITORIES: &str = "repositories";

/// A layer's description, as Docker stored it.
type Description = Map<String, Value>;

/// Returns the images that Docker has not converted; `None` if this is not such a store. Names of
/// images that it has converted are added to those in `newer`.
pub(super) fn read(store: &Folder, newer: &mut [OldImage]) -> Result<Option<Found>> {
    let ids = store.names("graph")?.into_iter();
    let ids: BTreeSet<String> = ids.filter(|id| Digest::from_hex(id).is_some()).collect();
    if ids.is_empty() || store.file(CONVERTED)?.is_some() {
        return Ok(None);
    }
    let converted: Option<BTreeMap<String, String>> =
        store.json(CONVERTED_IMAGES, STORE_LIST_BYTES_MAX)?;
    let converted = converted.unwrap_or_default();
    let descriptions = describe(store, &ids)?;
    let mut found = Found::new();
    for (driver, mut names) in repositories(store)? {
        for (old, new) in &converted {
            let names = names.remove(old).unwrap_or_default();
            if let Some(image) = newer.iter_mut().find(|image| image.id == *new) {
                image.add_names(names);
            }
        }
        let graph = Graph {
            store,
            driver: &driver,
            descriptions: &descriptions,
        };
        found.extend(graph.images(names, &converted));
    }
    Ok(Some(found))
}

/// Returns the names of each image, for each storage driver.
fn repositories(store: &Folder) -> Result<BTreeMap<String, BTreeMap<String, Vec<String>>>> {
    let mut all = BTreeMap::new();
    for file in store.names(".")? {
        let Some(suffix) = file.strip_prefix(REPOSITORIES) else {
            continue;
        };
        let stored: Repositories = store.json(&file, STORE_LIST_BYTES_MAX)?.unwrap_or_default();
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (repository, tags) in stored.repositories {
            for (tag, id) in tags {
                // The tag of an image that was fetched by digest is the digest.
                let separator = if tag.contains(':') { '@' } else { ':' };
                let name = format!("{repository}{separator}{tag}");
                names.entry(id).or_default().push(name);
            }
        }
        // Before 0.7 there was one driver, and its name was not in that of the file.
        let driver = match suffix.strip_prefix('-') {
            Some(driver) => Some(driver.to_owned()),
            None => drivers::present(store)?
                .first()
                .map(|driver| (*driver).to_owned()),
        };
        all.extend(driver.map(|driver| (driver, names)));
    }
    if all.is_empty() {
        let present = drivers::present(store)?.into_iter();
        all.extend(present.map(|driver| (driver.to_owned(), BTreeMap::new())));
    }
    Ok(all)
}

/// Returns the descriptions of all layers that can be read. What is wrong with another is found again by
/// each image with that layer, and is its error.
fn describe(store: &Folder, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Description>> {
    let mut found = BTreeMap::new();
    for id in ids {
        match store.json(&description_of(id), CONFIG_BYTES_MAX) {
            Ok(Some(description)) => drop(found.insert(id.clone(), description)),
            Err(cancelled @ Error::Cancelled(_)) => return Err(cancelled),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Returns the path of the description of a layer.
fn description_of(id: &str) -> String {
    format!("graph/{id}/json")
}

/// The layers of one storage driver.
struct Graph<'s> {
    store: &'s Folder,
    driver: &'s str,
    descriptions: &'s BTreeMap<String, Description>,
}

impl Graph<'_> {
    /// Returns the images that have a name, and those that no other was made of.
    fn images(
        &self,
        mut names: BTreeMap<String, Vec<String>>,
        converted: &BTreeMap<String, String>,
    ) -> Found {
        let mut parents = BTreeSet::new();
        for (id, description) in self.descriptions {
            parents.extend(self.parent(id, description).ok().flatten());
        }
        for id in self.descriptions.keys() {
            let is_head = !parents.contains(id) && !converted.contains_key(id);
            if is_head && !names.contains_key(id) && self.has(id) {
                names.insert(id.clone(), Vec::new());
            }
        }
        let images = names.into_iter().map(|(id, names)| {
            let image = self.image(&id, names.clone());
            OldImage::new(id, names, image)
        });
        images.collect()
    }

    /// Returns true if the driver has the layer's files.
    fn has(&self, id: &str) -> bool {
        let found = drivers::of_docker(self.driver, id, None)
            .and_then(|(folder, _)| self.store.folder(&folder));
        found.is_ok_and(|folder| folder.is_some())
    }

    fn image(&self, id: &str, names: Vec<String>) -> Result<Image> {
        let mut chain = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            let path = description_of(&id);
            if Digest::from_hex(&id).is_none() {
                return Err(damaged(&path, "it is not the place of a layer"));
            }
            if chain.len() == LAYERS_MAX {
                return Err(damaged(
                    &path,
                    "there are too many layers, or one is its own parent",
                ));
            }
            let Some(description) = self.descriptions.get(&id) else {
                let again: Option<Description> = self.store.json(&path, CONFIG_BYTES_MAX)?;
                return Err(match again {
                    Some(_) => damaged(&path, "it has changed meanwhile"),
                    None => missing(&path),
                });
            };
            next = self.parent(&id, description)?;
            chain.push((id, description.clone()));
        }
        chain.reverse();
        let mut layers = Vec::new();
        let mut below = None;
        for (id, _) in &chain {
            let (folder, form) = drivers::of_docker(self.driver, id, below)?;
            below = Some(folder.clone());
            let split = format!("graph/{id}/tar-data.json.gz");
            let mut layer = OldLayer::new(self.store, folder, form, split)?;
            layer.verifies_files = true;
            layers.push((None, layer));
        }
        // The importer puts the digests of the layers in the place of these.
        let unknown: Vec<Digest> = chain
            .iter()
            .map(|(id, _)| Digest::of(id.as_bytes()))
            .collect();
        let descriptions = chain.into_iter().map(|(_, description)| description);
        let config = legacy::config_of(descriptions.collect(), &unknown)?;
        let made_for = description_of(id);
        self.store.budget().take(&made_for, config.raw().len())?;
        Image::of_old_store(config, names, layers)
    }

    /// Returns the id of the layer below.
    fn parent(&self, id: &str, description: &Description) -> Result<Option<String>> {
        if let Some(parent) = self.store.text(&format!("graph/{id}/parent"))?
            && !parent.is_empty()
        {
            return Ok(Some(parent));
        }
        if let Some(parent) = legacy::parent(description) {
            return Ok(Some(parent));
        }
        match description.get("parent_id").and_then(Value::as_str) {
            None | Some("") => Ok(None),
            Some(digest) => {
                let digest: Digest = digest.parse().map_err(|_| Error::Document {
                    what: Part::LayerDescription,
                    fault: "its parent is not a digest",
                })?;
                Ok(Some(digest.hex()))
            }
        }
    }
}
