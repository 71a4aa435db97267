//! The blobs that are known to hold a layer, and images that are offered to a registry.
//!
//! A layer remembers in a label of its volume in which blobs it was fetched or sent: a registry that
//! has the blob need not be sent the layer. The label goes with the volume, but not into streams: what
//! it says must come from this pool.

use super::Images;
use super::spool::{Place, Wanted};
use crate::error::{Error, Kind, Result};
use crate::record::{self, FoundImage};
use cowshed_engine::{Labels, Volume};
use cowshed_oci::offer::{Offer, OfferedLayer, WrittenLayer};
use cowshed_oci::{Compression, Digest, KnownBlob, LayerDigest, Reference};
use cowshed_stream::labels::BLOBS;
use std::fs::File;
use std::path::Path;

/// Number of blobs of one layer that are remembered, the latest ones.
const BLOBS_MAX: usize = 8;

/// Returns the blob that a layer was read from, if registries know such blobs.
pub(super) fn blob_of(layer: &LayerDigest, source: Option<&Reference>) -> Option<KnownBlob> {
    Some(KnownBlob {
        digest: layer.blob_digest,
        size_bytes: layer.blob_size_bytes,
        compression: layer.compression?,
        diff_id: layer.diff_id,
        source: source.map(source_of),
    })
}

fn source_of(reference: &Reference) -> String {
    format!("{}/{}", reference.domain(), reference.path())
}

/// Adds a blob to the labels of a layer's volume.
pub(super) fn remember(labels: &mut Labels, blob: KnownBlob) {
    let mut blobs = known(labels);
    blobs.retain(|known| known.digest != blob.digest || known.source != blob.source);
    blobs.insert(0, blob);
    blobs.truncate(BLOBS_MAX);
    if let Ok(text) = serde_json::to_string(&blobs) {
        labels.insert(BLOBS.to_owned(), text);
    }
}

/// Returns the blobs in the labels of a layer's volume, the latest first; none if a newer version
/// wrote them in another form.
fn known(labels: &Labels) -> Vec<KnownBlob> {
    let text = labels.get(BLOBS).map_or("", String::as_str);
    serde_json::from_str(text).unwrap_or_default()
}

impl Images {
    /// Returns what an image consists of, for a process that sends it to a registry.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, `Record`, and errors of the pool.
    pub fn offer(&self, image: &str) -> Result<Offer> {
        let FoundImage { id, record, name } = record::find_image(self.pool(), image)?;
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in &record.layers {
            let info = self.layer(layer.chain_id)?.info()?;
            layers.push(OfferedLayer {
                chain_id: layer.chain_id,
                diff_id: layer.diff_id,
                size_bytes: layer.size_bytes,
                own_bytes: self.layer_own_bytes(layer.chain_id)?,
                blobs: known(&info.labels),
            });
        }
        Ok(Offer {
            id,
            name: name.map(|name| name.shown),
            config: record.config,
            layers,
        })
    }

    /// Writes a layer of an image that was offered into a file; messages name the folder of that.
    ///
    /// # Errors
    /// `NotFound` if there is no such layer any more, and any error of the pool, the host and the
    /// file.
    pub fn write_offered(
        &self,
        offer: &Offer,
        layer: usize,
        compression: Compression,
        place: (File, &Path),
    ) -> Result<WrittenLayer> {
        let missing = || Error::not_found(Kind::Layer, &layer.to_string());
        let offered = offer.layers.get(layer).ok_or_else(missing)?;
        let below = layer
            .checked_sub(1)
            .map(|below| offer.layers[below].chain_id);
        let wanted = Wanted {
            chain_id: offered.chain_id,
            diff_id: offered.diff_id,
        };
        let (file, folder) = place;
        let spooled = self.spool_layer(below, wanted, compression, Place { file, folder })?;
        let summary = spooled.summary;
        Ok(WrittenLayer {
            blob: KnownBlob {
                digest: summary.blob_digest,
                size_bytes: summary.blob_size_bytes,
                compression,
                diff_id: summary.diff_id,
                source: None,
            },
            why_anew: spooled.why_anew,
        })
    }

    /// Remembers blobs that hold the layers of these chain ids. Layers that were removed meanwhile
    /// are passed over. Durable when it returns.
    ///
    /// # Errors
    /// Errors of the pool.
    pub fn remember_blobs(&self, blobs: &[(Digest, KnownBlob)]) -> Result<()> {
        if blobs.is_empty() || self.pool().is_read_only() {
            return Ok(());
        }
        {
            let _held = self.lock_catalogue();
            let mut transaction = self.pool().transaction();
            let mut changed: Vec<(Volume, Labels)> = Vec::new();
            for (chain_id, blob) in blobs {
                let Some(volume) = record::layer_volume(self.pool(), *chain_id)? else {
                    continue;
                };
                let known = changed.iter_mut().find(|(it, _)| it.id() == volume.id());
                if let Some((_, labels)) = known {
                    remember(labels, blob.clone());
                    continue;
                }
                let mut labels = volume.info()?.labels;
                remember(&mut labels, blob.clone());
                changed.push((volume, labels));
            }
            for (volume, labels) in changed {
                transaction.set_labels(volume.id(), labels);
            }
            transaction.commit()?;
        }
        Ok(self.pool().flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u8, source: &str) -> KnownBlob {
        KnownBlob {
            digest: Digest::of(&[number]),
            size_bytes: u64::from(number),
            compression: Compression::Zstd,
            diff_id: Digest::of(b"layer"),
            source: Some(source.to_owned()),
        }
    }

    #[test]
    fn the_latest_blobs_are_remembered_each_once() {
        let mut labels = Labels::from([("other".to_owned(), "x".to_owned())]);
        assert_eq!(known(&labels), []);
        for number in 0..20 {
            remember(&mut labels, blob(number, "h.x/a"));
        }
        remember(&mut labels, blob(15, "h.x/a"));
        remember(&mut labels, blob(15, "h.x/b"));
        let found = known(&labels);
        assert_eq!(found.len(), BLOBS_MAX);
        assert_eq!(found[0], blob(15, "h.x/b"));
        assert_eq!(found[1], blob(15, "h.x/a"));
        assert_eq!(found[2], blob(19, "h.x/a"));
        assert_eq!(labels["other"], "x");
    }

    #[test]
    fn what_a_newer_version_wrote_is_none() {
        for text in ["", "{}", "[{\"digest\": \"sha512:00\"}]", "[1]"] {
            let labels = Labels::from([(BLOBS.to_owned(), text.to_owned())]);
            assert_eq!(known(&labels), [], "{text}");
        }
    }
}
