//! Writing damaged copies of metadata anew.
//!
//! A read that finds one copy of a block damaged goes on with the other, and notes it
//! (`map::copies`). This module writes the noted copies, soon afterwards and in the background.
//!
//! # Invariants
//! - A copy is written only while it is certain that the block still belongs to the pointer that it
//!   was read through: no block has become free since before it was read, no checkpoint can end
//!   meanwhile, and the last one has both copies in use.
//! - It is written only with bytes that have the pointer's checksum.
//! - A healing write that fails stops nothing: the good copy is as it was.

use super::checkpoint::Checkpointer;
use super::shared::Shared;
use crate::map::Damage;
use cowshed_format::base::{CorruptKind, Result};
use std::sync::atomic::Ordering;

impl Shared {
    /// Writes the damaged copies anew that reads have found.
    pub(super) fn heal(&self) {
        if self.store.has_damage() && !self.is_read_only() {
            self.heal_locked(&self.checkpointer.lock());
        }
    }

    /// As `heal`, for the holder of the checkpointer.
    pub(super) fn heal_locked(&self, checkpointer: &Checkpointer) {
        if !self.store.has_damage() || self.is_read_only() {
            return;
        }
        for damage in self.store.take_damage() {
            self.heal_noted(checkpointer, &damage);
        }
    }

    /// Writes a damaged copy anew, if it is certain whose it is; returns true if it did.
    pub(super) fn heal_noted(&self, checkpointer: &Checkpointer, damage: &Damage) -> bool {
        if self.is_read_only() {
            return false;
        }
        let pool_offset_bytes = damage.addr.offset_bytes();
        match self.heal_one(checkpointer, damage) {
            Ok(false) => false,
            Ok(true) => {
                self.healed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    pool_offset_bytes,
                    "a damaged block of metadata was written anew from its copy"
                );
                true
            }
            Err(error) => {
                tracing::warn!(
                    pool_offset_bytes,
                    "a damaged block of metadata cannot be written anew from its copy: {error}"
                );
                false
            }
        }
    }

    /// Returns true if the copy was damaged and is whole again.
    fn heal_one(&self, checkpointer: &Checkpointer, damage: &Damage) -> Result<bool> {
        let Damage {
            pointer,
            addr,
            frees,
        } = *damage;
        let groups_start = self.store.groups_start();
        let is_used = |addr| checkpointer.committed.is_used(addr);
        if frees != self.store.frees() || !pointer.places(groups_start).all(is_used) {
            return Ok(false);
        }
        let read = |addr| {
            let corrupt = CorruptKind::NodeChecksum(addr);
            self.store.read_copy(pointer, addr, corrupt)
        };
        if read(addr).is_ok() {
            return Ok(false);
        }
        let other = pointer.places(groups_start).find(|place| *place != addr);
        let Some(other) = other else {
            return Ok(false);
        };
        let good = read(other)?;
        self.device.write_again(&*good, addr.offset_bytes())?;
        Ok(true)
    }
}
