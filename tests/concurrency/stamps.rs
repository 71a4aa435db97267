//! The contents of the blocks: each lane repeats a stamp of sixteen bytes with the lineage that
//! wrote it, its place, and the number of the write, so that a lane in the wrong place, of another
//! volume, or torn, is detected.

use crate::history::LANES;
use cowshed_format::base::BLOCK_BYTES;

pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
pub(crate) const LANE_BYTES: usize = BLOCK_BYTES / LANES;

/// Fills a lane with the stamp of `value`; zeros for value 0.
pub(crate) fn fill(lane: &mut [u8], value: u64, lineage: u64, place: u64) {
    let word = (lineage << 32 | place).to_le_bytes();
    let pair = if value == 0 {
        [0; 16]
    } else {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&value.to_le_bytes());
        pair[8..].copy_from_slice(&word);
        pair
    };
    for chunk in lane.as_chunks_mut::<16>().0 {
        *chunk = pair;
    }
}

/// Returns the value of a lane at `place`.
pub(crate) fn value_of(lane: &[u8], place: u64) -> Result<u64, String> {
    let (pairs, _) = lane.as_chunks::<16>();
    let first = pairs[0];
    if pairs.iter().any(|pair| *pair != first) {
        return Err(format!("lane {place} is torn within"));
    }
    let word = |at: usize| u64::from_le_bytes(first[at..at + 8].try_into().unwrap());
    let (value, stamp) = (word(0), word(8));
    if value != 0 && stamp & 0xffff_ffff != place {
        return Err(format!(
            "lane {place} holds lane {} of lineage {}, value {value}",
            stamp & 0xffff_ffff,
            stamp >> 32
        ));
    }
    Ok(value)
}
