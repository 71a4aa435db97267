//! A layer's tar, byte by byte, from what tar-split kept of it and from the layer's files.
//!
//! tar-split keeps a line of JSON for each part of the tar: bytes (headers and padding), or a file by
//! its name, its size and its checksum. The name is resolved as if the layer's folder were `/`. The last
//! lines hold the end marker of the tar: where no digest of it is known, a file without that was cut.
//! Source: <https://github.com/vbatts/tar-split>, `tar/storage`.

use super::crc64::Crc64;
use super::folder::damaged;
use crate::compression::{Compression, Decoder};
use crate::error::{Error, Result};
use crate::limits::{PATH_BYTES_MAX, SPLIT_LINE_BYTES_MAX};
use crate::tarball::RECORD_BYTES;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};

/// The kind of a line that stands for a file.
const FILE: u8 = 1;
/// The kind of a line with bytes.
const BYTES: u8 = 2;

/// A line of tar-split's file.
#[derive(Deserialize)]
struct Line<'l> {
    #[serde(rename = "type")]
    kind: u8,
    /// The file's name, if it is UTF-8.
    #[serde(borrow, default)]
    name: Option<Cow<'l, str>>,
    /// The file's name in base64, if it is not.
    #[serde(borrow, default)]
    name_raw: Option<Cow<'l, str>>,
    /// The number of bytes of the file.
    #[serde(default)]
    size: Option<u64>,
    /// The bytes, or the file's checksum, in base64.
    #[serde(borrow, default)]
    payload: Option<Cow<'l, str>>,
}

/// The tar, made while it is read.
pub(super) struct SplitTar {
    /// The name of tar-split's file, for messages.
    name: String,
    lines: BufReader<Decoder<File>>,
    line: Vec<u8>,
    has_lines: bool,
    /// Number of zeros at the end of the bytes since the last file.
    zeros: usize,
    has_end_marker: bool,
    root: OwnedFd,
    /// Verifies each file by its checksum, where no digest of the tar is known.
    verifies_files: bool,
    /// Bytes of the current part, and the number of those that were read.
    bytes: Vec<u8>,
    position: usize,
    /// The file that is the current part.
    file: Option<Content>,
}

/// A file of the layer while it is read.
struct Content {
    file: File,
    name: Vec<u8>,
    left_bytes: u64,
    checksum: Option<(Crc64, Vec<u8>)>,
}

impl SplitTar {
    /// Returns the tar of tar-split's file `split`, which has this name, and of the files in `root`.
    pub(super) fn new(
        name: &str,
        split: File,
        root: OwnedFd,
        verifies_files: bool,
    ) -> Result<Self> {
        let decoder =
            Decoder::new(split).map_err(|source| Error::entry("read", name.as_bytes(), source))?;
        if decoder.compression() != Some(Compression::Gzip) {
            return Err(damaged(name, "it is not compressed with gzip"));
        }
        Ok(Self {
            name: name.to_owned(),
            lines: BufReader::new(decoder),
            line: Vec::new(),
            has_lines: false,
            zeros: 0,
            has_end_marker: false,
            root,
            verifies_files,
            bytes: Vec::new(),
            position: 0,
            file: None,
        })
    }

    /// Goes to the next part; returns false at the end.
    fn next_part(&mut self) -> Result<bool> {
        cancel::check()?;
        self.line.clear();
        let read = (&mut self.lines)
            .take(SPLIT_LINE_BYTES_MAX)
            .read_until(b'\n', &mut self.line)
            .map_err(|source| self.unreadable(source))?;
        let fault = |fault| damaged(&self.name, fault);
        if read == 0 {
            return if !self.has_lines {
                Err(fault("it is empty"))
            } else if self.verifies_files && !self.has_end_marker {
                Err(fault("it ends before the end of the layer's tar"))
            } else {
                Ok(false)
            };
        }
        self.has_lines = true;
        if u64::try_from(read).is_ok_and(|read| read == SPLIT_LINE_BYTES_MAX) {
            return Err(fault("a line is too long"));
        }
        let line: Line<'_> = serde_json::from_slice(&self.line)
            .map_err(|_| fault("it is not what tar-split writes"))?;
        let payload = line.payload.as_deref().unwrap_or_default();
        let payload = STANDARD
            .decode(payload)
            .map_err(|_| fault("a part is not base64"))?;
        match line.kind {
            BYTES => {
                if self.verifies_files {
                    self.look_for_end_marker(&payload);
                }
                self.bytes = payload;
                self.position = 0;
            }
            FILE => {
                (self.zeros, self.has_end_marker) = (0, false);
                let size_bytes = line.size.unwrap_or_default();
                if size_bytes > 0 {
                    let name = match (&line.name_raw, &line.name) {
                        (Some(raw), _) => STANDARD
                            .decode(&**raw)
                            .map_err(|_| fault("a name is not base64"))?,
                        (None, Some(name)) => name.as_bytes().to_vec(),
                        (None, None) => return Err(fault("a file has no name")),
                    };
                    self.file = Some(self.content(name, size_bytes, payload)?);
                }
            }
            _ => return Err(fault("a part is of an unknown kind")),
        }
        Ok(true)
    }

