//! The ranges in which one state of a volume differs from another, a part of the volume at a time,
//! so that the memory that a caller needs has a limit.

use super::handle::{Pool, Volume, push_block, push_range};
use super::info::Extent;
use crate::map::{diff, since};
use cowshed_format::base::units::blocks_for;
use cowshed_format::base::{BLOCK_BYTES, Generation, Result, VolumeId};
use std::ops::Range;

impl Pool {
    /// Returns the ranges inside `part` (bytes, on block boundaries) in which `b` differs from `a`,
    /// in order, with the kind of each in `b`; takes time proportional to the difference.
    ///
    /// # Errors
    /// As `diff`.
    pub fn diff_within(&self, a: &Volume, b: &Volume, part: &Range<u64>) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let window = blocks(part);
        let mut walk = || {
            a.core.tree.walk(|root_a| {
                let root_b = b.core.tree.root_to_keep();
                extents.clear();
                let visit = &mut |block, mapped| push_block(&mut extents, block, mapped);
                diff(&self.shared.store, root_a, &root_b, &window, visit)
            })
        };
        b.look(|| a.look(&mut walk))?;
        clip(&mut extents, a.size_bytes().max(b.size_bytes()));
        Ok(extents)
    }

    /// Returns the ranges inside `part` (bytes, on block boundaries) in which `volume` may differ
    /// from the state `ancestor`, in order: all data that is younger, and every hole beside it.
    /// Takes time proportional to the difference. The ancestor may have been removed, as long as
    /// its place in the forest is kept: by another volume that descends from it.
    ///
    /// Returns `None` if the volume does not descend from `ancestor`.
    ///
    /// # Errors
    /// `NoSuchVolume` when the volume was removed; `Corrupt` or `Io` when a map node cannot be
    /// read.
    pub fn changes_since(
        &self,
        ancestor: VolumeId,
        volume: &Volume,
        part: &Range<u64>,
    ) -> Result<Option<Vec<Extent>>> {
        let Some(branch) = self.branch_from(ancestor, volume.id()) else {
            return Ok(None);
        };
        let mut extents: Vec<Extent> = Vec::new();
        let window = blocks(part);
        volume.look(|| {
            volume.core.tree.walk(|root| {
                extents.clear();
                since(
                    &self.shared.store,
                    root,
                    branch,
                    window.clone(),
                    &mut |range, mapped| {
                        push_range(&mut extents, &range, mapped);
                    },
                )
            })
        })?;
        clip(&mut extents, volume.size_bytes());
        Ok(Some(extents))
    }

    /// Returns the generation at which the line that leads to `volume` left `ancestor`; `None` if
    /// the volume does not descend from it.
    fn branch_from(&self, ancestor: VolumeId, volume: VolumeId) -> Option<Generation> {
        let forest = self.shared.forest.read();
        let mut at = forest.volumes.get(&volume)?;
        loop {
            let parent = at.parent?;
            if parent == ancestor {
                return Some(at.core.writer.lock().branch);
            }
            at = forest.volumes.get(&parent)?;
        }
    }
}

/// Returns the blocks of a range of bytes.
fn blocks(part: &Range<u64>) -> Range<u64> {
    part.start / BLOCK_BYTES as u64..blocks_for(part.end)
}

/// Cuts ranges off at `end` bytes.
fn clip(extents: &mut Vec<Extent>, end: u64) {
    for extent in &mut *extents {
        extent.len_bytes = extent
            .len_bytes
            .min(end.saturating_sub(extent.offset_bytes));
    }
    extents.retain(|extent| extent.len_bytes > 0);
}
