//! Writing a file's content, with holes for blocks of zeros.
//!
//! A large file bypasses the page cache: only parts of it are likely to be read soon, and finding
//! memory for another copy takes the host longer than writing it.

use crate::error::{Error, Result};
use crate::limits::HOLE_BYTES;
use crate::tarball::{Entry, TarReader};
use cowshed_format::base::cancel;
use cowshed_sys::aligned::ALIGN_BYTES;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::ftruncate;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// The size from which on a file counts as large.
const LARGE_BYTES: u64 = 8 << 20;
const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Writes the entry's data in the archive to the new, empty `file`; returns the number of bytes
/// written.
pub(super) fn write(
    file: &File,
    entry: &Entry,
    archive: &mut TarReader<impl Read>,
    buffer: &mut [u8],
) -> Result<u64> {
    let failed = |source: io::Error| Error::entry("write", &entry.path, source);
    if entry.size_bytes == 0 {
        return Ok(0);
    }
    let mut target = Target::new(file, entry.size_bytes >= LARGE_BYTES);
    let (mut written, mut end) = (0, 0);
    for segment in &entry.segments {
        let mut offset = segment.offset_bytes;
        let mut left = segment.len_bytes;
        while left > 0 {
            cancel::check()?;
            let len = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            archive
                .read_data_exact(&mut buffer[..len])
                .map_err(Error::archive)?;
            let (bytes, last) =
                write_around_holes(&mut target, &buffer[..len], offset).map_err(failed)?;
            written += bytes;
            end = last.unwrap_or(end);
            let len_bytes = u64::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
            (offset, left) = (offset + len_bytes, left - len_bytes);
        }
    }
    if end < entry.size_bytes {
        let size = i64::try_from(entry.size_bytes)
            .map_err(|_| failed(io::Error::from_raw_os_error(libc::EFBIG)))?;
        ftruncate(file, size).map_err(|errno| failed(errno.into()))?;
    }
    Ok(written)
}

/// A file, and the way in which it is written.
struct Target<'a> {
    file: &'a File,
    /// True if the page cache is to be bypassed if possible.
    prefers_direct: bool,
    is_direct: bool,
}

impl<'a> Target<'a> {
    const fn new(file: &'a File, prefers_direct: bool) -> Self {
        Self {
            file,
            prefers_direct,
            is_direct: false,
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let direct = self.write_directly(bytes, offset)?;
        let rest = &bytes[direct..];
        if rest.is_empty() {
            return Ok(());
        }
        self.switch(false)?;
        let done = u64::try_from(direct).map_err(io::Error::other)?;
        self.file.write_all_at(rest, offset + done)
    }

    /// Writes the whole blocks at the start of `bytes`, if they are aligned for direct I/O and the
    /// file system supports it; returns the number of bytes written.
    fn write_directly(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let align = u64::try_from(ALIGN_BYTES).map_err(io::Error::other)?;
        let len = bytes.len() - bytes.len() % ALIGN_BYTES;
        let lies_well =
            bytes.as_ptr().addr().is_multiple_of(ALIGN_BYTES) && offset.is_multiple_of(align);
        if !self.prefers_direct || !lies_well || len == 0 {
            return Ok(0);
        }
        let written = self
            .switch(true)
            .and_then(|()| self.file.write_all_at(&bytes[..len], offset));
        match written {
            Ok(()) => Ok(len),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.prefers_direct = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn switch(&mut self, direct: bool) -> io::Result<()> {
        if self.is_direct == direct {
            return Ok(());
        }
        let flags = if direct {
            OFlag::O_DIRECT
        } else {
            OFlag::empty()
        };
        fcntl(self.file, FcntlArg::F_SETFL(flags))?;
        self.is_direct = direct;
        Ok(())
    }
}

/// Writes `bytes` at `offset` except for aligned blocks of zeros; returns the number of bytes
/// written and the end of the last of them.
fn write_around_holes(
    target: &mut Target<'_>,
    bytes: &[u8],
    offset: u64,
) -> io::Result<(u64, Option<u64>)> {
    let block = u64::try_from(HOLE_BYTES).map_err(io::Error::other)?;
    let misaligned = usize::try_from(offset % block).map_err(io::Error::other)?;
    let (mut written, mut last) = (0, None);
    let mut run_start = 0;
    let mut at = 0;
    let mut flush = |from: usize, to: usize| -> io::Result<()> {
        if from < to {
            let start = offset + u64::try_from(from).map_err(io::Error::other)?;
            target.write(&bytes[from..to], start)?;
            let len = u64::try_from(to - from).map_err(io::Error::other)?;
            written += len;
            last = Some(start + len);
        }
        Ok(())
    };
    while at < bytes.len() {
        let step = if at == 0 {
            HOLE_BYTES - misaligned
        } else {
            HOLE_BYTES
        };
        let end = (at + step).min(bytes.len());
        if bytes[at..end] == ZEROS {
            flush(run_start, at)?;
            run_start = end;
        }
        at = end;
    }
    flush(run_start, bytes.len())?;
    Ok((written, last))
}
