//! Making a tar of its recipe and the files of its layer.

use super::{BYTES, CONTENT, END, HEAD_BYTES, MAGIC, VERSION};
use crate::compression::{Compression, ZSTD_WINDOW_LOG_MAX};
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{LayerSummary, Packed};
use crate::limits::{COPY_BUFFER_BYTES, PATH_BYTES_MAX, SEGMENTS_MAX};
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

/// The reason why a tar was not made of its recipe. If it is one of the recipe, the layer can be
/// written anew.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A newer version wrote the recipe.
    #[error("its recipe is of another version of cowshed")]
    Version,
    /// It is no recipe, ends too early, or would make more than the tar.
    #[error("its recipe is damaged")]
    Damaged,
    /// A file is not what the recipe says.
    #[error("a later part of the layer replaced a file of it")]
    File,
    /// The tar has another digest.
    #[error("its files are not those of its tar")]
    Digest,
    /// The host failed, or the work was cancelled.
    #[error(transparent)]
    Failed(Error),
}

type Result<T, E = RecipeError> = std::result::Result<T, E>;

/// The tar that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Tar {
    /// Its digest.
    pub digest: Digest,
    /// Its size, if known: no more is written.
    pub size_bytes: Option<u64>,
}

/// Writes the tar whose recipe `recipe` is to `out`, compressed; `root` is the directory with the
/// files of the layer. After an error `out` was dropped, and what was written is of no use.
///
/// # Errors
/// `Failed` if reading the recipe or a file fails, or writing does, or the work was cancelled; all
/// others for a recipe that does not fit. A reader of the recipe that fails with `UnexpectedEof` or
/// `InvalidData` says that it is damaged.
pub fn rebuild<W: Write>(
    recipe: impl Read,
    tar: Tar,
    root: BorrowedFd<'_>,
    out: W,
    compression: Compression,
) -> Result<(W, LayerSummary)> {
    let has_failed = Cell::new(false);
    let mut recipe = Watched {
        inner: recipe,
        has_failed: &has_failed,
    };
    let head = Head::read(&mut recipe, &has_failed)?;
    if head.tar != tar.digest {
        return Err(RecipeError::Digest);
    }
    let failed = |source| RecipeError::Failed(Error::io("start the decompressor", source));
    let mut decoder = zstd::Decoder::new(recipe.take(head.stream_bytes)).map_err(failed)?;
    decoder
        .window_log_max(ZSTD_WINDOW_LOG_MAX)
        .map_err(failed)?;
    let mut steps = Steps {
        input: BufReader::new(decoder),
        has_failed: &has_failed,
        root,
        out: Packed::new(out, compression).map_err(RecipeError::Failed)?,
        left_bytes: tar.size_bytes.unwrap_or(u64::MAX),
        buffer: vec![0; COPY_BUFFER_BYTES],
    };
    steps.carry_out()?;
    let (out, summary) = steps.out.finish().map_err(RecipeError::Failed)?;
    if summary.diff_id == tar.digest {
        Ok((out, summary))
    } else {
        Err(RecipeError::Digest)
    }
}

/// The reader of a recipe. An error of what it reads from, which passes through the decompressor,
/// looks like one of the decompressor.
struct Watched<'f, R> {
    inner: R,
    /// True once it failed for a reason that is not the recipe's.
    has_failed: &'f Cell<bool>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            let is_ours = matches!(
                error.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
            );
            self.has_failed.set(!is_ours);
        })
    }
}

/// The head of a recipe.
struct Head {
    stream_bytes: u64,
    tar: Digest,
}

impl Head {
    fn read(input: &mut impl Read, has_failed: &Cell<bool>) -> Result<Self> {
        let mut head = [0; HEAD_BYTES];
        fill(input, &mut head, has_failed)?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let (version, rest) = rest.split_at(8);
        let (stream_bytes, tar) = rest.split_at(8);
        if magic != MAGIC {
            return Err(RecipeError::Damaged);
        }
        if version != u64::from(VERSION).to_le_bytes() {
            return Err(RecipeError::Version);
        }
        let damaged = |_| RecipeError::Damaged;
        Ok(Self {
            stream_bytes: u64::from_le_bytes(stream_bytes.try_into().map_err(damaged)?),
            tar: Digest::from_bytes(tar.try_into().map_err(damaged)?),
        })
    }
}

