//! What the pool as a whole looks like.

use super::handle::Pool;
use super::info::{PoolState, Status};
use crate::base::{BLOCK_BYTES, Result};
use crate::device::Device;
use crate::format::layout::{GROUP_HEADER_BLOCKS, LOG_START, TAIL_BLOCKS};
use std::sync::atomic::Ordering;

impl Pool {
    /// What the pool as a whole looks like.
    ///
    /// # Errors
    /// `Io` when the host does not say what the pool takes.
    pub fn status(&self) -> Result<Status> {
        let shared = &self.shared;
        let block = BLOCK_BYTES as u64;
        let layout = shared.space.layout();
        let fixed = LOG_START
            + layout.log_blocks()
            + TAIL_BLOCKS
            + layout.group_count() * GROUP_HEADER_BLOCKS;
        let total = layout.block_count() - fixed;
        let free = shared.space.free_blocks();
        let forest = shared.forest.read();
        let removed = forest
            .removed
            .iter()
            .map(|id| forest.volumes[id].core.own_blocks());
        let pending = removed.sum::<u64>() + self.freed_lately();
        let taken = total.saturating_sub(free);
        let pending = pending.min(taken);
        let state = if shared.check_open().is_err() {
            PoolState::Stopped
        } else if shared.space.writable_blocks() == 0 {
            PoolState::Full
        } else {
            PoolState::Open
        };
        Ok(Status {
            size_bytes: layout.block_count() * block,
            used_bytes: (taken - pending) * block,
            free_bytes: shared.space.writable_blocks() * block,
            pending_free_bytes: pending * block,
            metadata_bytes: fixed * block,
            host_bytes: shared.device.host_bytes()?,
            volumes: forest.names.len() as u64,
            generation: shared.generation().0,
            log_used_bytes: shared.log.used_bytes(),
            log_bytes: shared.log.ring_bytes(),
            state,
        })
    }

    /// Blocks that wait for the end of this or the next checkpoint.
    fn freed_lately(&self) -> u64 {
        let running = self.shared.pending_free.load(Ordering::Relaxed);
        let waiting = self.shared.freed_since_cut.load(Ordering::Relaxed);
        waiting + u64::try_from(running).unwrap_or(0)
    }
}
