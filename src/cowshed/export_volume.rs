//! `cowshed volume export`: a volume's bytes to a file or a pipe.
//!
//! A regular file appears under its name only once all bytes are in it, with holes where the volume
//! has holes. A pipe or device gets zeros there.

use super::console::{Console, output_error};
use super::failure::Usage;
use super::part_file::write_file;
use super::progress::Progress;
use super::streams::Output;
use anyhow::Context;
use cowshed_daemon::request::FileOrPipe;
use cowshed_engine::{ExtentKind, Pool, Volume};
use cowshed_stream::bookmark;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// Number of bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes the volume `name` to `target`.
///
/// # Errors
/// The error of the engine or the host; a new file is removed then.
pub(super) fn export(
    name: &str,
    target: &FileOrPipe,
    pool: &Pool,
    console: &Console,
) -> anyhow::Result<()> {
    let what = || format!("export volume {name} to {target}");
    let volume = pool.volume(name).with_context(what)?;
    bookmark::refuse(pool, &volume).with_context(what)?;
    let _hold = volume.hold().with_context(what)?;
    let path = match target {
        FileOrPipe::Pipe if console.style().json => {
            return Err(Usage("--json and - cannot both use the standard output".into()).into());
        }
        FileOrPipe::Pipe => {
            let output = console.output();
            return copy(&volume, output, is_seekable(output), console).map_err(|error| {
                if error.is::<super::console::OutputClosed>() {
                    error
                } else {
                    error.context(what())
                }
            });
        }
        FileOrPipe::File(path) => path,
    };
    let copied = write_file(path.as_path(), console.cancel(), |file, seekable| {
        copy(&volume, file, seekable, console)
    });
    copied.with_context(what)?;
    let size_bytes = volume.size_bytes();
    let volume_name = volume.name().to_string();
    let document = json!({ "volume": volume_name, "file": path, "size_bytes": size_bytes });
    console.result(&document, String::new)
}

/// Returns true if seeking can leave holes: not in a file opened for appending.
fn is_seekable(file: &File) -> bool {
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let flags = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    regular && flags.is_ok_and(|flags| !flags.contains(OFlag::O_APPEND))
}

fn copy(volume: &Volume, output: &File, seekable: bool, console: &Console) -> anyhow::Result<()> {
    let size_bytes = volume.size_bytes();
    let mut copy = Copy {
        volume,
        output: Output::new(output, console.cancel()).map_err(output_error)?,
        seekable: output,
        progress: console.progress("export", Some(size_bytes)),
    };
    let mut buf = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while let Some(extent) = volume.extent_at(at)? {
        console.cancel().check()?;
        let len_bytes = extent.len_bytes.min(size_bytes.saturating_sub(at));
        if len_bytes == 0 {
            break;
        }
        match extent.kind {
            ExtentKind::Data => copy.data(at, len_bytes, &mut buf)?,
            ExtentKind::Zero if seekable => copy.skip(len_bytes)?,
            ExtentKind::Zero => copy.zeros(len_bytes, &mut buf)?,
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
    Ok(())
}

struct Copy<'a> {
    volume: &'a Volume,
    output: Output,
    /// The same file, for seeking past holes.
    seekable: &'a File,
    progress: Progress,
}

impl Copy<'_> {
    fn data(&mut self, start: u64, len_bytes: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        let mut done = 0;
        while done < len_bytes {
            let len = chunk_len(len_bytes - done);
            self.volume.read_at(&mut buf[..len], start + done)?;
            self.write(&buf[..len])?;
            done += len as u64;
        }
        Ok(())
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

    fn skip(&self, len_bytes: u64) -> anyhow::Result<()> {
        let len = i64::try_from(len_bytes).context("a hole is too long for this host")?;
        (&mut &*self.seekable)
            .seek(SeekFrom::Current(len))
            .map_err(output_error)?;
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