    /// A header and its padding have no record of zeros.
    fn look_for_end_marker(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.zeros = if *byte == 0 { self.zeros + 1 } else { 0 };
            self.has_end_marker |= self.zeros >= RECORD_BYTES;
        }
    }

    fn unreadable(&self, source: io::Error) -> Error {
        if source.raw_os_error().is_some() {
            Error::entry("read", self.name.as_bytes(), source)
        } else {
            damaged(&self.name, "it cannot be decompressed")
        }
    }

    fn content(&self, name: Vec<u8>, size_bytes: u64, checksum: Vec<u8>) -> Result<Content> {
        if name.len() > PATH_BYTES_MAX || name.contains(&0) {
            return Err(damaged(&self.name, "a name is not one of a file"));
        }
        let failed = |errno: Errno| Error::entry("open", &name, errno);
        let object =
            beneath::open_in_root(self.root.as_fd(), &name, OFlag::O_PATH).map_err(|errno| {
                match errno {
                    Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => {
                        file_fault(&name, "it is missing")
                    }
                    errno => failed(errno),
                }
            })?;
        let stat = beneath::stat_itself(&object).map_err(failed)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(file_fault(&name, "it is not a regular file"));
        }
        if u64::try_from(stat.st_size) != Ok(size_bytes) {
            return Err(file_fault(&name, "it has another size"));
        }
        let file = beneath::reopen_to_read(&object).map_err(failed)?;
        let verifies = self.verifies_files && !checksum.is_empty();
        Ok(Content {
            file: file.into(),
            name,
            left_bytes: size_bytes,
            checksum: verifies.then(|| (Crc64::default(), checksum)),
        })
    }
}

impl Content {
    /// Reads the next bytes of the file, of which some are left.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want =
            usize::try_from(self.left_bytes).map_or(buffer.len(), |left| left.min(buffer.len()));
        let len = match self.file.read(&mut buffer[..want]) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(Error::entry("read", &self.name, error).into()),
        };
        if len == 0 {
            return Err(file_fault(&self.name, "it was truncated while it was read").into());
        }
        if let Some((found, _)) = &mut self.checksum {
            found.update(&buffer[..len]);
        }
        self.left_bytes = self
            .left_bytes
            .saturating_sub(u64::try_from(len).map_err(io::Error::other)?);
        Ok(len)
    }

    /// Verifies the file, of which everything was read.
    fn finish(self) -> Result<()> {
        match self.checksum {
            Some((found, expected)) if found.value().to_be_bytes() != *expected => {
                Err(file_fault(&self.name, "it has another content"))
            }
            _ => Ok(()),
        }
    }
}

impl Read for SplitTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.position < self.bytes.len() {
                let left = &self.bytes[self.position..];
                let len = left.len().min(buffer.len());
                buffer[..len].copy_from_slice(&left[..len]);
                self.position += len;
                return Ok(len);
            }
            if let Some(file) = &mut self.file {
                if file.left_bytes > 0 {
                    return file.read(buffer);
                }
                if let Some(file) = self.file.take() {
                    file.finish()?;
                }
            }
            if !self.next_part()? {
                return Ok(0);
            }
        }
    }
}

/// Returns the error that a file of a layer is not what it was.
fn file_fault(name: &[u8], fault: &'static str) -> Error {
    Error::LayerFile {
        file: name.into(),
        fault,
    }
}
