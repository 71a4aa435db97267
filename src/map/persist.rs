//! Storing memory nodes, children before parents: the work of a checkpoint.

use super::edit::put_link;
use super::node::Node;
use super::node::is_unwritten;
use super::store::NodeStore;
use super::tree::{Link, Root, Tree, child_in_memory, entry_base};
use crate::base::checksum::crc32;
use crate::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use crate::device::Device;
use crate::format::Pointer;
use crate::format::node::{Entries, encode, entry_blocks};
use crate::space::{BlockList, Space};
use std::sync::Arc;

/// Bytes written to the device at a time.
const BATCH_BYTES: usize = 1 << 20;

/// Stores nodes one after the other, in few and large writes.
///
/// A node becomes reachable as a stored one only once its bytes are on the device: `finish` must
/// be called before a root that was stored is used.
pub struct Persist<'a> {
    store: &'a NodeStore,
    space: &'a Space,
    device: &'a dyn Device,
    /// Blocks that the stored nodes took.
    pub born: BlockList,
    batch: Vec<u8>,
    batch_start: BlockAddr,
    /// Parents whose entries wait for their children's bytes.
    waiting: Vec<(Arc<Node>, usize, Pointer)>,
}

impl<'a> Persist<'a> {
    /// Stores to `device`, in blocks that were promised before.
    #[must_use]
    pub fn new(store: &'a NodeStore, space: &'a Space, device: &'a dyn Device) -> Self {
        Self {
            store,
            space,
            device,
            born: BlockList::default(),
            batch: Vec::new(),
            batch_start: BlockAddr(0),
            waiting: Vec::new(),
        }
    }

    /// Stores what is in memory below `root`, which nobody changes any more. Subtrees that end at
    /// or below block `settled` are left out: they belong to someone else by now. Answers the
    /// root's pointer.
    ///
    /// # Errors
    /// `Io`; `NoSpace` when promises were broken.
    pub fn root(&mut self, root: &Root, settled: u64) -> Result<Pointer> {
        if root.capacity() <= settled {
            return Ok(Pointer::HOLE);
        }
        match &root.link {
            Link::Hole => Ok(Pointer::HOLE),
            Link::Stored(pointer) => Ok(*pointer),
            Link::Memory(node) => self.node(node, root.height, 0, settled),
        }
    }

    fn node(&mut self, node: &Arc<Node>, level: u8, base: u64, settled: u64) -> Result<Pointer> {
        if let Some(pointer) = node.stored() {
            return Ok(pointer);
        }
        let mut entries = node.entries.copy();
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
                    let pointer = self.node(&child, level - 1, child_base, settled)?;
                    self.waiting.push((Arc::clone(node), index, pointer));
                    pointer
                }
                Link::Stored(pointer) => pointer,
                Link::Hole => Pointer::HOLE,
            };
        }
        let pointer = self.place(&entries, node)?;
        node.set_stored(pointer);
        Ok(pointer)
    }

    fn place(&mut self, entries: &Entries, node: &Node) -> Result<Pointer> {
        let addr = self.space.allocate_promised().ok_or(Error::NoSpace)?;
        let bytes = encode(entries);
        let pointer = Pointer::node(addr, node.birth(), crc32(&*bytes));
        self.write(addr, &bytes)?;
        self.store.remember(pointer, entries);
        Ok(pointer)
    }

    /// Writes a block that the checkpoint allocated, with its neighbours where it can.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub fn write(&mut self, addr: BlockAddr, bytes: &[u8; BLOCK_BYTES]) -> Result<()> {
        let next = self.batch_start.0 + (self.batch.len() / BLOCK_BYTES) as u64;
        if addr.0 != next || self.batch.len() >= BATCH_BYTES {
            self.flush_batch()?;
            self.batch_start = addr;
        }
        self.batch.extend_from_slice(bytes);
        self.born.push(addr, 1);
        Ok(())
    }

    fn flush_batch(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.device
                .write_at(&self.batch, self.batch_start.offset_bytes())?;
            self.batch.clear();
        }
        Ok(())
    }

    /// Writes what is left, and makes parents lead to their stored children.
    ///
    /// # Errors
    /// As `Device::write_at`.
    pub fn finish(&mut self) -> Result<()> {
        self.flush_batch()?;
        for (parent, index, pointer) in self.waiting.drain(..) {
            // The entry first: a reader that finds the child gone looks at the entry again.
            put_link(&parent, index, &Link::Stored(pointer));
            parent.set_child(index, None);
        }
        Ok(())
    }
}

impl Tree {
    /// Lets go of the root node that a checkpoint has stored as `pointer`, if it is still the
    /// root.
    pub fn let_go(&self, root: &Arc<Root>, pointer: Pointer) {
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
