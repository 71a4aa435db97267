//! Images of old stores: their configurations are known, and their layers are made of what the store
//! keeps.

use super::blobs::Blobs;
use super::{Content, Image, LayerInfo, Select, index};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Result;
use crate::old_store::OldLayer;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the record of an image refers to: its manifest, or its index of platforms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) size_bytes: u64,
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
        let infos = layers.iter().map(|(diff_id, layer)| LayerInfo {
            diff_id: *diff_id,
            origin: diff_id.is_none().then(|| layer.name().into()),
            ..LayerInfo::of_plain_tar()
        });
        let mut image = Self {
            config: Some(config),
            names,
            manifest: None,
            stated_platform: None,
            other_platform: None,
            layers: infos.collect(),
            contents: Vec::new(),
        };
        let contents = layers.into_iter().map(|(_, layer)| Content::Old(layer));
        image.contents = contents.collect();
        image.check_platform(&Select::default())?;
        Ok(image)
    }

    /// Opens an image whose documents and layers are blobs below `blobs/sha256` in `content`, for the
    /// platform that suits this host best.
    pub(crate) fn open_content(
        content: OwnedFd,
        target: &Target,
        names: Vec<String>,
    ) -> Result<Self> {
        let select = Select::default();
        let blobs = Arc::new(Blobs::folder(content));
        let mut image = index::open_target(&blobs, target, &select)?;
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
