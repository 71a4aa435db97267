//! A map node: 256 pointers in one block, without a header. Its checksum is in its parent.
//!
//! Level 1 nodes (leaves) hold data pointers, higher ones hold node pointers; any entry may be a
//! hole or a lost range. Position is identity: entry `i` of a node at level `l` covers 256^(l-1)
//! blocks.

use super::layout::Layout;
use super::pointer::{POINTER_BYTES, Pointer, PointerKind};
use crate::base::{BLOCK_BYTES, BlockAddr, CorruptKind, Generation};

/// Number of pointers in a node.
pub const NODE_ENTRIES: usize = 256;
/// `log2(NODE_ENTRIES)`.
pub const NODE_BITS: u32 = 8;
const _: () = assert!(NODE_ENTRIES * POINTER_BYTES == BLOCK_BYTES);

/// A node's entries as values.
pub type Entries = [Pointer; NODE_ENTRIES];

/// Returns the number of blocks that one entry of a node at `level` covers.
#[must_use]
pub const fn entry_blocks(level: u8) -> u64 {
    1 << (NODE_BITS * (level as u32 - 1))
}

/// Returns the number of levels that a map of `blocks` blocks needs; at least one.
#[must_use]
pub fn height_for(blocks: u64) -> u8 {
    let mut height = 1;
    while blocks > entry_blocks(height + 1) {
        height += 1;
    }
    height
}

/// Returns the number of the entry of a node at `level` that leads to block `index`.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "masked to eight bits")]
pub const fn slot(index: u64, level: u8) -> usize {
    (index >> (NODE_BITS * (level as u32 - 1)) & (NODE_ENTRIES as u64 - 1)) as usize
}

/// Decodes the node in a block, unchecked: see `verify`.
#[must_use]
pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Entries {
    let mut entries = [Pointer::HOLE; NODE_ENTRIES];
    for (entry, chunk) in entries.iter_mut().zip(bytes.as_chunks::<POINTER_BYTES>().0) {
        *entry = Pointer::decode(chunk);
    }
    entries
}

/// Returns the block that holds `entries`.
#[must_use]
pub fn encode(entries: &Entries) -> Box<[u8; BLOCK_BYTES]> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    for (entry, chunk) in entries.iter().zip(bytes.as_chunks_mut::<POINTER_BYTES>().0) {
        *chunk = entry.encode();
    }
    bytes
}

/// The bounds that a node's pointers must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The layout that blocks lie in.
    pub layout: Layout,
    /// The pool's generation; no birth is later.
    pub now: Generation,
}

/// Checks each entry of the node at `node`: its kind fits `level`, its address is inside a group,
/// and its birth is no later than `bounds.now`.
///
/// # Errors
/// The first fact that is violated.
pub fn verify(
    entries: &Entries,
    node: BlockAddr,
    level: u8,
    bounds: &Bounds,
) -> Result<(), CorruptKind> {
    for (entry, pointer) in (0u16..).zip(entries) {
        let fits = match pointer.kind() {
            Some(PointerKind::Hole) => continue,
            Some(PointerKind::Data) => level == 1,
            Some(PointerKind::Node) => level > 1,
            Some(PointerKind::Lost) => true,
            Some(PointerKind::Unwritten) | None => false,
        };
        if !fits {
            return Err(CorruptKind::NodeEntry { node, entry });
        }
        if !pointer.is_lost() && !bounds.layout.holds(*pointer) {
            return Err(CorruptKind::PointerRange(pointer.addr()));
        }
        if pointer.birth() > bounds.now {
            return Err(CorruptKind::PointerBirth {
                birth: pointer.birth(),
                now: bounds.now,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_reach_the_documented_sizes() {
        let gib = 1 << 18;
        assert_eq!(height_for(1), 1);
        assert_eq!(height_for(256), 1);
        assert_eq!(height_for(257), 2);
        assert_eq!(height_for(64 * gib), 3);
        assert_eq!(height_for(64 * gib + 1), 4);
        assert_eq!(height_for(16 * 1024 * gib), 4);
    }

    #[test]
    fn slots_are_the_digits_of_the_index() {
        let index = 0x01_02_03;
        assert_eq!([slot(index, 3), slot(index, 2), slot(index, 1)], [1, 2, 3]);
    }

    #[test]
    fn ill_formed_entries_are_named() {
        let bounds = Bounds {
            layout: Layout::new(1 << 16, 256).unwrap(),
            now: Generation(5),
        };
        let node = BlockAddr(300);
        let check = |pointer, level| {
            let mut entries = [Pointer::HOLE; NODE_ENTRIES];
            entries[17] = pointer;
            verify(&decode(&encode(&entries)), node, level, &bounds)
        };
        let good = Pointer::data(BlockAddr(400), Generation(5), 1);
        assert_eq!(check(good, 1), Ok(()));
        assert_eq!(
            check(good, 2),
            Err(CorruptKind::NodeEntry { node, entry: 17 })
        );
        let outside = BlockAddr(1 << 17);
        assert_eq!(
            check(Pointer::data(outside, Generation(5), 1), 1),
            Err(CorruptKind::PointerRange(outside))
        );
        let late = Pointer::data(BlockAddr(400), Generation(6), 1);
        assert!(matches!(
            check(late, 1),
            Err(CorruptKind::PointerBirth { .. })
        ));
    }
}
