//! `cowshed volume import`: creates a volume from the bytes of a file or a pipe.
//!
//! # Invariants
//! - The volume gets its name only once all bytes are in it, in one transaction with the removal of
//!   its label. Until then it has a generated name and the label of `cowshed_daemon::unfinished`,
//!   which removes it if the import is killed.

use super::console::Console;
use super::disk_image::{HEAD_BYTES, TAIL_BYTES, recognise};
use super::streams::Input;
use super::{kept_names, sectors};
use anyhow::Context;
use cowshed_daemon::request::volume::Import as Wanted;
use cowshed_daemon::request::{FileOrPipe, HostPath};
use cowshed_daemon::unfinished;
use cowshed_engine::{Labels, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, Name};
use cowshed_sys::extent;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};

/// Number of bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// The initial size of a volume whose final size is not known; it is doubled when reached.
const FIRST_SIZE_BYTES: u64 = 64 << 20;

/// Imports a file or pipe as a volume.
///
/// # Errors
/// When the source does not hold a disk's bytes; else the error of the engine or the host. The
/// volume does not exist then.
pub(super) fn import(wanted: &Wanted, pool: &Pool, console: &Console) -> anyhow::Result<Volume> {
    let (name, source) = (&wanted.name, &wanted.source);
    let what = || format!("import volume {name} from {source}");
    let name = Name::new(name).with_context(what)?;
    kept_names::refuse(&name).with_context(what)?;
    refuse_taken(&name, pool).with_context(what)?;
    let new = Unfinished::create(pool).with_context(what)?;
    let import = Import {
        pool,
        volume: &new.volume,
        console,
        wanted,
    };
    let copied = match source {
        FileOrPipe::Pipe => console
            .input()
            .map_err(Into::into)
            .and_then(|input| import.copy(input)),
        FileOrPipe::File(path) => import.copy_path(path),
    };
    copied.with_context(what)?;
    new.finish(&name).with_context(what)
}

/// Returns the error that `finish` would return for a taken name, before any data is copied.
fn refuse_taken(name: &Name, pool: &Pool) -> cowshed_format::base::Result<()> {
    match pool.volume(name.as_str()) {
        Ok(found) if found.name() == *name => Err(Error::Exists(name.clone())),
        _ => Ok(()),
    }
}

/// A volume that is removed on drop unless it is finished.
struct Unfinished<'a> {
    pool: &'a Pool,
    volume: Volume,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    fn create(pool: &'a Pool) -> cowshed_format::base::Result<Self> {
        let name = Name::new(&format!("unfinished/{:032x}", rand::random::<u128>()))?;
        let mut transaction = pool.transaction();
        let id = transaction.create_volume(&name, FIRST_SIZE_BYTES);
        let label = (unfinished::LABEL.to_owned(), "import".to_owned());
        transaction.set_labels(id, Labels::from([label]));
        transaction.commit()?;
        Ok(Self {
            pool,
            volume: pool.volume_by_id(id)?,
            finished: false,
        })
    }

    fn finish(mut self, name: &Name) -> cowshed_format::base::Result<Volume> {
        let mut labels = Labels::new();
        if let Some(size) = sectors::guess_of(&self.volume)? {
            sectors::keep(&mut labels, size);
        }
        let mut transaction = self.pool.transaction();
        transaction.rename(self.volume.id(), name);
        transaction.set_labels(self.volume.id(), labels);
        transaction.commit()?;
        self.finished = true;
        self.pool.flush()?;
        Ok(self.volume.clone())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.pool.remove(&self.volume)
        {
            tracing::warn!(
                %error,
                "cannot remove an unfinished import, which stays until the pool is opened again"
            );
        }
    }
}

struct Import<'a> {
    pool: &'a Pool,
    volume: &'a Volume,
    console: &'a Console,
    wanted: &'a Wanted,
}

