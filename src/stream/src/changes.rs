//! What a stream has to hold: all data of a snapshot, or what differs from a base.

use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::record;
use cowshed_engine::{Extent, ExtentKind, Name, Pool, Volume, VolumeId, VolumeKind};
use std::ops::Range;

/// The part of a volume whose differences are looked for at a time: a limit to the memory that
/// they take, also if every second block differs.
const WINDOW_BYTES: u64 = 4 << 30;

/// What a difference is to.
pub(crate) struct Base {
    pub(crate) name: Name,
    pub(crate) identity: Identity,
    /// The snapshot or bookmark.
    pub(crate) volume: Volume,
    /// For a bookmark: the snapshot that it marks, which may have been removed.
    marks: Option<VolumeId>,
}

impl Base {
    /// Returns a snapshot or bookmark as a base.
    pub(crate) fn new(pool: &Pool, volume: Volume) -> Result<Self> {
        let info = volume.info()?;
        if let Some(mark) = record::mark(pool, info.id)? {
            // If nothing else descended from the snapshot, the bookmark has another parent now.
            let marks = info.parent.filter(|parent| *parent == mark.snapshot);
            return Ok(Self {
                name: mark.name,
                identity: mark.identity,
                volume,
                marks: Some(marks.unwrap_or(info.id)),
            });
        }
        if info.kind != VolumeKind::Snapshot {
            return Err(Error::NotABase(info.name));
        }
        let identity = Identity::of(pool, &volume)?;
        Ok(Self {
            name: info.name,
            identity,
            volume,
            marks: None,
        })
    }
}

/// The ranges of a snapshot that a stream holds.
pub(crate) struct Changes<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) snapshot: &'a Volume,
    pub(crate) base: Option<&'a Base>,
}

impl Changes<'_> {
    /// Calls `visit` for each range at or after `from`, in order.
    pub(crate) fn each(
        &self,
        from: u64,
        visit: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        match self.base {
            None => self.each_data(from, visit),
            Some(base) => self.each_difference(base, from, visit),
        }
    }

    /// Returns the number of bytes of data in the ranges.
    pub(crate) fn data_bytes(&self, from: u64) -> Result<u64> {
        let size_bytes = self.snapshot.size_bytes();
        if self.base.is_none() && from == 0 {
            return Ok(self.snapshot.info()?.referenced_bytes.min(size_bytes));
        }
        let mut data_bytes = 0;
        self.each(from, &mut |extent| {
            if extent.kind == ExtentKind::Data {
                data_bytes += extent.len_bytes;
            }
            Ok(())
        })?;
        Ok(data_bytes)
    }

    fn each_data(&self, from: u64, visit: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let mut at = from;
        while let Some(extent) = self.snapshot.extent_at(at)? {
            at += extent.len_bytes;
            if extent.kind == ExtentKind::Data {
                visit(extent)?;
            }
        }
        Ok(())
    }

    fn each_difference(
        &self,
        base: &Base,
        from: u64,
        visit: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let size_bytes = self.snapshot.size_bytes();
        let mut start = from - from % WINDOW_BYTES;
        while start < size_bytes {
            let window = start..start + WINDOW_BYTES;
            for extent in self.differences(base, &window)? {
                if let Some(extent) = cut(extent, from..size_bytes) {
                    visit(extent)?;
                }
            }
            start = window.end;
        }
        Ok(())
    }

    fn differences(&self, base: &Base, window: &Range<u64>) -> Result<Vec<Extent>> {
        let Some(ancestor) = base.marks else {
            return Ok(self.pool.diff_within(&base.volume, self.snapshot, window)?);
        };
        let changed = self.pool.changes_since(ancestor, self.snapshot, window)?;
        changed.ok_or_else(|| Error::NotDescended {
            snapshot: self.snapshot.name(),
            bookmark: base.volume.name(),
        })
    }
}

/// Returns the part of a range inside `limits`.
fn cut(extent: Extent, limits: Range<u64>) -> Option<Extent> {
    let start = extent.offset_bytes.max(limits.start);
    let end = (extent.offset_bytes + extent.len_bytes).min(limits.end);
    (start < end).then(|| Extent {
        offset_bytes: start,
        len_bytes: end - start,
        kind: extent.kind,
    })
}
