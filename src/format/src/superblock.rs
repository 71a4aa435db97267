//! The superblock: the one block that leads to everything else.

use super::layout::Layout;
use super::pointer::{Pointer, PointerKind};
use crate::base::checksum::crc32;
use crate::base::codec::{Reader, Writer};
use crate::base::{BLOCK_BYTES, CorruptKind, Error, Generation, Result, Sequence};

/// The first eight bytes of a pool.
pub const MAGIC: [u8; 8] = *b"COWSHED\0";
/// The format version of the pools that this code makes.
pub const VERSION: u32 = 3;
/// The oldest version that this code reads and writes. A pool keeps its version.
pub const OLDEST_VERSION: u32 = 2;
/// Features that an older reader may ignore.
pub const KNOWN_COMPAT: u64 = 0;
/// Features that an older reader may ignore if it does not write.
pub const KNOWN_RO_COMPAT: u64 = 0;
/// The pool is on the sides of a mirror, each of which has a label (`side`): a reader of one side
/// alone does not know whether it has everything.
pub const INCOMPAT_MIRROR: u64 = 1;
/// Features that a reader must know.
pub const KNOWN_INCOMPAT: u64 = INCOMPAT_MIRROR;
/// The greatest height of a block map: six levels of 256 reach 2^48 blocks.
pub const MAX_HEIGHT: u8 = 6;

const CRC_OFFSET: usize = BLOCK_BYTES - 4;

/// The state that a checkpoint leaves for the next open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The version of the pool's format.
    pub version: u32,
    /// True if the pool was closed: no record was ever appended with this salt.
    pub clean: bool,
    /// The compat, `ro_compat` and incompat features, in this order.
    pub features: [u64; 3],
    /// The pool's identity.
    pub uuid: [u8; 16],
    /// The places of the pool's parts.
    pub layout: Layout,
    /// Number of groups that have bitmaps on disk; later ones are free throughout.
    pub groups_initialized: u64,
    /// The generation that the checkpoint cut.
    pub generation: Generation,
    /// The sequence of the first record to replay.
    pub log_sequence: Sequence,
    /// The offset of that record in the ring, in bytes.
    pub log_offset: u64,
    /// The salt of the records to replay.
    pub log_salt: u64,
    /// The root of the catalogue's block map.
    pub catalogue_root: Pointer,
    /// The height of the catalogue's block map.
    pub catalogue_height: u8,
    /// Number of blocks of the catalogue, holes included.
    pub catalogue_blocks: u64,
    /// Number of blocks in use by data, nodes and catalogue.
    pub used_blocks: u64,
    /// Number of volumes in the catalogue.
    pub volume_count: u64,
    /// The id that the next volume gets.
    pub next_volume_id: u64,
    /// The pool's creation time, in nanoseconds since 1970.
    pub created_ns: u64,
    /// The sum of the `group::digest`s of all groups that have bitmaps, modulo 2^64.
    pub bitmaps_digest: u64,
    /// Number of copies in which map nodes and the catalogue are written, 1 or 2. Always 1 in
    /// version 2.
    pub metadata_copies: u8,
}

impl Superblock {
    /// Returns true if the pool is on the sides of a mirror.
    #[must_use]
    pub const fn is_mirrored(&self) -> bool {
        self.features[2] & INCOMPAT_MIRROR != 0
    }

