//! The recipe of a layer's tar: everything of the stream that is not in the files which the layer
//! made, so that recipe and files together are the same stream again, byte by byte.
//!
//! A recipe is a head of [`HEAD_BYTES`] and a zstd stream. The head is `cowsrecp`, a version as four
//! bytes, four bytes of zeros, the number of bytes of the stream as eight bytes, and the SHA-256 of
//! the tar; numbers are little-endian. The stream is a list of steps, in which a number has seven bits
//! a byte, lowest first, and the high bit in all bytes but the last:
//!
//! | step | what follows | what it adds to the tar |
//! |---|---|---|
//! | 1 | a length, and as many bytes | these bytes |
//! | 2 | a length and a path, a count, and as many pairs of an offset and a length | these parts of the file |
//! | 0 | nothing | the end |
//!
//! # Invariants
//! - A recipe is a hint: what it makes counts only if it has the digest of the tar. A layer whose
//!   later entries replace earlier ones has files that do not fit, and its tar must be written anew.
//! - No number in a recipe is trusted: a path and a count of parts are checked against
//!   [`super::limits`], and bytes are taken piece by piece, up to the size of the tar.

mod rebuild;
mod recorder;
#[cfg(test)]
mod tests;

pub use rebuild::{RecipeError, Tar, rebuild};
pub use recorder::Recorder;
pub(crate) use recorder::Recording;

use super::digest::Digest;

/// The length of the head of a recipe.
pub const HEAD_BYTES: usize = 56;
const MAGIC: [u8; 8] = *b"cowsrecp";
const VERSION: u32 = 1;
const END: u8 = 0;
const BYTES: u8 = 1;
const CONTENT: u8 = 2;

/// Returns the head of a recipe whose stream has so many bytes, for the tar with this digest.
#[must_use]
pub fn head(stream_bytes: u64, tar: Digest) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&stream_bytes.to_le_bytes());
    head[24..].copy_from_slice(tar.as_bytes());
    head
}
