//! A pool in a regular file, sparse or preallocated, or on a block device.
//!
//! It is not a cache: reads and writes go to the host's page cache, or bypass it with direct I/O.
//!
//! # Invariants
//! - The device is locked against other processes from before its first inspection until drop.
//! - One descriptor, `buffered`, is locked, mapped and flushed. A host reports a failed write-back
//!   once for each open descriptor, so a flush of another descriptor could miss it.
//! - A mapped log is inside the file and allocated, and the file never shrinks. The log is mapped
//!   only where a store into allocated space needs nothing of the host. Elsewhere it is written, so
//!   that a host without space refuses one record with an error instead of raising a signal.
//! - Direct I/O only sees memory and ranges that are aligned as the host requires.

mod ahead;
mod aliases;
mod create;
mod open;

pub use create::{CreateFile, NewDevice};
pub use open::{FileOptions, lock_pool};

use super::{Device, check_blocks};
use crate::base::{BLOCK_BYTES, Error, Result};
use ahead::Ahead;
use cowshed_sys::aligned::{is_aligned, with_bounce};
use cowshed_sys::mapped::Mapped;
use cowshed_sys::{cached, extent, geometry};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pwritev;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest piece in which the host keeps a file in memory: a huge page.
const PIECE_BYTES: u64 = 2 << 20;

/// Number of pieces in one `pwritev`: the kernel's limit.
const PIECES_MAX: usize = 1024;
/// Maximum number of bytes written to the page cache in one call. For a larger write, the kernel
/// looks each time for larger pieces of memory than it keeps at hand, which takes several times as
/// long as the copy: 8 pages are the largest that it has lists for (`PAGE_ALLOC_COSTLY_ORDER`).
const CACHED_WRITE_BYTES: usize = 32 << 10;

/// Free space of the host below which nothing is stored ahead.
const FILL_LEAVES_BYTES: u64 = 64 << 20;

/// The kind of host object that the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    RegularFile,
    BlockDevice,
}

/// A second descriptor for direct I/O.
struct Direct {
    file: File,
    memory_align_bytes: usize,
}

/// The log's region, and the way to store into it.
enum LogRegion {
    Mapped(Mapped),
    Written { offset_bytes: u64, len_bytes: u64 },
}

impl LogRegion {
    /// Returns its offset in the file and its length, in bytes.
    fn place(&self) -> (u64, u64) {
        match self {
            Self::Mapped(mapped) => mapped.region(),
            Self::Written {
                offset_bytes,
                len_bytes,
            } => (*offset_bytes, *len_bytes),
        }
    }
}

/// A regular file or a block device.
pub struct FileDevice {
    /// The log's place. This field comes first so that a mapping is unmapped before `buffered`
    /// drops the lock.
    log: OnceLock<LogRegion>,
    direct: Option<Direct>,
    buffered: File,
    host: Host,
    read_only: bool,
    len_bytes: AtomicU64,
    /// Held to change the length.
    growing: Mutex<()>,
    ahead: Ahead,
    /// The piece of the file in which the log was last stored into; `u64::MAX` before.
    log_piece: AtomicU64,
    /// Number of times that a store began another piece.
    log_pieces: AtomicU64,
}

impl FileDevice {
    /// Allocates the log where the host has space, and returns true if it can be mapped. An
    /// unallocated log is not mapped, so that opening a pool needs no space on the host.
    fn can_map_log(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        if self.host == Host::BlockDevice {
            return true;
        }
        let allocated = allocate_log(&self.buffered, offset_bytes, len_bytes);
        if let Err(error) = &allocated {
            tracing::debug!(%error, "the host cannot allocate the pool's log");
        }
        allocated.is_ok() && geometry::overwrites_in_place(&self.buffered)
    }

    /// Gives space that is allocated behind the file's end back to the host, and returns the number
    /// of bytes given back; the caller holds `growing`.
    fn release_behind_end(&self) -> io::Result<u64> {
        let before = self.buffered.metadata()?;
        // Setting the length to its present value frees what lies behind it, on every file system.
        self.buffered.set_len(before.len())?;
        let after = self.buffered.metadata()?.blocks();
        Ok(before.blocks().saturating_sub(after).saturating_mul(512))
    }

    /// Releases what is reserved between `keep_bytes` and `held_bytes` behind the end; returns the
    /// number of bytes released.
    fn release_slice(&self, keep_bytes: u64, held_bytes: u64) -> io::Result<u64> {
        let end = host_len_bytes(&self.buffered, self.host)?;
        let before = self.buffered.metadata()?.blocks();
        let slice_bytes = held_bytes.saturating_sub(keep_bytes);
        if slice_bytes > 0 {
            extent::punch_hole(&self.buffered, end + keep_bytes, slice_bytes)?;
        }
        if self.buffered.metadata()?.blocks() == before {
            // ext4 punches no holes behind a file's end.
            self.release_behind_end()?;
            extent::allocate_behind(&self.buffered, end, keep_bytes)?;
        }
        let after = self.buffered.metadata()?.blocks();
        Ok(before.saturating_sub(after).saturating_mul(512))
    }

