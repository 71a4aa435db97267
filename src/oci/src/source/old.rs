//! Images of old stores: their configurations are known, and their layers are made of what the store
//! keeps.

use super::blobs::Blobs;
use super::store::{Store, Unpacked};
use super::{Content, Image, LayerInfo, Select, index};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Result;
use crate::old_store::{Budget, OldLayer};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the record of an image refers to: its manifest, or its index of platforms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) size_bytes: u64,
}

/// Returns the data and the content of a layer, whose digest is known if its tar is kept.
pub(super) fn layer(diff_id: Option<Digest>, layer: OldLayer) -> Result<(LayerInfo, Content)> {
    let origin = match diff_id {
        Some(_) => None,
        None => Some(layer.origin()?),
    };
    let info = LayerInfo {
        diff_id,
        origin,
        ..LayerInfo::of_plain_tar()
    };
    Ok((info, Content::Old(layer)))
}

impl Image {
    /// Returns the image with this configuration. A layer without a digest becomes another one than
    /// the configuration states, or the configuration was made without knowing it; the importer
    /// changes the configuration.
    pub(crate) fn of_old_store(
        config: ImageConfig,
        names: Vec<String>,
        layers: Vec<(Option<Digest>, OldLayer)>,
    ) -> Result<Self> {
        let layers = layers.into_iter();
        let layers = layers.map(|(diff_id, layer)| self::layer(diff_id, layer));
        let (layers, contents) = layers.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let mut image = Self {
            config: Some(config),
            names,
            manifest: None,
            stated_platform: None,
            other_platform: None,
            layers,
            contents,
        };
        image.check_platform(&Select::default())?;
        Ok(image)
    }

    /// Opens an image whose documents and layers are blobs below `blobs/sha256` in `content`, for the
    /// platform that suits this host best; layers that are missing there are looked for in `unpacked`.
    pub(crate) fn open_content(
        content: OwnedFd,
        budget: Budget,
        unpacked: &Arc<dyn Unpacked>,
        target: &Target,
        names: Vec<String>,
    ) -> Result<Self> {
        let select = Select::default();
        let store = Store::Content {
            blobs: Arc::new(Blobs::folder(content).within(budget)),
            unpacked: Arc::clone(unpacked),
        };
        let mut image = index::open_target(&store, target, &select)?;
        image.names = names;
        image.check_platform(&select)?;
        Ok(image)
    }

    /// Returns true if the layer with this index is read byte by byte as it once came.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn is_layer_exact(&self, index: usize) -> bool {
        match &self.contents[index] {
            Content::Old(layer) => layer.is_exact(),
            _ => true,
        }
    }

    /// Replaces the image's names in the input.
    pub(crate) fn set_reference_names(&mut self, names: Vec<String>) {
        self.names = names;
    }
}
