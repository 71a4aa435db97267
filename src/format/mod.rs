//! The on-disk format, version 1: one file for each structure, `FORMAT.md` as the specification.
//!
//! Nothing here does input or output. Every decoder takes hostile bytes and answers an error,
//! never a panic; run-time types of other rooms never serialise themselves.

pub mod catalogue;
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
