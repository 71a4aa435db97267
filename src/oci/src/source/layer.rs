//! Reading one layer: its own thread decompresses and verifies it, so that unpacking and writing
//! use a processor each.

use super::LayerInfo;
use crate::compression::{Compression, Decoder};
use crate::digest::{Digest, Hasher, HashingReader};
use crate::error::{Error, Part, Result};
use crate::limits::COPY_BUFFER_BYTES;
use cowshed_format::base::cancel::{self, Cancel, Cancellable};
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;

/// The maximum number of pieces of [`PIECE_BYTES`] that the reading thread may be ahead.
const PIECES_AHEAD: usize = 4;
/// The size of a piece, in bytes.
const PIECE_BYTES: usize = COPY_BUFFER_BYTES / 2;

/// The uncompressed content of a layer.
///
/// The end of the stream is reached only if every stated digest and size matches; otherwise the
/// last read fails with the mismatch (an [`Error`] inside the [`io::Error`], see [`Error::io`]). A
/// caller that stops before the end has verified nothing, and so must call [`LayerReader::finish`].
pub struct LayerReader {
    /// `None` once the reader is done; then the thread ends at its next piece.
    pieces: Option<Receiver<Piece>>,
    /// Returns buffers to the thread for reuse.
    used: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    outcome: Option<LayerDigest>,
    /// `None` if the thread may wait for others and is left to end by itself.
    thread: Option<JoinHandle<()>>,
}

/// A piece from the thread; an error or the end is the last.
type Piece = io::Result<Content>;

enum Content {
    Bytes(Vec<u8>),
    End(LayerDigest),
}

/// The actual digests and sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDigest {
    /// The digest of the uncompressed content.
    pub diff_id: Digest,
    /// The size of the uncompressed content.
    pub size_bytes: u64,
    /// The digest of the stored bytes.
    pub blob_digest: Digest,
    /// The number of stored bytes.
    pub blob_size_bytes: u64,
    /// The compression of the stored bytes, if images may be stored in a registry with it.
    pub compression: Option<Compression>,
}

impl LayerReader {
    /// Starts reading. With `may_stall`, the source of the stored bytes may never send them, and
    /// dropping the reader does not wait for them.
    pub(super) fn new(
        stored: Box<dyn Read + Send>,
        index: usize,
        info: &LayerInfo,
        may_stall: bool,
    ) -> Result<Self> {
        let (hand_over, pieces) = std::sync::mpsc::sync_channel(PIECES_AHEAD);
        let (used, to_fill) = std::sync::mpsc::sync_channel(PIECES_AHEAD);
        let (info, cancel) = (info.clone(), Cancel::current());
        let thread = std::thread::Builder::new()
            .name("layer".to_owned())
            .spawn(move || {
                cancel.during(|| read_ahead(stored, index, info, &hand_over, &to_fill));
            })
            .map_err(|source| Error::io("start to read the layer", source))?;
        Ok(Self {
            pieces: Some(pieces),
            used,
            current: Vec::new(),
            position: 0,
            outcome: None,
            thread: (!may_stall).then_some(thread),
        })
    }

    /// Reads the layer from `stored`, whose source may never send the bytes: dropping the reader
    /// does not wait for them.
    ///
    /// # Errors
    /// `Io` if no thread can be started.
    pub fn over(stored: Box<dyn Read + Send>, info: &LayerInfo) -> Result<Self> {
        Self::new(stored, 0, info, true)
    }

    /// Reads the rest and verifies all stated digests and sizes.
    ///
    /// # Errors
    /// `DigestMismatch` or `SizeMismatch` if it does not match the stated values, `Archive` if the
    /// compression is damaged, `Io` if the host fails.
    pub fn finish(mut self) -> Result<LayerDigest> {
        self.position = self.current.len();
        loop {
            if let Some(outcome) = self.outcome {
                return Ok(outcome);
            }
            self.next_piece().map_err(Error::archive)?;
        }
    }