    fn check(&self, action: &'static str, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        check_blocks(action, offset_bytes, len_bytes, self.len_bytes())
    }

    fn forget(&self, range: Range<u64>) {
        let len_bytes = range.end.saturating_sub(range.start);
        if let (Ok(offset), Ok(len)) = (i64::try_from(range.start), i64::try_from(len_bytes)) {
            // Advice: where the host does not take it, the pages stay.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.buffered, offset, len, advice);
        }
    }

    /// Has the host forget what it has of the log from the piece on that a store at `at` begins,
    /// unless the last store was in the same piece. The host keeps what was read ahead, or written by
    /// large writes, in large pieces of memory, and would write a whole one for each record in it;
    /// what a store has it read anew, it keeps page by page. What was stored and not written stays.
    fn enter_log_piece(&self, (log_start, log_bytes): (u64, u64), at: u64) {
        let piece = at / PIECE_BYTES;
        if self.log_piece.load(Ordering::Relaxed) == piece {
            return;
        }
        self.log_piece.store(piece, Ordering::Relaxed);
        // After one lap, stores have had all of it read, and so keep it.
        let pieces = log_bytes / PIECE_BYTES + 2;
        if self.log_pieces.fetch_add(1, Ordering::Relaxed) < pieces {
            // The next piece, too: a record may reach into it.
            let start = piece * PIECE_BYTES;
            self.forget(start..(start + 2 * PIECE_BYTES).min(log_start + log_bytes));
        }
    }

    fn fill(&self, mut at: u64, end: u64) -> Result<()> {
        const ACTION: &str = "fill the pool's file";
        let zeros = [0; CACHED_WRITE_BYTES];
        let next_gap = |at| extent::next_gap(&self.buffered, at, end);
        while let Some(gap) = next_gap(at).map_err(|source| Error::io(ACTION, source))? {
            // The host's blocks may be smaller.
            let start = gap.start - gap.start % BLOCK_BYTES as u64;
            let gap_end = gap.end.next_multiple_of(BLOCK_BYTES as u64);
            for start in (start..gap_end).step_by(CACHED_WRITE_BYTES) {
                let len = usize::try_from(gap_end - start).unwrap_or(usize::MAX);
                self.write_at(&zeros[..len.min(CACHED_WRITE_BYTES)], start)?;
            }
            at = gap_end;
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }
}

impl Device for FileDevice {
    fn len_bytes(&self) -> u64 {
        self.len_bytes.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        const ACTION: &str = "read the pool";
        self.check(ACTION, offset_bytes, buf.len() as u64)?;
        let done = match &self.direct {
            Some(direct) => direct.read(buf, offset_bytes),
            None => self.buffered.read_exact_at(buf, offset_bytes),
        };
        done.map_err(|source| Error::io(ACTION, source))
    }

    fn read_cached(&self, buf: &mut [u8], offset_bytes: u64) -> bool {
        let is_inside = self
            .check("read the pool", offset_bytes, buf.len() as u64)
            .is_ok();
        self.direct.is_none()
            && is_inside
            && cached::read_exact_at(&self.buffered, buf, offset_bytes)
    }

    fn medium(&self) -> Option<Box<dyn Device>> {
        Some(Box::new(self.beside_cache()?))
    }

    fn forget_read(&self, offset_bytes: u64, len_bytes: u64) {
        if self.direct.is_some() {
            return;
        }
        // The host forgets only what lies in the range as a whole, and keeps it in pieces of up to
        // this size, the last part of which was read now, if it is read in order.
        let start = offset_bytes - offset_bytes % PIECE_BYTES;
        let end = offset_bytes.saturating_add(len_bytes);
        self.forget(start..end);
        if let Some(ahead) = self.ahead.read(offset_bytes..end) {
            self.forget(ahead);
        }
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        let is_inside = self.check("fill", offset_bytes, len_bytes).is_ok();
        let is_of_use =
            self.host == Host::RegularFile && geometry::records_first_writes(&self.buffered);
        let has_room = || {
            let free = self.host_free_bytes().ok().flatten();
            free.is_some_and(|free| free >= FILL_LEAVES_BYTES)
        };
        if self.read_only || !is_inside || !is_of_use || !has_room() {
            return;
        }
        if let Err(error) = self.fill(offset_bytes, offset_bytes + len_bytes) {
            // What is written there will tell.
            tracing::debug!(%error, "the host does not store free blocks ahead");
        }
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        const ACTION: &str = "write the pool";
        self.check_writable()?;
        self.check(ACTION, offset_bytes, buf.len() as u64)?;
        let done = match &self.direct {
            Some(direct) => direct.write(buf, offset_bytes),
            None => write_to_cache(&self.buffered, buf, offset_bytes),
        };
        done.map_err(|source| Error::io(ACTION, source))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        const ACTION: &str = "write the pool";
        self.check_writable()?;
        let mut len_bytes = 0;
        for piece in bufs {
            assert!(
                piece.len().is_multiple_of(BLOCK_BYTES),
                "a piece that is not whole blocks"
            );
            len_bytes += piece.len() as u64;
        }
        self.check(ACTION, offset_bytes, len_bytes)?;
        let done = match &self.direct {
            Some(direct) => direct.write_vectored(bufs, offset_bytes),
            None => write_pieces(&self.buffered, bufs, offset_bytes),
        };
        done.map_err(|source| Error::io(ACTION, source))
    }

