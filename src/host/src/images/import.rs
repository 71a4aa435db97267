//! Importing an image. For each layer: clone the one below, mount the clone, apply the layer's tar and
//! record its recipe, unmount and freeze.
//!
//! # Invariants
//! - Until the last transaction every new volume has a temporary name, so that an interruption of
//!   the import leaves nothing: the guard removes the volumes, or the next start does.
//! - The last transaction gives the layers and their recipes their final names and writes the image's
//!   record and references, all or nothing.
//! - A layer whose chain id the pool already has is not applied again. If two imports create the
//!   same layer at once, the one that finishes later uses the other's.

use super::origins::{Origins, known_stacks};
use super::recipe::NewRecipe;
use super::{Images, blobs};
use crate::error::{Error, Kind, Result};
use crate::layers::{LayerRoom, Mounted, Sizing};
use crate::mounts::WorkVolumes;
use crate::mounts::filesystem::{self, Mode};
use crate::record::{self, ImageRecord, LayerRecord, StoredName};
use crate::time;
use cowshed_engine::{Labels, Transaction, Volume};
use cowshed_format::base::Name;
use cowshed_oci::{
    self as oci, ApplyOptions, Digest, Dropped, Image, ImageConfig, KnownBlob, LayerOrigin,
    Reference, Select, SourceInput, chain_above, same_reference,
};
use cowshed_stream::labels::ORIGIN;
use serde::Serialize;
use std::fs::File;

/// The most bytes that a layer has in the record of an image.
const LAYER_RECORD_BYTES: usize = 256;

/// The options of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The image's name; by default the names in the input.
    pub name: Option<Name>,
    /// The size of the file systems of new layers. By default it depends on the image and leaves
    /// the usual free space.
    pub file_system_bytes: Option<u64>,
    /// The usual free space; 10 GiB by default.
    pub usual_bytes: Option<u64>,
    /// The names that it gets where the pool has none of them for another image, in the place of those in
    /// the input.
    pub free_names: Option<Vec<Reference>>,
    /// The name in a registry under which it was fetched.
    pub source: Option<Reference>,
}

/// An image that is now in the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedImage {
    /// The digest of its configuration.
    pub id: Digest,
    /// The first of its names, if it has one.
    pub name: Option<String>,
    /// All names that it got.
    pub names: Vec<String>,
    /// Its layers, lowest first.
    pub layers: Vec<ImportedLayer>,
    /// Notes about data that was left out, a line for each kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One layer of an imported image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedLayer {
    /// The identity of the stack up to here.
    pub chain_id: Digest,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes that only this layer and its recipe hold.
    pub own_bytes: u64,
    /// True if the pool had it before.
    pub reused: bool,
}

/// The progress of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// Number of layers that are done.
    pub done_layers: usize,
    /// Number of all layers.
    pub layers: usize,
}

/// A layer in the stack, whose volume has its final or still a temporary name.
pub(crate) struct StackedLayer {
    pub record: LayerRecord,
    pub volume: Volume,
    pub reused: bool,
    /// The blob that it was read from, verified.
    pub blob: Option<KnownBlob>,
    /// What tells it from any other layer of the stores of other programs on this host.
    pub origin: Option<Digest>,
    /// The recipe of its tar, with a temporary name.
    pub recipe: Option<Volume>,
}

/// The names that an image is to get.
pub(crate) struct NewNames {
    names: Vec<Reference>,
    /// True if a name that is another image's stays that image's.
    only_free: bool,
}

/// What an import has made so far.
struct Making<'m> {
    work: WorkVolumes<'m>,
    dropped: Dropped,
}

impl Images {
    /// Opens all images in `input` that `select` matches.
    ///
    /// # Errors
    /// The errors of [`Image::open_all`].
    pub fn open_all(&self, input: SourceInput, select: &Select) -> Result<Vec<Image>> {
        Ok(Image::open_all(input, self.mounts.state_dir(), select)?)
    }

    /// Opens the only image in `input`; `reference` chooses one of several.
    ///
    /// # Errors
    /// The errors of [`Image::open`].
    pub fn open(&self, input: SourceInput, reference: Option<&str>) -> Result<Image> {
        Ok(Image::open(
            input,
            self.mounts.state_dir(),
            &Select::named(reference),
        )?)
    }

