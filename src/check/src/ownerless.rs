//! Blocks without an owner: those that a detached volume has from its lost parent.
//!
//! They are reached before anything is claimed, so that volumes that own some of them are known to
//! be pinned, in whatever order the volumes are walked.

use super::finding::{Detail, FindingKind};
use super::walk::{Position, Settled, Subject, Tree, Walker, place};
use cowshed_format::Pointer;
use cowshed_format::base::{BlockIndex, VolumeId};

impl Walker<'_> {
    /// Reaches what has no owner in a volume that is detached, or has inherited from one that is;
    /// before anything else is walked, so that the owners of the same blocks in other volumes are
    /// known to be pinned.
    pub(super) fn reach_ownerless(&mut self, subject: Subject) {
        let Tree { root, height } = subject.tree;
        let inherits = matches!(subject.settled, Settled::Inherited { detached: true, .. });
        // Its own walk reports a root that is wrong.
        if !(subject.detached || inherits) || self.check_root(root).is_err() {
            return;
        }
        let at = Position {
            level: height,
            first: 0,
        };
        self.seek_ownerless(subject, at, root);
    }

    fn seek_ownerless(&mut self, subject: Subject, at: Position, pointer: Pointer) {
        let settled = at.end() <= subject.cursor;
        let branch = match subject.settled {
            Settled::Gone if settled => return,
            Settled::Inherited { branch, .. } if settled => branch,
            _ => subject.branch,
        };
        if pointer.is_hole() || pointer.is_lost() {
            return;
        }
        let straddles = at.first < subject.cursor && !settled;
        let is_own = pointer.birth() > branch;
        let is_ownerless = !is_own && subject.is_ownerless(settled);
        if is_ownerless && !straddles {
            return self.reach(subject.volume, at, pointer);
        }
        if is_ownerless {
            // What it leads to below the cursor may be another's by now.
            for addr in pointer.places(self.groups_start()) {
                self.marks.touch(addr);
            }
        }
        if !is_own && !straddles {
            return;
        }
        if at.level == 0 {
            return;
        }
        // A node that cannot be read is reported by the walk that owns it.
        let Ok(entries) = self.read_node(pointer, at.level) else {
            self.ownership_known = false;
            return;
        };
        for (slot, entry) in (0u64..).zip(entries.iter()) {
            self.seek_ownerless(subject, at.child(slot), *entry);
        }
    }

    /// Marks a block without an owner, and everything below it, and reports what cannot be read.
    fn reach(&mut self, volume: VolumeId, at: Position, pointer: Pointer) {
        if pointer.is_hole() || pointer.is_lost() {
            return;
        }
        let mut is_new = false;
        for addr in pointer.places(self.groups_start()) {
            is_new |= self.marks.touch(addr);
        }
        if !is_new {
            return;
        }
        if at.level == 0 {
            if self.deep {
                self.blocks.push((BlockIndex(at.first), pointer));
            }
            return;
        }
        let place = place(volume, at, pointer);
        match self.read_own_node(pointer, at.level, place) {
            Ok(entries) => {
                for (slot, entry) in (0u64..).zip(entries.iter()) {
                    self.reach(volume, at.child(slot), *entry);
                }
                if at.level == 1 {
                    self.verify_blocks(volume);
                }
            }
            Err(error) => {
                let (kind, detail) = (FindingKind::NodeUnreadable, Detail::of(&error));
                self.findings.add(kind, place, detail);
                self.ownership_known = false;
            }
        }
    }
}
