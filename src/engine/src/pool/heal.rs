//! Writing damaged copies of metadata anew.
//!
//! A read that finds one copy of a block damaged goes on with the other, and notes it
//! (`map::copies`). This module writes the noted copies, soon afterwards and in the background.
//!
//! # Invariants
//! - A copy is written only while it is certain that the block still belongs to the pointer that it
//!   was read through: the pool is open, no block has become free since before it was read, no
//!   checkpoint is under way or can begin, and the last one has both copies in use.
//! - It is written only with bytes that have the pointer's checksum.
//! - A healing write that the host refuses stops nothing: the good copy is as it was. One that the
//!   host takes and cannot write back stops the pool, as any write does.

use super::checkpoint::Checkpointer;
use super::shared::Shared;
use crate::map::Damage;
use cowshed_format::base::{CorruptKind, Result};
use cowshed_format::device::Device;
use std::sync::atomic::Ordering;

/// Maximum number of copies written anew before a checkpoint can go on.
const AT_ONCE: usize = 16;

/// What became of a damaged copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Healing {
    /// It was written anew.
    Healed,
    /// It is not damaged, or it is not certain whose block it is.
    Nothing,
    /// It is damaged still.
    Failed,
}

impl Shared {
    /// Writes the damaged copies anew that reads have found.
    pub(super) fn heal(&self) {
        if let Some(mirror) = self.device.mirror() {
            mirror.heal_unreadable();
        }
        while self.store.has_damage() && self.check_open().is_ok() {
            let checkpointer = self.checkpointer.lock();
            if !self.heal_locked(&checkpointer) {
                return;
            }
        }
    }

    /// Writes some of the damaged copies anew; returns true if it took all that it may at once.
    pub(super) fn heal_locked(&self, checkpointer: &Checkpointer) -> bool {
        if !self.store.has_damage() || !self.may_heal(checkpointer) {
            return false;
        }
        let damage = self.store.take_damage(AT_ONCE);
        for damage in &damage {
            self.heal_noted(checkpointer, damage);
        }
        damage.len() == AT_ONCE
    }

    /// Returns true if the last checkpoint is the pool's state on disk, and this process is the one
    /// that changes it.
    pub(super) fn may_heal(&self, checkpointer: &Checkpointer) -> bool {
        self.check_open().is_ok() && !self.is_read_only() && !checkpointer.is_postponed()
    }

    /// Writes a damaged copy anew, if it is certain whose it is.
    pub(super) fn heal_noted(&self, checkpointer: &Checkpointer, damage: &Damage) -> Healing {
        if !self.may_heal(checkpointer) {
            return Healing::Failed;
        }
        let pool_offset_bytes = damage.addr.offset_bytes();
        match self.heal_one(checkpointer, damage) {
            Ok(Healing::Healed) => {
                self.healed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    pool_offset_bytes,
                    "a damaged block of metadata was written anew from its copy"
                );
                Healing::Healed
            }
            Ok(healing) => healing,
            Err(error) => {
                tracing::warn!(
                    pool_offset_bytes,
                    %error,
                    "a damaged block of metadata cannot be written anew from its copy"
                );
                self.store.give_up_copy(damage.addr);
                Healing::Failed
            }
        }
    }

    fn heal_one(&self, checkpointer: &Checkpointer, damage: &Damage) -> Result<Healing> {
        let Damage {
            pointer,
            addr,
            frees,
        } = *damage;
        let groups_start = self.store.groups_start();
        let is_used = |addr| checkpointer.committed.is_used(addr);
        if frees != self.store.frees() || !pointer.places(groups_start).all(is_used) {
            return Ok(Healing::Nothing);
        }
        let read = |addr| {
            let corrupt = CorruptKind::NodeChecksum(addr);
            self.store.read_copy(pointer, addr, corrupt)
        };
        let other = pointer.places(groups_start).find(|place| *place != addr);
        let (Err(_), Some(other)) = (read(addr), other) else {
            return Ok(Healing::Nothing);
        };
        let good = read(other)?;
        self.device.write_again(&*good, addr.offset_bytes())?;
        Ok(Healing::Healed)
    }
}
