//! The changes from one file system to another, found from the blocks that differ.
//!
//! Neither is mounted: both are read directly. The result equals that of [`crate::compare_trees`],
//! which compares every object; here the work grows with the change, apart from one pass over the
//! directories of the base, whose result is cached (`index`).
//!
//! The steps from changed blocks to changed paths:
//! 1. `blocks`: the caller lists the bytes that differ.
//! 2. `inodes`: those in inode tables give the inodes that differ. The kernel changes an inode with
//!    every change to a file: content, attributes, names. If a differing block is nevertheless in
//!    use, is not metadata of the file system, and belongs to none of these inodes, all inodes are
//!    searched for its owner, which counts as changed.
//! 3. `names`: for each directory among them, the differing blocks give the names that were removed
//!    and added. Together with the base's index, which lists the directory blocks that name an
//!    inode, that gives the names of any inode on either side.
//! 4. `walk`: both trees are followed from the root into the directories that lie above a changed
//!    inode, comparing objects that have the same path (`objects`). Directories at the same path
//!    that are not the same inode are compared name by name.
//! 5. `links`: lists names that were one file and are now two, and all names of a file that is
//!    listed.
//!
//! # Invariants
//! - Data that cannot be read with certainty gives a [`Fault`], never a shorter list: the caller
//!   then compares the mounted trees. The same holds for a file system that needs its journal
//!   replayed.
//! - Everything in the file systems may be hostile. No directory is entered twice on a side, and
//!   the reader bounds what is read.
//! - The two file systems have a common origin, so an inode that is the same in every bit is the
//!   same object. Access times and unused bytes may differ; then the object is compared.
//!
//! The changes are those that `docker diff` shows: mode, owner, modification time, device number,
//! size and content of a file, target of a link, extended attributes. Change and access times,
//! inode flags, the number of links and the size of a directory do not count.

mod blocks;
mod index;
mod inodes;
mod links;
mod names;
mod objects;
mod walk;

pub use index::Indexes;
pub use inodes::ChangedInodes;

use crate::ext4::{Fault, FileSystem, ReadResult};
use crate::source::BlockSource;
use crate::tree::{self, TreeChanges};
use blocks::ChangedBlocks;
use names::Names;
use std::ops::Range;
use walk::Walk;

/// Two file systems and the blocks in which they differ.
pub struct Sides<'v> {
    /// The file system at the beginning.
    pub base: FileSystem<'v>,
    /// The file system with the changes.
    pub now: FileSystem<'v>,
    blocks: ChangedBlocks,
}

impl<'v> Sides<'v> {
    /// Opens the file systems in `base` and `now`, neither of which may be written meanwhile.
    /// `differing` must have all ranges of bytes in which they differ.
    ///
    /// # Errors
    /// `Read` if a source cannot be read; otherwise the reason why the file systems must be
    /// compared through the kernel.
    pub fn open(
        base: &'v dyn BlockSource,
        now: &'v dyn BlockSource,
        differing: &[Range<u64>],
    ) -> ReadResult<Self> {
        let sides = Self {
            base: FileSystem::open(base)?,
            now: FileSystem::open(now)?,
            blocks: ChangedBlocks::of_bytes(differing),
        };
        if sides.base.layout() == sides.now.layout() {
            Ok(sides)
        } else {
            Err(Fault::Unsupported("a layout that differs from its base's"))
        }
    }

    /// Returns the changes from the base.
    ///
    /// # Errors
    /// As [`Sides::open`].
    pub fn changes(&self, indexes: &Indexes) -> ReadResult<TreeChanges> {
        let changed = ChangedInodes::between(self)?;
        if changed.is_empty() {
            return Ok(TreeChanges::new());
        }
        let index = indexes.of(&self.base)?;
        let names = Names::new(self, &index, &changed)?;
        let mut walk = Walk::new(self, &changed, &names);
        walk.run()?;
        let (mut changes, linked) = walk.into_parts();
        linked.complete(self, &names, &mut changes)?;
        tree::directories_above(&mut changes);
        Ok(changes)
    }
}
