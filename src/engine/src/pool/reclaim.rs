//! Freeing the blocks of removed volumes, in the background and in small batches.
//!
//! One removed volume is settled at a time. A volume without children frees everything that it
//! owned. One with a single child frees the blocks that the child does not have, and the rest
//! becomes the child's. One with several children stays, since the blocks that they share have no
//! other owner; `prune` frees those that none of them needs any more.
//!
//! Nothing of it is logged. Each checkpoint holds the progress, with matching bitmaps; after a
//! crash, reclaim continues from there.

use super::handle::Pool;
use super::prune::Pace;
use super::publish::settle_account;
use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::VolumeCore;
use crate::map::{Inheritance, Root, Settling};
use cowshed_format::base::background_yield;
use cowshed_format::base::cancel;
use cowshed_format::base::{Result, VolumeId};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Number of leaves settled while the locks are held.
const BATCH_LEAVES: usize = 8;

impl Pool {
    /// Frees all blocks that removed volumes have left, now; they can be reused after the
    /// checkpoint that this ends with.
    ///
    /// # Errors
    /// `Corrupt` or `Io` when a removed volume's map cannot be read.
    pub fn reclaim(&self) -> Result<()> {
        self.shared.check_open()?;
        self.shared.reclaim_all(Pace::Now)?;
        self.shared.checkpoint()
    }
}

impl Shared {
    /// Settles all removed volumes that can be settled, and frees the blocks of the others that
    /// nobody needs.
    pub(super) fn reclaim_all(&self, pace: Pace) -> Result<()> {
        let _one = self.reclaiming.lock();
        let mut failed: Vec<VolumeId> = Vec::new();
        let mut first_error = None;
        while let Some(id) = self.next_removed(&failed) {
            if let Err(error) = self.settle(id) {
                failed.push(id);
                first_error.get_or_insert(error);
            }
        }
        self.prune_all(pace)?;
        first_error.map_or(Ok(()), Err)
    }

    /// Returns true if a removed volume could be settled, or may hold blocks that nobody needs.
    pub(super) fn has_backlog(&self) -> bool {
        self.next_removed(&[]).is_some() || !self.to_prune(Pace::Seldom).is_empty()
    }

    /// Returns the removed volume to settle next: one that was begun, otherwise one without
    /// children, otherwise one with a single child.
    fn next_removed(&self, failed: &[VolumeId]) -> Option<VolumeId> {
        let forest = self.forest.read();
        let rank = |id: &VolumeId| {
            let volume = &forest.volumes[id];
            let begun = volume.core.settled.load(Ordering::Acquire) > 0;
            (!begun, volume.children.len())
        };
        let able = |id: &&VolumeId| {
            !failed.contains(id)
                && !self.missing.is_some()
                && !forest.volumes[*id].core.pinned
                && forest.volumes[*id].children.len() < 2
                && !forest.is_beside_begun(**id)
        };
        forest
            .removed
            .iter()
            .filter(able)
            .min_by_key(|id| rank(id))
            .copied()
    }

    fn settle(&self, id: VolumeId) -> Result<()> {
        loop {
            cancel::check()?;
            self.check_running()?;
            self.throttle()?;
            // Nothing checks whether there is space for a batch. So before the next batch begins, a
            // full pool writes a checkpoint, which returns the promises of the last batch.
            if self.space.is_short() && !self.changes.lock().is_empty() {
                self.checkpoint()?;
            }
            if self.settle_batch(id)? {
                return Ok(());
            }
            background_yield::offer();
        }
    }

    /// Settles a batch; returns true if the volume is gone.
    fn settle_batch(&self, id: VolumeId) -> Result<bool> {
        let done = {
            let forest = self.forest.read();
            let _cut = self.cut.read();
            let Some(removed) = forest.volumes.get(&id) else {
                return Ok(true);
            };
            let child = removed
                .children
                .first()
                .map(|child| Arc::clone(&forest.volumes[child].core));
            self.settle_between(&removed.core, child.as_deref())?
        };
        if done {
            self.bury(id);
        }
        Ok(done)
    }

    fn settle_between(
        &self,
        removed: &Arc<VolumeCore>,
        child: Option<&VolumeCore>,
    ) -> Result<bool> {
        let mut writer = removed.writer.lock();
        let mut heir = child.map(|child| child.writer.lock());
        let root: Arc<Root> = removed.tree.root_to_keep();
        let child_root = child.map(|child| child.tree.root_to_keep());
        let from = removed.settled.load(Ordering::Acquire);
        let branch = writer.branch;
        let (settled, outcome) = Settling {
            store: &self.store,
            root: &root,
            branch,
            child: child_root.as_deref(),
            limit: self.last_cut(),
            ledger: &mut writer.ledger,
        }
        .advance(from, BATCH_LEAVES);
        // A replay does not know of this change, and promises the nodes of later writes again: so
        // the promises stay until a checkpoint holds the change.
        let void = std::mem::take(&mut writer.ledger.void);
        self.changes.lock().promised += void;
        self.space.promise_again(ENTRY_PROMISE);
        settle_account(self, removed, &mut writer, 0);
        removed.settled.store(settled.below, Ordering::Release);
        // The child must know this before it changes its map again.
        if let Some(heir) = &mut heir {
            let inheritance = Inheritance {
                branch,
                settled: settled.below,
            };
            heir.inheritance = Some((inheritance, Arc::clone(removed)));
        }
        outcome.map(|()| settled.done)
    }

    /// Removes a settled volume from the forest; its child takes its place, and the rest of its
    /// count.
    fn bury(&self, id: VolumeId) {
        let mut forest = self.forest.write();
        let _cut = self.cut.write();
        let Some(removed) = forest.volumes.get(&id) else {
            return;
        };
        let (core, parent) = (Arc::clone(&removed.core), removed.parent);
        let child = removed.children.first().copied();
        if let Some(child) = child {
            let heir = Arc::clone(&forest.volumes[&child].core);
            let mut writer = heir.writer.lock();
            writer.branch = core.writer.lock().branch;
            writer.inheritance = None;
            heir.own
                .fetch_add(core.own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            self.space.promise_again(ENTRY_PROMISE);
            self.note_changed(&heir);
            drop(writer);
            forest.adopt(child, parent);
        }
        if let Some(parent) = parent.and_then(|parent| forest.volumes.get(&parent)) {
            parent.core.pruned.lock().forget();
        }
        forest.adopt(id, None);
        forest.volumes.remove(&id);
        forest.removed.remove(&id);
        // Its ledger still counts at the next cut.
        self.space.promise_again(ENTRY_PROMISE);
        self.note_changed(&core);
        self.changes.lock().gone.push(id);
        let miscounted = core.own_blocks();
        if child.is_none() && miscounted != 0 {
            // A part of its map was lost, or its count was wrong on disk.
            tracing::warn!(
                "volume {id} is reclaimed, but {miscounted} blocks that were counted as its own \
                 were not found; repair the pool to correct its counts"
            );
        }
    }
}
