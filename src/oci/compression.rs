//! Gzip and zstd streams, told apart by their first bytes and never by a name.

use super::error::Error;
use super::limits::READ_BUFFER_BYTES;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use std::io::{self, BufReader, Chain, Cursor, Read, Write};

/// Bytes that tell every compression apart.
const MAGIC_BYTES: usize = 6;
/// The zstd level: its own default.
const ZSTD_LEVEL: i32 = 3;
/// The largest zstd window that is accepted, as a power of two: it is memory that an archive asks
/// for. 128 MiB is what `zstd` itself accepts without `--long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

impl Compression {
    /// What a stream that begins with `start` is compressed with; `None` stands for "not, or in a
    /// way that is not supported".
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of a layer that is compressed so.
    #[must_use]
    pub const fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Whether a stream that begins with `start` is compressed in a way that is not supported.
fn is_unsupported(start: &[u8]) -> bool {
    start.starts_with(b"BZh")
        || start.starts_with(b"\xfd7zXZ\0")
        || start.starts_with(b"LZIP")
        || start.starts_with(&[0x04, 0x22, 0x4d, 0x18])
}

/// What was read to tell the compression apart, and the rest.
type Rejoined<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A stream, decompressed while it is read, if it was compressed.
pub(super) enum Decoder<R: Read> {
    /// As it was.
    Plain(Rejoined<R>),
    /// Gunzipped.
    Gzip(Box<MultiGzDecoder<Rejoined<R>>>),
    /// From zstd.
    Zstd(Box<zstd::Decoder<'static, Rejoined<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `inner` and decompresses what follows accordingly.
    pub(super) fn new(mut inner: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(MAGIC_BYTES);
        let limit = u64::try_from(MAGIC_BYTES).map_err(io::Error::other)?;
        (&mut inner).take(limit).read_to_end(&mut start)?;
        if is_unsupported(&start) {
            let fault = "it is compressed with bzip2, xz, lzip or lz4; decompress it first";
            return Err(Error::NotAnImage(fault).into());
        }
        let compression = Compression::of(&start);
        let rejoined = Cursor::new(start).chain(inner);
        let inner = BufReader::with_capacity(READ_BUFFER_BYTES, rejoined);
        Ok(match compression {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(inner))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(inner)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Reads the compressed stream to its end.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let inner = match self {
            Self::Plain(inner) => inner,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        };
        io::copy(inner, &mut io::sink()).map(drop)
    }

    /// What the stream was made from.
    pub(super) fn inner(&self) -> &R {
        let joined = match self {
            Self::Plain(inner) => inner,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        };
        joined.get_ref().get_ref().1
    }

    /// Whether what is read is what is stored.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// The writing side.
pub(super) enum Encoder<W: Write> {
    /// As it is.
    Plain(W),
    /// Gzipped, without a time stamp, so that the same content gives the same bytes.
    Gzip(Box<GzEncoder<W>>),
    /// With zstd.
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(inner: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => Self::Gzip(Box::new(GzEncoder::new(
                inner,
                flate2::Compression::default(),
            ))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Encoder::new(inner, ZSTD_LEVEL)?)),
        })
    }

    /// Writes what is pending and the end of the stream.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(inner) => Ok(inner),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(inner) => inner.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_told_apart_and_decoded() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut encoded = Vec::new();
            // Two streams, one after the other, are one stream.
            for part in [b"first ".as_slice(), b"second"] {
                let mut encoder = Encoder::new(&mut encoded, compression).unwrap();
                encoder.write_all(part).unwrap();
                encoder.finish().unwrap();
            }
            assert_eq!(Compression::of(&encoded), compression);
            let mut decoded = String::new();
            Decoder::new(&*encoded)
                .unwrap()
                .read_to_string(&mut decoded)
                .unwrap();
            assert_eq!(decoded, "first second");
        }
    }
}