    /// Returns the encoded superblock.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&MAGIC)
            .u32(self.version)
            .u32(u32::from(self.clean));
        for word in self.features {
            out.u64(word);
        }
        out.bytes(&self.uuid)
            .u64(self.layout.block_count())
            .u64(self.layout.log_blocks())
            .u64(self.groups_initialized)
            .u64(self.generation.0)
            .u64(self.log_sequence.0)
            .u64(self.log_offset)
            .u64(self.log_salt)
            .bytes(&self.catalogue_root.encode())
            .u64(u64::from(self.catalogue_height))
            .u64(self.catalogue_blocks)
            .u64(self.used_blocks)
            .u64(self.volume_count)
            .u64(self.next_volume_id)
            .u64(self.created_ns)
            .u64(self.bitmaps_digest);
        if self.version >= 3 {
            out.u64(u64::from(self.metadata_copies));
        }
        let mut bytes = out.into_bytes();
        bytes.resize(CRC_OFFSET, 0);
        let crc = crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the superblock in `bytes` (one block).
    ///
    /// # Errors
    /// `NotAPool` without the magic, `Corrupt` with a wrong checksum or impossible fields,
    /// `Incompatible` for a version or a feature that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(bytes);
        if bytes.len() != BLOCK_BYTES || input.bytes(8) != Some(&MAGIC) {
            return Err(Error::NotAPool);
        }
        let (covered, crc) = bytes.split_at(CRC_OFFSET);
        if crc != crc32(covered).to_le_bytes() {
            return Err(CorruptKind::NoSuperblock.into());
        }
        Self::decode_fields(input).ok_or(CorruptKind::SuperblockField("length"))?
    }

    fn decode_fields(mut input: Reader<'_>) -> Option<Result<Self>> {
        let version = input.u32()?;
        let flags = input.u32()?;
        let features = [input.u64()?, input.u64()?, input.u64()?];
        if !(OLDEST_VERSION..=VERSION).contains(&version) || features[2] & !KNOWN_INCOMPAT != 0 {
            return Some(Err(Error::Incompatible {
                version,
                known: VERSION,
                features: features[2] & !KNOWN_INCOMPAT,
            }));
        }
        if features[1] & !KNOWN_RO_COMPAT != 0 {
            return Some(Err(Error::Incompatible {
                version,
                known: VERSION,
                features: features[1] & !KNOWN_RO_COMPAT,
            }));
        }
        let uuid = input.bytes(16)?.try_into().ok()?;
        let (block_count, log_blocks) = (input.u64()?, input.u64()?);
        let Ok(layout) = Layout::new(block_count, log_blocks) else {
            return Some(Err(CorruptKind::SuperblockField("size").into()));
        };
        let superblock = Self {
            version,
            clean: flags & 1 != 0,
            features,
            uuid,
            layout,
            groups_initialized: input.u64()?,
            generation: Generation(input.u64()?),
            log_sequence: Sequence(input.u64()?),
            log_offset: input.u64()?,
            log_salt: input.u64()?,
            catalogue_root: Pointer::decode(input.bytes(16)?.try_into().ok()?),
            catalogue_height: u8::try_from(input.u64()?).unwrap_or(u8::MAX),
            catalogue_blocks: input.u64()?,
            used_blocks: input.u64()?,
            volume_count: input.u64()?,
            next_volume_id: input.u64()?,
            created_ns: input.u64()?,
            bitmaps_digest: input.u64()?,
            metadata_copies: match version {
                2 => 1,
                _ => u8::try_from(input.u64()?).unwrap_or(u8::MAX),
            },
        };
        Some(superblock.verified())
    }

    fn verified(self) -> Result<Self> {
        let facts = [
            (
                "number of groups",
                self.groups_initialized <= self.layout.group_count(),
            ),
            (
                "generation",
                self.generation < Generation(Generation::MAX.0 / 2),
            ),
            (
                "log position",
                self.log_offset < self.layout.log_bytes() && self.log_offset.is_multiple_of(8),
            ),
            (
                "log sequence",
                (1..u64::MAX / 2).contains(&self.log_sequence.0),
            ),
            (
                "catalogue height",
                (1..=MAX_HEIGHT).contains(&self.catalogue_height),
            ),
            (
                "catalogue size",
                self.catalogue_blocks <= self.layout.block_count(),
            ),
            ("catalogue root", self.root_is_possible()),
            (
                "block counts",
                self.used_blocks <= self.layout.block_count(),
            ),
            (
                "number of metadata copies",
                (1..=2).contains(&self.metadata_copies),
            ),
            (
                "next volume id",
                (1..u64::MAX / 2).contains(&self.next_volume_id),
            ),
        ];
        match facts.into_iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(CorruptKind::SuperblockField(field).into()),
            None => Ok(self),
        }
    }

    fn root_is_possible(&self) -> bool {
        match self.catalogue_root.kind() {
            Some(PointerKind::Hole) => true,
            Some(PointerKind::Node) => {
                self.layout.holds(self.catalogue_root)
                    && self.catalogue_root.birth() <= self.generation
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Superblock {
        Superblock {
            version: VERSION,
            clean: false,
            features: [0; 3],
            uuid: *b"0123456789abcdef",
            layout: Layout::new(1 << 16, 256).unwrap(),
            groups_initialized: 1,
            generation: Generation(7),
            log_sequence: Sequence(9),
            log_offset: 4096,
            log_salt: 0x55,
            catalogue_root: Pointer::HOLE,
            catalogue_height: 1,
            catalogue_blocks: 0,
            used_blocks: 3,
            volume_count: 1,
            next_volume_id: 2,
            created_ns: 1,
            bitmaps_digest: 5,
            metadata_copies: 2,
        }
    }

    #[test]
    fn a_superblock_survives_the_round_trip() {
        assert_eq!(Superblock::decode(&sample().encode()).unwrap(), sample());
    }

    #[test]
    fn a_superblock_of_version_2_is_kept_as_it_is() {
        let old = Superblock {
            version: 2,
            metadata_copies: 1,
            ..sample()
        };
        let bytes = old.encode();
        assert!(bytes[184..CRC_OFFSET].iter().all(|byte| *byte == 0));
        assert_eq!(Superblock::decode(&bytes).unwrap(), old);
    }

    #[test]
    fn other_numbers_of_copies_than_one_and_two_are_refused() {
        for metadata_copies in [0, 3, u8::MAX] {
            let bad = Superblock {
                metadata_copies,
                ..sample()
            };
            let found = Superblock::decode(&bad.encode());
            let expected = CorruptKind::SuperblockField("number of metadata copies");
            assert!(matches!(found, Err(Error::Corrupt(kind)) if kind == expected));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn other_versions_of_the_format_are_refused_by_name() {
        for other in [0, 1, 4] {
            let mut bytes = sample().encode();
            bytes[8] = other;
            let crc = crc32(&bytes[..CRC_OFFSET]);
            bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
            match Superblock::decode(&bytes) {
                Err(error @ Error::Incompatible { version, .. }) => {
                    assert_eq!(version, u32::from(other));
                    let advice = if version < VERSION {
                        "use the cowshed that made it"
                    } else {
                        "use a newer cowshed"
                    };
                    assert!(error.to_string().contains(advice), "{error}");
                }
                found => panic!("version {other}: {found:?}"),
            }
        }
    }
}
