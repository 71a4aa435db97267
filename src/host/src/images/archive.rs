//! Writing images as one OCI layout archive.
//!
//! A layer is written as it was imported, of its files and its recipe. One without a recipe that fits
//! is made of its volume and the one below: the same tree, but seldom the same bytes, so its diff id
//! may change. The configuration then contains the new diff ids and so has another digest; the result
//! reports it.

use super::Images;
use super::spool::{Place, Spooled, Wanted, unnamed_file};
use crate::error::{Error, Result};
use crate::record::{self, FoundImage, ImageRecord, LayerRecord};
use cowshed_oci::{Compression, Digest, ImageConfig, LayoutImage, Reference, write_layouts};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;

/// An image that was written to an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedImage {
    /// The digest of the configuration in the archive.
    pub id: Digest,
    /// The digest of the configuration in the pool; differs if a layer could not be reproduced byte
    /// by byte.
    pub image: Digest,
    /// The digest of the manifest in the archive.
    pub manifest: Digest,
    /// The names in the archive.
    pub names: Vec<String>,
    /// Names that an archive cannot contain: those with a digest, and those of older versions that
    /// are not valid.
    pub left_out: Vec<String>,
    /// Its layers, lowest first.
    pub layers: Vec<ExportedLayer>,
}

/// One layer of an exported image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedLayer {
    /// The digest of the uncompressed layer in the archive.
    pub diff_id: Digest,
    /// The digest of the layer when the image was imported.
    pub original_diff_id: Digest,
    /// The bytes of the layer as it is stored in the archive.
    pub size_bytes: u64,
    /// The reason why the digest differs, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_anew: Option<String>,
}

/// An image to export.
struct Found {
    id: Digest,
    record: ImageRecord,
    names: Vec<String>,
}

/// An image in the form for the archive.
struct Outgoing {
    config: ImageConfig,
    names: Vec<Reference>,
    left_out: Vec<String>,
    /// The chain ids of its layers, lowest first.
    chain: Vec<Digest>,
}

impl Images {
    /// Writes `image` to `out` as an OCI layout in a tar archive, which is a docker-archive too.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and any error of the pool, the host and `out`.
    pub fn export<W: Write>(
        &self,
        image: &str,
        compression: Compression,
        out: W,
    ) -> Result<(W, ExportedImage)> {
        let (out, mut exported) = self.export_all(&[image], compression, out)?;
        let exported = exported.pop().ok_or(Error::Config("it is missing"))?;
        Ok((out, exported))
    }

    /// Writes `images` as one archive, in which each layer is stored once. An image that several
    /// names refer to is written once, with these names.
    ///
    /// # Errors
    /// As `export`.
    pub fn export_all<W: Write>(
        &self,
        images: &[&str],
        compression: Compression,
        out: W,
    ) -> Result<(W, Vec<ExportedImage>)> {
        let found = self.find_for_export(images)?;
        let mut spooled = HashMap::new();
        let mut outgoing = Vec::with_capacity(found.len());
        for image in &found {
            outgoing.push(self.spool(image, compression, &mut spooled)?);
        }
        let layouts = outgoing.iter().map(|image| LayoutImage {
            config: &image.config,
            names: &image.names,
            layers: image.chain.iter().map(|id| spooled[id].blob()).collect(),
        });
        let (out, manifests) = write_layouts(out, layouts.collect())?;
        let done = found.iter().zip(&outgoing).zip(manifests);
        let report = done.map(|((found, image), manifest)| {
            let layers = found.record.layers.iter();
            ExportedImage {
                id: image.config.digest(),
                image: found.id,
                manifest,
                names: image.names.iter().map(Reference::short).collect(),
                left_out: image.left_out.clone(),
                layers: layers
                    .map(|layer| report(layer, &spooled[&layer.chain_id]))
                    .collect(),
            }
        });
        Ok((out, report.collect()))
    }

    /// Returns the images with their names in the archive: the requested name, or all names of an
    /// image that was requested by id.
    fn find_for_export(&self, images: &[&str]) -> Result<Vec<Found>> {
        let mut all: Vec<Found> = Vec::new();
        for image in images {
            let FoundImage { id, record, name } = record::find_image(self.pool(), image)?;
            let names = match name {
                Some(name) => vec![name.shown],
                None => self.names()?.remove(&id).unwrap_or_default(),
            };
            match all.iter_mut().find(|known| known.id == id) {
                Some(known) => {
                    let new = names.into_iter().filter(|name| !known.names.contains(name));
                    let new: Vec<String> = new.collect();
                    known.names.extend(new);
                }
                None => all.push(Found { id, record, names }),
            }
        }
        Ok(all)
    }

    fn spool(
        &self,
        image: &Found,
        compression: Compression,
        spooled: &mut HashMap<Digest, Spooled>,
    ) -> Result<Outgoing> {
        let mut below = None;
        for layer in &image.record.layers {
            // Another image of the archive may have the same layer.
            if let Entry::Vacant(place) = spooled.entry(layer.chain_id) {
                let folder = self.mounts.state_dir();
                let to = Place {
                    file: unnamed_file(folder)?,
                    folder,
                };
                let wanted = Wanted {
                    chain_id: layer.chain_id,
                    diff_id: layer.diff_id,
                };
                place.insert(self.spool_layer(below, wanted, compression, to)?);
            }
            below = Some(layer.chain_id);
        }
        let chain: Vec<Digest> = image.record.layers.iter().map(|l| l.chain_id).collect();
        let diff_ids: Vec<Digest> = chain.iter().map(|id| spooled[id].summary.diff_id).collect();
        let config = ImageConfig::parse(image.record.config.clone().into_bytes())?;
        let (mut names, mut left_out) = (Vec::new(), Vec::new());
        for name in &image.names {
            match Reference::parse_given(name) {
                Ok(reference) => names.push(reference),
                Err(_) => left_out.push(name.clone()),
            }
        }
        Ok(Outgoing {
            config: config.with_diff_ids(&diff_ids)?,
            names,
            left_out,
            chain,
        })
    }
}

fn report(record: &LayerRecord, spooled: &Spooled) -> ExportedLayer {
    ExportedLayer {
        diff_id: spooled.summary.diff_id,
        original_diff_id: record.diff_id,
        size_bytes: spooled.summary.blob_size_bytes,
        why_anew: spooled.why_anew.clone(),
    }
}
