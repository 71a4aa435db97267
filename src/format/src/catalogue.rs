//! Catalogue blocks: fragments of entries (volumes, and records of the crates above).
//!
//! A catalogue block is a sequence of fragments, ended by a zero length or the block's end. An
//! entry that is too long for one fragment is cut into parts; each part may be in any block.

use super::operation::{decode_labels, encode_labels};
use super::pointer::Pointer;
use super::superblock::MAX_HEIGHT;
use crate::base::codec::{Reader, Writer};
use crate::base::{BLOCK_BYTES, CorruptKind, Generation, Name, VolumeId};
use std::collections::BTreeMap;

/// Number of bytes before a fragment's payload.
pub const FRAGMENT_HEADER_BYTES: usize = 16;
/// Maximum length of a fragment's payload.
pub const MAX_PAYLOAD_BYTES: usize = BLOCK_BYTES - FRAGMENT_HEADER_BYTES;

/// The kind of an entry, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryId {
    /// A volume, by its id.
    Volume(u64),
    /// A record of a crate above, by a number that the catalogue assigns.
    Record(u64),
}

impl EntryId {
    const fn code(self) -> (u8, u64) {
        match self {
            Self::Volume(id) => (1, id),
            Self::Record(id) => (2, id),
        }
    }
}

/// A part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The entry.
    pub entry: EntryId,
    /// The part's number.
    pub part: u16,
    /// The number of parts.
    pub parts: u16,
    /// The part's bytes.
    pub payload: &'a [u8],
}

impl Fragment<'_> {
    /// Returns the number of bytes that the fragment takes in a block.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        FRAGMENT_HEADER_BYTES + self.payload.len()
    }

    /// Appends the encoded fragment to `out`.
    pub fn encode(&self, out: &mut Writer) {
        let (kind, id) = self.entry.code();
        out.u16(u16::try_from(self.len_bytes()).expect("a fragment fits a block"));
        out.u8(kind)
            .u8(0)
            .u64(id)
            .u16(self.part)
            .u16(self.parts)
            .bytes(self.payload);
    }
}

/// Returns the fragments of a catalogue block.
///
/// # Errors
/// `Catalogue` when one is ill-formed.
pub fn fragments(block: &[u8]) -> Result<Vec<Fragment<'_>>, CorruptKind> {
    let mut input = Reader::new(block);
    let mut found = Vec::new();
    while input.rest().len() >= FRAGMENT_HEADER_BYTES {
        let Some(len) = input.u16().filter(|len| *len != 0) else {
            break;
        };
        let fragment = decode_fragment(&mut input, usize::from(len));
        found.push(fragment.ok_or(CorruptKind::Catalogue("a fragment breaks the format"))?);
    }
    Ok(found)
}

fn decode_fragment<'a>(input: &mut Reader<'a>, len: usize) -> Option<Fragment<'a>> {
    let (kind, flags, id) = (input.u8()?, input.u8()?, input.u64()?);
    let entry = match kind {
        1 => EntryId::Volume(id),
        2 => EntryId::Record(id),
        _ => return None,
    };
    let (part, parts) = (input.u16()?, input.u16()?);
    let payload = input.bytes(len.checked_sub(FRAGMENT_HEADER_BYTES)?)?;
    (flags == 0 && part < parts).then_some(Fragment {
        entry,
        part,
        parts,
        payload,
    })
}

/// Cuts an entry's bytes into fragments.
#[must_use]
pub fn cut(entry: EntryId, bytes: &[u8]) -> Vec<Fragment<'_>> {
    let parts = u16::try_from(bytes.len().div_ceil(MAX_PAYLOAD_BYTES).max(1))
        .expect("entries are bounded before");
    if bytes.is_empty() {
        return vec![Fragment {
            entry,
            part: 0,
            parts,
            payload: bytes,
        }];
    }
    let pieces = (0..parts).zip(bytes.chunks(MAX_PAYLOAD_BYTES));
    pieces
        .map(|(part, payload)| Fragment {
            entry,
            part,
            parts,
            payload,
        })
        .collect()
}

/// A volume as the catalogue stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its id.
    pub id: VolumeId,
    /// Its name; `None` once it is removed and waits to be reclaimed.
    pub name: Option<Name>,
    /// Its parent in the forest.
    pub parent: Option<VolumeId>,
    /// True if it can no longer be written.
    pub frozen: bool,
    /// True if nothing that it owns may be freed: a volume whose parent was lost may have it, too.
    pub pinned: bool,
    /// The generation at which it left its parent. In a volume without a parent: 0, or the one at
    /// which it left a parent that was lost, which had all that was born before.
    pub branch: Generation,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The height of its block map.
    pub height: u8,
    /// The root of its block map.
    pub root: Pointer,
    /// Number of blocks of data and map that it owns.
    pub own_blocks: u64,
    /// Number of blocks of data that it maps.
    pub mapped_blocks: u64,
    /// For a removed volume: the block below which everything is reclaimed or passed on.
    pub reclaimed: u64,
    /// Its creation time, in nanoseconds since 1970.
    pub created_ns: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

const ENTRY_VERSION: u8 = 1;
/// Maximum size of a volume in bytes (1 PiB).
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;

const FLAG_FROZEN: u8 = 1;
const FLAG_NAMED: u8 = 2;
const FLAG_PARENT: u8 = 4;
const FLAG_PINNED: u8 = 8;

