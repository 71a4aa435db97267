//! Images that are elsewhere: in a registry, or read by another process. Their documents are
//! verified as those of a file are, and so are their layers.

use super::{Image, LayerInfo, Select, index};
use crate::digest::Digest;
use crate::error::{Part, Result};
use std::io::Read;
use std::sync::Arc;

/// A place that has an image's documents and layers.
pub trait Remote: Send + Sync {
    /// Returns the document with this digest, which has `size_bytes` bytes. Whatever is returned is
    /// verified by the caller.
    ///
    /// # Errors
    /// If it cannot be had.
    fn document(&self, document: Document, digest: Digest, size_bytes: u64) -> Result<Vec<u8>>;

    /// Returns the stored bytes of the layer with this index, which `info` describes.
    ///
    /// # Errors
    /// If they cannot be had.
    fn layer(&self, index: usize, info: &LayerInfo) -> Result<Box<dyn Read + Send>>;
}

/// The kind of a document. Registries have manifests and configurations in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// A manifest or an index.
    Manifest,
    /// A configuration.
    Config,
}

impl Document {
    pub(super) const fn of(part: Part) -> Self {
        match part {
            Part::Config => Self::Config,
            _ => Self::Manifest,
        }
    }
}

impl Image {
    /// Opens the image whose manifest, or whose index, is `bytes`; its other parts are in `remote`.
    /// The caller has verified `bytes`.
    ///
    /// # Errors
    /// As [`Image::open_all`], and the errors of `remote`.
    pub fn open_remote(
        remote: &Arc<dyn Remote>,
        bytes: &[u8],
        names: Vec<String>,
        select: &Select,
    ) -> Result<Self> {
        let mut image = index::open_remote(remote, bytes, select)?;
        image.names = names;
        image.check_platform(select)?;
        Ok(image)
    }

    /// Opens the image whose manifest is `bytes`, and whose platform was chosen before.
    ///
    /// # Errors
    /// As [`Image::open_remote`].
    pub fn open_chosen(remote: &Arc<dyn Remote>, bytes: &[u8], names: Vec<String>) -> Result<Self> {
        let mut image = index::open_chosen(remote, bytes)?;
        image.names = names;
        Ok(image)
    }
}
