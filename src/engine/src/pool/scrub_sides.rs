//! Verifying data on every side of a mirror, and healing the sides on which it has rotted.

use super::shared::Shared;
use super::volume::VolumeCore;
use cowshed_format::Pointer;
use cowshed_format::base::BLOCK_BYTES;
use cowshed_format::base::checksum::crc32;
use cowshed_format::device::Device;
use std::ops::Range;

/// Reads neighbouring data blocks of a volume from every side of a mirror. A block that a side does
/// not have right is written there anew. Returns true if every block is right on a side; false as
/// well without a mirror, and if the blocks have moved meanwhile.
pub(super) fn verify_sides(
    shared: &Shared,
    core: &VolumeCore,
    range: &Range<u64>,
    buf: &mut [u8],
) -> bool {
    let Some(mirror) = shared.device.mirror() else {
        return false;
    };
    let blocks = buf.len() / BLOCK_BYTES;
    let mut pointers = vec![Pointer::HOLE; blocks];
    let read = core.tree.read(&shared.store, range.start, &mut pointers);
    let start = pointers[0].addr().0;
    let joins = |(at, pointer): (u64, &Pointer)| {
        !pointer.is_hole() && !pointer.is_lost() && pointer.addr().0 == start + at
    };
    if read.is_err() || !(0..).zip(&pointers).all(joins) {
        return false;
    }
    let offset_bytes = pointers[0].addr().offset_bytes();
    let mut doubted = vec![false; blocks];
    mirror.read_each(buf, offset_bytes, &mut |found| {
        for (index, pointer) in pointers.iter().enumerate() {
            let at = index * BLOCK_BYTES;
            let is_right = |bytes: &[u8]| crc32(&bytes[at..at + BLOCK_BYTES]) == pointer.crc();
            doubted[index] |= !found.is_some_and(is_right);
        }
    });
    let heal = |(index, pointer): (usize, &Pointer)| {
        let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
        let mut block = [0; BLOCK_BYTES];
        let at = offset_bytes + (index * BLOCK_BYTES) as u64;
        let found = mirror.read_verified(&mut block, at, true, &is_right);
        found.is_ok_and(|found| found)
    };
    let mut right = true;
    for item in pointers
        .iter()
        .enumerate()
        .filter(|(index, _)| doubted[*index])
    {
        right &= heal(item);
    }
    right
}
