//! The layout of a pool: superblocks, log, allocation groups, superblock copies.

use super::pointer::Pointer;
use crate::base::{BLOCK_BYTES, BlockAddr, Error, Result};

/// Number of blocks before the log: the two superblock slots and reserved blocks.
pub const LOG_START: u64 = 16;
/// Number of blocks at the end of the pool: a copy of each superblock slot.
pub const TAIL_BLOCKS: u64 = 2;
/// Number of blocks in an allocation group (128 MiB).
pub const GROUP_BLOCKS: u64 = 32_768;
/// Number of blocks in a group's header: two bitmap slots of a header and a bitmap each.
pub const GROUP_HEADER_BLOCKS: u64 = 4;
/// Minimum number of blocks in the last group; a shorter rest of the pool stays unused.
pub const MIN_GROUP_BLOCKS: u64 = 64;
/// The smallest log, in bytes.
pub const MIN_LOG_BYTES: u64 = 64 << 10;
/// The largest log, in bytes.
pub const MAX_LOG_BYTES: u64 = 4 << 30;
/// The smallest pool, in bytes.
pub const MIN_POOL_BYTES: u64 = 2 << 20;
/// The largest pool, in bytes: 2^40 blocks of 4 KiB less one.
pub const MAX_POOL_BYTES: u64 = ((1 << 40) - 1) << 12;

/// Minimum (768 KiB) and maximum (16 MiB) of the slop, for each copy of the metadata. Each quarter of
/// the minimum is more than the promise of any one operation of its demand.
const SLOP_BLOCKS: (u64, u64) = (192, 4096);

/// The places of a pool's parts, derived from its block count and log size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    block_count: u64,
    log_blocks: u64,
}

impl Layout {
    /// Returns the layout of a pool of `block_count` blocks with a log of `log_blocks`.
    ///
    /// # Errors
    /// `InvalidSize` when the pool or the log is too small or too large.
    pub fn new(block_count: u64, log_blocks: u64) -> Result<Self> {
        let block = BLOCK_BYTES as u64;
        if !(MIN_POOL_BYTES / block..=MAX_POOL_BYTES / block).contains(&block_count) {
            let (min_bytes, max_bytes) = (MIN_POOL_BYTES, MAX_POOL_BYTES);
            return Err(Error::InvalidSize {
                what: "a pool",
                min_bytes,
                max_bytes,
            });
        }
        let most = MAX_LOG_BYTES.min((block_count / 2) * block);
        if !(MIN_LOG_BYTES / block..=most / block).contains(&log_blocks) {
            let (min_bytes, max_bytes) = (MIN_LOG_BYTES, most);
            return Err(Error::InvalidSize {
                what: "the log",
                min_bytes,
                max_bytes,
            });
        }
        Ok(Self {
            block_count,
            log_blocks,
        })
    }

    /// Returns the default log size for a pool of `pool_bytes`: a sixteenth of it, 256 KiB to 256
    /// MiB.
    #[must_use]
    pub fn default_log_bytes(pool_bytes: u64) -> u64 {
        (pool_bytes / 16).clamp(256 << 10, 256 << 20) & !(BLOCK_BYTES as u64 - 1)
    }

    /// Returns the number of blocks in the pool.
    #[must_use]
    pub const fn block_count(self) -> u64 {
        self.block_count
    }

    /// Returns the number of blocks in the log ring.
    #[must_use]
    pub const fn log_blocks(self) -> u64 {
        self.log_blocks
    }

    /// Returns the byte offset of the log ring.
    #[must_use]
    pub const fn log_offset_bytes(self) -> u64 {
        LOG_START * BLOCK_BYTES as u64
    }

    /// Returns the number of bytes in the log ring.
    #[must_use]
    pub const fn log_bytes(self) -> u64 {
        self.log_blocks * BLOCK_BYTES as u64
    }

    /// Returns the first block of the first group.
    #[must_use]
    pub const fn groups_start(self) -> u64 {
        LOG_START + self.log_blocks
    }

    /// Returns the number of allocation groups.
    #[must_use]
    pub const fn group_count(self) -> u64 {
        let room = self.block_count - TAIL_BLOCKS - self.groups_start();
        let whole = room / GROUP_BLOCKS;
        if room % GROUP_BLOCKS >= MIN_GROUP_BLOCKS {
            whole + 1
        } else {
            whole
        }
    }