    /// Waits for the next piece; afterwards `current` holds it or `outcome` is known.
    fn next_piece(&mut self) -> io::Result<()> {
        let piece = self.pieces.as_ref().and_then(|pieces| pieces.recv().ok());
        // A thread that ended without a message has sent its error before.
        let failed_before = || io::Error::other("an earlier read of the layer failed");
        match piece.unwrap_or_else(|| Err(failed_before())) {
            Ok(Content::Bytes(bytes)) => {
                let used = std::mem::replace(&mut self.current, bytes);
                self.position = 0;
                // If the buffer is not needed, it is dropped.
                let _ = self.used.try_send(used);
            }
            Ok(Content::End(outcome)) => self.outcome = Some(outcome),
            Err(error) => {
                self.pieces = None;
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.position == self.current.len() {
            if self.outcome.is_some() {
                return Ok(0);
            }
            self.next_piece()?;
        }
        let left = &self.current[self.position..];
        let len = left.len().min(buffer.len());
        buffer[..len].copy_from_slice(&left[..len]);
        self.position += len;
        Ok(len)
    }
}

impl Drop for LayerReader {
    fn drop(&mut self) {
        // Without a receiver, sending the next piece fails, and so the thread ends.
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads the layer and sends it, until its end, an error, or until the receiver is dropped.
fn read_ahead(
    stored: Box<dyn Read + Send>,
    index: usize,
    info: LayerInfo,
    hand_over: &SyncSender<Piece>,
    to_fill: &Receiver<Vec<u8>>,
) {
    let mut layer = match VerifyingReader::new(stored, index, info) {
        Ok(layer) => layer,
        Err(error) => return drop(hand_over.send(Err(error.into()))),
    };
    loop {
        let mut bytes = to_fill.try_recv().unwrap_or_default();
        bytes.resize(PIECE_BYTES, 0);
        let piece = match fill(&mut layer, &mut bytes) {
            Ok(0) => Ok(Content::End(layer.digest())),
            Ok(len) => {
                bytes.truncate(len);
                Ok(Content::Bytes(bytes))
            }
            Err(error) => Err(error),
        };
        let last = !matches!(piece, Ok(Content::Bytes(_)));
        if hand_over.send(piece).is_err() || last {
            return;
        }
    }
}

/// Reads until `buffer` is full or the stream ends; an error discards the bytes before it, since no
/// part of a layer is valid before it is verified to its end.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        cancel::check()?;
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Decompresses and verifies in the reading thread.
struct VerifyingReader {
    stored: Decoder<HashingReader<Box<dyn Read + Send>>>,
    /// The hash of decompressed content; content that is stored uncompressed is hashed only once,
    /// as it is stored.
    content: Hasher,
    index: usize,
    info: LayerInfo,
    verified: bool,
}

impl VerifyingReader {
    fn new(stored: Box<dyn Read + Send>, index: usize, info: LayerInfo) -> Result<Self> {
        let stored: Box<dyn Read + Send> = Box::new(Cancellable::new(stored));
        let stored = Decoder::new(HashingReader::new(stored)).map_err(Error::archive)?;
        Ok(Self {
            stored,
            content: Hasher::default(),
            index,
            info,
            verified: false,
        })
    }

    fn content(&self) -> &Hasher {
        if self.stored.is_plain() {
            self.stored.inner().hasher()
        } else {
            &self.content
        }
    }

    fn digest(&self) -> LayerDigest {
        let (content, stored) = (self.content(), self.stored.inner().hasher());
        LayerDigest {
            diff_id: content.digest(),
            size_bytes: content.len_bytes(),
            blob_digest: stored.digest(),
            blob_size_bytes: stored.len_bytes(),
            compression: self.stored.compression(),
        }
    }

    fn verify(&mut self) -> Result<()> {
        self.verify_stored()?;
        let what = Part::layer_content(self.index);
        verify_digest(what, self.info.diff_id, self.content())?;
        self.verified = true;
        Ok(())
    }

    /// Verifies the stored bytes, including any after the compressed stream.
    fn verify_stored(&mut self) -> Result<()> {
        self.stored.drain().map_err(Error::archive)?;
        let what = Part::layer(self.index);
        let hasher = self.stored.inner().hasher();
        if let Some(expected_bytes) = self.info.size_bytes
            && expected_bytes != hasher.len_bytes()
        {
            let found_bytes = hasher.len_bytes();
            return Err(Error::SizeMismatch {
                what,
                expected_bytes,
                found_bytes,
            });
        }
        verify_digest(what, self.info.compressed_digest, hasher)
    }
}

impl Read for VerifyingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.verified {
            return Ok(0);
        }
        match self.stored.read(buffer) {
            Ok(0) => {
                self.verify()?;
                Ok(0)
            }
            Ok(len) => {
                if !self.stored.is_plain() {
                    self.content.update(&buffer[..len]);
                }
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // A mismatch of the stored bytes is more informative than a decompression error.
                self.verify_stored()?;
                Err(Error::archive(error).into())
            }
        }
    }
}

fn verify_digest(what: Part, expected: Option<Digest>, hasher: &Hasher) -> Result<()> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let found = hasher.digest();
    if found == expected {
        Ok(())
    } else {
        Err(Error::DigestMismatch {
            what,
            expected,
            found,
        })
    }
}
