//! What changed from one volume's file system to another's, found from the blocks that differ.
//!
//! Neither is mounted: both are read through the pool. The answer is the one of [`tree::compare`]
//! (`super::tree`), which looks at every object; here the work grows with the change, apart from
//! one pass over the directories of the base, whose result is kept (`index`).
//!
//! How a difference of blocks becomes one of paths:
//! 1. `blocks`: the pool names the blocks that differ.
//! 2. `inodes`: those in inode tables give the inodes that differ. The kernel changes an inode with
//!    everything that it changes of a file: content, attributes, names. Should a block differ all
//!    the same that is in use, is no metadata of the file system, and belongs to none of these
//!    inodes, its owner is searched in all of them and counts as changed.
//! 3. `names`: of each directory among them, the differing blocks give the names that went and
//!    came. With the base's index, which says in which blocks of which directories an inode is
//!    named, that gives the names of any inode on either side.
//! 4. `walk`: both trees are followed from the root into the directories that lie above a changed
//!    inode, comparing objects that have one path (`objects`). Directories that stand for each
//!    other but are not the same inode are compared name by name.
//! 5. `links`: names that were one file and are two, and all names of a file that is listed.
//!
//! # Invariants
//! - What it cannot read for certain is a [`Fault`], never a shorter list: the caller compares the
//!   mounted trees then. The same holds for a file system that needs its journal replayed.
//! - Everything in the file systems may be hostile. No directory is entered twice on a side, and
//!   the reader bounds what is read.
//! - The two file systems have a common origin, so an inode that is the same in every bit is the
//!   same object. Access times and unused bytes may differ; then the object is looked at.
//!
//! What counts as a change is what `docker diff` shows: mode, owner, modification time, device
//! number, size and content of a file, target of a link, extended attributes. Change and access
//! times, inode flags, the number of links and the size of a directory do not.

mod blocks;
mod index;
mod inodes;
mod links;
mod names;
mod objects;
mod walk;

pub(super) use index::Indexes;

use super::ext4::{Fault, FileSystem, ReadResult};
use super::tree::TreeChanges;
use blocks::ChangedBlocks;
use cowshed_engine::{Pool, Volume};
use inodes::ChangedInodes;
use names::Names;
use walk::Walk;

/// Both file systems and where they differ.
struct Sides<'v> {
    base: FileSystem<'v>,
    now: FileSystem<'v>,
    blocks: ChangedBlocks,
}

/// What changed from the file system in `base` to the one in `now`; neither may be written
/// meanwhile.
///
/// # Errors
/// `Fault::Pool` when the pool cannot be read; otherwise why the file systems have to be compared
/// by the kernel.
pub(super) fn between(
    pool: &Pool,
    base: &Volume,
    now: &Volume,
    indexes: &Indexes,
) -> ReadResult<TreeChanges> {
    between_sides(&Sides::open(pool, base, now)?, base, indexes)
}

impl<'v> Sides<'v> {
    fn open(pool: &Pool, base: &'v Volume, now: &'v Volume) -> ReadResult<Self> {
        let sides = Self {
            base: FileSystem::open(base)?,
            now: FileSystem::open(now)?,
            blocks: ChangedBlocks::between(pool, base, now)?,
        };
        if sides.base.layout() == sides.now.layout() {
            Ok(sides)
        } else {
            Err(Fault::Unsupported("another origin than its base"))
        }
    }
}

fn between_sides(sides: &Sides<'_>, base: &Volume, indexes: &Indexes) -> ReadResult<TreeChanges> {
    let changed = ChangedInodes::between(sides)?;
    if changed.is_empty() {
        return Ok(TreeChanges::new());
    }
    let index = indexes.of(base, &sides.base)?;
    let names = Names::new(sides, &index, &changed)?;
    let mut walk = Walk::new(sides, &changed, &names);
    walk.run()?;
    let (mut changes, linked) = walk.into_parts();
    linked.complete(sides, &names, &mut changes)?;
    super::tree::directories_above(&mut changes);
    Ok(changes)
}

#[cfg(test)]
mod tests;