impl Import<'_> {
    fn copy_path(&self, path: &HostPath) -> anyhow::Result<()> {
        let input = Input::open(path.as_path(), self.console.cancel())?;
        let kind = input.file().metadata()?.file_type();
        if kind.is_dir() {
            anyhow::bail!("it is a directory; use `cowshed image import` for directories");
        }
        self.copy(input)
    }

    fn copy(&self, mut input: Input) -> anyhow::Result<()> {
        match seekable_range(input.file()) {
            Some(range) => self.copy_file(input.file(), range),
            None => self.copy_pipe(&mut input),
        }
    }

    /// Copies the bytes of `range` of a file whose length is known, skipping its holes.
    fn copy_file(&self, file: &File, range: Range<u64>) -> anyhow::Result<()> {
        let size_bytes = range.end.saturating_sub(range.start);
        self.refuse_foreign_file(file, &range)?;
        self.set_size(size_bytes)?;
        let progress = self.console.progress("import", Some(size_bytes));
        let mut buf = vec![0; CHUNK_BYTES];
        let mut at = range.start;
        while let Some(data) = extent::next_data(file, at, range.end)? {
            progress.advance(data.start - at);
            at = data.start;
            while at < data.end {
                self.console.cancel().check()?;
                let len = chunk_len(data.end - at);
                file.read_exact_at(&mut buf[..len], at)?;
                self.write(&buf[..len], at - range.start)?;
                at += len as u64;
                progress.advance(len as u64);
            }
        }
        Ok(())
    }

    /// Copies until the pipe ends, growing the volume as data arrives.
    fn copy_pipe(&self, pipe: &mut dyn Read) -> anyhow::Result<()> {
        let progress = self.console.progress("import", None);
        let mut buf = vec![0; CHUNK_BYTES];
        let mut offset_bytes = 0u64;
        loop {
            let len = read_full(pipe, &mut buf)?;
            let end = offset_bytes + len as u64;
            if end > self.volume.size_bytes() {
                self.set_size(end.max(self.volume.size_bytes().saturating_mul(2)))?;
            }
            if offset_bytes == 0 {
                self.refuse_foreign(&buf[..len.min(HEAD_BYTES)], &[])?;
            }
            self.write(&buf[..len], offset_bytes)?;
            progress.advance(len as u64);
            offset_bytes = end;
            if len < buf.len() {
                self.set_size(offset_bytes)?;
                return self.refuse_foreign_end();
            }
        }
    }

    fn refuse_foreign_file(&self, file: &File, range: &Range<u64>) -> anyhow::Result<()> {
        let mut head = [0; HEAD_BYTES];
        let mut tail = [0; TAIL_BYTES];
        let len = range.end.saturating_sub(range.start);
        let head = &mut head[..chunk_len(len).min(HEAD_BYTES)];
        file.read_exact_at(head, range.start)?;
        let tail_len = chunk_len(len).min(TAIL_BYTES);
        file.read_exact_at(&mut tail[..tail_len], range.end - tail_len as u64)?;
        self.refuse_foreign(head, &tail[..tail_len])
    }

    /// Examines the end of the data from a pipe: some formats have their mark there.
    fn refuse_foreign_end(&self) -> anyhow::Result<()> {
        let mut tail = [0; TAIL_BYTES];
        let size_bytes = self.volume.size_bytes();
        let tail = &mut tail[..chunk_len(size_bytes).min(TAIL_BYTES)];
        self.volume.read_at(tail, size_bytes - tail.len() as u64)?;
        self.refuse_foreign(&[], tail)
    }

    fn refuse_foreign(&self, head: &[u8], tail: &[u8]) -> anyhow::Result<()> {
        match recognise(head, tail) {
            Some(found) if !self.wanted.raw => {
                anyhow::bail!(found.refusal(&self.wanted.source, &self.wanted.name))
            }
            _ => Ok(()),
        }
    }

    fn set_size(&self, size_bytes: u64) -> anyhow::Result<()> {
        if size_bytes == 0 {
            anyhow::bail!("it is empty; use `cowshed volume create` for an empty volume");
        }
        Ok(self.pool.resize(self.volume, size_bytes)?)
    }

    /// Writes bytes unless all are zero: a volume holds zeros where nothing was written.
    fn write(&self, bytes: &[u8], offset_bytes: u64) -> anyhow::Result<()> {
        if bytes.iter().any(|byte| *byte != 0) {
            self.volume.write_at(bytes, offset_bytes)?;
        }
        Ok(())
    }
}

fn chunk_len(rest_bytes: u64) -> usize {
    usize::try_from(rest_bytes).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES))
}

/// Fills `buf` unless the pipe ends first.
fn read_full(pipe: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match pipe.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Returns the range of a file from its position to its end, if the file has them.
fn seekable_range(file: &File) -> Option<Range<u64>> {
    let kind = file.metadata().ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let start = lseek(file, 0, Whence::SeekCur).ok()?;
    let end = lseek(file, 0, Whence::SeekEnd).ok()?;
    lseek(file, start, Whence::SeekSet).ok()?;
    Some(u64::try_from(start).ok()?..u64::try_from(end).ok()?)
}

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_comes_in_pieces_fills_the_buffer() {
        struct Pieces(u8);
        impl Read for Pieces {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 | 3 => {
                        buf[..3].fill(self.0);
                        Ok(3)
                    }
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    _ => Ok(0),
                }
            }
        }
        let mut buf = [0; 8];
        assert_eq!(read_full(&mut Pieces(0), &mut buf).unwrap(), 6);
        assert_eq!(buf, [1, 1, 1, 3, 3, 3, 0, 0]);
    }
}
