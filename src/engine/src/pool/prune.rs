//! Freeing the blocks of a removed volume with several children that none of them needs any more.
//!
//! Such a volume stays until one child is left, since the blocks that the children share have no
//! other owner. Blocks that all of them have overwritten or discarded are made holes in the removed
//! volume's map. That is an ordinary change of a map: checkpoints hold it, and its blocks are free
//! after the next one. It is not logged; after a crash, blocks whose freeing no checkpoint held are
//! found again.
//!
//! # Invariants
//! - The search takes no lock. It reads maps that were all children's at one moment, and a block
//!   that it finds stays unneeded: a child, or a branch of it, never comes to lead to a block of
//!   its parent that it did not lead to at that moment.
//! - A node that a child shares is never changed, so a block that a child has from its parent stays
//!   at the same place of both maps.
//! - A search starts only if a child has dropped a block of its parent since the last one, and
//!   takes a small part of the time.

use super::forest::Forest;
use super::publish::{edit, settle_account};
use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::VolumeCore;
use crate::map::{Found, Root, Unreached};
use crate::space::Demand;
use cowshed_format::base::background_yield;
use cowshed_format::base::{Generation, Result, VolumeId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of leaves changed while the locks are held.
const BATCH_LEAVES: usize = 8;
/// Minimum time between two searches of one volume.
const REST_MIN: Duration = Duration::from_secs(1);
/// A search is not repeated until this many times its own duration has passed.
const REST_FACTOR: u32 = 20;

/// Maximum number of rounds through the volumes in one call: as many removed volumes may descend
/// from each other.
const ROUNDS_MAX: usize = 64;

/// The pace at which dropped blocks are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once.
    Now,
    /// Seldom enough to take a small part of the time.
    Seldom,
}

/// State of the last search in a removed volume.
#[derive(Default)]
pub(super) struct Pruned {
    /// Its children's count of dropped blocks before it; `None` if a search is due in any case.
    seen: Option<u64>,
    /// The time at which it ended, and its duration.
    last: Option<(Instant, Duration)>,
}

impl Pruned {
    /// Makes a search due: the children have changed.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    fn is_due(&self, let_go: u64, pace: Pace) -> bool {
        let has_rested = self.last.is_none_or(|(ended, took)| {
            ended.elapsed() >= REST_MIN.max(took.saturating_mul(REST_FACTOR))
        });
        self.seen != Some(let_go) && (pace == Pace::Now || has_rested)
    }
}

/// The outcome of a batch.
enum Batch {
    /// The next one goes on from this block.
    Next(u64),
    /// Everything was searched.
    End,
    /// The pool has no space for a change of the map.
    NoRoom,
}

impl Batch {
    fn after(found: Option<u64>) -> Self {
        found.map_or(Self::End, Self::Next)
    }
}

/// A removed volume to search, in its state of one moment.
struct Subject {
    core: Arc<VolumeCore>,
    root: Arc<Root>,
    /// The maps of all its children.
    children: Vec<Arc<Root>>,
    /// Only blocks born later than this are searched for.
    branch: Generation,
    /// Its children's count of dropped blocks.
    let_go: u64,
}