    fn flush(&self) -> Result<()> {
        // This covers direct writes and the mapped log too: they belong to the same inode.
        self.buffered
            .sync_data()
            .map_err(|source| Error::io("flush the pool", source))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        const ACTION: &str = "release space to the host";
        self.check_writable()?;
        self.check(ACTION, offset_bytes, len_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        let done = match self.host {
            Host::RegularFile => extent::punch_hole(&self.buffered, offset_bytes, len_bytes),
            Host::BlockDevice => extent::discard_device(&self.buffered, offset_bytes, len_bytes),
        };
        match done {
            Err(error) if extent::is_unsupported(&error) => Ok(()),
            done => done.map_err(|source| Error::io(ACTION, source)),
        }
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        const ACTION: &str = "grow the pool";
        self.check_writable()?;
        let _growing = self.growing.lock();
        let mut host_bytes =
            host_len_bytes(&self.buffered, self.host).map_err(|e| Error::io(ACTION, e))?;
        if host_bytes < len_bytes {
            if self.host == Host::BlockDevice {
                return Err(Error::BeyondDevice {
                    device_bytes: host_bytes,
                });
            }
            // The reserved space lies where the file grows.
            let grown = self.release_behind_end();
            grown
                .and_then(|_| self.buffered.set_len(len_bytes))
                .map_err(|e| Error::io(ACTION, e))?;
            host_bytes = len_bytes;
        }
        self.len_bytes.fetch_max(host_bytes, Ordering::AcqRel);
        Ok(())
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        const ACTION: &str = "map the log";
        self.check_writable()?;
        self.check(ACTION, offset_bytes, len_bytes)?;
        if self
            .log
            .get()
            .is_some_and(|log| log.place() == (offset_bytes, len_bytes))
        {
            return Ok(());
        }
        let region = if self.can_map_log(offset_bytes, len_bytes) {
            let mapped = usize::try_from(len_bytes)
                .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))
                .and_then(|len_bytes| Mapped::new(&self.buffered, offset_bytes, len_bytes))
                .map_err(|source| Error::io(ACTION, source))?;
            LogRegion::Mapped(mapped)
        } else {
            LogRegion::Written {
                offset_bytes,
                len_bytes,
            }
        };
        self.log
            .set(region)
            .map_err(|_| Error::io(ACTION, io::Error::from(io::ErrorKind::AlreadyExists)))
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let log = self
            .log
            .get()
            .expect("the log is mapped before it is stored into");
        match log {
            // An offset beyond the address space is outside the region as well.
            LogRegion::Mapped(log) => {
                let region = log.region();
                self.enter_log_piece(region, region.0.saturating_add(offset_bytes));
                log.store(usize::try_from(offset_bytes).unwrap_or(usize::MAX), bytes);
                Ok(())
            }
            LogRegion::Written {
                offset_bytes: start,
                len_bytes,
            } => {
                let end = offset_bytes.checked_add(bytes.len() as u64);
                assert!(
                    end.is_some_and(|end| end <= *len_bytes),
                    "a store outside the log's region"
                );
                self.buffered
                    .write_all_at(bytes, start + offset_bytes)
                    .map_err(|source| Error::io("write the log", source))
            }
        }
    }

    fn reserve_host_bytes(&self, len_bytes: u64) -> Result<Option<u64>> {
        if self.host == Host::BlockDevice || self.read_only {
            return Ok(None);
        }
        let _growing = self.growing.lock();
        let end = host_len_bytes(&self.buffered, self.host);
        end.and_then(|end| extent::allocate_behind(&self.buffered, end, len_bytes))
            .map_err(|source| Error::io("reserve space on the host", source))
    }

