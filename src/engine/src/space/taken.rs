//! The taken blocks of a group, for copying them to another device.

use super::BlockRun;
use super::bitmap::{bits, first_set_run};
use super::groups::Space;
use cowshed_format::base::BlockAddr;
use cowshed_format::group::Bitmap;

impl Space {
    /// Returns the number of groups.
    #[must_use]
    pub(crate) fn group_count(&self) -> usize {
        self.with_groups(<[_]>::len)
    }

    /// Returns the runs of blocks of a group that are in use, on their way into use, or still part
    /// of the last checkpoint, the group's header included; without those that are set in `but`.
    #[must_use]
    pub(crate) fn taken_runs(&self, number: usize, but: Option<&Bitmap>) -> Vec<BlockRun> {
        self.with_groups(|groups| {
            let group = groups[number].lock();
            let run = |range: std::ops::Range<usize>| BlockRun {
                start: BlockAddr(group.start + range.start as u64),
                count: u32::try_from(range.len()).expect("a group has under 2^16 blocks"),
            };
            if group.is_closed() {
                return vec![run(0..group.blocks)];
            }
            let Some(taken) = &group.taken else {
                return Vec::new();
            };
            let mut taken = **taken;
            if let Some(but) = but {
                taken
                    .iter_mut()
                    .zip(but)
                    .for_each(|(word, but)| *word &= !but);
            }
            let taken = &bits(&taken)[..group.blocks];
            let mut runs = Vec::new();
            let mut from = 0;
            while let Some(range) = first_set_run(taken, from) {
                from = range.end;
                runs.push(run(range));
            }
            runs
        })
    }
}
