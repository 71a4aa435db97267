//! The ext4 in a volume, which `cowshed-ext4diff` reads through the pool.

use cowshed_engine::{Pool, Volume};
use cowshed_ext4diff::{BlockSource, Indexes, ReadResult, Sides, Superblock, TreeChanges};
use cowshed_format::base::Result;
use std::ops::Range;

/// A volume as a source of blocks.
pub(crate) struct InVolume<'v>(pub &'v Volume);

impl BlockSource for InVolume<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.0.read_at(buf, offset_bytes)
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.0.info()?.referenced_bytes)
    }

    /// A frozen volume never changes, and a pool gives no id twice.
    fn identity(&self) -> Option<u64> {
        self.0.is_frozen().then(|| self.0.id().0)
    }
}

/// Reads the superblock; returns `None` if the volume holds no ext4 with blocks of 4 KiB.
pub(crate) fn superblock(volume: &Volume) -> Result<Option<Superblock>> {
    Superblock::read(&InVolume(volume))
}

/// Returns true if the file system needs no journal. The volume must not change meanwhile.
pub(crate) fn is_settled(volume: &Volume) -> Result<bool> {
    cowshed_ext4diff::is_settled(&InVolume(volume))
}

/// Discards the blocks of an empty journal except its superblock, which nobody reads again: else
/// every layer and container would keep its own copy of them. Does nothing if the journal is not an
/// ordinary one.
pub(crate) fn release_journal(volume: &Volume) -> Result<()> {
    for unused in cowshed_ext4diff::unused_journal(&InVolume(volume))? {
        volume.discard(unused.start, unused.end - unused.start)?;
    }
    Ok(())
}

/// Returns the ranges of bytes in which `now` differs from `base`.
pub(crate) fn differing(pool: &Pool, base: &Volume, now: &Volume) -> Result<Vec<Range<u64>>> {
    let extents = pool.diff(base, now)?.into_iter();
    let ranges = extents.map(|it| it.offset_bytes..it.offset_bytes + it.len_bytes);
    Ok(ranges.collect())
}

/// Returns the changes from the file system in `base` to the one in `now`; neither may be written
/// meanwhile.
///
/// # Errors
/// `Fault::Read` if the pool cannot be read; otherwise the reason why the file systems must be
/// compared through the kernel.
pub(crate) fn changes(
    pool: &Pool,
    base: &Volume,
    now: &Volume,
    indexes: &Indexes,
) -> ReadResult<TreeChanges> {
    let differing = differing(pool, base, now)?;
    Sides::open(&InVolume(base), &InVolume(now), &differing)?.changes(indexes)
}
