//! The room `base`, with another `sync`.

#[path = "../../../../src/base/cancel.rs"]
pub mod cancel;
#[path = "../../../../src/base/checksum.rs"]
pub mod checksum;
#[path = "../../../../src/base/codec.rs"]
pub mod codec;
#[path = "../../../../src/base/error.rs"]
pub mod error;
#[path = "../../../../src/base/name.rs"]
pub mod name;
#[path = "../../../../src/base/size.rs"]
pub mod size;
#[path = "sync.rs"]
pub mod sync;
#[path = "../../../../src/base/units.rs"]
pub mod units;

pub use error::{CorruptKind, Error, Result};
pub use name::Name;
pub use units::{BLOCK_BYTES, BLOCK_SHIFT, BlockAddr, BlockIndex, Generation, Sequence, VolumeId};
