//! `cowshed volume export`: a volume's bytes to a file or a pipe.
//!
//! A regular file appears under its name only once all bytes are in it, with holes where the volume
//! has holes. A pipe or device gets zeros there. What cannot be read is such a hole, too, if the user
//! asks for that.

use super::console::{Console, output_error};
use super::failure::{Damage, Usage};
use super::part_file::write_file;
use super::progress::Progress;
use super::streams::Output;
use anyhow::Context;
use cowshed_daemon::request::FileOrPipe;
use cowshed_engine::{Extent, ExtentKind, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Cancel, Error};
use cowshed_stream::bookmark;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// Number of bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// If nothing could be read before so many bytes, nothing can.
const ALL_LOST_BYTES: u64 = 64 << 20;

/// Writes the volume `name` to `target`; with `skip_damaged`, without what cannot be read.
///
/// # Errors
/// The error of the engine or the host; a new file is removed then. `Damage` if something was skipped.
pub(super) fn export(
    name: &str,
    target: &FileOrPipe,
    skip_damaged: bool,
    pool: &Pool,
    console: &Console,
) -> anyhow::Result<()> {
    let what = || format!("export volume {name} to {target}");
    let volume = pool.volume(name).with_context(what)?;
    bookmark::refuse(pool, &volume).with_context(what)?;
    let _hold = volume.hold().with_context(what)?;
    let fault = |error: anyhow::Error| {
        if error.is::<super::console::OutputClosed>() {
            return error;
        }
        let is_damage = matches!(error.downcast_ref(), Some(Error::Corrupt(_)));
        if is_damage && !skip_damaged {
            let what = what();
            return Damage(format!(
                "{what}: {error}; --skip-damaged leaves a hole for each range that cannot be read"
            ))
            .into();
        }
        error.context(what())
    };
    let copied = match target {
        FileOrPipe::Pipe if console.style().json => {
            return Err(Usage("--json and - cannot both use the standard output".into()).into());
        }
        FileOrPipe::Pipe => {
            let output = console.output();
            copy(&volume, output, is_seekable(output), skip_damaged, console)
        }
        FileOrPipe::File(path) => write_file(path.as_path(), console.cancel(), |file, seekable| {
            copy(&volume, file, seekable, skip_damaged, console)
        }),
    };
    let damaged = copied.map_err(fault)?;
    if let FileOrPipe::File(path) = target {
        let ranges = damaged.iter();
        let ranges = ranges.map(|(offset, len)| json!({ "offset": offset, "length": len }));
        let document = json!({
            "volume": volume.name().to_string(),
            "file": path,
            "size_bytes": volume.size_bytes(),
            "damaged": ranges.collect::<Vec<_>>(),
        });
        console.result(&document, String::new)?;
    }
    if damaged.is_empty() {
        return Ok(());
    }
    for (offset, len) in &damaged {
        console.message(&format!("damaged: {len} bytes at offset {offset}"));
    }
    let len_bytes: u64 = damaged.iter().map(|(_, len)| len).sum();
    Err(Damage(format!(
        "{}: {len_bytes} bytes cannot be read, and are zeros there; the rest is as it was",
        what()
    ))
    .into())
}

/// Returns true if seeking can leave holes: not in a file opened for appending.
fn is_seekable(file: &File) -> bool {
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let flags = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    regular && flags.is_ok_and(|flags| !flags.contains(OFlag::O_APPEND))
}

/// Copies the volume; returns the offset and length of each range that was skipped.
fn copy(
    volume: &Volume,
    output: &File,
    seekable: bool,
    skip_damaged: bool,
    console: &Console,
) -> anyhow::Result<Vec<(u64, u64)>> {
    let size_bytes = volume.size_bytes();
    let mut copy = Copy {
        volume,
        output: Output::new(output, console.cancel()).map_err(output_error)?,
        seekable: seekable.then_some(output),
        skip_damaged,
        map: Map::Sound,
        has_read: false,
        damaged: Vec::new(),
        progress: console.progress("export", Some(size_bytes)),
        cancel: console.cancel(),
    };
    let mut buf = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while let Some(extent) = copy.extent_at(at)? {
        console.cancel().check()?;
        let len_bytes = extent.len_bytes.min(size_bytes.saturating_sub(at));
        if len_bytes == 0 {
            break;
        }
        match extent.kind {
            ExtentKind::Data => copy.data(at, len_bytes, &mut buf)?,
            ExtentKind::Zero => copy.hole(len_bytes, &mut buf)?,
        }
        at += len_bytes;
    }
    if seekable {
        // The file may be too short: no byte was written after a hole at the end.
        let end = (&mut &*output).stream_position().map_err(output_error)?;
        if output.metadata().map_err(output_error)?.len() < end {
            output.set_len(end).map_err(output_error)?;
        }
    }
    Ok(copy.damaged)
}

