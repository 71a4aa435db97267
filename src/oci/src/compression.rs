//! Compressed streams, detected by their first bytes and never by a name: gzip, zstd, xz and bzip2
//! are read, gzip and zstd written.

use super::error::Error;
use super::limits::READ_BUFFER_BYTES;
use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use liblzma::bufread::XzDecoder;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};

/// Number of bytes that identify every compression.
const MAGIC_BYTES: usize = 6;
/// The zstd level: zstd's default.
const ZSTD_LEVEL: i32 = 3;
/// The largest zstd window that is accepted, as a power of two: it is memory that the input
/// demands. `zstd` itself accepts 128 MiB without `--long`.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// The maximum memory for one xz stream: twice that of `xz -9`.
const XZ_MEMORY_BYTES_MAX: u64 = 128 << 20;

/// The compression of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// Gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

impl Compression {
    /// Returns the compression of a stream that begins with `start`; `None` means none or an
    /// unknown one.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Returns the media type of a layer with this compression.
    #[must_use]
    pub const fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// The format of a stream to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Packing {
    /// Returns the format of a stream that begins with `start`; `None` if it is not supported.
    fn of(start: &[u8]) -> Option<Self> {
        match Compression::of(start) {
            Compression::Gzip => return Some(Self::Gzip),
            Compression::Zstd => return Some(Self::Zstd),
            Compression::None => {}
        }
        match start {
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'L', b'Z', b'I', b'P', ..] | [0x04, 0x22, 0x4d, 0x18, ..] => None,
            _ => Some(Self::Plain),
        }
    }
}

/// A stream whose next bytes can be peeked at.
pub(super) struct Source<R> {
    head: [u8; MAGIC_BYTES],
    position: usize,
    len: usize,
    rest: BufReader<R>,
}

impl<R: Read> Source<R> {
    fn new(inner: R) -> Self {
        Self {
            head: [0; MAGIC_BYTES],
            position: 0,
            len: 0,
            rest: BufReader::with_capacity(READ_BUFFER_BYTES, inner),
        }
    }

    /// Returns the next bytes without consuming them, as many as identify every compression; fewer
    /// at the end.
    fn look(&mut self) -> io::Result<&[u8]> {
        self.head.copy_within(self.position..self.len, 0);
        (self.position, self.len) = (0, self.len - self.position);
        while self.len < MAGIC_BYTES {
            match self.rest.read(&mut self.head[self.len..]) {
                Ok(0) => break,
                Ok(len) => self.len += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.head[..self.len])
    }

    /// Skips zeros: padding, as tapes and `dd` leave it.
    fn pass_zeros(&mut self) -> io::Result<()> {
        loop {
            let bytes = match self.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let goes_on = zeros == bytes.len() && zeros > 0;
            self.consume(zeros);
            if !goes_on {
                return Ok(());
            }
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.len {
            return self.rest.read(buffer);
        }
        let bytes = &self.head[self.position..self.len];
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        self.position += len;
        Ok(len)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.len {
            self.rest.fill_buf()
        } else {
            Ok(&self.head[self.position..self.len])
        }
    }

    fn consume(&mut self, amount: usize) {
        if self.position == self.len {
            self.rest.consume(amount);
        } else {
            self.position += amount;
        }
    }
}

/// One of several concatenated streams.
enum Member<R: Read> {
    Plain(Source<R>),
    Gzip(Box<GzDecoder<Source<R>>>),
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
    Xz(Box<XzDecoder<Source<R>>>),
    Bzip2(Box<BzDecoder<Source<R>>>),
}

impl<R: Read> Member<R> {
    fn new(source: Source<R>, packing: Packing) -> io::Result<Self> {
        Ok(match packing {
            Packing::Plain => Self::Plain(source),
            Packing::Gzip => Self::Gzip(Box::new(GzDecoder::new(source))),
            Packing::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(Box::new(decoder))
            }
            Packing::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)?;
                Self::Xz(Box::new(XzDecoder::new_stream(source, stream)))
            }
            Packing::Bzip2 => Self::Bzip2(Box::new(BzDecoder::new(source))),
        })
    }

    fn source(&self) -> &Source<R> {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
            Self::Xz(decoder) => decoder.get_ref(),
            Self::Bzip2(decoder) => decoder.get_ref(),
        }
    }

    fn source_mut(&mut self) -> &mut Source<R> {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::Xz(decoder) => decoder.get_mut(),
            Self::Bzip2(decoder) => decoder.get_mut(),
        }
    }

    fn into_source(self) -> Source<R> {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
            Self::Xz(decoder) => decoder.into_inner(),
            Self::Bzip2(decoder) => decoder.into_inner(),
        }
    }
}

impl<R: Read> Read for Member<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer).map_err(zstd_error),
            Self::Xz(decoder) => decoder.read(buffer).map_err(xz_error),
            Self::Bzip2(decoder) => decoder.read(buffer),
        }
    }
}

fn zstd_error(error: io::Error) -> io::Error {
    // The library's own errors have a text and no number.
    if error.raw_os_error().is_none() && error.to_string().contains("too much memory") {
        Error::Window.into()
    } else {
        error
    }
}

fn xz_error(error: io::Error) -> io::Error {
    let inner = error.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<liblzma::stream::Error>());
    if matches!(inner, Some(liblzma::stream::Error::MemLimit)) {
        Error::Window.into()
    } else {
        error
    }
}

