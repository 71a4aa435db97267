//! The names of inodes on both sides: the base's index, and the entries that its directories lost
//! and gained.

use super::Sides;
use super::index::{NameIndex, Place};
use super::inodes::ChangedInodes;
use crate::ext4::directory::parse;
use crate::ext4::{Fault, Inode, Listing, ROOT_INODE, ReadResult};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// The maximum length of a path in the kernel, in bytes.
const PATH_BYTES_MAX: usize = 4095;

/// A path relative to the root, without a slash at its ends.
pub(super) type PathBytes = Vec<u8>;

/// One of the two file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Base,
    Now,
}

/// The entries that a directory lost and gained; a name that leads to another inode now is in both.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub removed: Listing,
    pub added: Listing,
}

/// The change to a directory's entries.
enum Fate {
    /// The inode still is a directory, or has become one.
    Edited(Delta),
    /// The inode is no longer a directory.
    Gone,
}

/// A name and the directory that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    directory: u32,
    name: Vec<u8>,
}

/// All names, read as far as they are needed.
pub(super) struct Names<'a> {
    sides: &'a Sides<'a>,
    index: &'a NameIndex,
    /// The changed directories.
    fates: HashMap<u32, Fate>,
    /// Names that directories gained, by the inode that they lead to.
    added: HashMap<u32, Vec<Name>>,
    /// The paths of directories that were looked up, by side; none for one that has no name.
    paths: [RefCell<HashMap<u32, Option<Rc<PathBytes>>>>; 2],
}

impl<'a> Names<'a> {
    pub(super) fn new(
        sides: &'a Sides<'a>,
        index: &'a NameIndex,
        changed: &ChangedInodes,
    ) -> ReadResult<Self> {
        let mut names = Self {
            sides,
            index,
            fates: HashMap::new(),
            added: HashMap::new(),
            paths: Default::default(),
        };
        for number in changed.numbers() {
            let (old, new) = (sides.base.inode(*number)?, sides.now.inode(*number)?);
            if !new.is_live_directory() {
                if old.is_live_directory() {
                    names.fates.insert(*number, Fate::Gone);
                }
                continue;
            }
            let delta = delta(sides, &old, &new)?;
            for (name, inode) in &delta.added {
                names.added.entry(*inode).or_default().push(Name {
                    directory: *number,
                    name: name.clone(),
                });
            }
            names.fates.insert(*number, Fate::Edited(delta));
        }
        Ok(names)
    }

    /// Returns the entries that a directory on both sides lost and gained; none if it did not
    /// change.
    pub(super) fn delta(&self, directory: u32) -> Option<&Delta> {
        match self.fates.get(&directory)? {
            Fate::Edited(delta) => Some(delta),
            Fate::Gone => None,
        }
    }

    /// Returns the directory blocks in which the base names an inode.
    pub(super) fn places(&self, inode: u32) -> &[Place] {
        self.index.places(inode)
    }

    /// Returns true if a name of the base still exists and leads to the same inode.
    fn stays(&self, directory: u32, name: &[u8]) -> bool {
        match self.fates.get(&directory) {
            None => true,
            Some(Fate::Gone) => false,
            Some(Fate::Edited(delta)) => !delta.removed.contains_key(name),
        }
    }

    /// Returns all names of an inode on one side.
    fn of(&self, side: Side, inode: u32) -> ReadResult<Vec<Name>> {
        let mut names = Vec::new();
        for place in self.index.places(inode) {
            let block = self.sides.base.block(place.block())?;
            parse(&block, &mut |entry| {
                let stays = side == Side::Base || self.stays(place.directory, entry.name);
                if entry.inode == inode && stays {
                    names.push(Name {
                        directory: place.directory,
                        name: entry.name.to_vec(),
                    });
                }
                Ok(())
            })?;
        }
        if side == Side::Now {
            names.extend(self.added.get(&inode).into_iter().flatten().cloned());
        }
        Ok(names)
    }

    /// Returns all paths of an inode that is not a directory on one side.
    pub(super) fn paths(&self, side: Side, inode: u32) -> ReadResult<Vec<PathBytes>> {
        let mut paths = Vec::new();
        for name in self.of(side, inode)? {
            if let Some(directory) = self.directory_path(side, name.directory)? {
                paths.push(join(&directory, &name.name)?);
            }
        }
        Ok(paths)
    }

    /// Returns the path of a directory, if it has one.
    fn directory_path(&self, side: Side, directory: u32) -> ReadResult<Option<Rc<PathBytes>>> {
        let known = &self.paths[usize::from(side == Side::Now)];
        // From the directory up to the root, or to a directory whose path is known.
        let mut climbed: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut at = directory;
        let mut path = loop {
            if at == ROOT_INODE {
                break Some(Rc::new(PathBytes::new()));
            }
            if let Some(found) = known.borrow().get(&at) {
                break found.clone();
            }
            // Each step adds a name and a slash.
            if climbed.len() > PATH_BYTES_MAX / 2 {
                return Err(Fault::Unsupported("paths that are too long"));
            }
            match self.of(side, at)?.into_iter().next() {
                Some(above) => {
                    climbed.push((at, above.name));
                    at = above.directory;
                }
                None => {
                    known.borrow_mut().insert(at, None);
                    break None;
                }
            }
        };
        for (number, name) in climbed.into_iter().rev() {
            path = match path {
                Some(above) => Some(Rc::new(join(&above, &name)?)),
                None => None,
            };
            known.borrow_mut().insert(number, path.clone());
        }
        Ok(path)
    }
}

/// Returns the path of `name` in `directory`.
pub(super) fn join(directory: &[u8], name: &[u8]) -> ReadResult<PathBytes> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    if path.len() > PATH_BYTES_MAX {
        return Err(Fault::Unsupported("paths that are too long"));
    }
    Ok(path)
}

/// Returns the entries that the directory `new` has lost and gained since it was `old`, if it was a
/// directory.
fn delta(sides: &Sides<'_>, old: &Inode, new: &Inode) -> ReadResult<Delta> {
    let new_blocks = sides.now.directory_blocks(new)?;
    if !old.is_live_directory() {
        return Ok(Delta {
            removed: Listing::new(),
            added: sides.now.listing_of(&new_blocks)?,
        });
    }
    let old_blocks = sides.base.directory_blocks(old)?;
    let is_same = |index: usize| match (old_blocks.get(index), new_blocks.get(index)) {
        (Some(old), Some(new)) => old == new && !sides.blocks.contains(*old),
        _ => false,
    };
    // Entries move between blocks, so all differing ones are compared together.
    let differing = |blocks: &[u64]| {
        let numbered = blocks.iter().enumerate();
        numbered
            .filter(|(index, _)| !is_same(*index))
            .map(|(_, block)| *block)
            .collect::<Vec<_>>()
    };
    let mut removed = sides.base.listing_of(&differing(&old_blocks))?;
    let mut added = sides.now.listing_of(&differing(&new_blocks))?;
    added.retain(|name, inode| {
        let stays = removed.get(name) == Some(inode);
        if stays {
            removed.remove(name);
        }
        !stays
    });
    Ok(Delta { removed, added })
}
