//! The expected contents of a pool, in plain memory: the model with which the engine is compared.
//!
//! Every written block gets its own id and one owner, so that the model knows which volume owns
//! what without counting references. It follows the rules of sharing literally:
//!
//! - a snapshot takes its volume's place and its blocks; the volume starts anew as its child;
//! - a block that is overwritten goes away if the writer owns it, and stays with its owner if not;
//! - a removed volume without a child takes its blocks with it; with one child it passes to that
//!   child what the child still maps; with more it loses its name, keeps what any child maps, and
//!   waits until one child is left.

use cowshed_format::base::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const BLOCK: u64 = BLOCK_BYTES as u64;

/// Blocks under one leaf of a map.
pub const LEAF_BLOCKS: u64 = 256;

/// A written block.
pub struct Block {
    pub id: u64,
    pub bytes: [u8; BLOCK_BYTES],
}

/// The blocks of a volume that hold anything but zeros.
pub type Blocks = BTreeMap<u64, Arc<Block>>;

/// The reason why the model refuses an operation; the engine must refuse it for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Exists,
    Frozen,
    NotFrozen,
    NotAncestor,
    NotFound,
}

#[derive(Clone)]
pub struct Volume {
    /// `None` once the volume is removed and waits for its children.
    pub name: Option<String>,
    pub parent: Option<u64>,
    pub frozen: bool,
    pub size_bytes: u64,
    pub labels: BTreeMap<String, String>,
    pub blocks: Blocks,
    /// Ids of the blocks that it owns.
    pub own: BTreeSet<u64>,
    /// Leaves of its map that it has changed: only those, and the nodes above them, can be its own
    /// nodes.
    pub touched: BTreeSet<u64>,
}

impl Volume {
    pub fn read(&self, offset_bytes: u64, len_bytes: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len_bytes).unwrap()];
        for (index, from, len, at) in pieces(offset_bytes, len_bytes) {
            if let Some(block) = self.blocks.get(&index) {
                bytes[at..at + len].copy_from_slice(&block.bytes[from..from + len]);
            }
        }
        bytes
    }

    fn take(&mut self, index: u64) {
        self.touched.insert(index / LEAF_BLOCKS);
        if let Some(old) = self.blocks.remove(&index) {
            self.own.remove(&old.id);
        }
    }
}

/// Returns the blocks that a range touches: number, offset in the block, length, offset in the
/// range.
fn pieces(offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let end = offset_bytes + len_bytes;
    (offset_bytes / BLOCK..end.div_ceil(BLOCK)).map(move |index| {
        let from = offset_bytes.max(index * BLOCK);
        let to = end.min((index + 1) * BLOCK);
        let small = |bytes: u64| usize::try_from(bytes).unwrap();
        (
            index,
            small(from - index * BLOCK),
            small(to - from),
            small(from - offset_bytes),
        )
    })
}

/// The expected state of a pool.
#[derive(Clone, Default)]
pub struct Oracle {
    pub volumes: BTreeMap<u64, Volume>,
    pub records: BTreeMap<(u16, Vec<u8>), Vec<u8>>,
    /// Set by removals, which the engine settles asynchronously.
    pub unsettled: bool,
    next_block: u64,
}

impl Oracle {
    pub fn named(&self, name: &str) -> Option<u64> {
        let is_it = |volume: &Volume| volume.name.as_deref() == Some(name);
        self.volumes
            .iter()
            .find(|(_, volume)| is_it(volume))
            .map(|(id, _)| *id)
    }

