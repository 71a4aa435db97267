//! Units, names, errors, the little-endian codec and checksums, which all other modules and crates
//! share.
//!
//! Nothing here does input or output, or knows pools.

pub mod background_yield;
pub mod cancel;
pub mod checksum;
pub mod codec;
pub mod error;
mod mirror_error;
pub mod name;
pub mod printable;
pub mod rate_limit;
pub mod size;
pub mod sync;
pub mod units;

pub use cancel::{Cancel, Cancelled};
pub use error::{CorruptKind, Error, Result};
pub use mirror_error::MirrorError;
pub use name::Name;
pub use printable::{printable, printable_lines, printable_path};
pub use units::{BLOCK_BYTES, BLOCK_SHIFT, BlockAddr, BlockIndex, Generation, Sequence, VolumeId};
