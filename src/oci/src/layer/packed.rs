//! A layer's tar stream, compressed and hashed while it is written.

use super::LayerSummary;
use crate::compression::{Compression, Encoder};
use crate::digest::HashingWriter;
use crate::error::{Error, Result};
use std::io::{self, Write};

/// The writer of a tar stream.
pub(crate) struct Packed<W: Write> {
    out: HashingWriter<Encoder<HashingWriter<W>>>,
    compression: Compression,
}

impl<W: Write> Packed<W> {
    /// Starts a stream that is written to `inner`.
    ///
    /// # Errors
    /// `Io` if the compressor cannot start.
    pub(crate) fn new(inner: W, compression: Compression) -> Result<Self> {
        let encoder = Encoder::new(HashingWriter::new(inner), compression)
            .map_err(|source| Error::io("start the compressor", source))?;
        Ok(Self {
            out: HashingWriter::new(encoder),
            compression,
        })
    }

    /// Ends the stream; returns the writer and the layer's summary.
    ///
    /// # Errors
    /// `Io` if the writer fails.
    pub(crate) fn finish(self) -> Result<(W, LayerSummary)> {
        let failed = |source| Error::io("write the layer", source);
        let (encoder, content) = self.out.into_parts();
        let (inner, blob) = encoder.finish().map_err(failed)?.into_parts();
        let summary = LayerSummary {
            diff_id: content.digest(),
            size_bytes: content.len_bytes(),
            blob_digest: blob.digest(),
            blob_size_bytes: blob.len_bytes(),
            compression: self.compression,
        };
        Ok((inner, summary))
    }
}

impl<W: Write> Write for Packed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
