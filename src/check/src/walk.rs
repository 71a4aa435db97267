//! The walk of one volume's tree beside its parent's: which volume owns what, and how much is
//! mapped.
//!
//! It knows one volume at a time; `forest` decides the order of the volumes.
//!
//! # Invariants
//! - A pointer that equals the parent's at its place is skipped as a whole.
//! - A node is descended into for its owner only once: in a tree that leads back into itself or
//!   into another one, the walk ends at the first block that has an owner already.
//! - Recursion is as deep as the tallest tree: six levels.

use super::copies::{self, Copies, DamagedCopy};
use super::finding::{Detail, FindingKind, Findings, Place};
use super::marks::Marks;
use super::parent_view::ParentView;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{
    BLOCK_BYTES, BlockAddr, BlockIndex, CorruptKind, Error, Generation, VolumeId,
};
use cowshed_format::device::Device;
use cowshed_format::node::{self, Bounds, Entries, NODE_BITS, NODE_ENTRIES};
use cowshed_format::{Pointer, PointerKind};

/// The root of a block map and its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) root: Pointer,
    pub(super) height: u8,
}

/// The effect of a reclaim in progress on a volume's blocks below the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// No reclaim is under way here.
    Nothing,
    /// The volume itself is being reclaimed: its blocks below the cursor are gone.
    Gone,
    /// Its parent is being reclaimed: blocks that the parent owned below the cursor now belong to
    /// this volume.
    Inherited {
        /// The generation at which the parent left its own parent.
        branch: Generation,
        /// The parent's parent.
        from: Option<Tree>,
        /// True if the parent's parent was lost.
        detached: bool,
    },
}

/// A volume to walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) volume: VolumeId,
    pub(super) tree: Tree,
    pub(super) branch: Generation,
    pub(super) parent: Option<Tree>,
    /// True if its parent was lost: what was born at or before its branch has no owner, and stays
    /// in use.
    pub(super) detached: bool,
    pub(super) settled: Settled,
    /// Everything that lies wholly below this block is settled.
    pub(super) cursor: u64,
}

/// A range of a volume that was given up with a damaged node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LostRange {
    pub(super) volume: VolumeId,
    pub(super) first: BlockIndex,
    pub(super) blocks: u64,
}

/// The counts of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Number of blocks that the volume owns.
    pub(super) own: u64,
    /// Number of these that its parent passed on.
    pub(super) inherited: u64,
    /// Number of data blocks mapped, less those that the parent maps if `Subject::counts_delta`;
    /// `None` if something could not be read.
    pub(super) mapped: Option<i64>,
    /// True if a detached volume has a block that this one owns.
    pub(super) pinned: bool,
}

impl Subject {
    /// Returns true if `Counts::mapped` is relative to the parent's. A parent whose tree is partly
    /// gone cannot be compared with as a whole.
    pub(super) const fn counts_delta(&self) -> bool {
        !matches!(self.settled, Settled::Inherited { .. })
    }

    /// Returns true if what was born before the branch has no owner here; `settled` tells whether
    /// this part of the parent is settled.
    pub(super) const fn is_ownerless(&self, settled: bool) -> bool {
        match self.settled {
            Settled::Inherited { detached, .. } if settled => detached,
            _ => self.detached,
        }
    }
}

/// Walks volumes and collects the blocks that it reaches.
pub(super) struct Walker<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) bounds: Bounds,
    pub(super) deep: bool,
    pub(super) marks: Marks,
    pub(super) findings: Findings,
    /// True if the owner of each block is known: nothing was unreadable or claimed twice.
    pub(super) ownership_known: bool,
    /// True if there are detached volumes; what has no owner in them was reached first.
    pub(super) has_detached: bool,
    /// The nodes that have a wrong checksum in every copy.
    pub(super) damaged_nodes: Vec<Pointer>,
    /// The blocks of the volume being walked; for the catalogue, to be read next.
    pub(super) blocks: Vec<(BlockIndex, Pointer)>,
    pub(super) keep_blocks: bool,
    /// Ranges that were given up, each where it was.
    pub(super) lost: Vec<LostRange>,
    /// Damaged copies of blocks that have a good one.
    pub(super) damaged_copies: Vec<DamagedCopy>,
    /// Number of further nodes and blocks that this walk may count in other trees.
    pub(super) count_budget: u64,
    pub(super) progress: &'a mut dyn FnMut(u64),
}

/// The walk's position: the level of a pointer's target (level 0 is data), and the first block that
/// it covers.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) level: u8,
    pub(super) first: u64,
}

