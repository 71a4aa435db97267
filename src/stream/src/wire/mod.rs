//! The format of a stream, version 1, as `docs/stream.md` specifies it: records with checksums,
//! and a digest at the end.
//!
//! It takes and gives bytes, and knows no pool. [`StreamWriter`] writes a stream, [`StreamReader`]
//! reads one that may come from anybody. A stream holds one snapshot, or a set ([`SetHead`]) of
//! several, one after the other.
//!
//! # Invariants
//! - A record is given out only after its checksum was verified, which covers all records before.
//! - Ranges come in the order of their offsets, do not overlap, and lie inside the volume.
//! - The reader needs memory for one record and for the head of a set, which is bounded, whatever a
//!   header says.

mod begin;
mod chain;
mod frame;
mod reader;
mod set;
mod writer;

#[cfg(test)]
mod tests;

pub use begin::{BaseName, Begin};
pub use frame::{Frame, Packer};
pub use reader::{Head, Record, StreamReader};
pub use set::{Entry, EntryKind, Member, MemberKind, SetHead, Source};
pub use writer::StreamWriter;

/// The first bytes of a stream.
pub const MAGIC: [u8; 8] = *b"\x89CowSend";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Number of bytes before the first record: magic, version, features.
pub const PREAMBLE_BYTES: usize = 16;
/// Number of bytes of a record's header.
pub const HEADER_BYTES: usize = 24;
/// Number of bytes of a record's checksum.
pub const CHECKSUM_BYTES: usize = 8;
/// Number of bytes of a digest.
pub const DIGEST_BYTES: usize = 32;
/// The most bytes of a volume that one record holds.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// The longest payload of the first record.
pub const BEGIN_BYTES_MAX: usize = 64 << 10;
/// The most members of a set.
pub const MEMBERS_MAX: usize = 1 << 16;
/// The longest payload of the record that lists a set's members.
pub const SET_BYTES_MAX: usize = 16 << 20;
/// The most entries of a set.
pub const ENTRIES_MAX: usize = 1 << 17;
/// The most bytes that the keys and values of a set's entries have together: no log takes a
/// transaction with more.
pub const ENTRIES_BYTES_MAX: usize = 32 << 20;
/// Ranges begin at multiples of this, and end there or at the volume's end.
pub const ALIGNMENT_BYTES: u64 = 4096;

/// The kinds of record.
mod kind {
    /// Which snapshot follows: the first record, and in a set the first one of each member.
    pub(super) const BEGIN: u32 = 1;
    /// Bytes of the volume.
    pub(super) const DATA: u32 = 2;
    /// Bytes of the volume, compressed.
    pub(super) const DATA_ZSTD: u32 = 3;
    /// A range that reads as zeros.
    pub(super) const ZERO: u32 = 4;
    /// The digest; the last record.
    pub(super) const END: u32 = 5;
    /// The members of a set; the first record of a stream that holds one.
    pub(super) const SET: u32 = 6;
    /// An entry of the catalogue that belongs to a set.
    pub(super) const ENTRY: u32 = 7;
    /// The end of a member of a set.
    pub(super) const MEMBER_END: u32 = 8;
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u32,
    payload_bytes: u32,
    offset: u64,
    len_bytes: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| {
            let bytes = bytes[at..at + 8].try_into();
            u64::from_le_bytes(bytes.expect("eight bytes"))
        };
        let half = |at: usize| {
            let bytes = bytes[at..at + 4].try_into();
            u32::from_le_bytes(bytes.expect("four bytes"))
        };
        Self {
            kind: half(0),
            payload_bytes: half(4),
            offset: word(8),
            len_bytes: word(16),
        }
    }
}
