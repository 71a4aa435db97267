//! Making the pool larger, on request or automatically, and giving free space back to the host.

use super::checkpoint::Checkpointer;
use super::handle::Pool;
use super::shared::Shared;
use cowshed_format::Layout;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use cowshed_format::device::Device;
use cowshed_format::layout::{MAX_POOL_BYTES, TAIL_BLOCKS};
use std::io;
use std::time::{Duration, Instant};

/// A pool that grows by itself grows by this or by a tenth, whichever is more (1 GiB).
const STEP_BYTES: u64 = 1 << 30;
/// It grows once the space left is less than a tenth of it and less than this (1 GiB).
const AHEAD_BYTES: u64 = 1 << 30;
/// Time that automatic growth waits after the host has refused.
const RETRY_AFTER: Duration = Duration::from_secs(30);

impl Pool {
    /// Makes the pool `size_bytes` large, while it is in use.
    ///
    /// # Errors
    /// `InvalidSize` for less than the present size or more than the format can hold; `Io`. If the
    /// host has no space, nothing has changed.
    pub fn grow(&self, size_bytes: u64) -> Result<()> {
        let shared = &self.shared;
        let mut checkpointer = shared.checkpointer.lock();
        shared.check_open()?;
        shared.grow_to(&mut checkpointer, size_bytes)
    }

    /// Gives all free space back to the host; returns the number of bytes. If hardly anything is
    /// free, it is kept for the next writer.
    ///
    /// # Errors
    /// `Io`.
    pub fn trim(&self) -> Result<u64> {
        self.shared.check_open()?;
        let shared = &self.shared;
        let given = shared.with_host_reserve(|| shared.space.punch_all(&*shared.device));
        shared.keep_host_reserve();
        given
    }
}

impl Shared {
    fn grow_to(&self, checkpointer: &mut Checkpointer, size_bytes: u64) -> Result<()> {
        let old = checkpointer.superblock.layout;
        let layout = Layout::new(size_bytes / BLOCK_BYTES as u64, old.log_blocks())?;
        if layout.block_count() < old.block_count() {
            let min_bytes = old.block_count() * BLOCK_BYTES as u64;
            let max_bytes = MAX_POOL_BYTES;
            return Err(Error::InvalidSize {
                what: "the pool",
                min_bytes,
                max_bytes,
            });
        }
        // A growth that was interrupted half-way is continued.
        if layout == old && layout == self.space.layout() {
            return Ok(());
        }
        self.check_host_for_growth()?;
        self.device.grow(size_bytes)?;
        // The host must have space for the superblock's copies: otherwise the checkpoint would
        // fail, and the pool stop. Nothing refers to the copies yet.
        let copies = layout.block_count() - TAIL_BLOCKS;
        if copies >= old.block_count() {
            for copy in copies..copies + TAIL_BLOCKS {
                self.device
                    .write_at(&[0; BLOCK_BYTES], BlockAddr(copy).offset_bytes())?;
            }
        }
        checkpointer.committed.grow(layout);
        checkpointer.superblock.layout = layout;
        self.store.set_layout(layout);
        self.run(checkpointer)?;
        self.space_wait.tell();
        self.host_reserve.forget();
        self.keep_host_reserve();
        // The other slot, too: it would hold the old size.
        self.run(checkpointer)
    }

    /// Refuses growth on a full host: the space that the pool reserves there is not for this.
    fn check_host_for_growth(&self) -> Result<()> {
        let free_bytes = self.device.host_free_bytes()?;
        if free_bytes.is_some_and(|free| free < TAIL_BLOCKS * BLOCK_BYTES as u64) {
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(Error::io("grow the pool", source));
        }
        Ok(())
    }

    /// Lets the pool grow because a caller has found no space; returns true if there may be space
    /// now. `blocks` is the pool's size from before the search.
    pub(super) fn grow_by_need(&self, blocks: u64) -> Result<bool> {
        if self.next_size_bytes().is_none() {
            return Ok(self.space.layout().block_count() > blocks);
        }
        let mut checkpointer = self.checkpointer.lock();
        if checkpointer.superblock.layout.block_count() > blocks {
            return Ok(true);
        }
        self.grow_a_step(&mut checkpointer)
    }

    /// Lets the pool grow before writers need it.
    pub(super) fn grow_ahead(&self) -> Result<()> {
        let block = BLOCK_BYTES as u64;
        let size_bytes = self.space.layout().block_count() * block;
        let ahead = (size_bytes / 10).min(AHEAD_BYTES);
        if self.next_size_bytes().is_none() || self.space.writable_blocks() * block >= ahead {
            return Ok(());
        }
        let mut checkpointer = self.checkpointer.lock();
        self.grow_a_step(&mut checkpointer).map(drop)
    }

    /// Returns the pool's size after its next step; `None` if it does not grow any further.
    fn next_size_bytes(&self) -> Option<u64> {
        let size_bytes = self.space.layout().block_count() * BLOCK_BYTES as u64;
        next_step(size_bytes, self.full.max_size_bytes?)
    }

    /// Returns the size that the pool reaches by itself, if the host allows it.
    pub(super) fn limit_bytes(&self) -> u64 {
        let size_bytes = self.space.layout().block_count() * BLOCK_BYTES as u64;
        let limit = self.full.max_size_bytes.unwrap_or(0).min(MAX_POOL_BYTES);
        size_bytes.max(limit & !(BLOCK_BYTES as u64 - 1))
    }

    fn grow_a_step(&self, checkpointer: &mut Checkpointer) -> Result<bool> {
        self.check_open()?;
        let Some(size_bytes) = self.next_size_bytes() else {
            return Ok(false);
        };
        let mut refused = self.growth_refused.lock();
        if refused.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Ok(false);
        }
        match self.grow_to(checkpointer, size_bytes) {
            Ok(()) => {
                *refused = None;
                tracing::info!(size_bytes, "the pool grew");
                Ok(true)
            }
            Err(error) if self.check_open().is_err() => Err(error),
            Err(error) => {
                if refused.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        size_bytes, %error,
                        "the pool cannot grow: free some space on the host's file system, or \
                         remove something from the pool"
                    );
                }
                Ok(false)
            }
        }
    }
}

fn next_step(size_bytes: u64, max_bytes: u64) -> Option<u64> {
    let block = BLOCK_BYTES as u64;
    let max_bytes = max_bytes.min(MAX_POOL_BYTES) & !(block - 1);
    let step = STEP_BYTES.max(size_bytes / 10) & !(block - 1);
    let next = size_bytes.saturating_add(step).min(max_bytes);
    (next > size_bytes).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_grows_by_a_tenth_or_a_gibibyte_up_to_its_limit() {
        const GIB: u64 = 1 << 30;
        assert_eq!(next_step(GIB, 64 * GIB), Some(2 * GIB));
        assert_eq!(next_step(100 * GIB, 1 << 40), Some(110 * GIB));
        assert_eq!(next_step(64 << 20, 80 << 20), Some(80 << 20));
        assert_eq!(next_step(GIB, GIB + 4097), Some(GIB + 4096));
        assert_eq!(next_step(GIB, GIB), None);
        assert_eq!(next_step(2 * GIB, GIB), None);
    }
}
