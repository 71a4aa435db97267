//! The contents of a pool's device: the on-disk format, version 3, and the devices that hold it.
//!
//! - One module for each structure of the format, as specified by `docs/FORMAT.md`. Every decoder
//!   takes hostile bytes and returns an error, never a panic.
//! - [`device`]: the store of the bytes (a file, a block device, memory), with exact reads and
//!   writes and one barrier.
//! - [`base`]: names, errors, units and checksums, which all crates above share.
//!
//! This crate does not decide what is written where: `cowshed-engine` does. `cowshed-check` depends
//! on this crate alone, so that it trusts nothing that the engine has in memory.

pub mod base;
pub mod catalogue;
pub mod device;
pub mod group;
pub mod layout;
pub mod node;
pub mod operation;
pub mod pointer;
pub mod record;
pub mod side;
pub mod superblock;

pub use layout::Layout;
pub use pointer::{Pointer, PointerKind};
pub use superblock::Superblock;