/// A stream, decompressed while it is read, if it was compressed. It may have several members, and
/// padding between and after them.
pub(super) struct Decoder<R: Read> {
    packing: Packing,
    /// `None` only between two members, or once changing to the next one has failed.
    member: Option<Member<R>>,
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `inner` and selects the decompression accordingly.
    pub(super) fn new(inner: R) -> io::Result<Self> {
        let mut source = Source::new(inner);
        let Some(packing) = Packing::of(source.look()?) else {
            let fault = "it is compressed with lzip or lz4; decompress it first";
            return Err(Error::NotAnImage(fault).into());
        };
        let member = Some(Member::new(source, packing)?);
        Ok(Self { packing, member })
    }

    fn member(&self) -> &Member<R> {
        self.member.as_ref().expect("a member is replaced at once")
    }

    /// Reads the compressed stream to its end.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        match &mut self.member {
            Some(member) => io::copy(member.source_mut(), &mut io::sink()).map(drop),
            None => Ok(()),
        }
    }

    /// Returns the underlying stream.
    pub(super) fn inner(&self) -> &R {
        self.member().source().rest.get_ref()
    }

    /// Returns the compression, if it is one of those of layers in registries.
    pub(super) const fn compression(&self) -> Option<Compression> {
        match self.packing {
            Packing::Plain => Some(Compression::None),
            Packing::Gzip => Some(Compression::Gzip),
            Packing::Zstd => Some(Compression::Zstd),
            Packing::Xz | Packing::Bzip2 => None,
        }
    }

    /// Returns true if the stream is not compressed.
    pub(super) fn is_plain(&self) -> bool {
        self.packing == Packing::Plain
    }

    /// Starts the next member after one that has ended; returns true if there is one.
    fn next_member(&mut self) -> io::Result<bool> {
        let Some(member) = &mut self.member else {
            return Ok(false);
        };
        let source = member.source_mut();
        source.pass_zeros()?;
        let next = source.look()?;
        if next.is_empty() {
            return Ok(false);
        }
        if Packing::of(next) != Some(self.packing) {
            return Err(Error::Trailing.into());
        }
        if let Some(ended) = self.member.take() {
            self.member = Some(Member::new(ended.into_source(), self.packing)?);
        }
        Ok(true)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(member) = &mut self.member else {
                return Err(io::Error::other("an earlier read of the stream failed"));
            };
            let len = member.read(buffer)?;
            if len > 0 || self.is_plain() || !self.next_member()? {
                return Ok(len);
            }
        }
    }
}

/// A stream that is compressed while it is written.
pub(super) enum Encoder<W: Write> {
    /// Not compressed.
    Plain(W),
    /// With gzip, without a time stamp, so that the same content gives the same bytes.
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
            // Two concatenated streams are one stream.
            for part in [b"first ".as_slice(), b"second"] {
                let mut encoder = Encoder::new(&mut encoded, compression).unwrap();
                encoder.write_all(part).unwrap();
                encoder.finish().unwrap();
            }
            assert_eq!(Compression::of(&encoded), compression);
            assert_eq!(decoded(&encoded).unwrap(), "first second");
        }
    }

    fn decoded(encoded: &[u8]) -> io::Result<String> {
        let mut decoded = String::new();
        Decoder::new(encoded)?.read_to_string(&mut decoded)?;
        Ok(decoded)
    }

    fn packed(text: &[u8], packing: Packing) -> Vec<u8> {
        let mut bytes = Vec::new();
        match packing {
            Packing::Gzip | Packing::Zstd => {
                let compression = match packing {
                    Packing::Gzip => Compression::Gzip,
                    _ => Compression::Zstd,
                };
                let mut encoder = Encoder::new(&mut bytes, compression).unwrap();
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            Packing::Xz => {
                let mut encoder = liblzma::read::XzEncoder::new(text, 6);
                encoder.read_to_end(&mut bytes).unwrap();
            }
            Packing::Bzip2 => {
                let level = bzip2::Compression::default();
                let mut encoder = bzip2::read::BzEncoder::new(text, level);
                encoder.read_to_end(&mut bytes).unwrap();
            }
            Packing::Plain => bytes.extend_from_slice(text),
        }
        bytes
    }

    const PACKINGS: [Packing; 4] = [Packing::Gzip, Packing::Zstd, Packing::Xz, Packing::Bzip2];

    #[test]
    fn several_members_with_padding_between_and_after_them_are_one_stream() {
        for packing in PACKINGS {
            let one = packed(b"first ", packing);
            let other = packed(b"second", packing);
            for padding in [0, 4, 512, READ_BUFFER_BYTES + 10_240] {
                let zeros = vec![0; padding];
                let stream = [&*one, &*zeros, &*other, &*zeros].concat();
                assert_eq!(
                    decoded(&stream).unwrap(),
                    "first second",
                    "{packing:?} {padding}"
                );
            }
        }
    }

    #[test]
    fn what_follows_a_stream_and_is_no_padding_is_refused() {
        for packing in PACKINGS {
            let mut stream = packed(b"content", packing);
            stream.extend_from_slice(b"\0\0something else");
            let refused = Error::archive(decoded(&stream).unwrap_err());
            assert!(matches!(refused, Error::Trailing), "{packing:?}: {refused}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_an_error_wherever_that_is() {
        for packing in PACKINGS {
            let stream = packed(&b"content ".repeat(100), packing);
            for len in MAGIC_BYTES..stream.len() {
                assert!(decoded(&stream[..len]).is_err(), "{packing:?} {len}");
            }
        }
    }
}
