//! Making the pool larger, and giving free space back to the host.

use super::handle::Pool;
use crate::base::{BLOCK_BYTES, Error, Result};
use crate::device::Device;
use crate::format::Layout;

impl Pool {
    /// Makes the pool `size_bytes` large, while it is in use.
    ///
    /// # Errors
    /// `InvalidSize` for less than it has or more than the format holds; `Io`.
    pub fn grow(&self, size_bytes: u64) -> Result<()> {
        let shared = &self.shared;
        let mut checkpointer = shared.checkpointer.lock();
        shared.check_open()?;
        let old = checkpointer.superblock.layout;
        let layout = Layout::new(size_bytes / BLOCK_BYTES as u64, old.log_blocks())?;
        if layout.block_count() < old.block_count() {
            let min_bytes = old.block_count() * BLOCK_BYTES as u64;
            let max_bytes = crate::format::layout::MAX_POOL_BYTES;
            return Err(Error::InvalidSize {
                what: "the pool",
                min_bytes,
                max_bytes,
            });
        }
        if layout == old {
            return Ok(());
        }
        shared.device.grow(size_bytes)?;
        // Nothing is allocated in the new part before a superblock that knows it is durable.
        checkpointer.committed.grow(layout);
        checkpointer.superblock.layout = layout;
        shared.store.set_layout(layout);
        shared.run(&mut checkpointer)?;
        shared.space.grow(layout);
        // The other slot, too: it would speak of the old size.
        shared.run(&mut checkpointer)
    }

    /// Gives all free space back to the host; answers how many bytes that are.
    ///
    /// # Errors
    /// `Io`.
    pub fn trim(&self) -> Result<u64> {
        self.shared.check_open()?;
        self.shared.space.punch_all(&*self.shared.device)
    }
}
