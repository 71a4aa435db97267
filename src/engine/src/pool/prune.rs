//! Freeing what a removed volume with several children holds and none of them needs any more.
//!
//! Such a volume stays until one child is left, as what the children share has no other owner. What
//! all of them have overwritten or discarded is made a hole in the removed volume's map, which is
//! an ordinary change of a map: checkpoints hold it, and its blocks are free after the next one.
//! Nothing of it is logged; after a crash, what no checkpoint held is found again.
//!
//! # Invariants
//! - A block is looked for without a lock, in maps that were all children's at one moment, and
//!   stays unneeded: neither a child nor a branch of it ever comes to lead to a block of its
//!   parent's that it did not lead to at that moment.
//! - A node that a child shares is never changed, so what a child has of its parent is at the same
//!   place of both maps afterwards, too.
//! - It starts only where a child has let go of something since the last time, and takes a small
//!   part of the time.

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

/// Leaves changed while the locks are held.
const BATCH_LEAVES: usize = 8;
/// The shortest time between two searches of one volume.
const REST_MIN: Duration = Duration::from_secs(1);
/// A search that took long is not repeated for so many times as long.
const REST_FACTOR: u32 = 20;

/// As often are the volumes gone through at once: as many removed volumes may stand on each other.
const ROUNDS_MAX: usize = 64;

/// How soon what was let go of is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once.
    Now,
    /// So that it takes a small part of the time.
    Seldom,
}

/// What is known of the last search in a removed volume.
#[derive(Default)]
pub(super) struct Pruned {
    /// What its children had let go of before; `None` when it is to be searched in any case.
    seen: Option<u64>,
    /// When it ended, and how long it took.
    last: Option<(Instant, Duration)>,
}

impl Pruned {
    /// Has it searched again: its children have changed.
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

/// How a batch ended.
enum Batch {
    /// The next one goes on from this block.
    Next(u64),
    /// All was searched.
    End,
    /// There is no room for a change of the map.
    NoRoom,
}

impl Batch {
    fn after(found: Option<u64>) -> Self {
        found.map_or(Self::End, Self::Next)
    }
}

/// A removed volume that is searched, as it is at one moment.
struct Subject {
    core: Arc<VolumeCore>,
    root: Arc<Root>,
    /// The maps of all its children.
    children: Vec<Arc<Root>>,
    /// What was born later is looked for.
    branch: Generation,
    /// What its children had let go of.
    let_go: u64,
}

impl Shared {
    /// Frees what removed volumes with several children hold for nobody.
    pub(super) fn prune_all(&self, pace: Pace) -> Result<()> {
        // A removed volume that gives something up lets go of what its parent owns: that is next.
        for _ in 0..ROUNDS_MAX {
            let due = self.to_prune(pace);
            if due.is_empty() {
                return Ok(());
            }
            for id in due {
                if !self.prune(id)? {
                    // There is no room even for that: the next one tries again.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The removed volumes that may hold something for nobody.
    pub(super) fn to_prune(&self, pace: Pace) -> Vec<VolumeId> {
        let forest = self.forest.read();
        let is_due = |id: &&VolumeId| {
            forest.volumes[*id].children.len() > 1
                && !forest.is_beside_begun(**id)
                && forest.volumes[*id]
                    .core
                    .pruned
                    .lock()
                    .is_due(let_go_above(&forest, **id), pace)
        };
        forest.removed.iter().filter(is_due).copied().collect()
    }

    /// Searches one volume; returns `false` when the pool is too full to change its map, or is
    /// being closed.
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
            // What they let go of from now on may be missed by this search.
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
        // No branch is made and no volume rolled back meanwhile.
        let _cut = self.cut.read();
        let volume = forest.volumes.get(&id)?;
        // What its ancestors own is of no use either, once they are removed themselves.
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

    /// Frees what is found next from block `from` on.
    fn prune_batch(&self, subject: &Subject, from: u64) -> Result<Batch> {
        let height = u64::from(subject.root.height);
        // A full pool frees what it can with little.
        let leaves = [BATCH_LEAVES, 1].into_iter().find(|leaves| {
            let blocks = *leaves as u64 * height + ENTRY_PROMISE;
            self.space.reserve(blocks, Demand::Change)
        });
        let Some(leaves) = leaves else {
            return Ok(Batch::NoRoom);
        };
        let nodes = leaves as u64 * height;
        let found = subject.find(self, from, leaves);
        if found.ranges.is_empty() {
            self.space.unreserve(nodes + ENTRY_PROMISE);
            return Ok(Batch::after(found.next));
        }
        let _cut = self.cut.read();
        let mut writer = subject.core.writer.lock();
        let generation = self.generation();
        let mut edit = edit(self, &subject.core, &mut writer, generation);
        let mut ranges = found.ranges.into_iter();
        let outcome = ranges.try_for_each(|range| edit.discard(range));
        // A replay promises the nodes of what was written again, as it does not know of this: until
        // a checkpoint holds it, what is promised stays so.
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

/// What the children of a volume have let go of.
fn let_go_above(forest: &Forest, id: VolumeId) -> u64 {
    let children = forest.volumes[&id].children.iter();
    let let_go = |child: &VolumeId| {
        let core = &forest.volumes[child].core;
        core.let_go.load(std::sync::atomic::Ordering::Relaxed)
    };
    children.map(let_go).fold(0, u64::wrapping_add)
}