impl Shared {
    /// Frees the blocks that removed volumes with several children hold and nobody needs.
    pub(super) fn prune_all(&self, pace: Pace) -> Result<()> {
        // When a removed volume frees a block, it may drop one that its parent owns: that parent is
        // next.
        for _ in 0..ROUNDS_MAX {
            let due = self.to_prune(pace);
            if due.is_empty() {
                return Ok(());
            }
            for id in due {
                if !self.prune(id)? {
                    // There is no space even for that: the next call tries again.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Returns the removed volumes that may hold blocks that nobody needs.
    pub(super) fn to_prune(&self, pace: Pace) -> Vec<VolumeId> {
        let forest = self.forest.read();
        let is_due = |id: &&VolumeId| {
            !self.missing.is_some()
                && !forest.volumes[*id].core.pinned
                && forest.volumes[*id].children.len() > 1
                && !forest.is_beside_begun(**id)
                && forest.volumes[*id]
                    .core
                    .pruned
                    .lock()
                    .is_due(let_go_above(&forest, **id), pace)
        };
        forest.removed.iter().filter(is_due).copied().collect()
    }

    /// Searches one volume; returns `false` if the pool is too full to change its map, or is being
    /// closed.
    fn prune(&self, id: VolumeId) -> Result<bool> {
        let began = Instant::now();
        let (mut from, mut let_go) = (0, None);
        loop {
            self.check_running()?;
            if self.signal.wanted.lock().stop {
                return Ok(false);
            }
            self.throttle()?;
            let Some(subject) = self.subject(id) else {
                return Ok(true);
            };
            // This search may miss blocks that the children drop from now on.
            let_go.get_or_insert(subject.let_go);
            match self.prune_batch(&subject, from)? {
                Batch::Next(at) => from = at,
                Batch::NoRoom => return Ok(false),
                Batch::End => {
                    let mut pruned = subject.core.pruned.lock();
                    pruned.seen = let_go;
                    pruned.last = Some((Instant::now(), began.elapsed()));
                    return Ok(true);
                }
            }
            background_yield::offer();
        }
    }

    fn subject(&self, id: VolumeId) -> Option<Subject> {
        let forest = self.forest.read();
        // No branch is made and no volume is rolled back meanwhile.
        let _cut = self.cut.read();
        let volume = forest.volumes.get(&id)?;
        // Blocks of its ancestors are of no use either, once those are removed themselves.
        let is_last = volume
            .parent
            .is_some_and(|parent| forest.removed.contains(&parent));
        let branch = volume.core.writer.lock().branch;
        let children = volume.children.iter();
        Some(Subject {
            core: Arc::clone(&volume.core),
            root: volume.core.tree.root_to_keep(),
            let_go: let_go_above(&forest, id),
            children: children
                .map(|child| forest.volumes[child].core.tree.root_to_keep())
                .collect(),
            branch: if is_last { Generation(0) } else { branch },
        })
    }

    /// Frees the blocks found next from block `from` on.
    fn prune_batch(&self, subject: &Subject, from: u64) -> Result<Batch> {
        let height = u64::from(subject.root.height);
        // A full pool frees them in the smallest steps.
        let leaves = [BATCH_LEAVES, 1].into_iter().find(|leaves| {
            let blocks = *leaves as u64 * height + ENTRY_PROMISE;
            self.space.promise(blocks, Demand::Change)
        });
        let Some(leaves) = leaves else {
            return Ok(Batch::NoRoom);
        };
        let nodes = leaves as u64 * height;
        let found = subject.find(self, from, leaves);
        if found.ranges.is_empty() {
            self.space.void_promise(nodes + ENTRY_PROMISE);
            return Ok(Batch::after(found.next));
        }
        let _cut = self.cut.read();
        let mut writer = subject.core.writer.lock();
        let generation = self.generation();
        let mut edit = edit(self, &subject.core, &mut writer, generation);
        let mut ranges = found.ranges.into_iter();
        let outcome = ranges.try_for_each(|range| edit.discard(range));
        // A replay does not know of this change, and promises the nodes of later writes again: so
        // the promises stay until a checkpoint holds the change.
        let void = std::mem::take(&mut writer.ledger.void);
        self.changes.lock().promised += void;
        settle_account(self, &subject.core, &mut writer, nodes);
        outcome.map(|()| Batch::after(found.next))
    }
}

impl Subject {
    fn find(&self, shared: &Shared, from: u64, leaves: usize) -> Found {
        Unreached {
            store: &shared.store,
            root: &self.root,
            branch: self.branch,
            children: &self.children,
        }
        .find(from, leaves)
    }
}

/// Returns the children's count of dropped blocks.
fn let_go_above(forest: &Forest, id: VolumeId) -> u64 {
    let children = forest.volumes[&id].children.iter();
    let let_go = |child: &VolumeId| {
        let core = &forest.volumes[child].core;
        core.let_go.load(std::sync::atomic::Ordering::Relaxed)
    };
    children.map(let_go).fold(0, u64::wrapping_add)
}
