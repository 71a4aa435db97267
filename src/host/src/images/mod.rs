//! Images: stacks of frozen volumes with a record and names. This file lists, inspects and removes
//! them; `import` makes one from any source (`origins` says which layers it need not read), `archive`
//! writes some as an archive, `blobs` offers one to a registry. They use `layers`, to unpack and to
//! write the layers; `spool` writes them to files, with the help of the layer's `recipe` byte by byte
//! as they were imported.
//!
//! Images are below containers: only the records, in which a container names its image, tell that
//! an image is in use.
//!
//! # Invariants
//! - The catalogue lock is held from reading records until the end of the transaction that relies
//!   on them, never while a file of a mounted volume is read or written.

mod archive;
mod blobs;
mod import;
mod origins;
mod recipe;
mod spool;

pub use archive::{ExportedImage, ExportedLayer};
pub use import::{ImportOptions, ImportProgress, ImportedImage, ImportedLayer};
pub(crate) use import::{NewNames, StackedLayer};

use crate::error::{Error, Kind, Names, Result};
use crate::mounts::Mounts;
use crate::record::{self, FoundImage, ImageRecord, StoredName};
use cowshed_engine::{Pool, RecordKind, Volume};
use cowshed_oci::{Digest, ImageConfig, Reference, same_reference};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

/// An image in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The digest of its configuration.
    pub id: Digest,
    /// The references that lead to it.
    pub names: Vec<String>,
    /// Bytes that its root shows, including shared ones.
    pub size_bytes: u64,
    /// Bytes in layers that no other image has: those that are freed when it is removed.
    pub own_bytes: u64,
    /// The time when it was imported into the pool.
    #[serde(serialize_with = "crate::time::rfc3339")]
    pub created: SystemTime,
    /// Number of layers.
    pub layers: usize,
}

/// The details of an image.
#[derive(Clone, Debug, Serialize)]
pub struct ImageDetails {
    /// The digest of its configuration.
    pub id: Digest,
    /// The references that lead to it.
    pub names: Vec<String>,
    /// Bytes that its root shows, including shared ones.
    pub size_bytes: u64,
    /// Bytes in layers that no other image has.
    pub own_bytes: u64,
    /// The time when it was imported into the pool.
    #[serde(serialize_with = "crate::time::rfc3339")]
    pub created: SystemTime,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDetails>,
    /// Its configuration.
    pub config: serde_json::Value,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerDetails {
    /// The identity of the stack up to here.
    pub chain_id: Digest,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer, if known.
    pub size_bytes: Option<u64>,
    /// Bytes that only its volume and its recipe hold.
    pub own_bytes: u64,
    /// The name of its volume.
    pub volume: String,
}

/// One step in the making of an image, newest first in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryStep {
    /// The time, as the image states it.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// The comment of its author.
    pub comment: Option<String>,
    /// The layer that it created, if any.
    pub diff_id: Option<Digest>,
    /// Bytes of that layer, if known; 0 without a layer.
    pub size_bytes: Option<u64>,
}

/// A name that an image got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaggedImage {
    /// The digest of its configuration.
    pub id: Digest,
    /// The name in its readable form.
    pub name: String,
}

/// The result of removing an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemovedImage {
    /// The references that were removed.
    pub untagged: Vec<String>,
    /// The image, if it was removed.
    pub removed: Option<Digest>,
    /// The chain ids of the layers that were removed.
    pub layers: Vec<Digest>,
}

/// The images of one pool; thread safe.
pub struct Images {
    mounts: Arc<Mounts>,
    catalogue: Mutex<()>,
}

impl Images {
    pub(crate) fn new(mounts: &Arc<Mounts>) -> Self {
        Self {
            mounts: Arc::clone(mounts),
            catalogue: Mutex::default(),
        }
    }

    fn pool(&self) -> &Pool {
        self.mounts.pool()
    }

