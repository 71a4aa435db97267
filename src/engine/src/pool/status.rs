//! The state of the pool as a whole.

use super::handle::Pool;
use super::info::{PoolState, Status, Watermark};
use super::shared::{ENTRY_PROMISE, Shared};
use super::watermark;
use cowshed_format::base::{BLOCK_BYTES, Result};
use cowshed_format::device::{Device, MirrorDevice};
use std::sync::atomic::Ordering;

/// Maximum number of metadata blocks that a write of one block needs: two paths of a map of the
/// greatest height, and the promise for the volume's entry. With less than that and the block
/// itself, a pool is full.
const SMALLEST_WRITE_METADATA: u64 = 2 * 6 + ENTRY_PROMISE;

impl Pool {
    /// Returns the state of the pool as a whole.
    ///
    /// # Errors
    /// `Io` when the host does not tell how much the pool takes.
    pub fn status(&self) -> Result<Status> {
        self.shared.status()
    }
}

impl Shared {
    pub(super) fn status(&self) -> Result<Status> {
        let block = BLOCK_BYTES as u64;
        let layout = self.space.layout();
        // A rest that is too short for a group counts as metadata: nothing is ever stored there.
        let total = layout.body_blocks();
        let free = self.space.free_blocks() + self.space.hidden_blocks();
        let forest = self.forest.read();
        let mut removed = forest.removed_blocks();
        if self.missing.is_some() {
            // Nothing is reclaimed.
            removed.shared += std::mem::take(&mut removed.unneeded);
        }
        let volumes = forest.names.len() as u64;
        drop(forest);
        let taken = total.saturating_sub(free);
        let pending = (removed.unneeded + self.freed_lately()).min(taken);
        let writable = free.min(self.space.writable_blocks() + self.space.hidden_blocks());
        let size_bytes = layout.block_count() * block;
        let limit_bytes = self.limit_bytes();
        let growth = (limit_bytes - size_bytes) / block;
        let smallest_write = 1 + self.space.in_copies(SMALLEST_WRITE_METADATA);
        let full = writable + pending + growth < smallest_write;
        let state = if self.is_read_only() {
            PoolState::ReadOnly
        } else if self.check_alive().is_err() {
            PoolState::Stopped
        } else if full {
            PoolState::Full
        } else {
            PoolState::Open
        };
        let low_water = if full {
            Watermark::Full
        } else {
            watermark::level(writable + pending + growth, total + growth)
        };
        Ok(Status {
            size_bytes,
            used_bytes: (taken - pending) * block,
            free_bytes: writable * block,
            pending_free_bytes: pending * block,
            reserved_bytes: (free - writable) * block,
            removed_shared_bytes: removed.shared.min(taken - pending) * block,
            metadata_bytes: size_bytes - total * block,
            host_bytes: self.device.host_bytes()?,
            host_free_bytes: self.host_free_bytes(),
            host_refuses_writes: self.host_refuses_writes(),
            limit_bytes,
            volumes,
            generation: self.generation().0,
            log_used_bytes: self.log.used_bytes(),
            log_bytes: self.log.ring_bytes(),
            state,
            holds_writes: self.space_wait.is_awaited(),
            low_water,
            metadata_copies: u8::try_from(self.space.in_copies(1)).expect("one or two"),
            healed_blocks: self.healed_blocks(),
            degraded: self.device.mirror().is_some_and(MirrorDevice::is_degraded),
            missing: self.missing.report(),
            log_damaged_at: self.log_damage.get().copied(),
        })
    }

    /// Returns the number of damaged blocks that were written anew from copies and other sides.
    pub(super) fn healed_blocks(&self) -> u64 {
        self.healed.load(Ordering::Relaxed) + self.healed_on_sides()
    }

    /// Returns the number of blocks that were written anew on one side of a mirror from another.
    pub(super) fn healed_on_sides(&self) -> u64 {
        self.device.mirror().map_or(0, MirrorDevice::healed_blocks)
    }

    /// Returns the number of blocks that wait for the end of this or the next checkpoint.
    fn freed_lately(&self) -> u64 {
        let running = self.pending_free.load(Ordering::Relaxed);
        let waiting = self.freed_since_cut.load(Ordering::Relaxed);
        waiting + u64::try_from(running).unwrap_or(0)
    }
}