impl VolumeEntry {
    /// Returns the encoded entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flag = |holds: bool, bit: u8| if holds { bit } else { 0 };
        let flags = flag(self.frozen, FLAG_FROZEN)
            | flag(self.name.is_some(), FLAG_NAMED)
            | flag(self.parent.is_some(), FLAG_PARENT)
            | flag(self.pinned, FLAG_PINNED);
        let mut out = Writer::new();
        out.u8(ENTRY_VERSION).u8(flags).u8(self.height).u8(0);
        out.u64(self.id.0)
            .u64(self.parent.map_or(0, |parent| parent.0));
        out.u64(self.branch.0)
            .u64(self.size_bytes)
            .bytes(&self.root.encode());
        out.u64(self.own_blocks)
            .u64(self.mapped_blocks)
            .u64(self.reclaimed);
        out.u64(self.created_ns);
        out.short_bytes(
            self.name
                .as_ref()
                .map_or(&[], |name| name.as_str().as_bytes()),
        );
        encode_labels(&mut out, &self.labels);
        out.into_bytes()
    }

    /// Returns the entry in `bytes`.
    ///
    /// # Errors
    /// `Catalogue` when it breaks the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptKind> {
        Self::decode_fields(bytes).ok_or(CorruptKind::Catalogue("a volume's entry is ill-formed"))
    }

    fn decode_fields(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        if input.u8()? != ENTRY_VERSION {
            return None;
        }
        let (flags, height, _) = (input.u8()?, input.u8()?, input.u8()?);
        let (id, parent) = (VolumeId(input.u64()?), VolumeId(input.u64()?));
        let (branch, size_bytes) = (Generation(input.u64()?), input.u64()?);
        let root = Pointer::decode(input.bytes(16)?.try_into().ok()?);
        let (own_blocks, mapped_blocks) = (input.u64()?, input.u64()?);
        let (reclaimed, created_ns) = (input.u64()?, input.u64()?);
        let name = input.short_bytes()?;
        let name = match flags & FLAG_NAMED {
            0 => None,
            _ => Some(Name::new(std::str::from_utf8(name).ok()?).ok()?),
        };
        let labels = decode_labels(&mut input)?;
        let sound = (1..=MAX_HEIGHT).contains(&height)
            && (1..=MAX_VOLUME_BYTES).contains(&size_bytes)
            && branch <= Generation::MAX
            && id.0 != 0;
        sound.then_some(Self {
            id,
            name,
            parent: (flags & FLAG_PARENT != 0).then_some(parent),
            frozen: flags & FLAG_FROZEN != 0,
            pinned: flags & FLAG_PINNED != 0,
            branch,
            size_bytes,
            height,
            root,
            own_blocks,
            mapped_blocks,
            reclaimed,
            created_ns,
            labels,
        })
    }
}

/// A record of a crate above, as the catalogue stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordEntry {
    /// The kind of record, which tells its owner.
    pub kind: u16,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

impl RecordEntry {
    /// Returns the encoded entry.
    #[must_use]
    pub fn encode(kind: u16, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(ENTRY_VERSION)
            .u16(kind)
            .short_bytes(key)
            .long_bytes(value);
        out.into_bytes()
    }

    /// Returns the entry in `bytes`.
    ///
    /// # Errors
    /// `Catalogue` when it breaks the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptKind> {
        let mut input = Reader::new(bytes);
        let entry = (|| {
            let version = input.u8()?;
            let kind = input.u16()?;
            let (key, value) = (input.short_bytes()?.to_vec(), input.long_bytes()?.to_vec());
            (version == ENTRY_VERSION).then_some(Self { kind, key, value })
        })();
        entry.ok_or(CorruptKind::Catalogue("a record's entry is ill-formed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_cutting_and_joining() {
        let labels = [("a".into(), "x".repeat(9000)), ("b".into(), String::new())].into();
        let entry = VolumeEntry {
            id: VolumeId(7),
            name: Some(Name::new("vol").unwrap()),
            parent: Some(VolumeId(3)),
            frozen: true,
            pinned: true,
            branch: Generation(4),
            size_bytes: 10,
            height: 1,
            root: Pointer::HOLE,
            own_blocks: 1,
            mapped_blocks: 2,
            reclaimed: 3,
            created_ns: 4,
            labels,
        };
        let bytes = entry.encode();
        let mut joined = Vec::new();
        for fragment in cut(EntryId::Volume(7), &bytes) {
            let mut out = Writer::new();
            fragment.encode(&mut out);
            let mut block = out.into_bytes();
            block.resize(BLOCK_BYTES, 0);
            assert_eq!(fragments(&block).unwrap(), vec![fragment]);
            joined.extend_from_slice(fragment.payload);
        }
        assert_eq!(VolumeEntry::decode(&joined).unwrap(), entry);
        for len in 0..bytes.len() {
            assert!(VolumeEntry::decode(&bytes[..len]).is_err());
        }
    }

    /// Found by fuzzing: the pool did not open, and the check found nothing.
    #[test]
    fn an_entry_of_an_impossible_size_is_ill_formed() {
        let mut entry = VolumeEntry {
            id: VolumeId(7),
            name: None,
            parent: None,
            frozen: false,
            pinned: false,
            branch: Generation(0),
            size_bytes: MAX_VOLUME_BYTES,
            height: 1,
            root: Pointer::HOLE,
            own_blocks: 0,
            mapped_blocks: 0,
            reclaimed: 0,
            created_ns: 0,
            labels: BTreeMap::new(),
        };
        assert!(VolumeEntry::decode(&entry.encode()).is_ok());
        for size_bytes in [0, MAX_VOLUME_BYTES + 1, u64::MAX] {
            entry.size_bytes = size_bytes;
            assert!(VolumeEntry::decode(&entry.encode()).is_err());
        }
    }

    #[test]
    fn an_ill_formed_block_is_an_error_and_never_a_panic() {
        let mut block = vec![0; BLOCK_BYTES];
        assert_eq!(fragments(&block).unwrap(), Vec::new());
        block[0] = 0xff;
        block[1] = 0xff;
        assert!(fragments(&block).is_err());
    }
}
