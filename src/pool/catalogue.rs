//! The catalogue as it lies in the pool's volume 0: which entry stands in which block.
//!
//! Only the checkpoint changes it. The entries' meaning is the forest's.

use crate::base::checksum::crc32;
use crate::base::codec::Writer;
use crate::base::{BLOCK_BYTES, BlockIndex, CorruptKind, Error, Generation, Result, VolumeId};
use crate::device::Device;
use crate::format::catalogue::{EntryId, FRAGMENT_HEADER_BYTES, Fragment, cut, fragments};
use crate::format::{Pointer, Superblock};
use crate::map::{Edit, Ledger, Link, NodeStore, Ownership, Persist, Root, Tree};
use crate::space::Space;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where entries stand.
pub(super) struct Catalogue {
    pub(super) tree: Tree,
    /// Bytes in use in each block.
    used: Vec<usize>,
    places: HashMap<EntryId, Vec<u32>>,
    /// Blocks by free bytes.
    room: BTreeSet<(usize, u32)>,
}

/// A fragment that owns its bytes.
#[derive(Clone)]
struct Piece {
    entry: EntryId,
    part: u16,
    parts: u16,
    payload: Vec<u8>,
}

impl Piece {
    fn fragment(&self) -> Fragment<'_> {
        let Self {
            entry,
            part,
            parts,
            payload,
        } = self;
        Fragment {
            entry: *entry,
            part: *part,
            parts: *parts,
            payload,
        }
    }
}

/// What a catalogue is written with.
pub(super) struct Pen<'a, 'b> {
    pub(super) store: &'a NodeStore,
    pub(super) space: &'a Space,
    pub(super) device: &'a dyn Device,
    pub(super) persist: &'a mut Persist<'b>,
    pub(super) ledger: &'a mut Ledger,
    /// The checkpoint's own generation, and the one before.
    pub(super) generation: Generation,
    pub(super) limit: Generation,
}

impl Catalogue {
    /// Reads the whole catalogue, and calls `found` with each entry.
    pub(super) fn load(
        store: &NodeStore,
        device: &dyn Device,
        superblock: &Superblock,
        mut found: impl FnMut(EntryId, Vec<u8>) -> Result<()>,
    ) -> Result<Self> {
        let link = Link::of(superblock.catalogue_root);
        let root = Root {
            height: superblock.catalogue_height,
            link,
        };
        let mut catalogue = Self {
            tree: Tree::new(root),
            used: Vec::new(),
            places: HashMap::new(),
            room: BTreeSet::new(),
        };
        let mut parts: BTreeMap<EntryId, Vec<Option<Vec<u8>>>> = BTreeMap::new();
        for block in 0..superblock.catalogue_blocks {
            let block = u32::try_from(block).map_err(|_| bad("it has too many blocks"))?;
            let pieces = catalogue.read_block(store, device, block)?;
            catalogue.note_block(block, &pieces);
            for piece in pieces {
                catalogue.places.entry(piece.entry).or_default().push(block);
                let slots = parts.entry(piece.entry).or_default();
                slots.resize(usize::from(piece.parts), None);
                let slot = slots.get_mut(usize::from(piece.part));
                let slot = slot.ok_or_else(|| bad("an entry has too many parts"))?;
                if slot.replace(piece.payload).is_some() {
                    return Err(bad("an entry has a part twice"));
                }
            }
        }
        for (entry, slots) in parts {
            let whole = slots.into_iter().collect::<Option<Vec<_>>>();
            let whole = whole.ok_or_else(|| bad("an entry lacks a part"))?;
            found(entry, whole.concat())?;
        }
        Ok(catalogue)
    }

    /// How many blocks the catalogue has, holes included.
    pub(super) fn blocks(&self) -> u64 {
        self.used.len() as u64
    }

