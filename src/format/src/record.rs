//! Log records: a fixed header, then one or more operations that take effect together.
//!
//! A record is valid only where it is expected: the checksum covers its sequence and the salt of
//! this life of the pool, so that a record of an earlier lap or an earlier life is never taken.

use super::operation::Operation;
use crate::base::checksum::crc32;
use crate::base::codec::Reader;
use crate::base::{Generation, Sequence};

/// Number of bytes in a record's header.
pub const HEADER_BYTES: usize = 40;
/// Records start at multiples of this.
pub const ALIGN_BYTES: usize = 8;
/// Offset of the salt in a header.
pub const SALT_OFFSET: usize = 16;
/// Maximum length of a record.
pub const MAX_RECORD_BYTES: usize = 2 << 20;

const PAD_FLAG: u64 = 1 << 48;
const GENERATION_MASK: u64 = PAD_FLAG - 1;

/// The fields before a record's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The record's number.
    pub sequence: Sequence,
    /// The salt of this life of the pool.
    pub salt: u64,
    /// All records up to this one were durable when this one was written.
    pub durable: Sequence,
    /// The generation in which the operations took effect.
    pub generation: Generation,
}

/// Returns the length of a record with `body_bytes` of operations, padding included.
#[must_use]
pub const fn record_bytes(body_bytes: usize) -> usize {
    (HEADER_BYTES + body_bytes).next_multiple_of(ALIGN_BYTES)
}