/// The steps of a recipe while they are carried out.
struct Steps<'f, I, W: Write> {
    input: I,
    /// True once reading the recipe failed.
    has_failed: &'f Cell<bool>,
    root: BorrowedFd<'f>,
    out: Packed<W>,
    /// Number of bytes that may still be written.
    left_bytes: u64,
    buffer: Vec<u8>,
}

impl<I: Read, W: Write> Steps<'_, I, W> {
    fn carry_out(&mut self) -> Result<()> {
        loop {
            check()?;
            match self.byte()? {
                END => return Ok(()),
                BYTES => self.copy_bytes()?,
                CONTENT => self.copy_content()?,
                _ => return Err(RecipeError::Damaged),
            }
        }
    }

    fn copy_bytes(&mut self) -> Result<()> {
        let mut left = self.number()?;
        while left > 0 {
            check()?;
            let want = self.piece(left);
            fill(&mut self.input, &mut self.buffer[..want], self.has_failed)?;
            self.write(want)?;
            left -= want as u64;
        }
        Ok(())
    }

    fn copy_content(&mut self) -> Result<()> {
        let mut path = vec![0; self.number_up_to(PATH_BYTES_MAX)?];
        fill(&mut self.input, &mut path, self.has_failed)?;
        if path.contains(&0) {
            return Err(RecipeError::Damaged);
        }
        let file = self.open(&path)?;
        for _ in 0..self.number_up_to(SEGMENTS_MAX)? {
            let (offset, len) = (self.number()?, self.number()?);
            self.copy_part(&file, &path, offset, len)?;
        }
        Ok(())
    }

    /// Opens a file in the way in which applying a layer finds it.
    fn open(&self, path: &[u8]) -> Result<File> {
        // What is not a file any more is not waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = beneath::open_in_root(self.root, path, flags);
        let file = File::from(opened.map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO | Errno::ENAMETOOLONG => {
                RecipeError::File
            }
            errno => RecipeError::Failed(Error::entry("open", path, errno)),
        })?);
        let failed = |source| RecipeError::Failed(Error::entry("read", path, source));
        if file.metadata().map_err(failed)?.is_file() {
            Ok(file)
        } else {
            Err(RecipeError::File)
        }
    }

    fn copy_part(&mut self, file: &File, path: &[u8], offset: u64, len: u64) -> Result<()> {
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            check()?;
            let want = self.piece(left);
            let read = match file.read_at(&mut self.buffer[..want], at) {
                // An offset that no file can have.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => 0,
                read => read.map_err(|e| RecipeError::Failed(Error::entry("read", path, e)))?,
            };
            if read == 0 {
                return Err(RecipeError::File);
            }
            self.write(read)?;
            (at, left) = (at.saturating_add(read as u64), left - read as u64);
        }
        Ok(())
    }

    /// Returns the number of bytes of the next piece.
    fn piece(&self, left: u64) -> usize {
        usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()))
    }

    fn write(&mut self, len: usize) -> Result<()> {
        let failed = |source| RecipeError::Failed(Error::io("write the layer", source));
        self.left_bytes = self
            .left_bytes
            .checked_sub(len as u64)
            .ok_or(RecipeError::Damaged)?;
        self.out.write_all(&self.buffer[..len]).map_err(failed)
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        fill(&mut self.input, &mut byte, self.has_failed)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecipeError::Damaged)
    }

    fn number_up_to(&mut self, max: usize) -> Result<usize> {
        let value = usize::try_from(self.number()?).ok();
        value
            .filter(|value| *value <= max)
            .ok_or(RecipeError::Damaged)
    }
}

fn check() -> Result<()> {
    cancel::check().map_err(|cancelled| RecipeError::Failed(cancelled.into()))
}

/// Fills `buffer` with bytes of the recipe.
fn fill(input: &mut impl Read, buffer: &mut [u8], has_failed: &Cell<bool>) -> Result<()> {
    input.read_exact(buffer).map_err(|source| {
        if has_failed.get() {
            RecipeError::Failed(Error::io("read the recipe of a layer", source))
        } else {
            RecipeError::Damaged
        }
    })
}