    fn read_block(&self, store: &NodeStore, device: &dyn Device, block: u32) -> Result<Vec<Piece>> {
        let mut pointer = [Pointer::HOLE];
        self.tree.read(store, u64::from(block), &mut pointer)?;
        let [pointer] = pointer;
        if pointer.is_hole() {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; BLOCK_BYTES];
        device.read_at(&mut bytes, pointer.addr().offset_bytes())?;
        if crc32(&bytes) != pointer.crc() {
            let (volume, block) = (VolumeId(0), BlockIndex(u64::from(block)));
            return Err(CorruptKind::DataChecksum {
                volume,
                block,
                addr: pointer.addr(),
            }
            .into());
        }
        let owned = |fragment: Fragment<'_>| Piece {
            entry: fragment.entry,
            part: fragment.part,
            parts: fragment.parts,
            payload: fragment.payload.to_vec(),
        };
        Ok(fragments(&bytes)?.into_iter().map(owned).collect())
    }

    fn note_block(&mut self, block: u32, pieces: &[Piece]) {
        let index = block as usize;
        if self.used.len() <= index {
            self.used.resize(index + 1, 0);
        }
        self.room.remove(&(BLOCK_BYTES - self.used[index], block));
        self.used[index] = pieces
            .iter()
            .map(|piece| piece.fragment().len_bytes())
            .sum();
        self.room.insert((BLOCK_BYTES - self.used[index], block));
    }

    /// Changes entries: new bytes, or `None` for those that are gone. Writes the blocks that they
    /// touch.
    pub(super) fn change(
        &mut self,
        entries: Vec<(EntryId, Option<Vec<u8>>)>,
        pen: &mut Pen<'_, '_>,
    ) -> Result<()> {
        let mut open: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
        for (entry, _) in &entries {
            for block in self.places.remove(entry).unwrap_or_default() {
                let pieces = self.open_block(&mut open, block, pen)?;
                pieces.retain(|piece| piece.entry != *entry);
                self.note_block(block, pieces);
            }
        }
        for (entry, bytes) in entries {
            let Some(bytes) = bytes else { continue };
            for fragment in cut(entry, &bytes) {
                let block = self.place_for(&fragment, &open);
                let pieces = self.open_block(&mut open, block, pen)?;
                let (part, parts) = (fragment.part, fragment.parts);
                pieces.push(Piece {
                    entry,
                    part,
                    parts,
                    payload: fragment.payload.to_vec(),
                });
                self.note_block(block, pieces);
                self.places.entry(entry).or_default().push(block);
            }
        }
        for (block, pieces) in open {
            self.write_block(block, &pieces, pen)?;
        }
        Ok(())
    }

    /// The pieces of a block that is going to be rewritten.
    fn open_block<'a>(
        &self,
        open: &'a mut BTreeMap<u32, Vec<Piece>>,
        block: u32,
        pen: &Pen<'_, '_>,
    ) -> Result<&'a mut Vec<Piece>> {
        Ok(match open.entry(block) {
            Entry::Occupied(pieces) => pieces.into_mut(),
            Entry::Vacant(free) => free.insert(self.read_block(pen.store, pen.device, block)?),
        })
    }

    /// A block with room for the fragment: one that is rewritten anyway, else the fullest that
    /// has room, else a new one.
    fn place_for(&self, fragment: &Fragment<'_>, open: &BTreeMap<u32, Vec<Piece>>) -> u32 {
        let len = fragment.len_bytes();
        let has_room = |block: &&u32| BLOCK_BYTES - self.used[**block as usize] >= len;
        if let Some((block, _)) = open.last_key_value().filter(|(block, _)| has_room(block)) {
            return *block;
        }
        if let Some((block, _)) = open.first_key_value().filter(|(block, _)| has_room(block)) {
            return *block;
        }
        if let Some((_, block)) = self.room.range((len, 0)..).next() {
            return *block;
        }
        u32::try_from(self.used.len()).expect("the catalogue has under 2^32 blocks")
    }

    fn write_block(&self, block: u32, pieces: &[Piece], pen: &mut Pen<'_, '_>) -> Result<()> {
        let mut edit = Edit {
            store: pen.store,
            tree: &self.tree,
            generation: pen.generation,
            limit: pen.limit,
            ownership: Ownership {
                branch: Generation(0),
                inheritance: None,
            },
            ledger: pen.ledger,
        };
        let leaf = edit.leaf(u64::from(block))?;
        let mut pointer = Pointer::HOLE;
        if !pieces.is_empty() {
            let mut out = Writer::new();
            pieces
                .iter()
                .for_each(|piece| piece.fragment().encode(&mut out));
            let mut bytes = out.into_bytes();
            bytes.resize(BLOCK_BYTES, 0);
            let bytes: Box<[u8; BLOCK_BYTES]> =
                bytes.try_into().expect("pieces are placed where they fit");
            let addr = pen.space.allocate_promised().ok_or(Error::NoSpace)?;
            pointer = Pointer::data(addr, pen.generation, crc32(&*bytes));
            pen.persist.write(addr, &bytes)?;
        }
        edit.set(&leaf, u64::from(block), &[pointer]);
        Ok(())
    }
}

fn bad(what: &'static str) -> Error {
    CorruptKind::Catalogue(what).into()
}

const _: () = assert!(FRAGMENT_HEADER_BYTES < BLOCK_BYTES);
