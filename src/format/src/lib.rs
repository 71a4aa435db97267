//! What lies on a pool's device: the on-disk format, version 2, and the devices that hold it.
//!
//! - One module for each structure of the format, `docs/FORMAT.md` as the specification. Every
//!   decoder takes hostile bytes and returns an error, never a panic.
//! - [`device`]: where the bytes lie (a file, a block device, memory), with exact reads and writes
//!   and one barrier.
//! - [`base`]: names, errors, units and checksums, which all crates above share.
//!
//! Nothing here decides what is written where: that is `cowshed-engine`. `cowshed-check` needs this
//! crate alone, so that it trusts nothing that the engine has in memory.

pub mod base;
pub mod catalogue;
pub mod device;
pub mod group;
pub mod layout;
pub mod node;
pub mod operation;
pub mod pointer;
pub mod record;
pub mod superblock;

pub use layout::Layout;
pub use pointer::{Pointer, PointerKind};
pub use superblock::Superblock;
