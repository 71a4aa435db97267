//! The volumes' forest: parents before children, expected counts, orphans and cycles.

use super::catalogue::Catalogue;
use super::finding::{Detail, FindingKind, Note, Place};
use super::walk::{Counts, Settled, Subject, Tree, Walker};
use cowshed_format::base::{Generation, VolumeId};
use cowshed_format::catalogue::VolumeEntry;
use std::collections::{BTreeMap, VecDeque};

/// The facts found out about a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    counts: Counts,
    /// Number of data blocks that it maps, if all could be read.
    mapped: Option<u64>,
    /// True if its parent is missing, and it was walked as a volume without a parent.
    orphan: bool,
}

/// The treatment of volumes whose parents are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orphans {
    /// Such a volume owns all that it maps, if nothing else does.
    Own,
    /// Such a volume is detached: what its parent had has no owner, and stays in use.
    Detach,
}

/// The volumes and the facts about each.
pub(super) struct Forest<'a> {
    volumes: &'a BTreeMap<VolumeId, VolumeEntry>,
    children: BTreeMap<VolumeId, Vec<VolumeId>>,
    facts: BTreeMap<VolumeId, Facts>,
    orphans: Orphans,
}

/// Walks all volumes. Afterwards every block to which something refers has been reached. With
/// `forget`, the missing parents of volumes are lost for good.
pub(super) fn walk<'a>(
    walker: &mut Walker<'_>,
    catalogue: &'a Catalogue,
    notes: &mut Vec<Note>,
    forget: bool,
) -> Forest<'a> {
    let orphans = if forget {
        Orphans::Detach
    } else {
        Orphans::Own
    };
    let mut forest = Forest {
        orphans,
        volumes: &catalogue.volumes,
        children: BTreeMap::new(),
        facts: BTreeMap::new(),
    };
    let (mut roots, mut detached, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
    for volume in forest.volumes.values() {
        match volume.parent {
            None if volume.branch > Generation(0) => detached.push(volume.id),
            None => roots.push(volume.id),
            Some(parent) if forest.volumes.contains_key(&parent) => {
                forest.children.entry(parent).or_default().push(volume.id);
            }
            Some(parent) => {
                orphans.push(volume.id);
                let (kind, place) = (FindingKind::ParentMissing, Place::Volume(volume.id));
                walker.findings.add(kind, place, Detail::Volume(parent));
            }
        }
    }
    forest.check_states(walker, notes);
    walker.has_detached = !detached.is_empty() || (forget && !orphans.is_empty());
    if walker.has_detached {
        for volume in forest.volumes.values() {
            let is_orphan = forget && orphans.contains(&volume.id);
            walker.reach_ownerless(forest.subject(volume, is_orphan));
        }
    }
    roots.extend(detached);
    forest.walk_from(walker, &roots, false);
    // Orphans last: blocks that they share with others are then reported as theirs.
    forest.walk_from(walker, &orphans, true);
    forest.touch_cycles(walker);
    forest.check_counts(walker);
    forest
}

impl<'a> Forest<'a> {
    fn children_of(&self, volume: VolumeId) -> &[VolumeId] {
        self.children.get(&volume).map_or(&[], Vec::as_slice)
    }

    /// Compares each volume's entry with those of its neighbours in the forest.
    fn check_states(&self, walker: &mut Walker<'_>, notes: &mut Vec<Note>) {
        let (mut removed, mut settling) = (0, 0);
        for volume in self.volumes.values() {
            let place = Place::Volume(volume.id);
            let children = self.children_of(volume.id).len();
            removed += u64::from(volume.name.is_none());
            if volume.reclaimed > 0 {
                // One that is pinned stays as it is.
                settling += u32::from(!volume.pinned);
                if volume.name.is_some() || children > 1 || settling > 1 {
                    let kind = FindingKind::ReclaimCursor;
                    walker.findings.add(kind, place, Detail::None);
                    walker.ownership_known = false;
                }
            }
            if children > 0 && volume.name.is_some() && !volume.frozen {
                let kind = FindingKind::ParentWritable;
                walker.findings.add(kind, place, Detail::None);
                walker.ownership_known = false;
            }
            self.check_branch(walker, volume);
        }
        if removed > 0 {
            notes.push(Note::Reclaiming { volumes: removed });
        }
    }

    fn check_branch(&self, walker: &mut Walker<'_>, volume: &VolumeEntry) {
        let parent = volume.parent.and_then(|parent| self.volumes.get(&parent));
        let bound = match parent {
            _ if volume.branch > walker.bounds.now => walker.bounds.now,
            Some(parent) if volume.branch <= parent.branch => parent.branch,
            _ => return,
        };
        let detail = Detail::Generations {
            found: volume.branch,
            bound,
        };
        let place = Place::Volume(volume.id);
        walker.findings.add(FindingKind::BranchOrder, place, detail);
        walker.ownership_known = false;
    }

    fn walk_from(&mut self, walker: &mut Walker<'_>, starts: &[VolumeId], orphans: bool) {
        let mut queue: VecDeque<(VolumeId, bool)> =
            starts.iter().map(|start| (*start, orphans)).collect();
        while let Some((id, orphan)) = queue.pop_front() {
            let Some(volume) = self.volumes.get(&id) else {
                continue;
            };
            let counts = walker.walk(self.subject(volume, orphan));
            let base = match volume.parent {
                Some(parent) if !orphan && !self.is_settling(parent) => {
                    self.facts.get(&parent).and_then(|facts| facts.mapped)
                }
                _ => Some(0),
            };
            // The blocks that a half reclaimed volume still maps are of no use to any volume.
            let delta = counts
                .mapped
                .map(|delta| if volume.reclaimed > 0 { 0 } else { delta });
            let mapped = base
                .zip(delta)
                .and_then(|(base, delta)| base.checked_add_signed(delta));
            let facts = Facts {
                counts,
                mapped,
                orphan,
            };
            self.facts.insert(id, facts);
            queue.extend(self.children_of(id).iter().map(|child| (*child, false)));
        }
    }

