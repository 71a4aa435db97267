//! The 16-byte pointer: a block's address, birth and checksum.
//!
//! Data blocks and map nodes have the same pointers. A hole is sixteen zero bytes. Where there are
//! two copies of a block, the pointer has the address of one, and says how far off the other is.

use crate::base::{BlockAddr, Generation};

/// Number of bytes in an encoded pointer.
pub const POINTER_BYTES: usize = 16;

const ADDR_BITS: u32 = 40;
const ADDR_MASK: u64 = (1 << ADDR_BITS) - 1;
const FLAGS_SHIFT: u32 = 40;
const BIRTH_LOW_SHIFT: u32 = 48;

const KIND_DATA: u64 = 1;
const KIND_NODE: u64 = 2;
const KIND_LOST: u64 = 3;
/// A node, or a block of data, of which there are two copies; the low five bits are the distance.
const KIND_NODE_COPIED: u64 = 0x20;
const KIND_DATA_COPIED: u64 = 0x40;
const DISTANCE_MASK: u64 = 0x1f;
/// Set only in memory, where the child is a dirty node that has no address yet.
const KIND_UNWRITTEN: u64 = 0x80;

/// The kind of thing that a pointer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerKind {
    /// Nothing: the range reads as zeros.
    Hole,
    /// A block of data.
    Data,
    /// A map node.
    Node,
    /// A lost range: the node that led further was damaged, and has been given up.
    Lost,
    /// A map node that exists only in memory so far; never on disk.
    Unwritten,
}

/// A block address with kind, birth and checksum, in two little-endian words.
///
/// Word 0: address (bits 0 to 39), flags (40 to 47), birth's low 16 bits (48 to 63).
/// Word 1: birth's high 32 bits (0 to 31), CRC-32 (32 to 63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pointer {
    words: [u64; 2],
}

impl Pointer {
    /// The pointer that leads nowhere.
    pub const HOLE: Self = Self { words: [0, 0] };

    /// The largest block address that fits.
    pub const MAX_ADDR: BlockAddr = BlockAddr(ADDR_MASK);

    /// Returns a pointer to a data block.
    #[must_use]
    pub const fn data(addr: BlockAddr, birth: Generation, crc: u32) -> Self {
        Self::pack(addr, KIND_DATA, birth, crc)
    }

    /// Returns a pointer to a map node.
    #[must_use]
    pub const fn node(addr: BlockAddr, birth: Generation, crc: u32) -> Self {
        Self::pack(addr, KIND_NODE, birth, crc)
    }

    /// Returns the pointer for a range whose node was damaged, given up in generation `birth`.
    #[must_use]
    pub const fn lost(birth: Generation) -> Self {
        Self::pack(BlockAddr(0), KIND_LOST, birth, 0)
    }

    /// Returns the placeholder for a child node that has no address yet.
    #[must_use]
    pub const fn unwritten(birth: Generation) -> Self {
        Self::pack(BlockAddr(0), KIND_UNWRITTEN, birth, 0)
    }

    const fn pack(addr: BlockAddr, flags: u64, birth: Generation, crc: u32) -> Self {
        debug_assert!(addr.0 <= ADDR_MASK && birth.0 <= Generation::MAX.0);
        Self {
            words: [
                addr.0 | flags << FLAGS_SHIFT | birth.0 << BIRTH_LOW_SHIFT,
                birth.0 >> 16 | (crc as u64) << 32,
            ],
        }
    }

