//! I/O on one open volume file: reads, writes, discards and seeks, clipped to the volume's size as
//! a block device clips them.
//!
//! No FUSE types and no replies here; an error is an errno.

use super::target::{BlockTarget, TargetHold};
use cowshed_engine::{ExtentKind, Waiter};
use cowshed_format::base::{BLOCK_SHIFT, CorruptKind, Error, VolumeId};
use libc::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The result of a request: its value or an errno.
pub(super) type Answer<T> = Result<T, c_int>;

/// The fallocate(2) modes that have a meaning here.
const KEEP_SIZE: c_int = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH_HOLE: c_int = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
const ZERO_RANGE: c_int = libc::FALLOC_FL_ZERO_RANGE;
const ZERO_RANGE_KEEP_SIZE: c_int = ZERO_RANGE | KEEP_SIZE;

/// Least number of seconds between two lines in the log about reads that fail.
const LOG_SECONDS: u64 = 10;

/// Returns the offset in the volume of the block that the error names; `first`, where the read began, if
/// it names none.
fn failed_offset(error: &Error, first: u64) -> u64 {
    match error {
        Error::Corrupt(
            CorruptKind::DataChecksum { block, .. } | CorruptKind::Lost { block, .. },
        ) => block.0 << BLOCK_SHIFT,
        _ => first,
    }
}

/// Says in the log why a read fails, since its user gets a number only; now and then, because a user
/// may try again and again.
fn log_failed_read(volume: VolumeId, offset_bytes: u64, error: &Error) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let offset_bytes = failed_offset(error, offset_bytes);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let last = LAST.load(Ordering::Relaxed);
    let is_due = now.abs_diff(last) >= LOG_SECONDS;
    let swap = || LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
    if is_due && swap().is_ok() {
        tracing::error!(volume = volume.0, offset_bytes, %error, "a read of a volume failed");
    }
}

/// An open file of a volume.
pub(super) struct OpenFile {
    target: Arc<dyn BlockTarget>,
    /// Keeps the volume from being removed under the file; `None` if its opener does that.
    hold: Option<TargetHold>,
    /// True if it was opened for writing.
    writes: bool,
}

/// Returns the errno of an engine's error.
#[expect(clippy::needless_pass_by_value, reason = "to be used with map_err")]
pub(super) fn errno(error: Error) -> c_int {
    error.errno()
}

impl OpenFile {
    /// Opens the target's file; `is_held` is true if the opener keeps the target for longer.
    pub(super) fn open(
        target: Arc<dyn BlockTarget>,
        for_writing: bool,
        is_held: bool,
    ) -> Answer<Self> {
        if for_writing && target.info().map_err(errno)?.is_read_only {
            return Err(libc::EROFS);
        }
        Self::reopen(target, for_writing, is_held)
    }

    /// As `open`, for a file that a predecessor opened.
    pub(super) fn reopen(
        target: Arc<dyn BlockTarget>,
        for_writing: bool,
        is_held: bool,
    ) -> Answer<Self> {
        let hold = if is_held {
            None
        } else {
            Some(target.hold().map_err(errno)?)
        };
        Ok(Self {
            target,
            hold,
            writes: for_writing,
        })
    }

    /// Returns the id of the file's volume.
    pub(super) fn id(&self) -> VolumeId {
        self.target.id()
    }

    /// Returns true if the file itself keeps its volume from being removed.
    pub(super) fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// Returns true if the file was opened for writing.
    pub(super) fn writes(&self) -> bool {
        self.writes
    }

    /// Fills the start of `buf` from `offset`; returns the number of bytes, which is less than all
    /// only at the end.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Answer<usize> {
        let len = self.clip(offset, buf.len());
        if len > 0 {
            self.target
                .read_at(&mut buf[..len], offset)
                .inspect_err(|error| log_failed_read(self.id(), offset, error))
                .map_err(errno)?;
        }
        Ok(len)
    }

    /// Writes as much of `data` as fits before the end; returns the number of bytes.
    pub(super) fn write(
        &self,
        data: &[u8],
        offset: u64,
        durable: bool,
        waiter: &dyn Waiter,
    ) -> Answer<usize> {
        let len = self.clip(offset, data.len());
        if len == 0 {
            // A file of fixed size has no space past its end, as a block device has none.
            return if data.is_empty() {
                Ok(0)
            } else {
                Err(libc::ENOSPC)
            };
        }
        self.target
            .write_at(&data[..len], offset, waiter)
            .map_err(errno)?;
        if durable {
            self.flush()?;
        }
        Ok(len)
    }

    pub(super) fn flush(&self) -> Answer<()> {
        self.target.flush().map_err(errno)
    }

    /// Performs fallocate(2): punching and zeroing discard the range. Allocating does nothing, as a
    /// volume allocates when it is written.
    pub(super) fn fallocate(&self, offset: u64, len: u64, mode: c_int) -> Answer<()> {
        let size = self.target.size_bytes();
        let end = offset.checked_add(len).ok_or(libc::EFBIG)?;
        if mode & KEEP_SIZE == 0 && end > size {
            return Err(libc::EFBIG);
        }
        match mode {
            PUNCH_HOLE | ZERO_RANGE | ZERO_RANGE_KEEP_SIZE => {
                let end = end.min(size);
                if offset < end {
                    self.target.discard(offset, end - offset).map_err(errno)?;
                }
                Ok(())
            }
            0 | KEEP_SIZE if self.target.info().map_err(errno)?.is_read_only => Err(libc::EROFS),
            0 | KEEP_SIZE => Ok(()),
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// Performs lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub(super) fn seek(&self, offset: i64, whence: c_int) -> Answer<i64> {
        let wanted = match whence {
            libc::SEEK_DATA => ExtentKind::Data,
            libc::SEEK_HOLE => ExtentKind::Zero,
            _ => return Err(libc::EINVAL),
        };
        let size = self.target.size_bytes();
        let mut position = u64::try_from(offset).map_err(|_| libc::ENXIO)?;
        if position >= size {
            return Err(libc::ENXIO);
        }
        while let Some(extent) = self.target.extent_at(position).map_err(errno)? {
            if extent.kind == wanted {
                return i64::try_from(position).map_err(|_| libc::EOVERFLOW);
            }
            // Counted from the present position, so that an extent that starts earlier does no
            // harm. An empty extent must not keep this thread in the loop for ever.
            let next = extent.offset_bytes.saturating_add(extent.len_bytes);
            if next <= position {
                return Err(libc::EIO);
            }
            position = next;
        }
        match wanted {
            // The end of a file counts as a hole.
            ExtentKind::Zero => i64::try_from(size).map_err(|_| libc::EOVERFLOW),
            ExtentKind::Data => Err(libc::ENXIO),
        }
    }

    /// Returns the number of the `len` bytes at `offset` that lie before the end.
    fn clip(&self, offset: u64, len: usize) -> usize {
        let room = self.target.size_bytes().saturating_sub(offset);
        usize::try_from(room).map_or(len, |room| len.min(room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::{BlockAddr, BlockIndex};

    #[test]
    fn a_failed_read_is_logged_at_the_block_that_failed() {
        let (volume, block, addr) = (VolumeId(1), BlockIndex(100), BlockAddr(4216));
        let damaged = CorruptKind::DataChecksum {
            volume,
            block,
            addr,
        };
        assert_eq!(failed_offset(&damaged.into(), 0), 409_600);
        assert_eq!(failed_offset(&Error::NoSpace, 8192), 8192);
    }
}