    fn is_settling(&self, volume: VolumeId) -> bool {
        self.volumes
            .get(&volume)
            .is_some_and(|volume| volume.reclaimed > 0)
    }

    fn subject(&self, volume: &VolumeEntry, orphan: bool) -> Subject {
        let parent = volume.parent.and_then(|parent| self.volumes.get(&parent));
        let tree = tree_of(volume);
        let owns_all = orphan && self.orphans == Orphans::Own;
        let subject = Subject {
            volume: volume.id,
            tree,
            branch: if owns_all {
                Generation(0)
            } else {
                volume.branch
            },
            parent: parent.map(tree_of),
            detached: self.is_detached(volume),
            settled: Settled::Nothing,
            cursor: 0,
        };
        match parent {
            _ if volume.reclaimed > 0 => Subject {
                settled: Settled::Gone,
                cursor: volume.reclaimed,
                ..subject
            },
            Some(parent) if parent.reclaimed > 0 => Subject {
                settled: Settled::Inherited {
                    branch: parent.branch,
                    from: parent
                        .parent
                        .and_then(|from| self.volumes.get(&from))
                        .map(tree_of),
                    detached: self.is_detached(parent),
                },
                cursor: parent.reclaimed,
                ..subject
            },
            _ => subject,
        }
    }

    /// Returns true if the volume's parent was lost, and it owns nothing that its parent had.
    fn is_detached(&self, volume: &VolumeEntry) -> bool {
        match volume.parent {
            None => volume.branch > Generation(0),
            Some(parent) => self.orphans == Orphans::Detach && !self.volumes.contains_key(&parent),
        }
    }

    /// Reports volumes that no walk reached, and marks their blocks: they are in a cycle, or
    /// descend from one.
    fn touch_cycles(&self, walker: &mut Walker<'_>) {
        for volume in self.volumes.values() {
            if !self.facts.contains_key(&volume.id) {
                let place = Place::Volume(volume.id);
                walker
                    .findings
                    .add(FindingKind::ForestCycle, place, Detail::None);
                walker.ownership_known = false;
                walker.touch_tree(tree_of(volume));
            }
        }
    }

    fn check_counts(&self, walker: &mut Walker<'_>) {
        for (recorded, correct) in self.pairs() {
            let place = Place::Volume(recorded.id);
            let settling = recorded.parent.filter(|parent| self.is_settling(*parent));
            let sum = |of: fn(&VolumeEntry) -> u64| {
                // While a reclaim passes blocks on, only the sum of the two counts is exact.
                let parent = settling.and_then(|parent| self.volumes.get(&parent));
                of(recorded).saturating_add(parent.map_or(0, of))
            };
            let counted = correct.own_blocks.saturating_add(
                settling
                    .and_then(|parent| self.correct(parent))
                    .map_or(0, |parent| parent.own_blocks),
            );
            let shared = self.is_settling(recorded.id) && !self.children_of(recorded.id).is_empty();
            let counts = |recorded, counted| Detail::Count { recorded, counted };
            let own = sum(|volume| volume.own_blocks);
            if own != counted && !shared {
                let detail = counts(own, counted);
                walker.findings.add(FindingKind::OwnCount, place, detail);
            }
            if correct.pinned && !recorded.pinned {
                let kind = FindingKind::PinMissing;
                walker.findings.add(kind, place, Detail::None);
            }
            if recorded.mapped_blocks != correct.mapped_blocks {
                let detail = counts(recorded.mapped_blocks, correct.mapped_blocks);
                walker.findings.add(FindingKind::MappedCount, place, detail);
            }
        }
    }

    /// Returns the entry of each volume that could be walked completely, with the correct entry.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'a VolumeEntry, VolumeEntry)> + '_ {
        let volumes = self.volumes.values();
        volumes.filter_map(|volume| Some((volume, self.correct(volume.id)?)))
    }

    /// Returns a volume's entry with the counts, and for an orphan the parent, that its tree shows;
    /// `None` if a part of the tree could not be read.
    fn correct(&self, id: VolumeId) -> Option<VolumeEntry> {
        let (volume, facts) = (self.volumes.get(&id)?, self.facts.get(&id)?);
        let mut correct = volume.clone();
        let mapped = facts.mapped?;
        // Blocks that its one child inherited so far still count as the reclaimed volume's.
        let passed_on: u64 = match volume.reclaimed {
            0 => 0,
            _ => {
                let heirs = self.children_of(id).iter();
                heirs
                    .filter_map(|heir| self.facts.get(heir))
                    .map(|heir| heir.counts.inherited)
                    .sum()
            }
        };
        correct.own_blocks = facts.counts.own - facts.counts.inherited + passed_on;
        correct.pinned = facts.counts.pinned;
        if facts.orphan {
            correct.parent = None;
            if self.orphans == Orphans::Own {
                correct.branch = Generation(0);
            }
        }
        if volume.reclaimed == 0 {
            correct.mapped_blocks = mapped;
        }
        Some(correct)
    }
}

const fn tree_of(volume: &VolumeEntry) -> Tree {
    Tree {
        root: volume.root,
        height: volume.height,
    }
}