/// Returns true if a range cannot be read, and others may be: a disk says so in several ways.
fn is_local(error: &Error) -> bool {
    match error {
        Error::Corrupt(_) => true,
        Error::Io { source, .. } => matches!(
            source.raw_os_error(),
            Some(libc::EIO | libc::ENODATA | libc::EILSEQ)
        ),
        _ => false,
    }
}

/// Where the volume's map is damaged, as far as this copy has seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Map {
    Sound,
    /// Somewhere behind the current offset.
    DamagedAhead,
    /// At the range that was read last.
    DamagedHere,
}

struct Copy<'a> {
    volume: &'a Volume,
    output: Output,
    /// The same file, for seeking past holes, if that leaves holes.
    seekable: Option<&'a File>,
    skip_damaged: bool,
    map: Map,
    /// True once something could be read.
    has_read: bool,
    /// Offset and length of each range that was skipped.
    damaged: Vec<(u64, u64)>,
    progress: Progress,
    cancel: &'a Cancel,
}

impl Copy<'_> {
    /// Returns the extent at `at`. Where the map is damaged somewhere behind it, the end of an extent
    /// cannot be found: then everything counts as data until that damage is passed.
    fn extent_at(&mut self, at: u64) -> anyhow::Result<Option<Extent>> {
        if self.map == Map::Sound {
            match self.volume.extent_at(at) {
                Err(error) if self.skip_damaged && is_local(&error) => {
                    self.map = Map::DamagedAhead;
                }
                extent => return Ok(extent?),
            }
        }
        let len_bytes = CHUNK_BYTES as u64 - at % CHUNK_BYTES as u64;
        Ok((at < self.volume.size_bytes()).then_some(Extent {
            offset_bytes: at,
            len_bytes,
            kind: ExtentKind::Data,
        }))
    }

    fn data(&mut self, start: u64, len_bytes: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        let mut done = 0;
        while done < len_bytes {
            self.cancel.check()?;
            let len = chunk_len(len_bytes - done);
            match self.volume.read_at(&mut buf[..len], start + done) {
                Err(error) if self.skip_damaged && is_local(&error) => {
                    self.blocks(start + done, len, buf)?;
                    if self.map == Map::DamagedAhead {
                        self.map = Map::DamagedHere;
                    }
                }
                outcome => {
                    outcome?;
                    self.has_read = true;
                    if self.map != Map::Sound && buf[..len].iter().all(|byte| *byte == 0) {
                        self.hole(len as u64, buf)?;
                    } else {
                        self.write(&buf[..len])?;
                    }
                    if self.map == Map::DamagedHere {
                        self.map = Map::Sound;
                    }
                }
            }
            done += len as u64;
        }
        Ok(())
    }

    /// Copies a range block by block, with a hole for each block that cannot be read.
    fn blocks(&mut self, start: u64, len_bytes: usize, buf: &mut [u8]) -> anyhow::Result<()> {
        for done in (0..len_bytes).step_by(BLOCK_BYTES) {
            self.cancel.check()?;
            let len = BLOCK_BYTES.min(len_bytes - done);
            let at = start + done as u64;
            match self.volume.read_at(&mut buf[..len], at) {
                Err(error) if is_local(&error) && !self.is_all_lost() => {
                    match self.damaged.last_mut() {
                        Some((offset, before)) if *offset + *before == at => *before += len as u64,
                        _ => self.damaged.push((at, len as u64)),
                    }
                    self.hole(len as u64, buf)?;
                }
                outcome => {
                    outcome?;
                    self.has_read = true;
                    self.write(&buf[..len])?;
                }
            }
        }
        Ok(())
    }

    /// Returns true if so much could not be read, and nothing could, that the device has failed rather
    /// than rotted.
    fn is_all_lost(&self) -> bool {
        let damaged_bytes: u64 = self.damaged.iter().map(|(_, len)| len).sum();
        !self.has_read && damaged_bytes >= ALL_LOST_BYTES
    }

    fn hole(&mut self, len_bytes: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        match self.seekable {
            Some(file) => self.skip(file, len_bytes),
            None => self.zeros(len_bytes, buf),
        }
    }

    fn zeros(&mut self, len_bytes: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        buf.fill(0);
        let mut done = 0;
        while done < len_bytes {
            let len = chunk_len(len_bytes - done);
            self.write(&buf[..len])?;
            done += len as u64;
        }
        Ok(())
    }

    fn skip(&self, mut file: &File, len_bytes: u64) -> anyhow::Result<()> {
        let len = i64::try_from(len_bytes).context("a hole is too long for this host")?;
        file.seek(SeekFrom::Current(len)).map_err(output_error)?;
        self.progress.advance(len_bytes);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.output.write_all(bytes).map_err(output_error)?;
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }
}

fn chunk_len(rest_bytes: u64) -> usize {
    usize::try_from(rest_bytes).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES))
}
