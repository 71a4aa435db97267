//! Following both trees from the root into every directory above something that changed.

use super::Sides;
use super::inodes::ChangedInodes;
use super::links::Linked;
use super::names::{Names, PathBytes, join};
use super::objects;
use crate::ext4::directory::parse;
use crate::ext4::{Fault, Inode, Listing, ROOT_INODE, ReadResult};
use crate::tree::{TreeChange, TreeChanges, TreePath};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Two directories that have the same path.
struct Pair {
    path: PathBytes,
    old: Inode,
    new: Inode,
}

/// The walk with its results so far.
pub(super) struct Walk<'a> {
    sides: &'a Sides<'a>,
    changed: &'a ChangedInodes,
    names: &'a Names<'a>,
    /// For each directory of the base above a change: the changed inodes in it, and its
    /// subdirectories that also lie above a change, by the block that names them.
    below: HashMap<u32, BTreeMap<u64, BTreeSet<u32>>>,
    pending: Vec<Pair>,
    /// The directories that were entered on either side.
    seen: [HashSet<u32>; 2],
    changes: TreeChanges,
    linked: Linked,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        sides: &'a Sides<'a>,
        changed: &'a ChangedInodes,
        names: &'a Names<'a>,
    ) -> Self {
        Self {
            sides,
            changed,
            names,
            below: directories_above(changed, names),
            pending: Vec::new(),
            seen: Default::default(),
            changes: TreeChanges::new(),
            linked: Linked::default(),
        }
    }

    /// Walks both trees.
    pub(super) fn run(&mut self) -> ReadResult<()> {
        self.pair(PathBytes::new(), ROOT_INODE, ROOT_INODE)?;
        while let Some(pair) = self.pending.pop() {
            if pair.old.number() == pair.new.number() {
                self.same_directory(&pair)?;
            } else {
                self.other_directory(&pair)?;
            }
        }
        Ok(())
    }

    /// Returns the changes, and the names that must be compared again.
    pub(super) fn into_parts(self) -> (TreeChanges, Linked) {
        (self.changes, self.linked)
    }

    /// Compares two directories that are one inode: only their differing parts.
    fn same_directory(&mut self, pair: &Pair) -> ReadResult<()> {
        let names = self.names;
        let nothing = Listing::new();
        let (removed, added) = match names.delta(pair.new.number()) {
            Some(delta) => (&delta.removed, &delta.added),
            None => (&nothing, &nothing),
        };
        self.entries(&pair.path, removed, added)?;
        let Some(below) = self.below.remove(&pair.new.number()) else {
            return Ok(());
        };
        for (block, inodes) in below {
            let block = self.sides.base.block(block)?;
            let mut found = Vec::new();
            parse(&block, &mut |entry| {
                if inodes.contains(&entry.inode) && !removed.contains_key(entry.name) {
                    found.push((entry.name.to_vec(), entry.inode));
                }
                Ok(())
            })?;
            for (name, inode) in found {
                self.pair(join(&pair.path, &name)?, inode, inode)?;
            }
        }
        Ok(())
    }

    /// Compares two directories of which one has replaced the other.
    fn other_directory(&mut self, pair: &Pair) -> ReadResult<()> {
        let base = self.sides.base.listing(&pair.old)?;
        let now = self.sides.now.listing(&pair.new)?;
        self.entries(&pair.path, &base, &now)
    }

    fn entries(&mut self, directory: &[u8], base: &Listing, now: &Listing) -> ReadResult<()> {
        for (name, old) in base {
            let path = join(directory, name)?;
            match now.get(name) {
                Some(new) => self.pair(path, *old, *new)?,
                None => self.insert(path, TreeChange::Removed),
            }
        }
        for (name, new) in now {
            if !base.contains_key(name) {
                let new = self.sides.now.live_inode(*new)?;
                self.added(join(directory, name)?, new, TreeChange::Added)?;
            }
        }
        Ok(())
    }

    /// Compares the objects of a path that exists on both sides.
    fn pair(&mut self, path: PathBytes, old: u32, new: u32) -> ReadResult<()> {
        let is_changed = old != new || self.changed.contains(old);
        if !is_changed && !self.below.contains_key(&old) {
            return Ok(());
        }
        let old = self.sides.base.live_inode(old)?;
        let new = self.sides.now.live_inode(new)?;
        if old.kind() != new.kind() {
            return self.added(path, new, TreeChange::Changed);
        }
        if is_changed && !objects::is_same(self.sides, &old, &new)? {
            self.list(path.clone(), &new, TreeChange::Changed);
        }
        if new.is_directory() {
            self.meet(0, &old)?;
            self.meet(1, &new)?;
            self.pending.push(Pair { path, old, new });
        } else if old.number() != new.number() && (old.has_other_names() || new.has_other_names()) {
            self.linked.note_repointed(path, old.number(), new.number());
        }
        Ok(())
    }

    /// Lists an object that exists only on the new side, with everything in it.
    fn added(&mut self, path: PathBytes, inode: Inode, change: TreeChange) -> ReadResult<()> {
        let mut pending = vec![(path, inode, change)];
        while let Some((path, inode, change)) = pending.pop() {
            self.list(path.clone(), &inode, change);
            if !inode.is_directory() {
                continue;
            }
            self.meet(1, &inode)?;
            for (name, child) in self.sides.now.listing(&inode)? {
                let child = self.sides.now.live_inode(child)?;
                pending.push((join(&path, &name)?, child, TreeChange::Added));
            }
        }
        Ok(())
    }

    /// Notes that a directory is entered on a side; fails if it was entered before.
    fn meet(&mut self, side: usize, directory: &Inode) -> ReadResult<()> {
        if self.seen[side].insert(directory.number()) {
            Ok(())
        } else {
            Err(Fault::Corrupt("a directory with two names"))
        }
    }

    fn list(&mut self, path: PathBytes, new: &Inode, change: TreeChange) {
        if new.has_other_names() {
            self.linked.note_listed(new.number());
        }
        self.insert(path, change);
    }

    fn insert(&mut self, path: PathBytes, change: TreeChange) {
        self.changes.insert(TreePath::from_bytes(path), change);
    }
}

/// Returns the directories of the base above the changed inodes, with the entries that lead to
/// those.
fn directories_above(
    changed: &ChangedInodes,
    names: &Names<'_>,
) -> HashMap<u32, BTreeMap<u64, BTreeSet<u32>>> {
    let mut below: HashMap<u32, BTreeMap<u64, BTreeSet<u32>>> = HashMap::new();
    let mut pending = changed.numbers().to_vec();
    while let Some(inode) = pending.pop() {
        for place in names.places(inode) {
            // If the directory's own inode has changed, it is among the pending ones already.
            if !below.contains_key(&place.directory) && !changed.contains(place.directory) {
                pending.push(place.directory);
            }
            let blocks = below.entry(place.directory).or_default();
            blocks.entry(place.block()).or_default().insert(inode);
        }
    }
    below
}