impl Position {
    /// Returns the first block behind those that a pointer here covers; six levels reach 2^48.
    pub(super) const fn end(self) -> u64 {
        self.first + (1 << (NODE_BITS * self.level as u32))
    }

    /// Returns the position of an entry of the node here.
    pub(super) const fn child(self, slot: u64) -> Self {
        let level = self.level - 1;
        Self {
            level,
            first: self.first + (slot << (NODE_BITS * level as u32)),
        }
    }
}

/// One volume's walk: its subject, and its counts so far.
struct Visit {
    subject: Subject,
    counts: Counts,
}

impl Walker<'_> {
    /// Walks one volume.
    pub(super) fn walk(&mut self, subject: Subject) -> Counts {
        // No part of a sound tree is counted twice in one walk.
        self.count_budget = self.bounds.layout.block_count();
        let mut visit = Visit {
            subject,
            counts: Counts {
                own: 0,
                inherited: 0,
                mapped: Some(0),
                pinned: false,
            },
        };
        let Tree { root, height } = subject.tree;
        let position = Position {
            level: height,
            first: 0,
        };
        let addr = root.addr();
        let place = Place::Node {
            volume: subject.volume,
            level: height,
            first: BlockIndex(0),
            addr,
        };
        let delta = subject.counts_delta();
        let (parent, outside) = self.beside(subject.parent, height, delta);
        let from = match subject.settled {
            Settled::Inherited { from, .. } => self.beside(from, height, false).0,
            _ => ParentView::ABSENT,
        };
        visit.counts.mapped = match self.check_root(root) {
            Err(kind) => {
                let detail = Detail::Corrupt(kind);
                self.findings.add(FindingKind::NodeIllFormed, place, detail);
                self.ownership_known = false;
                None
            }
            Ok(()) => {
                let inside = self.visit(&mut visit, position, root, parent, from);
                inside
                    .zip(outside)
                    .map(|(inside, outside)| inside - outside)
            }
        };
        visit.counts
    }

    pub(super) fn check_root(&self, root: Pointer) -> Result<(), CorruptKind> {
        match root.kind() {
            Some(PointerKind::Hole | PointerKind::Lost) => return Ok(()),
            Some(PointerKind::Node) => {}
            _ => {
                return Err(CorruptKind::NodeEntry {
                    node: root.addr(),
                    entry: 0,
                });
            }
        }
        if !self.bounds.layout.holds(root) {
            return Err(CorruptKind::PointerRange(root.addr()));
        }
        if root.birth() > self.bounds.now {
            return Err(CorruptKind::PointerBirth {
                birth: root.birth(),
                now: self.bounds.now,
            });
        }
        Ok(())
    }

    /// Visits a pointer of the volume, beside its parent's at the same place. Returns the number of
    /// blocks that it maps, less those that the parent maps here.
    fn visit(
        &mut self,
        visit: &mut Visit,
        at: Position,
        pointer: Pointer,
        parent: ParentView,
        from: ParentView,
    ) -> Option<i64> {
        let subject = visit.subject;
        let settled = at.end() <= subject.cursor;
        let (branch, parent_view) = match subject.settled {
            Settled::Gone if settled => return Some(0),
            Settled::Inherited { branch, .. } if settled => (branch, from),
            _ => (subject.branch, parent),
        };
        let compared = if subject.counts_delta() {
            parent_view
        } else {
            ParentView::ABSENT
        };
        if pointer.is_hole() {
            return self.count(compared).map(|count| -count);
        }
        if pointer.is_lost() {
            let parent_view = if subject.is_ownerless(settled) {
                ParentView::of(pointer, at.level)
            } else {
                parent_view
            };
            return self.visit_lost(subject, at, pointer, branch, parent_view, compared);
        }
        if pointer.birth() > branch {
            // A settled part of the parent may hold something else by now: it is not examined.
            let parent = if settled { ParentView::ABSENT } else { parent };
            return self.visit_own(visit, at, pointer, [parent, from], compared);
        }
        if subject.is_ownerless(settled) {
            return self.count(ParentView::of(pointer, at.level));
        }
        let Some(expected) = parent_view.here(at.level) else {
            self.touch(pointer, at.level);
            return None;
        };
        if expected.is_lost() {
            // The parent's proof of ownership is lost; no other volume can have the block, either.
            self.touch(pointer, at.level);
            return self.count(ParentView::of(pointer, at.level));
        }
        if pointer != expected {
            let place = place(subject.volume, at, pointer);
            self.findings
                .add(FindingKind::PointerNotInherited, place, Detail::None);
            self.ownership_known = false;
            self.touch(pointer, at.level);
            return None;
        }
        let straddles = !settled && at.first < subject.cursor;
        if straddles && matches!(subject.settled, Settled::Inherited { .. }) {
            // The node is the parent's, but blocks to which it leads below the cursor no longer
            // are.
            let entries = self.read_node(pointer, at.level).ok()?;
            return self.descend(visit, at, &entries, [parent, from]);
        }
        if subject.counts_delta() {
            Some(0)
        } else {
            self.count(ParentView::of(pointer, at.level))
        }
    }

    /// Visits a range that was given up and holds nothing. If its birth is after the branch, the
    /// loss is the volume's own, otherwise its parent's.
    fn visit_lost(
        &mut self,
        subject: Subject,
        at: Position,
        pointer: Pointer,
        branch: Generation,
        parent_view: ParentView,
        compared: ParentView,
    ) -> Option<i64> {
        if pointer.birth() > branch {
            self.lost.push(LostRange {
                volume: subject.volume,
                first: BlockIndex(at.first),
                blocks: at.end() - at.first,
            });
            return self.count(compared).map(|count| -count);
        }
        if parent_view.here(at.level) == Some(pointer) {
            return Some(0);
        }
        let place = place(subject.volume, at, pointer);
        self.findings
            .add(FindingKind::PointerNotInherited, place, Detail::None);
        self.ownership_known = false;
        None
    }

    fn visit_own(
        &mut self,
        visit: &mut Visit,
        at: Position,
        pointer: Pointer,
        parent_views: [ParentView; 2],
        compared: ParentView,
    ) -> Option<i64> {
        let subject = visit.subject;
        let place = place(subject.volume, at, pointer);
        let mut taken = None;
        for addr in pointer.places(self.groups_start()) {
            if !self.marks.claim(addr) {
                taken = taken.or(Some(addr));
            }
        }
        if let Some(addr) = taken {
            let detail = Detail::Corrupt(CorruptKind::UsedTwice(addr));
            self.findings
                .add(FindingKind::BlockUsedTwice, place, detail);
            self.ownership_known = false;
            return None;
        }
        if self.marks.count().is_multiple_of(4096) {
            (self.progress)(self.marks.count());
        }
        if self.has_detached {
            let mut places = pointer.places(self.groups_start());
            visit.counts.pinned |= places.any(|addr| self.marks.is_touched(addr));
        }
        visit.counts.own += 1;
        visit.counts.inherited += u64::from(pointer.birth() <= subject.branch);
        if at.level == 0 {
            if self.deep || self.keep_blocks {
                self.blocks.push((BlockIndex(at.first), pointer));
            }
            return self.count(compared).map(|count| 1 - count);
        }
        match self.read_own_node(pointer, at.level, place) {
            Ok(entries) => self.descend(visit, at, &entries, parent_views),
            Err(error) => {
                let kind = match &error {
                    Error::Corrupt(CorruptKind::NodeChecksum(_)) | Error::Io { .. } => {
                        FindingKind::NodeUnreadable
                    }
                    _ => FindingKind::NodeIllFormed,
                };
                self.findings.add(kind, place, Detail::of(&error));
                self.ownership_known = false;
                if matches!(error, Error::Corrupt(CorruptKind::NodeChecksum(_))) {
                    self.damaged_nodes.push(pointer);
                }
                None
            }
        }
    }

    fn descend(
        &mut self,
        visit: &mut Visit,
        at: Position,
        entries: &Entries,
        [parent, from]: [ParentView; 2],
    ) -> Option<i64> {
        let parents = self.expand(parent, at.level);
        let froms = self.expand(from, at.level);
        let mut total = Some(0);
        for (slot, pointer) in (0u64..).zip(entries) {
            let child = at.child(slot);
            let index = usize::try_from(slot).expect("a node has 256 entries");
            let mapped = self.visit(
                visit,
                child,
                *pointer,
                parents.entry(index),
                froms.entry(index),
            );
            total = total.zip(mapped).map(|(total, mapped)| total + mapped);
        }
        if at.level == 1 && !self.keep_blocks {
            self.verify_blocks(visit.subject.volume);
        }
        total
    }

    /// Marks the blocks to which a pointer without a proved right leads, so that they are never
    /// freed.
    fn touch(&mut self, pointer: Pointer, level: u8) {
        if pointer.is_lost() {
            return;
        }
        let mut is_new = false;
        for addr in pointer.places(self.groups_start()) {
            is_new |= self.marks.touch(addr);
        }
        if !is_new || level == 0 {
            return;
        }
        let Ok(entries) = self.read_node(pointer, level) else {
            return;
        };
        for entry in entries.iter().filter(|entry| !entry.is_hole()) {
            self.touch(*entry, level - 1);
        }
    }

    /// Marks a whole tree in the same way.
    pub(super) fn touch_tree(&mut self, tree: Tree) {
        if !tree.root.is_hole() && self.check_root(tree.root).is_ok() {
            self.touch(tree.root, tree.height);
        }
    }

    /// Reads and verifies the node that `pointer` leads to.
    pub(super) fn read_node(&self, pointer: Pointer, level: u8) -> Result<Box<Entries>, Error> {
        copies::read(self.device, pointer, self.groups_start(), |bytes| {
            self.parse(bytes, pointer.addr(), level)
        })
    }

    /// As `read_node`, but reads and verifies every copy of it, and reports a damaged one.
    pub(super) fn read_own_node(
        &mut self,
        pointer: Pointer,
        level: u8,
        place: Place,
    ) -> Result<Box<Entries>, Error> {
        let copies = copies::read_all(self.device, pointer, self.groups_start(), |bytes| {
            self.parse(bytes, pointer.addr(), level)
        })?;
        self.note_copies(&copies, place);
        Ok(copies.found)
    }

    /// Reports a damaged copy.
    pub(super) fn note_copies<T>(&mut self, copies: &Copies<T>, place: Place) {
        if let Some((copy, error)) = &copies.damaged {
            let place = match place {
                Place::Node {
                    volume,
                    level,
                    first,
                    ..
                } => Place::Node {
                    volume,
                    level,
                    first,
                    addr: copy.addr,
                },
                Place::Data { volume, block, .. } => Place::Data {
                    volume,
                    block,
                    addr: copy.addr,
                },
                place => place,
            };
            let detail = Detail::of(error);
            self.findings.add(FindingKind::CopyDamaged, place, detail);
            self.damaged_copies.push(*copy);
        }
    }

    fn parse(
        &self,
        bytes: &[u8; BLOCK_BYTES],
        addr: BlockAddr,
        level: u8,
    ) -> Result<Box<Entries>, Error> {
        let entries = Box::new(node::decode(bytes));
        node::verify(&entries, addr, level, &self.bounds)?;
        Ok(entries)
    }

    /// Returns the first block of the first group.
    pub(super) const fn groups_start(&self) -> u64 {
        self.bounds.layout.groups_start()
    }

    /// Reads and verifies the blocks that a leaf gave; adjacent blocks in one read.
    pub(super) fn verify_blocks(&mut self, volume: VolumeId) {
        let blocks = std::mem::take(&mut self.blocks);
        let adjoin =
            |a: &(BlockIndex, Pointer), b: &(BlockIndex, Pointer)| a.1.addr().0 + 1 == b.1.addr().0;
        let mut bytes = vec![0; BLOCK_BYTES * NODE_ENTRIES];
        for run in blocks.chunk_by(adjoin) {
            let buf = &mut bytes[..run.len() * BLOCK_BYTES];
            let whole = self.device.read_at(buf, run[0].1.addr().offset_bytes());
            for ((block, pointer), buf) in run.iter().zip(buf.chunks_exact_mut(BLOCK_BYTES)) {
                let addr = pointer.addr();
                let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
                // A run that could not be read is read block by block; and of a mirror, another side
                // may have what this one has not.
                let outcome = if whole.is_ok() && is_right(buf) {
                    Ok(true)
                } else {
                    self.device
                        .read_accepted(buf, addr.offset_bytes(), false, &is_right)
                };
                let place = Place::Data {
                    volume,
                    block: *block,
                    addr,
                };
                match outcome {
                    Err(error) => {
                        let detail = Detail::of(&error);
                        self.findings
                            .add(FindingKind::DataUnreadable, place, detail);
                    }
                    Ok(false) => {
                        self.findings
                            .add(FindingKind::DataChecksum, place, Detail::None);
                    }
                    Ok(true) => {}
                }
            }
        }
    }
}

pub(super) fn place(volume: VolumeId, at: Position, pointer: Pointer) -> Place {
    let (first, addr): (_, BlockAddr) = (BlockIndex(at.first), pointer.addr());
    match at.level {
        0 => Place::Data {
            volume,
            block: first,
            addr,
        },
        level => Place::Node {
            volume,
            level,
            first,
            addr,
        },
    }
}