    /// Returns the pointer in two words, as they lie on disk.
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        self.words
    }

    /// Returns a pointer from its two words, unchecked: `kind` returns `None` for an ill-formed
    /// one.
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self { words }
    }

    /// Returns the kind of thing it leads to; `None` if its flags are not of this format version.
    #[must_use]
    pub const fn kind(self) -> Option<PointerKind> {
        match self.words[0] >> FLAGS_SHIFT & 0xff {
            0 if self.words[0] == 0 && self.words[1] == 0 => Some(PointerKind::Hole),
            KIND_DATA => Some(PointerKind::Data),
            KIND_NODE => Some(PointerKind::Node),
            flags if flags & !DISTANCE_MASK == KIND_DATA_COPIED => Some(PointerKind::Data),
            flags if flags & !DISTANCE_MASK == KIND_NODE_COPIED => Some(PointerKind::Node),
            KIND_LOST if self.words[0] & ADDR_MASK == 0 && self.crc() == 0 => {
                Some(PointerKind::Lost)
            }
            KIND_UNWRITTEN => Some(PointerKind::Unwritten),
            _ => None,
        }
    }

    /// Returns true if it leads nowhere.
    #[must_use]
    pub const fn is_hole(self) -> bool {
        self.words[0] == 0 && self.words[1] == 0
    }

    /// Returns true if it marks a range that was given up.
    #[must_use]
    pub const fn is_lost(self) -> bool {
        matches!(self.kind(), Some(PointerKind::Lost))
    }

    /// Returns the block's address.
    #[must_use]
    pub const fn addr(self) -> BlockAddr {
        BlockAddr(self.words[0] & ADDR_MASK)
    }

    /// Returns a pointer to the same data or node with a second copy at `distance`, the exponent of
    /// a power of two blocks.
    #[must_use]
    pub const fn with_copy(self, distance: u8) -> Self {
        debug_assert!(distance as u64 <= DISTANCE_MASK);
        let kind = match self.kind() {
            Some(PointerKind::Node) => KIND_NODE_COPIED,
            _ => KIND_DATA_COPIED,
        };
        let [low, high] = self.words;
        let flags = (kind | distance as u64) << FLAGS_SHIFT;
        Self {
            words: [low & !(0xff << FLAGS_SHIFT) | flags, high],
        }
    }

    /// Returns the address of the second copy in a pool whose groups begin at block
    /// `groups_start`; `None` if there is none.
    #[must_use]
    pub const fn copy_addr(self, groups_start: u64) -> Option<BlockAddr> {
        let flags = self.words[0] >> FLAGS_SHIFT & 0xff;
        if flags & !DISTANCE_MASK != KIND_NODE_COPIED && flags & !DISTANCE_MASK != KIND_DATA_COPIED
        {
            return None;
        }
        copy_of(self.addr(), (flags & DISTANCE_MASK) as u32, groups_start)
    }

    /// Returns true if there is to be a second copy, wherever it lies.
    #[must_use]
    pub const fn has_copy(self) -> bool {
        let kind = self.words[0] >> FLAGS_SHIFT & 0xff & !DISTANCE_MASK;
        kind == KIND_NODE_COPIED || kind == KIND_DATA_COPIED
    }

    /// Returns the addresses of all copies, the first one first.
    pub fn places(self, groups_start: u64) -> impl Iterator<Item = BlockAddr> {
        [Some(self.addr()), self.copy_addr(groups_start)]
            .into_iter()
            .flatten()
    }

    /// Returns the generation in which the block became part of the state.
    #[must_use]
    pub const fn birth(self) -> Generation {
        Generation(self.words[0] >> BIRTH_LOW_SHIFT | (self.words[1] & 0xffff_ffff) << 16)
    }

    /// Returns the CRC-32 of the block's bytes.
    #[must_use]
    pub const fn crc(self) -> u32 {
        (self.words[1] >> 32) as u32
    }

    /// Returns the encoded pointer.
    #[must_use]
    pub fn encode(self) -> [u8; POINTER_BYTES] {
        let mut bytes = [0; POINTER_BYTES];
        bytes[..8].copy_from_slice(&self.words[0].to_le_bytes());
        bytes[8..].copy_from_slice(&self.words[1].to_le_bytes());
        bytes
    }

    /// Returns the pointer in `bytes`, unchecked as in `from_words`.
    #[must_use]
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Self {
        let (low, high) = bytes.split_at(8);
        let word = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half of 16 bytes"));
        Self::from_words([word(low), word(high)])
    }
}

/// Returns the other block of a pair at `distance`: counted from the first group, the numbers of
/// the two differ in that bit alone. `None` where there cannot be one.
#[must_use]
pub const fn copy_of(addr: BlockAddr, distance: u32, groups_start: u64) -> Option<BlockAddr> {
    if addr.0 < groups_start {
        return None;
    }
    let copy = groups_start + ((addr.0 - groups_start) ^ 1 << distance);
    if copy > ADDR_MASK {
        return None;
    }
    Some(BlockAddr(copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_keeps_every_field_at_its_limits() {
        for (addr, birth, crc) in [
            (1, 1, 0),
            (ADDR_MASK, Generation::MAX.0, u32::MAX),
            (0x12_3456_789a, 0x1234_5678_9abc, 7),
        ] {
            for pointer in [
                Pointer::data(BlockAddr(addr), Generation(birth), crc),
                Pointer::node(BlockAddr(addr), Generation(birth), crc),
            ] {
                assert_eq!(pointer.addr().0, addr);
                assert_eq!(pointer.birth().0, birth);
                assert_eq!(pointer.crc(), crc);
                assert_eq!(Pointer::decode(&pointer.encode()), pointer);
            }
        }
    }

    #[test]
    fn the_two_copies_of_a_block_are_each_others() {
        let start = 272;
        for addr in [start + 4, start + 40_000, start + 100_000] {
            for distance in 0..32 {
                let node = Pointer::node(BlockAddr(addr), Generation(9), 5).with_copy(distance);
                assert_eq!(node.kind(), Some(PointerKind::Node));
                assert_eq!((node.addr().0, node.birth().0, node.crc()), (addr, 9, 5));
                let copy = node.copy_addr(start).unwrap();
                assert_ne!(copy, node.addr());
                assert_eq!(copy_of(copy, u32::from(distance), start), Some(node.addr()));
                let data = Pointer::data(BlockAddr(addr), Generation(9), 5).with_copy(distance);
                assert_eq!(data.kind(), Some(PointerKind::Data));
                assert_eq!(data.copy_addr(start), Some(copy));
                assert_ne!(data, node);
            }
        }
        let node = Pointer::node(BlockAddr(300), Generation(9), 5);
        assert!(!node.has_copy() && node.copy_addr(start).is_none());
        assert!(node.with_copy(3).has_copy());
        assert_eq!(node.with_copy(3).copy_addr(301), None);
    }

    #[test]
    fn unknown_flags_and_half_empty_holes_are_ill_formed() {
        assert_eq!(Pointer::HOLE.kind(), Some(PointerKind::Hole));
        assert_eq!(Pointer::from_words([0, 1]).kind(), None);
        assert_eq!(Pointer::from_words([5, 0]).kind(), None);
        assert_eq!(Pointer::from_words([4 << FLAGS_SHIFT, 0]).kind(), None);
        assert_eq!(Pointer::from_words([3 << FLAGS_SHIFT | 1, 0]).kind(), None);
        assert!(Pointer::lost(Generation(7)).is_lost());
    }
}
