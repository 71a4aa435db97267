//! Digests of a pool's contents: of a pool, read through its public calls, and of the model.
//!
//! Each state has two digests. `content` is what users see: names, ids, kinds, sizes, labels,
//! records, and each mapped block with its bytes. `family` is the parents, which the engine settles
//! asynchronously after a removal and which are therefore compared after a reclaim.

use crate::compare::RECORD_KINDS;
use crate::oracle::{BLOCK, Oracle, Volume as Model};
use cowshed_engine::{ExtentKind, Pool, Volume, VolumeInfo, VolumeKind};
use cowshed_format::base::{BLOCK_BYTES, Result};
use std::collections::BTreeMap;

/// Number of blocks read in one call.
const READ_BLOCKS: usize = 16;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash that distinguishes states; it does not resist attacks.
#[derive(Clone, Copy)]
pub(crate) struct Mix(u64);

impl Mix {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed ^ MULTIPLIER)
    }

    #[inline]
    pub(crate) const fn word(&mut self, word: u64) {
        let product = ((self.0 ^ word) as u128).wrapping_mul(MULTIPLIER as u128);
        #[allow(clippy::cast_possible_truncation, reason = "both halves are folded")]
        let (low, high) = (product as u64, (product >> 64) as u64);
        self.0 = (low ^ high).wrapping_add(word.rotate_left(32));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        // Four lanes, which a processor computes in parallel.
        let (fours, rest) = bytes.as_chunks::<32>();
        let [mut a, mut b, mut c, mut d] = [Self(1), Self(2), Self(3), Self(4)];
        for four in fours {
            let [p, q, r, s] = *four.as_chunks::<8>().0 else {
                unreachable!("four times eight bytes")
            };
            a.word(u64::from_le_bytes(p));
            b.word(u64::from_le_bytes(q));
            c.word(u64::from_le_bytes(r));
            d.word(u64::from_le_bytes(s));
        }
        rest.iter().for_each(|byte| self.word(u64::from(*byte)));
        [a, b, c, d].iter().for_each(|lane| self.word(lane.0));
    }

    pub(crate) const fn finish(self) -> u64 {
        self.0
    }
}

fn start_volume(
    mix: &mut Mix,
    id: u64,
    name: &str,
    frozen: bool,
    size_bytes: u64,
    labels: &BTreeMap<String, String>,
) {
    mix.word(id);
    mix.bytes(name.as_bytes());
    mix.word(u64::from(frozen));
    mix.word(size_bytes);
    for (key, value) in labels {
        mix.bytes(key.as_bytes());
        mix.bytes(value.as_bytes());
    }
}

fn block(mix: &mut Mix, index: u64, bytes: &[u8]) {
    mix.word(index);
    mix.bytes(bytes);
}

/// Returns the digest of everything that users of `pool` see.
pub(crate) fn content_of_pool(pool: &Pool, infos: &[VolumeInfo]) -> Result<u64> {
    let mut mix = Mix::new(0);
    let mut buffer = vec![0; READ_BLOCKS * BLOCK_BYTES];
    for info in infos {
        let frozen = info.kind == VolumeKind::Snapshot;
        start_volume(
            &mut mix,
            info.id.0,
            info.name.as_str(),
            frozen,
            info.size_bytes,
            &info.labels,
        );
        let volume = pool.volume_by_id(info.id)?;
        content_of_volume(&mut mix, &volume, &mut buffer)?;
    }
    for kind in RECORD_KINDS {
        for (key, value) in pool.records(kind) {
            mix.word(u64::from(kind.0));
            mix.bytes(&key);
            mix.bytes(&value);
        }
    }
    Ok(mix.finish())
}

fn content_of_volume(mix: &mut Mix, volume: &Volume, buffer: &mut [u8]) -> Result<()> {
    let size_bytes = volume.size_bytes();
    let mut at = 0;
    while let Some(extent) = volume.extent_at(at)? {
        let end = at + extent.len_bytes;
        while extent.kind == ExtentKind::Data && at < end {
            let len = usize::try_from(end - at).map_or(buffer.len(), |len| len.min(buffer.len()));
            let whole = len.next_multiple_of(BLOCK_BYTES);
            volume.read_at(&mut buffer[..len], at)?;
            buffer[len..whole].fill(0);
            for (index, bytes) in (at / BLOCK..).zip(buffer[..whole].chunks(BLOCK_BYTES)) {
                block(mix, index, bytes);
            }
            at += len as u64;
        }
        at = end;
        assert!(at <= size_bytes, "an extent ends beyond its volume");
    }
    Ok(())
}

/// Returns the same digest of the model.
pub(crate) fn content_of_model(oracle: &Oracle) -> u64 {
    let mut mix = Mix::new(0);
    let mut named: Vec<(&str, u64, &Model)> = oracle
        .volumes
        .iter()
        .filter_map(|(id, volume)| Some((volume.name.as_deref()?, *id, volume)))
        .collect();
    named.sort_unstable_by_key(|(name, ..)| *name);
    for (name, id, volume) in named {
        start_volume(
            &mut mix,
            id,
            name,
            volume.frozen,
            volume.size_bytes,
            &volume.labels,
        );
        for (index, content) in &volume.blocks {
            block(&mut mix, *index, &content.bytes);
        }
    }
    for ((kind, key), value) in &oracle.records {
        mix.word(u64::from(*kind));
        mix.bytes(key);
        mix.bytes(value);
    }
    mix.finish()
}

/// Returns the digest of parents and counts of children, once all removals are settled.
pub(crate) fn family_of_pool(infos: &[VolumeInfo]) -> u64 {
    let mut all: Vec<(u64, u64, u64)> = infos
        .iter()
        .map(|info| {
            let parent = info.parent.map_or(0, |parent| parent.0);
            (info.id.0, parent, u64::from(info.children))
        })
        .collect();
    family(&mut all)
}

/// Returns the same digest of the model.
pub(crate) fn family_of_model(oracle: &Oracle) -> u64 {
    let mut children: BTreeMap<u64, u64> = BTreeMap::new();
    for parent in oracle.volumes.values().filter_map(|volume| volume.parent) {
        *children.entry(parent).or_default() += 1;
    }
    let mut all: Vec<(u64, u64, u64)> = oracle
        .volumes
        .iter()
        .filter(|(_, volume)| volume.name.is_some())
        .map(|(id, volume)| {
            let count = children.get(id).copied().unwrap_or(0);
            (*id, volume.parent.unwrap_or(0), count)
        })
        .collect();
    family(&mut all)
}

fn family(all: &mut [(u64, u64, u64)]) -> u64 {
    all.sort_unstable();
    let mut mix = Mix::new(7);
    for (id, parent, children) in all {
        mix.word(*id);
        mix.word(*parent);
        mix.word(*children);
    }
    mix.finish()
}

/// Returns the digest of the owner of each block, which no byte shows: rewriting the same bytes
/// changes it.
pub(crate) fn ownership_of_model(oracle: &Oracle) -> u64 {
    let mut mix = Mix::new(9);
    for (id, volume) in &oracle.volumes {
        mix.word(*id);
        mix.word(volume.parent.unwrap_or(0));
        volume.own.iter().for_each(|block| mix.word(*block));
        volume.touched.iter().for_each(|leaf| mix.word(!leaf));
    }
    mix.finish()
}