    /// Returns the ids of all volumes that have a name.
    pub fn all_named(&self) -> Vec<u64> {
        let named = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.name.is_some());
        named.map(|(id, _)| *id).collect()
    }

    pub fn children(&self, id: u64) -> Vec<u64> {
        let children = self.volumes.iter().filter(|(_, v)| v.parent == Some(id));
        children.map(|(id, _)| *id).collect()
    }

    pub fn check_free(&self, name: &str) -> Result<(), Refusal> {
        self.named(name).map_or(Ok(()), |_| Err(Refusal::Exists))
    }

    fn get(&mut self, id: u64) -> &mut Volume {
        self.volumes
            .get_mut(&id)
            .expect("the driver uses volumes that exist")
    }

    pub fn check_writable(&self, id: u64) -> Result<(), Refusal> {
        if self.volumes[&id].frozen {
            return Err(Refusal::Frozen);
        }
        Ok(())
    }

    pub fn create(&mut self, id: u64, name: &str, size_bytes: u64) {
        let volume = Volume {
            name: Some(name.to_owned()),
            parent: None,
            frozen: false,
            size_bytes,
            labels: BTreeMap::new(),
            blocks: Blocks::new(),
            own: BTreeSet::new(),
            touched: BTreeSet::new(),
        };
        assert!(
            self.volumes.insert(id, volume).is_none(),
            "id {id} was used before"
        );
    }

    pub fn write(&mut self, id: u64, offset_bytes: u64, bytes: &[u8]) {
        for (index, from, len, at) in pieces(offset_bytes, bytes.len() as u64) {
            self.next_block += 1;
            let block_id = self.next_block;
            let volume = self.get(id);
            let old = volume.blocks.get(&index);
            let mut content = old.map_or([0; BLOCK_BYTES], |block| block.bytes);
            content[from..from + len].copy_from_slice(&bytes[at..at + len]);
            volume.take(index);
            if content != [0; BLOCK_BYTES] {
                let block = Block {
                    id: block_id,
                    bytes: content,
                };
                volume.blocks.insert(index, Arc::new(block));
                volume.own.insert(block_id);
            }
        }
    }

    pub fn discard(&mut self, id: u64, offset_bytes: u64, len_bytes: u64) {
        let whole = |index: u64| {
            index * BLOCK >= offset_bytes && (index + 1) * BLOCK <= offset_bytes + len_bytes
        };
        let last = (offset_bytes + len_bytes).div_ceil(BLOCK);
        let mapped = self.volumes[&id].blocks.range(offset_bytes / BLOCK..last);
        let mapped: Vec<u64> = mapped.map(|(index, _)| *index).collect();
        for index in mapped {
            if whole(index) {
                self.get(id).take(index);
            } else {
                let from = offset_bytes.max(index * BLOCK);
                let to = (offset_bytes + len_bytes).min((index + 1) * BLOCK);
                let zeros = vec![0; usize::try_from(to - from).unwrap()];
                self.write(id, from, &zeros);
            }
        }
    }

    pub fn resize(&mut self, id: u64, size_bytes: u64) {
        let old_bytes = self.volumes[&id].size_bytes;
        if size_bytes < old_bytes {
            let end = old_bytes.next_multiple_of(BLOCK);
            self.discard(id, size_bytes, end - size_bytes);
        }
        self.get(id).size_bytes = size_bytes;
    }

    pub fn snapshot(&mut self, id: u64, snapshot: u64, name: &str) {
        let volume = self.get(id);
        let taken = Volume {
            name: Some(name.to_owned()),
            parent: volume.parent,
            frozen: true,
            size_bytes: volume.size_bytes,
            labels: BTreeMap::new(),
            blocks: volume.blocks.clone(),
            own: std::mem::take(&mut volume.own),
            touched: std::mem::take(&mut volume.touched),
        };
        volume.parent = Some(snapshot);
        assert!(
            self.volumes.insert(snapshot, taken).is_none(),
            "id {snapshot} was used before"
        );
    }

    pub fn clone_volume(&mut self, snapshot: u64, id: u64, name: &str) -> Result<(), Refusal> {
        let origin = &self.volumes[&snapshot];
        if !origin.frozen {
            return Err(Refusal::NotFrozen);
        }
        let clone = Volume {
            name: Some(name.to_owned()),
            parent: Some(snapshot),
            frozen: false,
            size_bytes: origin.size_bytes,
            labels: BTreeMap::new(),
            blocks: origin.blocks.clone(),
            own: BTreeSet::new(),
            touched: BTreeSet::new(),
        };
        assert!(
            self.volumes.insert(id, clone).is_none(),
            "id {id} was used before"
        );
        Ok(())
    }

    pub fn freeze(&mut self, id: u64) {
        self.get(id).frozen = true;
    }

    pub fn check_rollback(&self, id: u64, snapshot: u64) -> Result<(), Refusal> {
        self.check_writable(id)?;
        if !self.volumes[&snapshot].frozen {
            return Err(Refusal::NotFrozen);
        }
        let mut at = self.volumes[&id].parent;
        while let Some(ancestor) = at {
            if ancestor == snapshot {
                return Ok(());
            }
            at = self.volumes[&ancestor].parent;
        }
        Err(Refusal::NotAncestor)
    }

    pub fn rollback(&mut self, id: u64, snapshot: u64) {
        let origin = &self.volumes[&snapshot];
        let (blocks, size_bytes) = (origin.blocks.clone(), origin.size_bytes);
        let volume = self.get(id);
        let left = volume.parent.replace(snapshot);
        volume.blocks = blocks;
        volume.size_bytes = size_bytes;
        volume.own.clear();
        volume.touched.clear();
        self.unsettled = true;
        if let Some(left) = left {
            self.settle(left);
        }
    }

    pub fn rename(&mut self, id: u64, name: &str) {
        self.get(id).name = Some(name.to_owned());
    }

    pub fn set_labels(&mut self, id: u64, labels: BTreeMap<String, String>) {
        self.get(id).labels = labels;
    }

    pub fn remove(&mut self, id: u64) {
        self.get(id).name = None;
        self.unsettled = true;
        self.settle(id);
    }

    /// Removes a nameless volume from the forest if it has at most one child.
    fn settle(&mut self, id: u64) {
        if self.volumes[&id].name.is_some() {
            return;
        }
        let children = self.children(id);
        let mut wanted = BTreeSet::new();
        for child in &children {
            wanted.extend(self.volumes[child].blocks.values().map(|block| block.id));
        }
        let kept: BTreeSet<u64> = self.volumes[&id]
            .own
            .intersection(&wanted)
            .copied()
            .collect();
        if children.len() > 1 {
            self.get(id).own = kept;
            return;
        }
        let gone = self.volumes.remove(&id).expect("it was there a moment ago");
        match (children.first(), gone.parent) {
            (Some(child), parent) => {
                let child = self.get(*child);
                child.parent = parent;
                child.own.extend(kept);
                child.touched.extend(gone.touched);
            }
            (None, Some(parent)) => self.settle(parent),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fill: u8) -> Vec<u8> {
        vec![fill; BLOCK_BYTES]
    }

    #[test]
    fn one_child_inherits_what_it_still_maps() {
        let mut pool = Oracle::default();
        pool.create(1, "a", 4 * BLOCK);
        pool.write(1, 0, &block(1));
        pool.write(1, BLOCK, &block(2));
        pool.snapshot(1, 2, "s");
        pool.write(1, 0, &block(3));
        assert_eq!(
            (pool.volumes[&1].own.len(), pool.volumes[&2].own.len()),
            (1, 2)
        );
        pool.remove(2);
        assert_eq!(pool.volumes[&1].own.len(), 2);
        assert_eq!(pool.volumes[&1].parent, None);
    }

    #[test]
    fn with_two_children_the_remainder_waits() {
        let mut pool = Oracle::default();
        pool.create(1, "a", 4 * BLOCK);
        pool.write(1, 0, &block(1));
        pool.write(1, BLOCK, &block(2));
        pool.snapshot(1, 2, "s");
        pool.clone_volume(2, 3, "c").unwrap();
        pool.write(1, 0, &block(3));
        pool.write(3, 0, &block(4));
        pool.remove(2);
        assert_eq!(pool.volumes[&2].own.len(), 1);
        pool.remove(3);
        assert_eq!(pool.volumes[&1].own.len(), 2);
        assert_eq!(pool.all_named(), [1]);
        assert_eq!(pool.volumes.len(), 1);
    }

    #[test]
    fn a_block_of_zeros_is_a_hole() {
        let mut pool = Oracle::default();
        pool.create(1, "a", 4 * BLOCK);
        pool.write(1, 100, b"x");
        assert_eq!(pool.volumes[&1].blocks.len(), 1);
        pool.write(1, 100, &[0]);
        assert!(pool.volumes[&1].blocks.is_empty() && pool.volumes[&1].own.is_empty());
    }
}
