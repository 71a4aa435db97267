//! A bitmap slot of an allocation group: a header block, then the bitmap block.
//!
//! Each group has two slots, written in turn, so that the bitmap of the last checkpoint is intact
//! while the next one is written. The valid slot with the highest generation that is not above
//! the superblock's counts.

use crate::base::checksum::crc32;
use crate::base::codec::{Reader, Writer};
use crate::base::{BLOCK_BYTES, Generation};

/// Number of words in a bitmap: one bit for each block of a group; bit `b % 64` of word `b / 64`.
pub const BITMAP_WORDS: usize = BLOCK_BYTES / 8;
/// Number of bytes in a slot.
pub const SLOT_BYTES: usize = 2 * BLOCK_BYTES;

const MAGIC: u32 = u32::from_le_bytes(*b"CWGB");
const HEADER_BYTES: usize = 48;

/// One bit for each block of a group: set while the block is in use.
pub type Bitmap = [u64; BITMAP_WORDS];

/// A slot's header and bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapSlot {
    /// The group's number.
    pub group: u64,
    /// The generation of the checkpoint that wrote it.
    pub generation: Generation,
    /// The bits.
    pub bitmap: Box<Bitmap>,
}

/// Returns the encoded slot.
#[must_use]
pub fn encode(
    uuid: &[u8; 16],
    group: u64,
    generation: Generation,
    bitmap: &Bitmap,
) -> Box<[u8; SLOT_BYTES]> {
    let mut bytes = Box::new([0; SLOT_BYTES]);
    let (header, body) = bytes.split_at_mut(BLOCK_BYTES);
    for (word, chunk) in bitmap.iter().zip(body.as_chunks_mut::<8>().0) {
        *chunk = word.to_le_bytes();
    }
    let mut out = Writer::new();
    out.u32(MAGIC)
        .u32(crc32(body))
        .bytes(uuid)
        .u64(group)
        .u64(generation.0);
    let mut fields = out.into_bytes();
    fields.resize(HEADER_BYTES - 4, 0);
    let crc = crc32(&fields);
    header[..HEADER_BYTES - 4].copy_from_slice(&fields);
    header[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Returns the term that a superblock sums over all groups, so that an older bitmap is not mistaken
/// for the one that belongs to the superblock: the group and its bitmap's CRC, mixed so that
/// changes do not cancel out.
#[must_use]
pub fn digest(group: u64, bitmap: &Bitmap) -> u64 {
    let mut body = Vec::with_capacity(BLOCK_BYTES);
    for word in bitmap {
        body.extend_from_slice(&word.to_le_bytes());
    }
    let mut mixed = (group << 32 | u64::from(crc32(&body))).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Returns true if nothing was ever written to the slot in `bytes`.
#[must_use]
pub fn is_blank(bytes: &[u8; SLOT_BYTES]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Returns the slot in `bytes`; `None` if it is not a whole slot of this pool and group.
#[must_use]
pub fn decode(bytes: &[u8; SLOT_BYTES], uuid: &[u8; 16], group: u64) -> Option<BitmapSlot> {
    let (header, body) = bytes.split_at(BLOCK_BYTES);
    let (fields, crc) = header[..HEADER_BYTES].split_at(HEADER_BYTES - 4);
    let mut input = Reader::new(fields);
    let sound = crc == crc32(fields).to_le_bytes()
        && input.u32()? == MAGIC
        && input.u32()? == crc32(body)
        && input.bytes(16)? == uuid
        && input.u64()? == group;
    if !sound {
        return None;
    }
    let generation = Generation(input.u64()?);
    let mut bitmap = Box::new([0; BITMAP_WORDS]);
    for (word, chunk) in bitmap.iter_mut().zip(body.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Some(BitmapSlot {
        group,
        generation,
        bitmap,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_another_pool_or_group_is_not_taken() {
        let mut bitmap = [0; BITMAP_WORDS];
        bitmap[3] = 0xf0;
        let uuid = [7; 16];
        let bytes = encode(&uuid, 4, Generation(9), &bitmap);
        let slot = decode(&bytes, &uuid, 4).unwrap();
        assert_eq!((slot.generation, slot.bitmap[3]), (Generation(9), 0xf0));
        assert_eq!(decode(&bytes, &[8; 16], 4), None);
        assert_eq!(decode(&bytes, &uuid, 5), None);
        for byte in [0, 5, 8, 24, 32, 44, BLOCK_BYTES, SLOT_BYTES - 1] {
            let mut bad = bytes.clone();
            bad[byte] ^= 1;
            assert_eq!(decode(&bad, &uuid, 4), None, "byte {byte}");
        }
    }
}
