//! Devices, which hold a pool's bytes: a regular file, a block device, or memory for tests.
//!
//! A device is a flat range of bytes with positioned reads and writes that are exact (all or an
//! error), one barrier (`flush`), and a log region. It does not interpret the bytes.
//!
//! # Invariants
//! - All calls take `&self` and may run concurrently on any threads.
//! - Offsets and lengths of `read_at`, `write_at` and `discard` are multiples of 4,096. Buffers
//!   may lie anywhere in memory; a device that needs alignment copies.
//! - When `flush` returns, everything that was written, stored or discarded by calls that had
//!   returned before it was called survives a power cut.
//! - A write or a store that has returned survives the death of the process.

mod fail_stop;
#[cfg(any(test, feature = "testing"))]
mod faulty;
mod file;
mod medium;
#[cfg(any(test, feature = "testing"))]
mod memory;
pub mod mirror;
mod read_only;
mod threaded;
mod threads;

pub use fail_stop::{Alarm, FailStopDevice};
#[cfg(any(test, feature = "testing"))]
pub use faulty::{Effect, Fault, FaultyDevice, Lasting, Operation};
pub use file::{CreateFile, FileDevice, FileOptions, NewDevice, lock_pool};
pub use medium::{Medium, OnMedium};
#[cfg(any(test, feature = "testing"))]
pub use memory::{DeviceImage, MemoryDevice, RecordedOp, Recording};
pub use mirror::MirrorDevice;
pub use read_only::ReadOnlyDevice;
pub use threaded::ThreadedDevice;

use crate::base::{BLOCK_BYTES, Error, Result};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// A flat range of bytes with exact positioned I/O, one barrier, and a mapped log region.
pub trait Device: Send + Sync {
    /// Returns the device's length in bytes.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes`.
    ///
    /// # Errors
    /// `Io` when the device fails or ends before the range; the contents of `buf` are then
    /// unspecified.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// Fills `buf` from `offset_bytes`, and returns true if its bytes are accepted. Of a mirror, the
    /// good sides are asked in turn until the bytes of one are accepted, and those sides whose bytes
    /// are not get them; with `all`, every good side is asked.
    ///
    /// # Errors
    /// As `read_at`; of a mirror, only if no side has accepted bytes.
    fn read_accepted(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        _all: bool,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        self.read_at(buf, offset_bytes)?;
        Ok(accept(buf))
    }

    /// Fills `buf` with what the host has in memory, without waiting; returns false if it has not all
    /// of it, or cannot tell.
    fn read_cached(&self, _buf: &mut [u8], _offset_bytes: u64) -> bool {
        false
    }

    /// Returns a device that reads the same bytes past what the host has in memory, for the calling
    /// thread and those that it starts; `None` if `read_at` does so, or nothing can.
    fn medium(&self) -> Option<Box<dyn Device>> {
        None
    }

    /// Tells the host that it need not keep a range in memory that was just read, because the reader
    /// does. What is not written out yet stays.
    fn forget_read(&self, _offset_bytes: u64, _len_bytes: u64) {}

    /// Has the host store what it does not store yet of a range, of which nothing is read before it is
    /// written: afterwards it reads as anything. A flush after a write there then makes no record of
    /// the host's own durable. This is a hint: what the host has no space for stays as it is.
    fn fill_gaps(&self, _offset_bytes: u64, _len_bytes: u64) {}

    /// Writes all of `buf` at `offset_bytes`.
    ///
    /// # Errors
    /// `Io` when the device fails; any part may have been written.
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()>;

    /// Writes the pieces of `bufs` end to end at `offset_bytes`; each piece is whole blocks.
    ///
    /// # Errors
    /// As `write_at`.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()>;

    /// Makes all earlier changes durable: the barrier.
    ///
    /// # Errors
    /// `Io`, after which nothing written since the last good flush is known to be durable.
    fn flush(&self) -> Result<()>;

    /// Tells the host that a range is no longer used; afterwards it may read as anything.
    ///
    /// # Errors
    /// `Io` when the host fails; a host that cannot discard returns `Ok`.
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;

    /// Makes the device at least `len_bytes` long, where it can grow.
    ///
    /// # Errors
    /// `Io`, or `BeyondDevice` for a device of fixed size that is shorter.
    fn grow(&self, len_bytes: u64) -> Result<()>;

    /// Sets aside the log region: allocated on the host where that has space, and mapped where a
    /// store into a mapping cannot fail for lack of space. Called before the first `store_log`;
    /// further calls must name the same region.
    ///
    /// # Errors
    /// `Io` when the host cannot map it.
    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;

    /// Copies `bytes` into the log region, `offset_bytes` from the region's start; where the region is
    /// mapped, without a system call for nearly all of them. Any alignment and length inside the region.
    ///
    /// # Errors
    /// `Io`, such as `ENOSPC` of a copy-on-write host without space; any part may then be stored.
    ///
    /// # Panics
    /// When the range is outside the region that `map_log` set aside.
    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()>;

    /// Returns the number of bytes that the device takes on its host (for a sparse file, the
    /// allocated bytes).
    ///
    /// # Errors
    /// `Io` when the host does not tell.
    fn host_bytes(&self) -> Result<u64>;

    /// Returns the number of bytes that the host has left for the device to allocate; `None` for a
    /// device that has all its space, or whose host has no limit.
    ///
    /// # Errors
    /// `Io` when the host does not tell.
    fn host_free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Reserves `len_bytes` of the host behind the device's end, where nothing is read or written,
    /// and which a copy that shares the device's extents does not share. Returns the number of
    /// bytes reserved now, by earlier calls too; `None` for a device or a host that cannot reserve.
    ///
    /// # Errors
    /// `Io` when the host does not tell what is there. A host without space is not an error.
    fn reserve_host_bytes(&self, _len_bytes: u64) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Gives space reserved behind the device's end back to the host, and keeps the first
    /// `keep_bytes` of `held_bytes`; all of it for 0, also what the caller does not know of.
    /// Returns the number of bytes that the host has got back.
    ///
    /// # Errors
    /// `Io` when the host refuses.
    fn release_host_bytes(&self, _keep_bytes: u64, _held_bytes: u64) -> Result<u64> {
        Ok(0)
    }

    /// Returns the descriptors that the device works through, for a thread that gives up all
    /// others. They stay the same as long as the device lives.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Returns true if reads and writes bypass the host's page cache.
    fn is_direct(&self) -> bool {
        false
    }

    /// Returns the mirror, if the device is one or lies on one.
    fn mirror(&self) -> Option<&MirrorDevice> {
        None
    }
}

/// Checks that a range of whole blocks lies inside a device of `device_bytes`.
///
/// # Panics
/// When the range is not whole blocks: no caller computes such a range from outside data.
fn check_blocks(
    action: &'static str,
    offset_bytes: u64,
    len_bytes: u64,
    device_bytes: u64,
) -> Result<()> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    assert!(
        offset_bytes.is_multiple_of(BLOCK) && len_bytes.is_multiple_of(BLOCK),
        "the range {offset_bytes}+{len_bytes} is not whole blocks"
    );
    let inside = offset_bytes
        .checked_add(len_bytes)
        .is_some_and(|end| end <= device_bytes);
    if inside {
        return Ok(());
    }
    let source = io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the device ends before the range",
    );
    Err(Error::io(action, source))
}

/// Returns the pieces of `bufs` end to end.
fn gather(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(bufs.iter().map(|piece| piece.len()).sum());
    for piece in bufs {
        bytes.extend_from_slice(piece);
    }
    bytes
}
