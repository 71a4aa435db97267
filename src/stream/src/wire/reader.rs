//! Reading a stream, whose bytes may be anybody's.

use super::chain::Chain;
use super::{
    ALIGNMENT_BYTES, BEGIN_BYTES_MAX, Begin, CHECKSUM_BYTES, DATA_BYTES_MAX, DIGEST_BYTES,
    ENTRIES_BYTES_MAX, Entry, HEADER_BYTES, Header, MAGIC, PREAMBLE_BYTES, SET_BYTES_MAX, SetHead,
    VERSION, kind,
};
use crate::error::{Error, Fault, Result};
use std::io::{self, BufReader, Read};
use zstd::bulk::Decompressor;

/// Short records are read together up to this length; longer ones are read to their place.
const BUFFER_BYTES: usize = 64 << 10;

/// A verified record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes of the volume, which are in the buffer.
    Data {
        /// Where they begin.
        offset: u64,
    },
    /// A range that reads as zeros.
    Zero {
        /// Where it begins.
        offset: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The end of the snapshot: all of it was verified. If it is not a member of a set, this is the
    /// end of the stream, too.
    End,
}

/// What a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// One snapshot, whose ranges follow.
    Snapshot(Begin),
    /// A set, whose members follow.
    Set(SetHead),
}

/// A stream that is being read.
pub struct StreamReader<R> {
    input: BufReader<R>,
    chain: Chain,
    is_set: bool,
    size_bytes: u64,
    /// The end of the last range.
    at: u64,
    /// Number of records read.
    records: u64,
    packed: Vec<u8>,
    decompressor: Option<Decompressor<'static>>,
}

