//! Bits of a group, as `bitvec` sees them: bit `b % 64` of word `b / 64`, as on disk.

use bitvec::prelude::{BitSlice, Lsb0};
use bitvec::view::BitView;
use cowshed_format::group::{BITMAP_WORDS, Bitmap};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use std::ops::Range;

pub(super) type Bits = BitSlice<u64, Lsb0>;

/// Returns a group's bitmap in which only its own header blocks are in use.
pub(super) fn fresh() -> Box<Bitmap> {
    let mut bitmap = Box::new([0; BITMAP_WORDS]);
    bits_mut(&mut bitmap)[..usize::try_from(GROUP_HEADER_BLOCKS).expect("four")].fill(true);
    bitmap
}

pub(super) fn bits(bitmap: &Bitmap) -> &Bits {
    bitmap.view_bits()
}

pub(super) fn bits_mut(bitmap: &mut Bitmap) -> &mut Bits {
    bitmap.view_bits_mut()
}

/// Returns the first run of clear bits in `bits` at or after `from`, cut to `most`.
pub(super) fn first_clear_run(bits: &Bits, from: usize, most: usize) -> Option<Range<usize>> {
    let start = from + bits.get(from..)?.first_zero()?;
    let end = bits.len().min(start.saturating_add(most));
    let len = bits[start..end].first_one().unwrap_or(end - start);
    Some(start..start + len)
}

/// Returns the first run of set bits in `bits` at or after `from`.
pub(super) fn first_set_run(bits: &Bits, from: usize) -> Option<Range<usize>> {
    let start = from + bits.get(from..)?.first_one()?;
    let len = bits[start..].first_zero().unwrap_or(bits.len() - start);
    Some(start..start + len)
}
