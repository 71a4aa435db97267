//! The blobs of an image whose manifest names them by digest: files of an input, or those of a
//! [`Remote`].

use super::Content;
use super::blobs::Blobs;
use super::remote::{Document, Remote};
use crate::digest::Digest;
use crate::error::{Error, Part, Printable, Result};
use crate::old_store::OldLayer;
use oci_spec::image::Descriptor;
use std::sync::Arc;

/// Layers that were unpacked from blobs.
pub(crate) trait Unpacked {
    /// Returns the layer that completes the stack `chain_id`, if it was unpacked.
    fn layer(&self, chain_id: Digest) -> Result<Option<OldLayer>>;
}

/// The blobs of an image, by digest.
pub(super) enum Store {
    /// Files of a layout; `is_directory` if they are stored as in skopeo's `dir:`.
    Files {
        blobs: Arc<Blobs>,
        is_directory: bool,
    },
    /// Files of a layout, of which layers may be missing that were unpacked elsewhere.
    Content {
        blobs: Arc<Blobs>,
        unpacked: Arc<dyn Unpacked>,
    },
    /// Those of another place, such as a registry.
    Remote(Arc<dyn Remote>),
}

impl Store {
    /// Returns the path of the blob in `blobs` and its size; `None` if it is missing.
    fn find(blobs: &Blobs, is_directory: bool, digest: Digest) -> Result<Option<(Vec<u8>, u64)>> {
        let hex = digest.hex();
        let places = if is_directory {
            // Before version 1.1 layers had a suffix; manifests of an index still have one.
            vec![
                hex.clone(),
                format!("{hex}.manifest.json"),
                format!("{hex}.tar"),
            ]
        } else {
            vec![format!("blobs/sha256/{hex}")]
        };
        for place in places.into_iter().map(String::into_bytes) {
            if let Some(blob) = blobs.find(&place)? {
                return Ok(Some((place, blob.size_bytes)));
            }
        }
        Ok(None)
    }

    /// Returns the files, and whether they are stored as in skopeo's `dir:`.
    fn files(&self) -> Result<(&Arc<Blobs>, bool), &Arc<dyn Remote>> {
        match self {
            Self::Files {
                blobs,
                is_directory,
            } => Ok((blobs, *is_directory)),
            Self::Content { blobs, .. } => Ok((blobs, false)),
            Self::Remote(remote) => Err(remote),
        }
    }

    /// Returns true if the input contains the blob, as far as that is known without fetching it.
    pub(super) fn has(&self, descriptor: &Descriptor) -> bool {
        match self.files() {
            Ok((blobs, is_directory)) => digest_of(descriptor)
                .and_then(|digest| Self::find(blobs, is_directory, digest))
                .is_ok_and(|found| found.is_some()),
            Err(_) => true,
        }
    }

    /// Returns the layer that completes the stack `chain_id`, if it was unpacked.
    pub(super) fn unpacked(&self, chain_id: Digest) -> Result<Option<OldLayer>> {
        match self {
            Self::Content { unpacked, .. } => unpacked.layer(chain_id),
            Self::Files { .. } | Self::Remote(_) => Ok(None),
        }
    }

    /// Returns the document that `descriptor` refers to, if it matches the descriptor.
    pub(super) fn read_verified(
        &self,
        descriptor: &Descriptor,
        what: Part,
        max_bytes: u64,
    ) -> Result<Vec<u8>> {
        let expected = digest_of(descriptor)?;
        let bytes = match self.files() {
            Ok((blobs, is_directory)) => {
                let found = Self::find(blobs, is_directory, expected)?;
                let (path, _) = found.ok_or_else(|| missing(descriptor, what))?;
                blobs.document(&path, what, max_bytes)?.unwrap_or_default()
            }
            Err(remote) => {
                if descriptor.size() > max_bytes {
                    return Err(Error::Document {
                        what,
                        fault: "it is too large",
                    });
                }
                let document = Document::of(what);
                remote.document(document, expected, descriptor.size())?
            }
        };
        let found_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found_bytes != descriptor.size() {
            return Err(Error::SizeMismatch {
                what,
                expected_bytes: descriptor.size(),
                found_bytes,
            });
        }
        let found = Digest::of(&bytes);
        if found == expected {
            Ok(bytes)
        } else {
            Err(Error::DigestMismatch {
                what,
                expected,
                found,
            })
        }
    }

    /// Returns the digest and the place of the layer with this index, whose size matches as far as
    /// that is known before it is read.
    pub(super) fn layer(&self, descriptor: &Descriptor, index: usize) -> Result<(Digest, Content)> {
        let what = Part::layer(index);
        let digest = digest_of(descriptor)?;
        let (blobs, is_directory) = match self.files() {
            Ok(files) => files,
            Err(remote) => return Ok((digest, Content::Remote(Arc::clone(remote)))),
        };
        let found = Self::find(blobs, is_directory, digest)?;
        let (path, found_bytes) = found.ok_or_else(|| missing(descriptor, what))?;
        if found_bytes != descriptor.size() {
            return Err(Error::SizeMismatch {
                what,
                expected_bytes: descriptor.size(),
                found_bytes,
            });
        }
        Ok((digest, Content::Blob(Arc::clone(blobs), path)))
    }
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse()
}

fn missing(descriptor: &Descriptor, what: Part) -> Error {
    Error::Missing {
        what,
        name: Printable::from(&*descriptor.digest().to_string()),
    }
}