    /// Returns the indexes of the layers of `image` that the pool lacks.
    ///
    /// # Errors
    /// Errors of the pool.
    pub fn missing_layers(&self, image: &Image) -> Result<Vec<usize>> {
        let diff_ids = image.layers().iter().map(|layer| layer.diff_id);
        let known = known_stacks(diff_ids);
        let mut missing = Vec::new();
        for index in 0..image.layers().len() {
            let is_present = match known.get(index) {
                Some(chain_id) => record::layer_volume(self.pool(), *chain_id)?.is_some(),
                None => false,
            };
            if !is_present {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    /// Imports `image`; the valid ones of its names in the input become its names. Durable when it
    /// returns; on an error nothing of it stays.
    ///
    /// `progress` is called between layers and stops the import by returning false.
    ///
    /// # Errors
    /// Errors of the image, `Cancelled`, and any error of the pool and the host; a full pool is the
    /// pool's `NoSpace`.
    pub fn import(
        &self,
        image: &Image,
        options: &ImportOptions,
        progress: &mut dyn FnMut(ImportProgress) -> bool,
    ) -> Result<ImportedImage> {
        let names = match (&options.name, &options.free_names) {
            (Some(name), _) => NewNames::taken(vec![Reference::parse_given(name.as_str())?]),
            (None, Some(names)) => NewNames::if_free(names.clone()),
            (None, None) => {
                let names = image.reference_names().iter();
                NewNames::taken(
                    names
                        .filter_map(|name| Reference::parse(name).ok())
                        .collect(),
                )
            }
        };
        if let Some(config) = image.config() {
            self.check_record_size(config)?;
        }
        let mut making = Making {
            work: WorkVolumes::new(self.pool()),
            dropped: Dropped::default(),
        };
        let stack = self
            .import_layers(image, options, progress, &mut making)
            .map_err(|error| self.mounts.explain(error))?;
        let config = match image.config() {
            // A layer that its store did not keep as it came has another digest.
            Some(config) => {
                let diff_ids = stack.iter().map(|layer| layer.record.diff_id);
                config
                    .clone()
                    .with_diff_ids(&diff_ids.collect::<Vec<_>>())?
            }
            None => config_of_root(&stack)?,
        };
        let too_late = size_without_effect(options, &stack);
        let mut imported = self.settle(&config, &names, stack)?;
        let notes = making.dropped.lines().chain(too_late);
        imported.notes = notes.chain(std::mem::take(&mut imported.notes)).collect();
        making.work.keep();
        Ok(imported)
    }

    /// Makes sure, before any layer is read, that the pool can have a record with this configuration.
    fn check_record_size(&self, config: &ImageConfig) -> Result<()> {
        let max_bytes = self.pool().max_transaction_bytes();
        let text = config_text(config)?;
        let escaped = serde_json::to_vec(&text).map_or(usize::MAX, |text| text.len());
        let layers = config.diff_ids().len().saturating_mul(LAYER_RECORD_BYTES);
        if escaped.saturating_add(layers) > max_bytes {
            return Err(Error::Config(
                "it is larger than a record of the pool can be",
            ));
        }
        Ok(())
    }

    fn import_layers(
        &self,
        image: &Image,
        options: &ImportOptions,
        progress: &mut dyn FnMut(ImportProgress) -> bool,
        making: &mut Making<'_>,
    ) -> Result<Vec<StackedLayer>> {
        let layers = image.layers().len();
        let mut stack: Vec<StackedLayer> = Vec::new();
        let origins = Origins::of(image, self.pool());
        for index in 0..layers {
            if !progress(ImportProgress {
                done_layers: index,
                layers,
            }) {
                return Err(Error::Cancelled);
            }
            let below = stack.last();
            let layer = match self.present_layer(image, index, below, &origins)? {
                Some(present) => present,
                None => {
                    let volume = self.layer_to_fill(below, options, &mut making.work)?;
                    self.apply_layer(image, index, below, volume, options, making)?
                }
            };
            stack.push(layer);
        }
        progress(ImportProgress {
            done_layers: layers,
            layers,
        });
        Ok(stack)
    }

    /// Returns the layer if the pool is known to have it without reading the input's layer.
    fn present_layer(
        &self,
        image: &Image,
        index: usize,
        below: Option<&StackedLayer>,
        origins: &Origins,
    ) -> Result<Option<StackedLayer>> {
        let info = &image.layers()[index];
        let below = below.map(|layer| layer.record.chain_id);
        let diff_id = match (info.diff_id, &info.origin) {
            (Some(diff_id), _) => Some(diff_id),
            (None, Some(origin)) => origins.diff_id(*origin, below)?,
            (None, None) => None,
        };
        let Some(diff_id) = diff_id else {
            return Ok(None);
        };
        let chain_id = chain_above(below, diff_id);
        let volume = record::layer_volume(self.pool(), chain_id)?;
        Ok(volume.map(|volume| {
            let size_bytes = labelled_size(&volume);
            let record = LayerRecord {
                chain_id,
                diff_id,
                size_bytes,
            };
            StackedLayer {
                record,
                volume,
                reused: true,
                blob: None,
                origin: None,
                recipe: None,
            }
        }))
    }

    /// Returns a temporary volume with the content below the next layer.
    fn layer_to_fill(
        &self,
        below: Option<&StackedLayer>,
        options: &ImportOptions,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        let wanted_bytes = options.file_system_bytes;
        let parent = match below {
            Some(below) => below.volume.clone(),
            None => {
                let size_bytes = wanted_bytes.unwrap_or_else(|| options.usual_bytes());
                filesystem::template(self.pool(), size_bytes, &self.mounts.work_name()?)?
            }
        };
        let min_bytes = parent.size_bytes();
        match wanted_bytes.map(filesystem::checked_size).transpose()? {
            Some(size_bytes) if size_bytes < min_bytes => Err(Error::TooSmall { min_bytes }),
            Some(size_bytes) if size_bytes > min_bytes => {
                self.mounts.larger_copy(&parent, size_bytes, work)
            }
            _ => {
                let volume = self
                    .pool()
                    .clone_volume(&parent, &self.mounts.work_name()?)?;
                work.push(volume.clone());
                Ok(volume)
            }
        }
    }

    fn apply_layer(
        &self,
        image: &Image,
        index: usize,
        below: Option<&StackedLayer>,
        volume: Volume,
        options: &ImportOptions,
        making: &mut Making<'_>,
    ) -> Result<StackedLayer> {
        let mut reader = image.open_layer(index)?;
        let mounted = self.mounts.mount_for_work(&volume, Mode::Fill)?;
        let root = File::open(mounted.path()).map_err(Error::io("open", mounted.path()))?;
        let sizing = match options.file_system_bytes {
            Some(_) => Sizing::Fixed,
            None => Sizing::Following {
                usual_bytes: options.usual_bytes(),
            },
        };
        let mut room = LayerRoom::new(
            &self.mounts,
            &volume,
            mounted.path(),
            Mounted::ForWork,
            sizing,
        )?;
        let info = &image.layers()[index];
        let how = ApplyOptions {
            // A store says itself where a layer ends.
            require_end_marker: info.diff_id.is_none() && info.origin.is_none(),
            is_plain_tar: false,
        };
        let recipe = NewRecipe::begin(&self.mounts, &mut making.work)?;
        let mut recorder = recipe.recorder()?;
        let applied = oci::apply_recording(root.into(), &mut reader, how, &mut room, &mut recorder);
        let applied = applied.map_err(|error| room.explain(error))?;
        making.dropped.add(applied.dropped);
        let found = reader.finish()?;
        let recorded = recorder.finish();
        let recipe = recipe.end(recorded, found.diff_id, &self.mounts, &mut making.work)?;
        room.settle()?;
        mounted.unmount()?;
        self.pool().freeze(&volume)?;
        let chain_id = chain_above(below.map(|layer| layer.record.chain_id), found.diff_id);
        let size_bytes = Some(found.size_bytes);
        let record = LayerRecord {
            chain_id,
            diff_id: found.diff_id,
            size_bytes,
        };
        // A layer that no manifest describes is no blob of a registry.
        let blob = info
            .compressed_digest
            .and_then(|_| blobs::blob_of(&found, options.source.as_ref()));
        Ok(StackedLayer {
            record,
            volume,
            reused: false,
            blob,
            origin: info.origin,
            recipe,
        })
    }

    /// The last transaction: names the layers, writes the record and the references.
    pub(crate) fn settle(
        &self,
        config: &ImageConfig,
        names: &NewNames,
        mut stack: Vec<StackedLayer>,
    ) -> Result<ImportedImage> {
        let id = config.digest();
        let (mut given, mut notes) = (Vec::new(), Vec::new());
        {
            let _held = self.lock_catalogue();
            let mut transaction = self.pool().transaction();
            for layer in &mut stack {
                self.settle_layer(&mut transaction, layer)?;
            }
            let text = config_text(config)?;
            if record::image(self.pool(), id)?.is_none() {
                let layers = stack.iter().map(|layer| layer.record.clone()).collect();
                record::put_image(&mut transaction, id, &ImageRecord::new(text, layers))?;
            }
            let stored = record::names(self.pool())?;
            for name in &names.names {
                let short = name.short();
                let is_others =
                    |other: &StoredName| other.image != id && same_reference(&other.key, &short);
                if names.only_free && stored.iter().any(is_others) {
                    notes.push(format!(
                        "{short} is another image here; `cowshed image tag {id} NAME` gives this one \
                         another name"
                    ));
                    continue;
                }
                record::put_reference(&mut transaction, &stored, name, id);
                given.push(short);
            }
            transaction.commit()?;
        }
        self.pool().flush()?;
        let layers = stack
            .iter()
            .map(|layer| self.report(layer))
            .collect::<Result<_>>()?;
        Ok(ImportedImage {
            id,
            name: given.first().cloned(),
            names: given,
            layers,
            notes,
        })
    }

    fn settle_layer(&self, transaction: &mut Transaction, layer: &mut StackedLayer) -> Result<()> {
        let chain_id = layer.record.chain_id;
        match (record::layer_volume(self.pool(), chain_id)?, layer.reused) {
            (None, false) => {
                let name = record::layer_volume_name(chain_id)?;
                transaction.rename(layer.volume.id(), &name);
                let mut labels = labels(&layer.record);
                if let Some(origin) = layer.origin.take() {
                    labels.insert(ORIGIN.to_owned(), origin.to_string());
                }
                if let Some(blob) = layer.blob.take() {
                    blobs::remember(&mut labels, blob);
                }
                transaction.set_labels(layer.volume.id(), labels);
                if let Some(recipe) = layer.recipe.take() {
                    self.settle_recipe(transaction, chain_id, &recipe)?;
                }
            }
            (Some(theirs), false) => {
                transaction.remove(layer.volume.id());
                if let Some(recipe) = layer.recipe.take() {
                    transaction.remove(recipe.id());
                }
                layer.volume = theirs;
                layer.reused = true;
            }
            // The last image with this layer was removed during this import.
            (None, true) => return Err(Error::not_found(Kind::Layer, &chain_id.to_string())),
            (Some(present), true) => layer.volume = present,
        }
        Ok(())
    }

    /// Names a recipe. It replaces one that an older version left when it removed the layer.
    fn settle_recipe(
        &self,
        transaction: &mut Transaction,
        chain_id: Digest,
        recipe: &Volume,
    ) -> Result<()> {
        if let Some(left) = record::recipe_volume(self.pool(), chain_id)? {
            transaction.remove(left.id());
        }
        transaction.rename(recipe.id(), &record::recipe_volume_name(chain_id)?);
        Ok(())
    }

    fn report(&self, layer: &StackedLayer) -> Result<ImportedLayer> {
        let LayerRecord {
            chain_id, diff_id, ..
        } = layer.record;
        Ok(ImportedLayer {
            chain_id,
            diff_id,
            own_bytes: self.layer_own_bytes(chain_id)?,
            reused: layer.reused,
        })
    }
}

impl NewNames {
    /// Returns names that are taken from other images.
    pub(crate) const fn taken(names: Vec<Reference>) -> Self {
        Self {
            names,
            only_free: false,
        }
    }

    const fn if_free(names: Vec<Reference>) -> Self {
        Self {
            names,
            only_free: true,
        }
    }
}

impl ImportOptions {
    fn usual_bytes(&self) -> u64 {
        self.usual_bytes.unwrap_or(filesystem::DEFAULT_SIZE_BYTES)
    }
}

/// Returns a note about a requested size that had no effect, as the pool has the top layer with
/// another size.
fn size_without_effect(options: &ImportOptions, stack: &[StackedLayer]) -> Option<String> {
    let wanted_bytes = options.file_system_bytes?;
    let top = stack.last().filter(|layer| layer.reused)?;
    let size_bytes = top.volume.size_bytes();
    (size_bytes != wanted_bytes).then(|| {
        format!(
            "the layers are already in the pool, in file systems of {size_bytes} bytes: the size \
             has no effect; choose a size for each container instead"
        )
    })
}

pub(super) const DIFF_ID_LABEL: &str = "cowshed.diff-id";
const SIZE_LABEL: &str = "cowshed.layer-bytes";

fn labels(record: &LayerRecord) -> Labels {
    let mut labels = Labels::from([(DIFF_ID_LABEL.to_owned(), record.diff_id.to_string())]);
    if let Some(size_bytes) = record.size_bytes {
        labels.insert(SIZE_LABEL.to_owned(), size_bytes.to_string());
    }
    labels
}

/// Returns the size of a layer's tar, as its import found it.
pub(super) fn labelled_size(volume: &Volume) -> Option<u64> {
    volume.info().ok()?.labels.get(SIZE_LABEL)?.parse().ok()
}

fn config_text(config: &ImageConfig) -> Result<String> {
    String::from_utf8(config.raw().to_vec()).map_err(|_| Error::Config("it is not UTF-8"))
}

/// Returns a configuration for a root file system that came without one.
fn config_of_root(stack: &[StackedLayer]) -> Result<ImageConfig> {
    let [layer] = stack else {
        return Err(Error::Config("it is missing"));
    };
    let origin = LayerOrigin {
        created: &time::now(),
        created_by: "cowshed image import",
    };
    Ok(ImageConfig::of_single_layer(layer.record.diff_id, origin)?)
}
