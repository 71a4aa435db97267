//! Writing a stream.

use super::chain::Chain;
use super::{
    Begin, DIGEST_BYTES, Frame, HEADER_BYTES, Header, MAGIC, PREAMBLE_BYTES, SetHead, VERSION, kind,
};
use crate::error::{Error, Result};
use std::io::{BufWriter, Write};

/// Short records are written together up to this length; longer ones are written by themselves.
const BUFFER_BYTES: usize = 256 << 10;

/// A stream that is being written.
pub struct StreamWriter<W: Write> {
    output: BufWriter<W>,
    chain: Chain,
}

/// Returns the bytes before the first record.
pub(super) fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

impl<W: Write> StreamWriter<W> {
    /// Begins a stream that holds one snapshot.
    ///
    /// # Errors
    /// `Write`.
    pub fn new(output: W, begin: &Begin) -> Result<Self> {
        let mut writer = Self::with_preamble(output)?;
        writer.begin_member(begin)?;
        Ok(writer)
    }

    /// Begins a stream that holds a set, whose members follow.
    ///
    /// # Errors
    /// `Write`; `SetTooLarge`.
    pub fn of_set(output: W, head: &SetHead) -> Result<Self> {
        let payload = head.encode().map_err(Error::SetTooLarge)?;
        let mut writer = Self::with_preamble(output)?;
        let header = Header {
            kind: kind::SET,
            payload_bytes: u32::try_from(payload.len()).expect("bounded"),
            offset: 0,
            len_bytes: head.data_bytes,
        };
        writer.record(header, &payload)?;
        for entry in &head.entries {
            let payload = [&*entry.key, &*entry.value].concat();
            let header = Header {
                kind: kind::ENTRY,
                payload_bytes: u32::try_from(payload.len()).expect("bounded"),
                offset: entry.kind.number(),
                len_bytes: entry.key.len() as u64,
            };
            writer.record(header, &payload)?;
        }
        writer.output.flush().map_err(Error::Write)?;
        Ok(writer)
    }

    fn with_preamble(output: W) -> Result<Self> {
        let preamble = preamble();
        let mut writer = Self {
            output: BufWriter::with_capacity(BUFFER_BYTES, output),
            chain: Chain::new(&preamble),
        };
        writer.output.write_all(&preamble).map_err(Error::Write)?;
        Ok(writer)
    }

    /// Begins the next member of a set.
    ///
    /// # Errors
    /// `Write`.
    pub fn begin_member(&mut self, begin: &Begin) -> Result<()> {
        let payload = begin.encode();
        let header = Header {
            kind: kind::BEGIN,
            payload_bytes: u32::try_from(payload.len()).expect("bounded"),
            offset: begin.position,
            len_bytes: begin.size_bytes,
        };
        self.record(header, &payload)?;
        // The reader may refuse the stream before the first bytes of the volume are read.
        self.output.flush().map_err(Error::Write)
    }

    /// Ends a member of a set.
    ///
    /// # Errors
    /// `Write`.
    pub fn end_member(&mut self) -> Result<()> {
        let header = Header {
            kind: kind::MEMBER_END,
            payload_bytes: 0,
            offset: 0,
            len_bytes: 0,
        };
        self.record(header, &[])
    }

    /// Writes a range.
    ///
    /// # Errors
    /// `Write`.
    pub fn send(&mut self, frame: &mut Frame) -> Result<()> {
        let (header, payload) = frame.bytes().split_at(HEADER_BYTES);
        let checksum = self.chain.add(header, payload);
        frame.bytes_mut().extend_from_slice(&checksum);
        let written = self.output.write_all(frame.bytes()).map_err(Error::Write);
        frame.clear();
        written
    }

    /// Ends the stream; returns its digest.
    ///
    /// # Errors
    /// `Write`.
    pub fn end(mut self) -> Result<[u8; DIGEST_BYTES]> {
        let digest = self.chain.digest();
        let header = Header {
            kind: kind::END,
            payload_bytes: 32,
            offset: 0,
            len_bytes: 0,
        };
        self.record(header, &digest)?;
        self.output.flush().map_err(Error::Write)?;
        Ok(digest)
    }

    fn record(&mut self, header: Header, payload: &[u8]) -> Result<()> {
        let header = header.encode();
        let checksum = self.chain.add(&header, payload);
        [&header, payload, &checksum]
            .iter()
            .try_for_each(|part| self.output.write_all(part))
            .map_err(Error::Write)
    }
}
