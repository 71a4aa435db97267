//! A record in memory, laid out as it is sent, so that the volume's bytes are read to their place.

use super::{DATA_BYTES_MAX, HEADER_BYTES, Header, kind};
use zstd::bulk::Compressor;

/// A record of a range of the volume. It can be filled again and again.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Header and payload.
    bytes: Vec<u8>,
    data_bytes: usize,
}

impl Frame {
    /// Makes it a record of `len` bytes at `offset`, and returns them to be filled.
    ///
    /// # Panics
    /// When `len` is 0 or above `DATA_BYTES_MAX`.
    pub fn data(&mut self, offset: u64, len: usize) -> &mut [u8] {
        assert!(
            (1..=DATA_BYTES_MAX).contains(&len),
            "{len} bytes in a record"
        );
        self.bytes.resize(HEADER_BYTES + len, 0);
        self.set(Header {
            kind: kind::DATA,
            payload_bytes: u32::try_from(len).expect("at most 1 MiB"),
            offset,
            len_bytes: len as u64,
        });
        self.data_bytes = len;
        &mut self.bytes[HEADER_BYTES..]
    }

    /// Makes it a record of a range that reads as zeros.
    pub fn zero(&mut self, offset: u64, len_bytes: u64) {
        self.bytes.resize(HEADER_BYTES, 0);
        self.set(Header {
            kind: kind::ZERO,
            payload_bytes: 0,
            offset,
            len_bytes,
        });
        self.data_bytes = 0;
    }

    fn set(&mut self, header: Header) {
        self.bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// Returns the number of bytes of data that it holds.
    #[must_use]
    pub const fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// Returns header and payload.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.truncate(HEADER_BYTES);
    }

    /// Returns the bytes with space for a checksum to be appended.
    pub(super) const fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

/// Compresses records.
pub struct Packer {
    compressor: Compressor<'static>,
    scratch: Vec<u8>,
}

/// The level at which zstd is about as fast as a fast network.
const LEVEL: i32 = 3;

impl Packer {
    /// Returns a packer.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(LEVEL)?,
            scratch: Vec::new(),
        })
    }

    /// Compresses a record's data; leaves it as it is if that makes it no shorter.
    pub fn pack(&mut self, frame: &mut Frame) {
        let data = frame.data_bytes;
        if data == 0 {
            return;
        }
        let header: [u8; HEADER_BYTES] = frame.bytes[..HEADER_BYTES].try_into().expect("a header");
        let header = Header::decode(&header);
        self.scratch.resize(HEADER_BYTES + data, 0);
        let target = &mut self.scratch[HEADER_BYTES..];
        // An error says that the space, which is that of the data, does not suffice.
        let packed = self
            .compressor
            .compress_to_buffer(&frame.bytes[HEADER_BYTES..], target);
        let Some(packed) = packed.ok().filter(|packed| *packed < data) else {
            return;
        };
        self.scratch.truncate(HEADER_BYTES + packed);
        std::mem::swap(&mut self.scratch, &mut frame.bytes);
        frame.set(Header {
            kind: kind::DATA_ZSTD,
            payload_bytes: u32::try_from(packed).expect("at most 1 MiB"),
            ..header
        });
    }
}
