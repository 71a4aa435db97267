//! What is known of a layer before it is read: its chain id by the digests that its image states, or its
//! digest by its place in another program's store, if it was read there before.

use super::import::DIFF_ID_LABEL;
use crate::error::Result;
use crate::record;
use cowshed_engine::Pool;
use cowshed_format::base::Name;
use cowshed_oci::{Digest, Image, chain_above};
use cowshed_stream::labels::ORIGIN;
use std::collections::HashMap;

/// The layers of the pool that were read from stores without digests: their digests and the names of
/// their volumes, by their origin.
pub(super) struct Origins(HashMap<String, Vec<(Digest, Name)>>);

impl Origins {
    /// Returns those in `pool`; none if no layer of `image` comes from such a store.
    pub(super) fn of(image: &Image, pool: &Pool) -> Self {
        let mut found: HashMap<String, Vec<(Digest, Name)>> = HashMap::new();
        if image.layers().iter().all(|layer| layer.origin.is_none()) {
            return Self(found);
        }
        for volume in pool.volumes() {
            let diff_id = volume.labels.get(DIFF_ID_LABEL).map(|text| text.parse());
            if let (Some(origin), Some(Ok(diff_id))) = (volume.labels.get(ORIGIN), diff_id) {
                let all = found.entry(origin.clone()).or_default();
                all.push((diff_id, volume.name.clone()));
            }
        }
        Self(found)
    }

    /// Returns the digest of the layer with this origin above `below`.
    pub(super) fn diff_id(&self, origin: Digest, below: Option<Digest>) -> Result<Option<Digest>> {
        for (diff_id, volume) in self.0.get(&origin.to_string()).into_iter().flatten() {
            if *volume == record::layer_volume_name(chain_above(below, *diff_id))? {
                return Ok(Some(*diff_id));
            }
        }
        Ok(None)
    }
}

/// Returns the chain ids of the lowest layers, up to the first without a known digest: what lies on that
/// is not known either.
pub(super) fn known_stacks(diff_ids: impl Iterator<Item = Option<Digest>>) -> Vec<Digest> {
    let mut known: Vec<Digest> = Vec::new();
    for diff_id in diff_ids.map_while(|diff_id| diff_id) {
        known.push(chain_above(known.last().copied(), diff_id));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_layer_above_an_unknown_one_is_not_taken_for_a_lowest_one() {
        let [a, b] = ["a", "b"].map(|text| Digest::of(text.as_bytes()));
        let above = chain_above(Some(a), b);
        assert_eq!(known_stacks([Some(a), Some(b)].into_iter()), [a, above]);
        assert_eq!(known_stacks([Some(a), None, Some(b)].into_iter()), [a]);
        assert!(known_stacks([None, Some(b)].into_iter()).is_empty());
    }
}
