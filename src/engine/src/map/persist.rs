//! Storing memory nodes, children before parents: the work of a checkpoint.

use super::edit::put_link;
use super::node::Node;
use super::node::is_unwritten;
use super::store::NodeStore;
use super::tree::{Link, Root, Tree, child_in_memory, entry_base};
use crate::space::{BlockList, Space};
use cowshed_format::Pointer;
use cowshed_format::base::background_yield;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use cowshed_format::device::Device;
use cowshed_format::node::{encode, entry_blocks};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes written to the device at a time.
const BATCH_BYTES: usize = 1 << 20;

/// Where nodes are stored: in blocks of `space` that were promised before.
#[derive(Clone, Copy)]
pub(crate) struct Outlet<'a> {
    /// The nodes' store, which remembers them.
    pub store: &'a NodeStore,
    /// Where blocks come from.
    pub space: &'a Space,
    /// What they are written to.
    pub device: &'a dyn Device,
}

/// Stores nodes one after the other, in few and large writes.
///
/// A node becomes reachable as a stored one only once its bytes are on the device: `finish` must
/// be called before a root that was stored is used.
///
/// After an error, every call may be repeated: what was placed stays where it is, and what could
/// not be written is written by the next call.
#[derive(Default)]
pub(crate) struct Persist {
    /// Blocks that were placed.
    pub born: BlockList,
    /// What is placed and not written, in order.
    batches: VecDeque<Batch>,
    /// Parents whose entries wait for their children's bytes.
    waiting: Vec<(Arc<Node>, usize, Pointer)>,
}

/// Blocks that lie one after the other.
struct Batch {
    start: BlockAddr,
    bytes: Vec<u8>,
}

impl Persist {
    /// Stores what is in memory below `root`, which nobody changes any more. Subtrees that end at
    /// or below block `settled` are left out: they belong to someone else by now. Answers the
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
        let addr = to.space.allocate_promised().ok_or(Error::NoSpace)?;
        let bytes = encode(&entries);
        let pointer = Pointer::node(addr, node.birth(), crc32(&*bytes));
        self.place(addr, &bytes);
        to.store.remember(pointer, &entries);
        node.set_stored(pointer);
        let waiting = children.into_iter();
        self.waiting
            .extend(waiting.map(|(index, child)| (Arc::clone(node), index, child)));
        self.write_whole(to)?;
        background_yield::offer();
        Ok(pointer)
    }

    /// Takes in a block that the checkpoint allocated; it is written with its neighbours.
    pub(crate) fn place(&mut self, addr: BlockAddr, bytes: &[u8; BLOCK_BYTES]) {
        self.born.push(addr, 1);
        match self.batches.back_mut() {
            Some(last) if last.has_room_for(addr) => last.bytes.extend_from_slice(bytes),
            _ => self.batches.push_back(Batch {
                start: addr,
                bytes: bytes.to_vec(),
            }),
        }
    }

    /// Writes the batches that nothing is added to any more.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub(crate) fn write_whole(&mut self, to: Outlet<'_>) -> Result<()> {
        self.write_but(to, 1)
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

    /// Writes what is left, and makes parents lead to their stored children.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub(crate) fn finish(&mut self, to: Outlet<'_>) -> Result<()> {
        self.write_but(to, 0)?;
        for (parent, index, pointer) in self.waiting.drain(..) {
            background_yield::offer();
            // The entry first: a reader that finds the child gone looks at the entry again.
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
    /// Lets go of the root node that a checkpoint has stored as `pointer`, if it is still the
    /// root.
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