    /// Returns the first block of group `group`.
    #[must_use]
    pub const fn group_start(self, group: u64) -> u64 {
        self.groups_start() + group * GROUP_BLOCKS
    }

    /// Returns the number of blocks in group `group`, its header included.
    #[must_use]
    pub const fn group_blocks(self, group: u64) -> u64 {
        let rest = self.block_count - TAIL_BLOCKS - self.group_start(group);
        if rest < GROUP_BLOCKS {
            rest
        } else {
            GROUP_BLOCKS
        }
    }

    /// Returns the address of bitmap slot `slot` (0 or 1) of `group`: that of its header, which the
    /// bitmap follows.
    #[must_use]
    pub const fn bitmap_slot(self, group: u64, slot: u8) -> BlockAddr {
        BlockAddr(self.group_start(group) + slot as u64 * 2)
    }

    /// Returns the group of `addr` and the block's number in it; `None` for a block that cannot
    /// hold data or a node.
    #[must_use]
    pub const fn locate(self, addr: BlockAddr) -> Option<(u64, u64)> {
        if addr.0 < self.groups_start() {
            return None;
        }
        let group = (addr.0 - self.groups_start()) / GROUP_BLOCKS;
        let index = (addr.0 - self.groups_start()) % GROUP_BLOCKS;
        if group >= self.group_count()
            || index >= self.group_blocks(group)
            || index < GROUP_HEADER_BLOCKS
        {
            return None;
        }
        Some((group, index))
    }

    /// Returns the slop, the number of blocks that are kept back for removing and for checkpoints, in
    /// a pool that writes its metadata in `copies` copies.
    #[must_use]
    pub fn slop_blocks(self, copies: u8) -> u64 {
        let copies = u64::from(copies);
        (self.block_count / 64).clamp(SLOP_BLOCKS.0 * copies, SLOP_BLOCKS.1 * copies)
    }

    /// Returns the number of blocks that can hold data or a node.
    #[must_use]
    pub const fn body_blocks(self) -> u64 {
        match self.group_count() {
            0 => 0,
            groups => {
                let others = (groups - 1) * GROUP_BLOCKS;
                others + self.group_blocks(groups - 1) - groups * GROUP_HEADER_BLOCKS
            }
        }
    }

    /// Returns true if each copy of the block that `pointer` leads to can lie where it says.
    #[must_use]
    pub fn holds(self, pointer: Pointer) -> bool {
        let copy = pointer.copy_addr(self.groups_start());
        self.locate(pointer.addr()).is_some()
            && copy.is_some() == pointer.has_copy()
            && copy.is_none_or(|copy| self.locate(copy).is_some())
    }

    /// Returns the addresses of superblock slot `slot` (0 or 1) and of its copy at the end of the
    /// pool.
    #[must_use]
    pub const fn superblock_slots(self, slot: u8) -> [BlockAddr; 2] {
        [
            BlockAddr(slot as u64),
            BlockAddr(self.block_count - TAIL_BLOCKS + slot as u64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_at_most_one_part() {
        let layout = Layout::new(GROUP_BLOCKS * 2 + 5000, 64).unwrap();
        assert_eq!(layout.group_count(), 3);
        assert_eq!(layout.locate(BlockAddr(layout.groups_start())), None);
        let first = BlockAddr(layout.groups_start() + GROUP_HEADER_BLOCKS);
        assert_eq!(layout.locate(first), Some((0, GROUP_HEADER_BLOCKS)));
        let last = BlockAddr(layout.block_count() - TAIL_BLOCKS - 1);
        assert_eq!(layout.locate(last), Some((2, layout.group_blocks(2) - 1)));
        assert_eq!(layout.locate(BlockAddr(last.0 + 1)), None);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Layout::new(100, 16).is_err());
        assert!(Layout::new(1 << 20, 1).is_err());
        assert!(Layout::new(1 << 20, 1 << 19).is_ok());
        assert!(Layout::new(1 << 20, (1 << 19) + 1).is_err());
    }
}
