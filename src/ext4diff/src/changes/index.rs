//! The directory blocks that name each inode of a file system.
//!
//! One pass over all directories builds the index. That of a source that never changes is cached;
//! the least recently used is dropped first once all of them take more than
//! `KEPT_BYTES_MAX`.

use crate::ext4::directory::{TYPE_DIRECTORY, TYPE_UNKNOWN};
use crate::ext4::{Fault, FileSystem, ROOT_INODE, ReadResult};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

/// The maximum number of bytes that all cached indexes take together: 5 million names.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// One directory block with at least one name of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    inode: u32,
    pub directory: u32,
    block: u32,
}

/// All places of a file system, by inode.
#[derive(Debug)]
pub(super) struct NameIndex {
    places: Vec<Place>,
}

/// The cached indexes of sources that never change, by identity; thread safe.
#[derive(Default)]
pub struct Indexes {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The indexes, each with the time of its last use.
    indexes: HashMap<u64, (Arc<NameIndex>, u64)>,
    bytes: usize,
    uses: u64,
}

impl Place {
    pub(super) fn block(&self) -> u64 {
        u64::from(self.block)
    }
}

impl NameIndex {
    fn build(file_system: &FileSystem<'_>) -> ReadResult<Self> {
        let mut places = Vec::new();
        let mut pending = vec![ROOT_INODE];
        let mut seen = std::collections::HashSet::from([ROOT_INODE]);
        while let Some(number) = pending.pop() {
            let directory = file_system.live_inode(number)?;
            if !directory.is_directory() {
                return Err(Fault::Corrupt("a directory entry with a wrong file type"));
            }
            let blocks = file_system.directory_blocks(&directory)?;
            file_system.entries(&blocks, &mut |block, entry| {
                let inode = entry.inode;
                let block = u32::try_from(block).map_err(|_| Fault::Corrupt("a block number"))?;
                places.push(Place {
                    inode,
                    directory: number,
                    block,
                });
                let is_directory = match entry.file_type {
                    TYPE_UNKNOWN => file_system.live_inode(inode)?.is_directory(),
                    known => known == TYPE_DIRECTORY,
                };
                if is_directory {
                    if !seen.insert(inode) {
                        return Err(Fault::Corrupt("a directory with two names"));
                    }
                    pending.push(inode);
                }
                Ok(())
            })?;
        }
        places.sort_unstable();
        places.dedup();
        places.shrink_to_fit();
        Ok(Self { places })
    }

    /// Returns the directory blocks that name the inode.
    pub(super) fn places(&self, inode: u32) -> &[Place] {
        let first = self.places.partition_point(|place| place.inode < inode);
        let rest = &self.places[first..];
        &rest[..rest.partition_point(|place| place.inode == inode)]
    }

    fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<Place>()
    }
}

impl Indexes {
    /// Returns the index of a file system, which is cached if its source has an identity.
    pub(super) fn of(&self, file_system: &FileSystem<'_>) -> ReadResult<Arc<NameIndex>> {
        let identity = file_system.source().identity();
        if let Some(found) = identity.and_then(|id| self.kept.lock().find(id)) {
            return Ok(found);
        }
        let index = Arc::new(NameIndex::build(file_system)?);
        if let Some(id) = identity {
            self.kept.lock().keep(id, &index, KEPT_BYTES_MAX);
        }
        Ok(index)
    }
}

impl Kept {
    fn find(&mut self, id: u64) -> Option<Arc<NameIndex>> {
        self.uses += 1;
        let (index, used) = self.indexes.get_mut(&id)?;
        *used = self.uses;
        Some(Arc::clone(index))
    }

    fn keep(&mut self, id: u64, index: &Arc<NameIndex>, bytes_max: usize) {
        if index.bytes() > bytes_max {
            return;
        }
        self.uses += 1;
        self.bytes += index.bytes();
        let before = self.indexes.insert(id, (Arc::clone(index), self.uses));
        self.bytes -= before.map_or(0, |(before, _)| before.bytes());
        while self.bytes > bytes_max {
            let oldest = self.indexes.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                return;
            };
            let removed = self.indexes.remove(&oldest);
            self.bytes -= removed.map_or(0, |(removed, _)| removed.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(names: u32) -> Arc<NameIndex> {
        let place = |inode| Place {
            inode,
            directory: 2,
            block: 7,
        };
        Arc::new(NameIndex {
            places: (0..names).map(place).collect(),
        })
    }

    #[test]
    fn the_least_recently_used_go_when_all_take_too_much() {
        let mut kept = Kept::default();
        for id in 1..=3 {
            kept.keep(id, &index(10), 360);
        }
        assert!(kept.find(1).is_some());
        kept.keep(4, &index(15), 360);
        let present = |kept: &mut Kept| [1, 2, 3, 4].map(|id| kept.find(id).is_some());
        assert_eq!(present(&mut kept), [true, false, false, true]);
        assert_eq!(kept.bytes, 25 * size_of::<Place>());
        kept.keep(5, &index(31), 360);
        assert_eq!(present(&mut kept), [true, false, false, true]);
        kept.keep(4, &index(15), 360);
        assert_eq!(kept.bytes, 25 * size_of::<Place>());
    }

    #[test]
    fn places_are_found_by_inode() {
        let index = index(10);
        assert_eq!(index.places(4).len(), 1);
        assert!(index.places(10).is_empty());
    }
}
