//! The changes from one tree of files to another that began as its copy.
//!
//! There are three ways to find them, and all give the same [`TreeChanges`]:
//!
//! - [`Sides`] reads two ext4 file systems without the kernel, from a [`BlockSource`] each and the
//!   list of the bytes in which they differ. The work grows with the change.
//! - [`compare_trees`] compares two mounted trees object by object. It works for what only the
//!   kernel can read.
//! - [`changes_of_upper`] reads the upper folder of an overlayfs.
//!
//! The crate also tells whether a file system needs its journal ([`is_settled`]) and which bytes of
//! an empty journal nobody reads again ([`unused_journal`]).
//!
//! This crate is not a driver: it mounts nothing and writes nothing. It knows neither pools nor
//! layers: its users bring the blocks, and make layers of the changes.
//!
//! # Invariants
//! - All bytes of a file system may be hostile: nothing panics, and the amount that is read is
//!   bounded by the amount that is stored.
//! - What cannot be read with certainty gives a [`Fault`], never a shorter list of changes.
//!
//! # Modules
//! - `ext4`: the superblock, the journal and the reader of inodes, directories, extents and
//!   attributes; above `source`.
//! - `changes`: two of these file systems compared; above `ext4` and `tree`.
//! - `tree`: the list of changes, and two mounted trees compared.
//! - `source`: the blocks of a file system.

mod changes;
mod ext4;
mod source;
mod tree;

pub use changes::{ChangedInodes, Indexes, Sides};
pub use ext4::{
    Extents, Fault, FileSystem, Group, INODE_BYTES, Inode, InodeKind, ROOT_INODE, ReadResult, Run,
    Superblock, is_settled, unused_journal,
};
pub use source::BlockSource;
pub use tree::{
    TreeChange, TreeChanges, TreeError, TreePath, changes_of_upper, compare as compare_trees,
};