impl<R: Read> StreamReader<R> {
    /// Reads the start of a stream.
    ///
    /// # Errors
    /// `Read`, `Stream`.
    pub fn new(input: R) -> Result<(Self, Head)> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
        let preamble = read_preamble(&mut input)?;
        let mut reader = Self {
            input,
            chain: Chain::new(&preamble),
            is_set: false,
            size_bytes: 0,
            at: 0,
            records: 0,
            packed: Vec::new(),
            decompressor: None,
        };
        let header = reader.header()?;
        let head = match header.kind {
            kind::SET => Head::Set(reader.set(header)?),
            _ => Head::Snapshot(reader.begin(header)?),
        };
        Ok((reader, head))
    }

    /// Reads the start of the next member of a set that is in the stream.
    ///
    /// # Errors
    /// `Read`, `Stream`.
    pub fn next_member(&mut self) -> Result<Begin> {
        let header = self.header()?;
        self.begin(header)
    }

    /// Reads the end of a set, after its last member: everything was verified then.
    ///
    /// # Errors
    /// `Read`, `Stream`.
    pub fn end_of_set(&mut self) -> Result<()> {
        let header = self.header()?;
        if header.kind != kind::END {
            return Err(self.malformed("the set has more members than it lists"));
        }
        self.end(header, &mut Vec::new()).map(drop)
    }

    fn begin(&mut self, header: Header) -> Result<Begin> {
        if header.kind != kind::BEGIN || payload_len(header) > BEGIN_BYTES_MAX {
            return Err(self.malformed("a snapshot does not begin where one must"));
        }
        let mut payload = Vec::new();
        self.payload(header, &mut payload)?;
        let begin = Begin::decode(&payload, header.offset, header.len_bytes)
            .map_err(|what| self.malformed(what))?;
        self.records += 1;
        self.size_bytes = begin.size_bytes;
        self.at = begin.position;
        Ok(begin)
    }

    fn set(&mut self, header: Header) -> Result<SetHead> {
        if payload_len(header) > SET_BYTES_MAX || header.offset != 0 {
            return Err(self.malformed("it does not list the members of a set"));
        }
        let mut payload = Vec::new();
        self.payload(header, &mut payload)?;
        let decoded = SetHead::decode(&payload, header.len_bytes);
        let (mut head, entries) = decoded.map_err(|what| self.malformed(what))?;
        self.records += 1;
        self.is_set = true;
        let mut left = ENTRIES_BYTES_MAX;
        for _ in 0..entries {
            head.entries.push(self.entry(&mut payload, &mut left)?);
        }
        Ok(head)
    }

    /// Reads an entry; `left` is the number of bytes that it may have.
    fn entry(&mut self, payload: &mut Vec<u8>, left: &mut usize) -> Result<Entry> {
        let header = self.header()?;
        if header.kind != kind::ENTRY {
            return Err(self.malformed("the set has fewer entries than it announces"));
        }
        *left = left
            .checked_sub(payload_len(header))
            .ok_or_else(|| self.malformed("the entries of the set are too long"))?;
        self.payload(header, payload)?;
        let entry = Entry::decode(header.offset, header.len_bytes, payload)
            .map_err(|what| self.malformed(what))?;
        self.records += 1;
        Ok(entry)
    }

    /// Reads and verifies the next record, and puts its data into `buffer`.
    ///
    /// # Errors
    /// `Read`, `Stream`.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Record> {
        let header = self.header()?;
        let record = match header.kind {
            kind::DATA | kind::DATA_ZSTD => self.data(header, buffer)?,
            kind::ZERO => {
                self.check_range(header)?;
                if header.payload_bytes != 0 {
                    return Err(self.malformed("a range of zeros has bytes"));
                }
                self.payload(header, buffer)?;
                Record::Zero {
                    offset: header.offset,
                    len_bytes: header.len_bytes,
                }
            }
            kind::END if !self.is_set => self.end(header, buffer)?,
            kind::MEMBER_END if self.is_set => self.end_of_member(header, buffer)?,
            kind::BEGIN | kind::SET | kind::ENTRY | kind::END | kind::MEMBER_END => {
                return Err(self.malformed("it cannot be among the ranges of a snapshot"));
            }
            _ => return Err(self.malformed("its kind is unknown")),
        };
        self.records += 1;
        self.at = match record {
            Record::End => self.at,
            Record::Data { .. } | Record::Zero { .. } => header.offset + header.len_bytes,
        };
        Ok(record)
    }

    /// Returns the number of records that were read.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Returns the end of the last range: everything before it was read.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    fn data(&mut self, header: Header, buffer: &mut Vec<u8>) -> Result<Record> {
        self.check_range(header)?;
        let len = usize::try_from(header.len_bytes)
            .ok()
            .filter(|len| *len <= DATA_BYTES_MAX)
            .ok_or_else(|| self.malformed("it is too long"))?;
        let packed = payload_len(header);
        let offset = header.offset;
        if header.kind == kind::DATA {
            if packed != len {
                return Err(self.malformed("it has another length than its range"));
            }
            self.payload(header, buffer)?;
            return Ok(Record::Data { offset });
        }
        if packed >= len {
            return Err(self.malformed("it is longer than what it was compressed from"));
        }
        let mut bytes = std::mem::take(&mut self.packed);
        let read = self.payload(header, &mut bytes);
        let unpacked = read.and_then(|()| self.unpack(&bytes, len, buffer));
        self.packed = bytes;
        unpacked.map(|()| Record::Data { offset })
    }

    fn unpack(&mut self, packed: &[u8], len: usize, buffer: &mut Vec<u8>) -> Result<()> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(Error::Read)?),
        };
        buffer.resize(len, 0);
        let unpacked = decompressor.decompress_to_buffer(packed, &mut buffer[..]);
        if unpacked.ok() == Some(len) {
            return Ok(());
        }
        Err(self.malformed("its compressed bytes are not those of its range"))
    }

    fn end_of_member(&mut self, header: Header, buffer: &mut Vec<u8>) -> Result<Record> {
        if (header.offset, header.len_bytes, header.payload_bytes) != (0, 0, 0) {
            return Err(self.malformed("it does not end a member"));
        }
        self.payload(header, buffer)?;
        Ok(Record::End)
    }

    fn end(&mut self, header: Header, buffer: &mut Vec<u8>) -> Result<Record> {
        let is_sound =
            header.offset == 0 && header.len_bytes == 0 && payload_len(header) == DIGEST_BYTES;
        if !is_sound {
            return Err(self.malformed("it is not the last one"));
        }
        let digest = self.chain.digest();
        self.payload(header, buffer)?;
        if buffer[..] != digest {
            return Err(Fault::Digest.into());
        }
        let mut more = [0];
        match self.input.read_exact(&mut more) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Record::End),
            Err(error) => Err(Error::Read(error)),
            Ok(()) => Err(Fault::Trailing.into()),
        }
    }

    fn check_range(&self, header: Header) -> Result<()> {
        let Some(end) = header.offset.checked_add(header.len_bytes) else {
            return Err(self.malformed("it lies outside the volume"));
        };
        let is_aligned = header.offset.is_multiple_of(ALIGNMENT_BYTES)
            && (end.is_multiple_of(ALIGNMENT_BYTES) || end == self.size_bytes);
        if header.len_bytes == 0 || end > self.size_bytes {
            Err(self.malformed("it lies outside the volume"))
        } else if !is_aligned {
            Err(self.malformed("it does not hold whole blocks"))
        } else if header.offset < self.at {
            Err(self.malformed("it lies before the one before it"))
        } else {
            Ok(())
        }
    }

    fn header(&mut self) -> Result<Header> {
        let mut bytes = [0; HEADER_BYTES];
        read_whole(&mut self.input, &mut bytes)?;
        Ok(Header::decode(&bytes))
    }

    /// Reads a payload, whose length was checked, and verifies the record.
    fn payload(&mut self, header: Header, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(payload_len(header), 0);
        read_whole(&mut self.input, buffer)?;
        let mut checksum = [0; CHECKSUM_BYTES];
        read_whole(&mut self.input, &mut checksum)?;
        if self.chain.add(&header.encode(), buffer) != checksum {
            return Err(Fault::Checksum(self.records).into());
        }
        Ok(())
    }

    fn malformed(&self, what: &'static str) -> Error {
        let record = self.records;
        Fault::Malformed { record, what }.into()
    }
}

fn payload_len(header: Header) -> usize {
    usize::try_from(header.payload_bytes).unwrap_or(usize::MAX)
}

fn read_whole(input: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    input.read_exact(bytes).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Fault::Cut.into()
        } else {
            Error::Read(error)
        }
    })
}

/// Reads and checks what is before the first record. Bytes that are something else are told from a
/// stream that was cut off as early as they differ.
fn read_preamble(input: &mut impl Read) -> Result<[u8; PREAMBLE_BYTES]> {
    let mut bytes = [0; PREAMBLE_BYTES];
    let mut filled = 0;
    while filled < PREAMBLE_BYTES {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Read(error)),
        }
    }
    let known = filled.min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(Fault::NotAStream.into());
    }
    if filled < PREAMBLE_BYTES {
        return Err(Fault::Cut.into());
    }
    let half = |at: usize| {
        let half = bytes[at..at + 4].try_into();
        u32::from_le_bytes(half.expect("four bytes"))
    };
    if half(8) != VERSION {
        return Err(Fault::Version {
            theirs: half(8),
            ours: VERSION,
        }
        .into());
    }
    match half(12) {
        0 => Ok(bytes),
        features => Err(Fault::Features(features).into()),
    }
}
