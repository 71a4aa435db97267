//! Storing memory nodes, children before parents: the work of a checkpoint.

use super::edit::put_link;
use super::node::Node;
use super::node::is_unwritten;
use super::store::NodeStore;
use super::tree::{Link, Root, Tree, child_in_memory, entry_base};
use crate::space::{BlockList, Place, Space};
use cowshed_format::Pointer;
use cowshed_format::base::background_yield;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use cowshed_format::device::Device;
use cowshed_format::node::{encode, entry_blocks};
use std::collections::VecDeque;
use std::sync::Arc;

/// Number of bytes written to the device at a time.
const BATCH_BYTES: usize = 1 << 20;

/// Number of batches that may still grow: one for each copy.
const OPEN_BATCHES: usize = 2;

/// The destination of stored nodes: blocks of `space` that were promised before.
#[derive(Clone, Copy)]
pub(crate) struct Outlet<'a> {
    /// The store of nodes, whose cache takes them in.
    pub store: &'a NodeStore,
    /// The source of blocks.
    pub space: &'a Space,
    /// The device that nodes are written to.
    pub device: &'a dyn Device,
}

/// Stores nodes one after the other, in few and large writes.
///
/// A node becomes reachable as a stored one only once its bytes are on the device: `finish` must be
/// called before a stored root is used.
///
/// After an error, every call may be repeated: placed nodes keep their places, and the next call
/// writes what could not be written.
#[derive(Default)]
pub(crate) struct Persist {
    /// Blocks that were placed, in all their copies.
    pub born: BlockList,
    /// Number of second copies for which no place was found.
    pub copies_missing: u64,
    /// Blocks that are placed but not written, in order.
    batches: VecDeque<Batch>,
    /// Parents whose entries wait for their children's bytes.
    waiting: Vec<(Arc<Node>, usize, Pointer)>,
}

/// Adjacent blocks.
struct Batch {
    start: BlockAddr,
    bytes: Vec<u8>,
}

impl Persist {
    /// Stores the memory nodes below `root`, which no thread changes any more. Leaves out subtrees
    /// that end at or below block `settled`: they belong to another volume by now. Returns the
    /// root's pointer.
    ///
    /// # Errors
    /// `Io`; `NoSpace` when promises were broken.
    pub(crate) fn root(&mut self, to: Outlet<'_>, root: &Root, settled: u64) -> Result<Pointer> {
        self.write_whole(to)?;
        if root.capacity() <= settled {
            return Ok(Pointer::HOLE);
        }
        match &root.link {
            Link::Hole => Ok(Pointer::HOLE),
            Link::Lost(birth) => Ok(Pointer::lost(*birth)),
            Link::Stored(pointer) => Ok(*pointer),
            Link::Memory(node) => self.node(to, node, root.height, 0, settled),
        }
    }

    fn node(
        &mut self,
        to: Outlet<'_>,
        node: &Arc<Node>,
        level: u8,
        base: u64,
        settled: u64,
    ) -> Result<Pointer> {
        if let Some(pointer) = node.stored() {
            return Ok(pointer);
        }
        let mut entries = node.entries.copy();
        let mut children = Vec::new();
        for index in 0..entries.len() {
            if !is_unwritten(entries[index]) {
                continue;
            }
            let child_base = entry_base(base, level, index);
            if child_base + entry_blocks(level) <= settled {
                entries[index] = Pointer::HOLE;
                continue;
            }
            entries[index] = match child_in_memory(node, index) {
                Link::Memory(child) => {
                    let pointer = self.node(to, &child, level - 1, child_base, settled)?;
                    children.push((index, pointer));
                    pointer
                }
                Link::Stored(pointer) => pointer,
                Link::Hole => Pointer::HOLE,
                Link::Lost(birth) => Pointer::lost(birth),
            };
        }
        let place = to.space.allocate_promised().ok_or(Error::NoSpace)?;
        let bytes = encode(&entries);
        let pointer = Pointer::node(place.addr, node.birth(), crc32(&*bytes));
        let pointer = self.place(to, pointer, place, &bytes);
        to.store.remember(pointer, &entries);
        node.set_stored(pointer);
        let waiting = children.into_iter();
        self.waiting
            .extend(waiting.map(|(index, child)| (Arc::clone(node), index, child)));
        self.write_whole(to)?;
        background_yield::offer();
        Ok(pointer)
    }

    /// Adds a block that the checkpoint allocated; each copy is written with its neighbours.
    /// Returns `pointer`, which leads to the first copy, with what it has to say of the second.
    pub(crate) fn place(
        &mut self,
        to: Outlet<'_>,
        pointer: Pointer,
        place: Place,
        bytes: &[u8; BLOCK_BYTES],
    ) -> Pointer {
        self.copies_missing += to.space.in_copies(1) - 1 - u64::from(place.distance.is_some());
        let pointer = match place.distance {
            Some(distance) => pointer.with_copy(distance),
            None => pointer,
        };
        let groups_start = to.store.groups_start();
        self.born.push_copies(pointer, groups_start);
        for addr in pointer.places(groups_start) {
            self.write_later(addr, bytes);
        }
        pointer
    }

    fn write_later(&mut self, addr: BlockAddr, bytes: &[u8; BLOCK_BYTES]) {
        let mut open = self.batches.iter_mut().rev().take(OPEN_BATCHES);
        match open.find(|batch| batch.has_room_for(addr)) {
            Some(batch) => batch.bytes.extend_from_slice(bytes),
            None => self.batches.push_back(Batch {
                start: addr,
                bytes: bytes.to_vec(),
            }),
        }
    }

    /// Writes the batches that are complete.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub(crate) fn write_whole(&mut self, to: Outlet<'_>) -> Result<()> {
        self.write_but(to, OPEN_BATCHES)
    }

    /// Writes all batches but the last `kept`.
    fn write_but(&mut self, to: Outlet<'_>, kept: usize) -> Result<()> {
        while self.batches.len() > kept
            && let Some(first) = self.batches.front()
        {
            to.device
                .write_at(&first.bytes, first.start.offset_bytes())?;
            self.batches.pop_front();
        }
        Ok(())
    }

    /// Writes the remaining batches, and makes parents lead to their stored children.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub(crate) fn finish(&mut self, to: Outlet<'_>) -> Result<()> {
        self.write_but(to, 0)?;
        for (parent, index, pointer) in self.waiting.drain(..) {
            background_yield::offer();
            // The entry first: a reader that finds the child gone reads the entry again.
            put_link(&parent, index, &Link::Stored(pointer));
            parent.set_child(index, None);
        }
        Ok(())
    }
}

impl Batch {
    fn has_room_for(&self, addr: BlockAddr) -> bool {
        let next = self.start.0 + (self.bytes.len() / BLOCK_BYTES) as u64;
        addr.0 == next && self.bytes.len() < BATCH_BYTES
    }
}

impl Tree {
    /// Drops the root node that a checkpoint has stored as `pointer`, if it is still the root.
    pub(crate) fn let_go(&self, root: &Arc<Root>, pointer: Pointer) {
        if matches!(root.link, Link::Memory(_)) {
            self.replace_root(
                root,
                Root {
                    height: root.height,
                    link: Link::of(pointer),
                },
            );
        }
    }
}
