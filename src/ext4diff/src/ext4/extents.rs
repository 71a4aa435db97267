//! The blocks of a file: its tree of extents. Source: `Documentation/filesystems/ext4/ifork.rst`.

use super::fault::{Fault, Result};
use super::inode::{Inode, InodeKind};
use super::reader::FileSystem;
use super::{BLOCK_LEN, EXTENT_LEN_MAX, EXTENT_MAGIC, le16, le32};

/// The maximum depth of a tree in the kernel.
const DEPTH_MAX: u16 = 5;
/// Files with more runs than this are left to the kernel.
const RUNS_MAX: usize = 1 << 22;
/// Length of the header and of each entry.
const ENTRY_BYTES: usize = 12;

/// A contiguous run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the first block within the file.
    pub logical: u64,
    /// The number of the first block within the file system.
    pub physical: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// True if allocated and never written: it reads as zeros.
    pub is_unwritten: bool,
}

/// All blocks of a file.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    /// The data, in the file's order.
    pub runs: Vec<Run>,
    /// The nodes of the tree that lie outside the inode.
    pub nodes: Vec<u64>,
}

impl FileSystem<'_> {
    /// Reads an inode's extents; none for an object without blocks.
    ///
    /// # Errors
    /// `Unsupported` if its blocks are stored in another way, and the reason why they cannot be
    /// read.
    pub fn extents(&self, inode: &Inode) -> Result<Extents> {
        let mut extents = Extents::default();
        if !inode.has_extents() {
            let has_blocks = matches!(
                inode.kind(),
                InodeKind::File | InodeKind::Directory | InodeKind::Symlink
            );
            // A short symbolic link keeps its target there.
            let is_short = inode.short_target().is_some();
            if has_blocks && !is_short && inode.block_field().iter().any(|byte| *byte != 0) {
                return Err(Fault::Unsupported("files without extents"));
            }
            return Ok(extents);
        }
        let root = inode.block_field();
        let depth = le16(root, 6);
        if depth > DEPTH_MAX {
            return Err(Fault::Corrupt("the depth of an extent tree"));
        }
        self.extent_node(root, depth, &mut extents)?;
        Ok(extents)
    }

    fn extent_node(&self, node: &[u8], depth: u16, found: &mut Extents) -> Result<()> {
        let entries = usize::from(le16(node, 2));
        let room = node.len() / ENTRY_BYTES - 1;
        // Only the root may be empty: so each node below it advances the end of the runs, and none
        // can be visited twice.
        let is_empty = entries == 0 && node.len() == BLOCK_LEN;
        if le16(node, 0) != EXTENT_MAGIC || le16(node, 6) != depth || entries > room || is_empty {
            return Err(Fault::Corrupt("an extent node"));
        }
        if found.runs.len() > RUNS_MAX {
            return Err(Fault::Unsupported("a file in too many pieces"));
        }
        for entry in node[ENTRY_BYTES..].chunks_exact(ENTRY_BYTES).take(entries) {
            if depth == 0 {
                found.runs.push(self.leaf(entry, found.runs.last())?);
                continue;
            }
            let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
            if child == 0 {
                return Err(Fault::Corrupt("an extent node"));
            }
            found.nodes.push(child);
            let block = self.block(child)?;
            self.extent_node(block.as_slice(), depth - 1, found)?;
        }
        Ok(())
    }

    fn leaf(&self, entry: &[u8], before: Option<&Run>) -> Result<Run> {
        let len = le16(entry, 4);
        let is_unwritten = len > EXTENT_LEN_MAX;
        let blocks = u64::from(if is_unwritten {
            len - EXTENT_LEN_MAX
        } else {
            len
        });
        let run = Run {
            logical: u64::from(le32(entry, 0)),
            physical: u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8)),
            blocks,
            is_unwritten,
        };
        let in_order = before.is_none_or(|before| run.logical >= before.logical + before.blocks);
        let inside = run.physical > 0 && run.physical + blocks <= self.blocks();
        (blocks > 0 && in_order && inside)
            .then_some(run)
            .ok_or(Fault::Corrupt("an extent"))
    }
}