    /// Returns the lock to hold from reading records until the end of the transaction that relies
    /// on them.
    pub(crate) fn lock_catalogue(&self) -> MutexGuard<'_, ()> {
        self.catalogue.lock()
    }

    /// Returns all images, newest last.
    ///
    /// # Errors
    /// `Record` if a record is unreadable, and errors of the pool.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let images = record::images(self.pool())?;
        let mut names = self.names()?;
        let users = layer_users(&images);
        let mut summaries = Vec::with_capacity(images.len());
        for (id, record) in &images {
            summaries.push(ImageSummary {
                id: *id,
                names: names.remove(id).unwrap_or_default(),
                size_bytes: self.size_bytes(record)?,
                own_bytes: self.own_bytes(record, &users)?,
                created: record.created(),
                layers: record.layers.len(),
            });
        }
        summaries.sort_by_key(|image| image.created);
        Ok(summaries)
    }

    /// Returns the details of one image.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, `Record`, and errors of the pool.
    pub fn inspect(&self, image: &str) -> Result<ImageDetails> {
        let FoundImage { id, record, .. } = record::find_image(self.pool(), image)?;
        let users = layer_users(&record::images(self.pool())?);
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in &record.layers {
            let info = self.layer(layer.chain_id)?.info()?;
            layers.push(LayerDetails {
                chain_id: layer.chain_id,
                diff_id: layer.diff_id,
                size_bytes: layer.size_bytes,
                own_bytes: self.layer_own_bytes(layer.chain_id)?,
                volume: info.name.to_string(),
            });
        }
        Ok(ImageDetails {
            id,
            names: self.names()?.remove(&id).unwrap_or_default(),
            size_bytes: self.size_bytes(&record)?,
            own_bytes: self.own_bytes(&record, &users)?,
            created: record.created(),
            layers,
            config: serde_json::from_str(&record.config)
                .map_err(|_| Error::Config("it is not JSON"))?,
        })
    }

    /// Returns the steps in which an image was made, newest first.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and `Oci` if its configuration is unreadable.
    pub fn history(&self, image: &str) -> Result<Vec<HistoryStep>> {
        let record = record::find_image(self.pool(), image)?.record;
        let config = ImageConfig::parse(record.config.into_bytes())?;
        let mut layers = record.layers.iter();
        let mut steps = Vec::new();
        for step in config.history() {
            let is_empty = step.empty_layer.unwrap_or(false);
            let layer = if is_empty { None } else { layers.next() };
            steps.push(HistoryStep {
                created: step.created.clone(),
                created_by: step.created_by.clone(),
                comment: step.comment.clone(),
                diff_id: layer.map(|layer| layer.diff_id),
                size_bytes: if is_empty {
                    Some(0)
                } else {
                    layer.and_then(|l| l.size_bytes)
                },
            });
        }
        // A history may be missing or too short; every layer is listed all the same.
        steps.extend(layers.map(|layer| HistoryStep {
            created: None,
            created_by: None,
            comment: None,
            diff_id: Some(layer.diff_id),
            size_bytes: layer.size_bytes,
        }));
        steps.reverse();
        Ok(steps)
    }

    /// Gives an image one more name, which is taken from an image that has it. Durable when it
    /// returns.
    ///
    /// # Errors
    /// `Oci` if the name is not valid, `NotFound` or `Ambiguous`, and errors of the pool.
    pub fn tag(&self, image: &str, name: &str) -> Result<TaggedImage> {
        let name = Reference::parse_given(name)?;
        let id = {
            let _held = self.lock_catalogue();
            let id = record::find_image(self.pool(), image)?.id;
            let stored = record::names(self.pool())?;
            let mut transaction = self.pool().transaction();
            record::put_reference(&mut transaction, &stored, &name, id);
            transaction.commit()?;
            id
        };
        self.pool().flush()?;
        Ok(TaggedImage {
            id,
            name: name.short(),
        })
    }

    /// Removes an image: by reference only that reference, and the image with the last one; by id
    /// the whole image. Layers of other images stay. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`; `ImageInUse` while a container uses it.
    pub fn remove(&self, image: &str) -> Result<RemovedImage> {
        let removed = {
            let _held = self.lock_catalogue();
            self.remove_locked(image)?
        };
        self.pool().flush()?;
        Ok(removed)
    }

    fn remove_locked(&self, image: &str) -> Result<RemovedImage> {
        let FoundImage { id, record, name } = record::find_image(self.pool(), image)?;
        let mut names = record::names(self.pool())?;
        names.retain(|name| name.image == id);
        let all = names.len();
        // All records of that name: older versions may have stored it in two forms.
        let is_meant = |one: &StoredName| {
            let meant = name.as_ref();
            meant.is_none_or(|name| same_reference(&one.key, &name.key))
        };
        names.retain(is_meant);
        let is_last = names.len() == all;
        let mut untagged: Vec<String> = names.iter().map(|name| name.shown.clone()).collect();
        untagged.dedup();
        let mut removed = RemovedImage {
            untagged,
            removed: None,
            layers: Vec::new(),
        };
        let mut transaction = self.pool().transaction();
        for name in &names {
            transaction.remove_record(RecordKind::REFERENCE, name.key.as_bytes());
        }
        if is_last {
            let containers = self.users_of(id)?;
            if !containers.0.is_empty() {
                return Err(Error::ImageInUse {
                    image: image.into(),
                    containers,
                });
            }
            transaction.remove_record(RecordKind::IMAGE, id.to_string().as_bytes());
            let users = layer_users(&record::images(self.pool())?);
            // From the top, so that a layer never lacks the one below it.
            for layer in record.layers.iter().rev() {
                if users.get(&layer.chain_id).copied().unwrap_or(0) <= 1 {
                    transaction.remove(self.layer(layer.chain_id)?.id());
                    if let Some(recipe) = record::recipe_volume(self.pool(), layer.chain_id)? {
                        transaction.remove(recipe.id());
                    }
                    removed.layers.push(layer.chain_id);
                }
            }
            removed.removed = Some(id);
        }
        transaction.commit()?;
        Ok(removed)
    }

    /// Returns the names of each image in their readable form.
    fn names(&self) -> Result<HashMap<Digest, Vec<String>>> {
        let mut names: HashMap<Digest, Vec<String>> = HashMap::new();
        for name in record::names(self.pool())? {
            let names = names.entry(name.image).or_default();
            if !names.contains(&name.shown) {
                names.push(name.shown);
            }
        }
        Ok(names)
    }

    fn size_bytes(&self, record: &ImageRecord) -> Result<u64> {
        match record.layers.last() {
            Some(top) => Ok(self.layer(top.chain_id)?.info()?.referenced_bytes),
            None => Ok(0),
        }
    }

    fn own_bytes(&self, record: &ImageRecord, users: &HashMap<Digest, usize>) -> Result<u64> {
        let mut own_bytes = 0_u64;
        for layer in &record.layers {
            if users.get(&layer.chain_id).copied().unwrap_or(0) <= 1 {
                own_bytes = own_bytes.saturating_add(self.layer_own_bytes(layer.chain_id)?);
            }
        }
        Ok(own_bytes)
    }

    /// Returns the volume of the layer that completes the stack `chain_id`.
    pub(crate) fn layer(&self, chain_id: Digest) -> Result<Volume> {
        record::layer_volume(self.pool(), chain_id)?
            .ok_or_else(|| Error::not_found(Kind::Layer, &chain_id.to_string()))
    }

    /// Returns the names of the containers that use the image.
    fn users_of(&self, image: Digest) -> Result<Names> {
        let all = record::containers(self.pool())?;
        let users = all.into_iter().filter(|container| container.image == image);
        Ok(Names(users.map(|container| container.name).collect()))
    }
}

/// Returns the number of images that have each layer.
fn layer_users(images: &BTreeMap<Digest, ImageRecord>) -> HashMap<Digest, usize> {
    let mut users = HashMap::new();
    for record in images.values() {
        let layers: HashSet<Digest> = record.layers.iter().map(|layer| layer.chain_id).collect();
        for chain_id in layers {
            *users.entry(chain_id).or_insert(0) += 1;
        }
    }
    users
}
