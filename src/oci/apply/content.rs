//! Writing a file's content with holes where it is zero.

use crate::oci::error::{Error, Result};
use crate::oci::limits::HOLE_BYTES;
use crate::oci::tarball::{Entry, TarReader};
use nix::unistd::ftruncate;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Writes what follows in the archive into the new, empty `file`; answers how many bytes were
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
    let (mut written, mut end) = (0, 0);
    for segment in &entry.segments {
        let mut offset = segment.offset_bytes;
        let mut left = segment.len_bytes;
        while left > 0 {
            let len = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            archive
                .read_data_exact(&mut buffer[..len])
                .map_err(Error::archive)?;
            let (bytes, last) = write_around_holes(file, &buffer[..len], offset).map_err(failed)?;
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

/// Writes `bytes` at `offset` except for aligned blocks of zeros; answers how many bytes were
/// written and where the last of them ended.
fn write_around_holes(file: &File, bytes: &[u8], offset: u64) -> io::Result<(u64, Option<u64>)> {
    let block = u64::try_from(HOLE_BYTES).map_err(io::Error::other)?;
    let misaligned = usize::try_from(offset % block).map_err(io::Error::other)?;
    let (mut written, mut last) = (0, None);
    let mut run_start = 0;
    let mut at = 0;
    let mut flush = |from: usize, to: usize| -> io::Result<()> {
        if from < to {
            let start = offset + u64::try_from(from).map_err(io::Error::other)?;
            file.write_all_at(&bytes[from..to], start)?;
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