/// Seals a record in place: `record` holds `HEADER_BYTES` of anything, then the operations, then
/// zeros up to its full length.
///
/// # Panics
/// When `record_bytes` cannot give the length, or it exceeds `MAX_RECORD_BYTES`.
pub fn seal(record: &mut [u8], header: &Header) {
    assert!(record.len() >= HEADER_BYTES && record.len().is_multiple_of(ALIGN_BYTES));
    assert!(record.len() <= MAX_RECORD_BYTES);
    put_header(
        record,
        header,
        u32::try_from(record.len()).expect("checked above"),
        0,
    );
    let crc = crc32(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Returns the header of a pad, which fills the ring's last `len_bytes`. The CRC covers only the
/// header.
#[must_use]
pub fn pad(header: &Header, len_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    put_header(&mut bytes, header, len_bytes, PAD_FLAG);
    let crc = crc32(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn put_header(record: &mut [u8], header: &Header, len: u32, flags: u64) {
    record[4..8].copy_from_slice(&len.to_le_bytes());
    record[8..16].copy_from_slice(&header.sequence.0.to_le_bytes());
    record[SALT_OFFSET..24].copy_from_slice(&header.salt.to_le_bytes());
    record[24..32].copy_from_slice(&header.durable.0.to_le_bytes());
    record[32..40].copy_from_slice(&(header.generation.0 | flags).to_le_bytes());
}

/// A valid record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its header.
    pub header: Header,
    /// Its length in the ring.
    pub len_bytes: usize,
    /// Its operations; empty for a pad. `None` if the checksum holds but they are ill-formed.
    pub operations: Option<Vec<Operation>>,
}

/// A record whose operations have not been decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The record's header.
    pub header: Header,
    /// Number of bytes from this record's start to the next one's.
    pub len_bytes: usize,
    is_pad: bool,
}

impl Frame {
    /// Returns how many of its bytes are known to be its own. For a pad, only the header: the pad
    /// may be an earlier lap's, and the bytes that it spans may have been written since.
    #[must_use]
    pub const fn own_bytes(&self) -> usize {
        if self.is_pad {
            HEADER_BYTES
        } else {
            self.len_bytes
        }
    }
}

/// Returns the frame of the record at the front of `bytes`, whatever its sequence and salt, with
/// its CRC verified; `None` if there is none.
#[must_use]
pub fn decode_frame(bytes: &[u8]) -> Option<Frame> {
    let mut input = Reader::new(bytes);
    let (crc, len) = (input.u32()?, usize::try_from(input.u32()?).ok()?);
    let (sequence, salt) = (Sequence(input.u64()?), input.u64()?);
    let (durable, word) = (Sequence(input.u64()?), input.u64()?);
    let frame = Frame {
        header: Header {
            sequence,
            salt,
            durable,
            generation: Generation(word & GENERATION_MASK),
        },
        len_bytes: len,
        is_pad: word & PAD_FLAG != 0,
    };
    let fits = (HEADER_BYTES..=bytes.len()).contains(&len) && len % ALIGN_BYTES == 0;
    if !fits || word & !GENERATION_MASK & !PAD_FLAG != 0 {
        return None;
    }
    let covered = frame.own_bytes();
    let sound = covered <= MAX_RECORD_BYTES && crc32(&bytes[4..covered]) == crc;
    sound.then_some(frame)
}

/// Returns the record at the front of `bytes`, whatever its sequence and salt; `None` if there is
/// none.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Record> {
    decode_frame(bytes).map(|frame| complete(&frame, bytes))
}

/// Returns the record whose frame was found at the front of `bytes`.
///
/// # Panics
/// When `bytes` are not those of the frame, and shorter.
#[must_use]
pub fn complete(frame: &Frame, bytes: &[u8]) -> Record {
    let operations = if frame.is_pad {
        Some(Vec::new())
    } else {
        decode_operations(&bytes[HEADER_BYTES..frame.len_bytes])
    };
    Record {
        header: frame.header,
        len_bytes: frame.len_bytes,
        operations,
    }
}

fn decode_operations(body: &[u8]) -> Option<Vec<Operation>> {
    let mut input = Reader::new(body);
    let mut operations = Vec::new();
    while input.rest().len() >= ALIGN_BYTES || input.rest().iter().any(|byte| *byte != 0) {
        operations.push(Operation::decode(&mut input)?);
    }
    (!operations.is_empty()).then_some(operations)
}

#[cfg(test)]
mod tests {
    use super::super::operation::Run;
    use super::*;
    use crate::base::codec::Writer;
    use crate::base::{BlockAddr, BlockIndex, Name, VolumeId};

    fn header() -> Header {
        Header {
            sequence: Sequence(5),
            salt: 77,
            durable: Sequence(3),
            generation: Generation(11),
        }
    }

    fn every_operation() -> Vec<Operation> {
        let name = Name::new("a/b:1").unwrap();
        let (volume, snapshot) = (VolumeId(3), VolumeId(4));
        vec![
            Operation::Write {
                volume,
                first: BlockIndex(9),
                runs: vec![
                    Run {
                        addr: Some(BlockAddr(77)),
                        count: 2,
                    },
                    Run {
                        addr: None,
                        count: 3,
                    },
                ],
                crcs: vec![1, 2],
            },
            Operation::Discard {
                volume,
                first: BlockIndex(1),
                count: 1 << 40,
            },
            Operation::Create {
                volume,
                name: name.clone(),
                size_bytes: 1,
                created_ns: 2,
            },
            Operation::Snapshot {
                volume,
                snapshot,
                name: name.clone(),
                created_ns: 2,
            },
            Operation::Clone {
                snapshot,
                volume,
                name: name.clone(),
                created_ns: 2,
            },
            Operation::Freeze { volume },
            Operation::Resize {
                volume,
                size_bytes: 8,
            },
            Operation::Rename { volume, name },
            Operation::Label {
                volume,
                labels: [("k".into(), "v".into())].into(),
            },
            Operation::Remove { volume },
            Operation::Rollback {
                volume,
                snapshot,
                discarded: VolumeId(9),
            },
            Operation::PutRecord {
                kind: 1,
                key: b"k".to_vec(),
                value: vec![1; 300],
            },
            Operation::RemoveRecord {
                kind: 1,
                key: b"k".to_vec(),
            },
        ]
    }

    fn sealed(operations: &[Operation]) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&[0; HEADER_BYTES]);
        operations
            .iter()
            .for_each(|operation| operation.encode(&mut out));
        let mut record = out.into_bytes();
        record.resize(record_bytes(record.len() - HEADER_BYTES), 0);
        seal(&mut record, &header());
        record
    }

    #[test]
    fn records_survive_the_round_trip_alone_and_together() {
        let operations = every_operation();
        for set in operations
            .iter()
            .map(std::slice::from_ref)
            .chain([operations.as_slice()])
        {
            let record = decode(&sealed(set)).unwrap();
            assert_eq!(record.header, header());
            assert_eq!(record.operations.as_deref(), Some(set));
        }
    }

    #[test]
    fn a_torn_record_is_none() {
        let whole = sealed(&every_operation());
        for len in 0..whole.len() {
            assert_eq!(decode(&whole[..len]), None);
            let mut torn = whole.clone();
            torn[len] ^= 0x10;
            assert_eq!(decode(&torn), None, "byte {len}");
        }
    }

    #[test]
    fn a_pad_spans_the_rest_of_the_ring() {
        let mut ring = pad(&header(), 400).to_vec();
        ring.resize(400, 0xee);
        let record = decode(&ring).unwrap();
        assert_eq!(
            (record.len_bytes, record.operations),
            (400, Some(Vec::new()))
        );
    }
}
