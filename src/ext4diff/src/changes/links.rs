//! Files with several names: the changes that the walk cannot see from one name alone.

use super::Sides;
use super::names::{Names, PathBytes, Side};
use crate::ext4::ReadResult;
use crate::tree::{TreeChange, TreeChanges, TreePath};
use std::collections::{BTreeSet, HashMap};

/// Names that must be compared again after the walk.
#[derive(Default)]
pub(super) struct Linked {
    /// Paths on both sides that lead to another inode now, where either inode has other names.
    repointed: Vec<(PathBytes, u32, u32)>,
    /// Inodes of the new side with several names, one of which is listed.
    listed: BTreeSet<u32>,
}

impl Linked {
    pub(super) fn note_repointed(&mut self, path: PathBytes, old: u32, new: u32) {
        self.repointed.push((path, old, new));
    }

    pub(super) fn note_listed(&mut self, inode: u32) {
        self.listed.insert(inode);
    }

    /// Lists the names that were one file and are now two, or vice versa, and then all names of the
    /// files of which one name is listed.
    pub(super) fn complete(
        mut self,
        sides: &Sides<'_>,
        names: &Names<'_>,
        changes: &mut TreeChanges,
    ) -> ReadResult<()> {
        self.split_and_joined(sides, names, changes)?;
        for inode in self.listed {
            for path in names.paths(Side::Now, inode)? {
                changes
                    .entry(TreePath::from_bytes(path))
                    .or_insert(TreeChange::Changed);
            }
        }
        Ok(())
    }

    /// The two sides agree about a name if the first common name of its file is the same on both.
    /// They can disagree only about a name that leads to another inode now, and about the other
    /// names of its old and new inodes.
    fn split_and_joined(
        &mut self,
        sides: &Sides<'_>,
        names: &Names<'_>,
        changes: &mut TreeChanges,
    ) -> ReadResult<()> {
        let mut common = std::mem::take(&mut self.repointed);
        let inodes: BTreeSet<u32> = common
            .iter()
            .flat_map(|(_, old, new)| [*old, *new])
            .collect();
        for inode in inodes {
            let (old, new) = (sides.base.inode(inode)?, sides.now.inode(inode)?);
            let is_linked = old.has_other_names() || new.has_other_names();
            if !old.is_live() || !new.is_live() || old.kind() != new.kind() || !is_linked {
                continue;
            }
            let before: BTreeSet<PathBytes> = names.paths(Side::Base, inode)?.into_iter().collect();
            let after = names.paths(Side::Now, inode)?.into_iter();
            let stayed = after.filter(|path| before.contains(path));
            common.extend(stayed.map(|path| (path, inode, inode)));
        }
        common.sort_unstable();
        let (mut first_before, mut first_after) = (HashMap::new(), HashMap::new());
        for (path, old, new) in &common {
            first_before.entry(old).or_insert(path);
            first_after.entry(new).or_insert(path);
        }
        for (path, old, new) in &common {
            if first_before.get(old) != first_after.get(new) {
                changes
                    .entry(TreePath::from_bytes(path.clone()))
                    .or_insert(TreeChange::Changed);
                if sides.now.inode(*new)?.has_other_names() {
                    self.listed.insert(*new);
                }
            }
        }
        Ok(())
    }
}