    fn release_host_bytes(&self, keep_bytes: u64, held_bytes: u64) -> Result<u64> {
        if self.host == Host::BlockDevice || self.read_only {
            return Ok(0);
        }
        let _growing = self.growing.lock();
        let released = if keep_bytes == 0 {
            self.release_behind_end()
        } else {
            self.release_slice(keep_bytes, held_bytes)
        };
        released.map_err(|source| Error::io("use the reserve on the host", source))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let direct = self.direct.iter().map(|direct| direct.file.as_fd());
        direct.chain([self.buffered.as_fd()]).collect()
    }

    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    fn host_free_bytes(&self) -> Result<Option<u64>> {
        match self.host {
            Host::BlockDevice => Ok(None),
            Host::RegularFile => {
                let found = fstatvfs(&self.buffered);
                let found =
                    found.map_err(|e| Error::io("query the host's free space", e.into()))?;
                let blocks = found.blocks_available();
                Ok(Some(blocks.saturating_mul(found.fragment_size())))
            }
        }
    }

    fn host_bytes(&self) -> Result<u64> {
        match self.host {
            Host::BlockDevice => Ok(self.len_bytes()),
            Host::RegularFile => {
                let metadata = self.buffered.metadata();
                let metadata =
                    metadata.map_err(|e| Error::io("query the pool's size on the host", e))?;
                Ok(metadata.blocks().saturating_mul(512))
            }
        }
    }
}

fn host_len_bytes(file: &File, host: Host) -> io::Result<u64> {
    match host {
        Host::RegularFile => Ok(file.metadata()?.len()),
        Host::BlockDevice => geometry::block_device_bytes(file),
    }
}

/// Allocates the log, so that no store fails for lack of space. The records in it stay.
fn allocate_log(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    match extent::allocate(file, offset_bytes, len_bytes) {
        Err(error) if extent::is_unsupported(&error) => {
            extent::fill_gaps(file, offset_bytes, len_bytes)
        }
        done => done,
    }
}

/// Writes all of `buf` in calls that end at multiples of `CACHED_WRITE_BYTES`.
fn write_to_cache(file: &File, mut buf: &[u8], mut offset_bytes: u64) -> io::Result<()> {
    const LEN: u64 = CACHED_WRITE_BYTES as u64;
    while !buf.is_empty() {
        let left = usize::try_from(LEN - offset_bytes % LEN).unwrap_or(CACHED_WRITE_BYTES);
        let (now, later) = buf.split_at(buf.len().min(left));
        file.write_all_at(now, offset_bytes)?;
        offset_bytes += now.len() as u64;
        buf = later;
    }
    Ok(())
}

/// Writes all pieces, however many there are and however short the host's writes are.
fn write_pieces(file: &File, bufs: &[IoSlice<'_>], offset_bytes: u64) -> io::Result<()> {
    let mut bufs = bufs.to_vec();
    let mut rest = &mut bufs[..];
    // Empty pieces are skipped first: an empty write must not be mistaken for a failed one.
    IoSlice::advance_slices(&mut rest, 0);
    let mut at = offset_bytes;
    while !rest.is_empty() {
        let offset = i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let written = match pwritev(file, &rest[..rest.len().min(PIECES_MAX)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        at += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

impl Direct {
    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        if is_aligned(buf.as_ptr(), self.memory_align_bytes) {
            return self.file.read_exact_at(buf, offset_bytes);
        }
        with_bounce(|bounce| {
            let mut at = offset_bytes;
            for piece in buf.chunks_mut(bounce.len()) {
                let bounce = &mut bounce[..piece.len()];
                self.file.read_exact_at(bounce, at)?;
                piece.copy_from_slice(bounce);
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn write(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        if is_aligned(buf.as_ptr(), self.memory_align_bytes) {
            return self.file.write_all_at(buf, offset_bytes);
        }
        self.write_through_bounce(&[IoSlice::new(buf)], offset_bytes)
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        let aligned = |piece: &IoSlice<'_>| is_aligned(piece.as_ptr(), self.memory_align_bytes);
        if bufs.iter().all(aligned) {
            return write_pieces(&self.file, bufs, offset_bytes);
        }
        self.write_through_bounce(bufs, offset_bytes)
    }

    /// Copies the pieces together, so that many small pieces make few large writes.
    fn write_through_bounce(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        with_bounce(|bounce| {
            let mut at = offset_bytes;
            let mut filled = 0;
            for mut rest in bufs.iter().map(|piece| &piece[..]) {
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(bounce.len() - filled));
                    bounce[filled..filled + now.len()].copy_from_slice(now);
                    filled += now.len();
                    rest = later;
                    if filled == bounce.len() {
                        self.file.write_all_at(bounce, at)?;
                        at += filled as u64;
                        filled = 0;
                    }
                }
            }
            self.file.write_all_at(&bounce[..filled], at)
        })
    }
}

#[cfg(test)]
mod tests;
