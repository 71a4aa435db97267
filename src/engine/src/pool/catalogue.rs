//! The catalogue as it is stored in the pool's volume 0: which entry is in which block.
//!
//! Only the checkpoint changes it. The forest interprets the entries.
//!
//! A block or a node of it that is damaged in all its copies costs the entries there, and nothing
//! else: nothing is written to such a block's place any more, and what is left of incomplete
//! entries stays as it is until a repair forgets them.

use crate::map::{DAMAGED_MAX, Tree, find_beside_damage};
use crate::map::{Edit, Ledger, Link, NodeStore, Outlet, Ownership, Persist, Root};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::Writer;
use cowshed_format::base::{
    BLOCK_BYTES, BlockIndex, CorruptKind, Error, Generation, Result, VolumeId,
};
use cowshed_format::catalogue::{EntryId, FRAGMENT_HEADER_BYTES, Fragment, cut, fragments};
use cowshed_format::{Pointer, Superblock};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// The places of the entries. Memory grows with the number of entries, not with what a field
/// claims.
pub(super) struct Catalogue {
    pub(super) tree: Tree,
    /// Number of blocks that ever existed, holes included.
    blocks: u32,
    /// Number of bytes in use in each block that is not a hole.
    used: BTreeMap<u32, usize>,
    /// No block before this one is a hole.
    first_hole: u32,
    places: HashMap<EntryId, Vec<u32>>,
    /// Blocks that are not holes, by free bytes.
    room: BTreeSet<(usize, u32)>,
    /// Damaged blocks, and ranges that damaged nodes cover.
    lost: Vec<Range<u64>>,
}

/// What could not be read of a catalogue.
#[derive(Default)]
pub(super) struct Loss {
    /// Number of damaged blocks and nodes.
    pub(super) blocks: u64,
    /// Entries of which a part is missing.
    pub(super) entries: Vec<EntryId>,
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
    fn of(fragment: &Fragment<'_>) -> Self {
        Self {
            entry: fragment.entry,
            part: fragment.part,
            parts: fragment.parts,
            payload: fragment.payload.to_vec(),
        }
    }

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

/// The means to write a catalogue.
pub(super) struct Pen<'a> {
    pub(super) outlet: Outlet<'a>,
    pub(super) persist: &'a mut Persist,
    pub(super) ledger: &'a mut Ledger,
    /// The checkpoint's own generation, and the one before.
    pub(super) generation: Generation,
    pub(super) limit: Generation,
}

/// A change of entries in progress. After a failure it can be continued.
#[derive(Default)]
pub(super) struct Change {
    leaving: Vec<EntryId>,
    /// In reverse.
    coming: Vec<Piece>,
    open: BTreeMap<u32, Vec<Piece>>,
}

impl Change {
    /// Returns a change with new bytes for entries, or `None` for removed entries.
    pub(super) fn new(entries: &[(EntryId, Option<Vec<u8>>)]) -> Self {
        let parts = |(entry, bytes): &(EntryId, Option<Vec<u8>>)| -> Vec<Piece> {
            let cut = bytes.iter().flat_map(|bytes| cut(*entry, bytes));
            cut.map(|fragment| Piece::of(&fragment)).collect()
        };
        let mut coming: Vec<_> = entries.iter().flat_map(parts).collect();
        coming.reverse();
        Self {
            leaving: entries.iter().map(|(entry, _)| *entry).collect(),
            coming,
            open: BTreeMap::new(),
        }
    }
}

/// The parts of an entry found so far. The claimed number of parts alone takes no memory.
struct Parts {
    count: u16,
    found: BTreeMap<u16, Vec<u8>>,
}

impl Parts {
    fn take(&mut self, piece: Piece) -> Result<()> {
        if piece.parts != self.count {
            return Err(bad("an entry's parts disagree"));
        }
        match self.found.insert(piece.part, piece.payload) {
            None => Ok(()),
            Some(_) => Err(bad("an entry has a part twice")),
        }
    }

    fn is_whole(&self) -> bool {
        self.found.len() == usize::from(self.count)
    }

    fn join(self) -> Result<Vec<u8>> {
        if !self.is_whole() {
            return Err(bad("an entry lacks a part"));
        }
        Ok(self.found.into_values().flatten().collect())
    }
}

impl Catalogue {
    /// Reads the whole catalogue, and calls `found` with each entry. Returns what is damaged, too.
    ///
    /// # Errors
    /// `Corrupt` when the top node is damaged, or an entry breaks the format; `Io`: what the device
    /// does not read now may be readable another time.
    pub(super) fn load(
        store: &NodeStore,
        superblock: &Superblock,
        mut found: impl FnMut(EntryId, Vec<u8>) -> Result<()>,
    ) -> Result<(Self, Loss)> {
        let link = Link::of(superblock.catalogue_root);
        let root = Root {
            height: superblock.catalogue_height,
            link,
        };
        let blocks = u32::try_from(superblock.catalogue_blocks);
        let mut catalogue = Self {
            tree: Tree::new(root),
            blocks: blocks.map_err(|_| bad("it has too many blocks"))?,
            used: BTreeMap::new(),
            first_hole: 0,
            places: HashMap::new(),
            room: BTreeSet::new(),
            lost: Vec::new(),
        };
        let mut entries: BTreeMap<EntryId, Parts> = BTreeMap::new();
        let mut next = 0;
        let mut lost = Vec::new();
        let root = catalogue.tree.root_to_keep();
        while let Some(block) = find_beside_damage(store, &root, next, &mut lost)? {
            next = block + 1;
            let block = u32::try_from(block).ok();
            let block = block.filter(|block| *block < catalogue.blocks);
            let block = block.ok_or_else(|| bad("a block lies beyond its end"))?;
            let pieces = match catalogue.read_block(store, block) {
                // A block that verifies at a second read is not damaged.
                Err(Error::Corrupt(CorruptKind::DataChecksum { .. })) => {
                    match catalogue.read_block(store, block) {
                        Err(Error::Corrupt(CorruptKind::DataChecksum { .. }))
                            if lost.len() < DAMAGED_MAX =>
                        {
                            lost.push(u64::from(block)..u64::from(block) + 1);
                            continue;
                        }
                        pieces => pieces?,
                    }
                }
                pieces => pieces?,
            };
            // If empty blocks were allowed, a tree that leads to one such block everywhere would be
            // endless.
            if pieces.is_empty() {
                return Err(bad("a block of it is empty"));
            }
            catalogue.note_block(block, &pieces);
            for piece in pieces {
                catalogue.places.entry(piece.entry).or_default().push(block);
                let parts = entries.entry(piece.entry).or_insert_with(|| Parts {
                    count: piece.parts,
                    found: BTreeMap::new(),
                });
                parts.take(piece)?;
            }
        }
        let mut loss = Loss {
            blocks: lost.len() as u64,
            entries: Vec::new(),
        };
        catalogue.lost = lost;
        for (entry, parts) in entries {
            if parts.is_whole() || catalogue.lost.is_empty() {
                found(entry, parts.join()?)?;
            } else {
                loss.entries.push(entry);
            }
        }
        Ok((catalogue, loss))
    }

    /// Returns the number of blocks of the catalogue, holes included.
    pub(super) fn blocks(&self) -> u64 {
        u64::from(self.blocks)
    }

    fn read_block(&self, store: &NodeStore, block: u32) -> Result<Vec<Piece>> {
        let mut pointer = [Pointer::HOLE];
        self.tree.read(store, u64::from(block), &mut pointer)?;
        let [pointer] = pointer;
        if pointer.is_hole() {
            return Ok(Vec::new());
        }
        let corrupt = CorruptKind::DataChecksum {
            volume: VolumeId(0),
            block: BlockIndex(u64::from(block)),
            addr: pointer.addr(),
        };
        let read = store.read_copies(pointer, corrupt, |bytes| {
            Ok(fragments(bytes)?.iter().map(Piece::of).collect())
        });
        read.map(|(pieces, _)| pieces)
    }

    /// Reads a block and all nodes above it, to verify them.
    pub(super) fn verify_block(&self, store: &NodeStore, block: u64) -> Result<()> {
        let block = u32::try_from(block).map_err(|_| bad("it has too many blocks"))?;
        self.read_block(store, block).map(drop)
    }

    fn note_block(&mut self, block: u32, pieces: &[Piece]) {
        let old = self.used.remove(&block).unwrap_or(0);
        self.room.remove(&(BLOCK_BYTES - old, block));
        self.blocks = self.blocks.max(block + 1);
        if pieces.is_empty() {
            self.first_hole = self.first_hole.min(block);
            return;
        }
        let used = pieces.iter().map(|piece| piece.fragment().len_bytes());
        let used = used.sum::<usize>();
        self.used.insert(block, used);
        self.room.insert((BLOCK_BYTES - used, block));
    }

    /// Continues a change, and writes the blocks that it touches. After an error it may be called
    /// again.
    pub(super) fn change(&mut self, change: &mut Change, pen: &mut Pen<'_>) -> Result<()> {
        while let Some(entry) = change.leaving.last().copied() {
            for block in self.places.get(&entry).cloned().unwrap_or_default() {
                let pieces = self.open_block(&mut change.open, block, pen)?;
                pieces.retain(|piece| piece.entry != entry);
                self.note_block(block, pieces);
            }
            self.places.remove(&entry);
            change.leaving.pop();
        }
        while let Some(piece) = change.coming.pop() {
            let block = self.place_for(&piece.fragment(), &change.open);
            let pieces = match self.open_block(&mut change.open, block, pen) {
                Ok(pieces) => pieces,
                Err(error) => {
                    change.coming.push(piece);
                    return Err(error);
                }
            };
            self.places.entry(piece.entry).or_default().push(block);
            pieces.push(piece);
            self.note_block(block, pieces);
        }
        while let Some((block, pieces)) = change.open.first_key_value() {
            self.write_block(*block, pieces, pen)?;
            change.open.pop_first();
            pen.persist.write_whole(pen.outlet)?;
        }
        Ok(())
    }

    /// Returns the pieces of a block that is going to be rewritten.
    fn open_block<'a>(
        &self,
        open: &'a mut BTreeMap<u32, Vec<Piece>>,
        block: u32,
        pen: &Pen<'_>,
    ) -> Result<&'a mut Vec<Piece>> {
        Ok(match open.entry(block) {
            Entry::Occupied(pieces) => pieces.into_mut(),
            Entry::Vacant(free) => {
                let outlet = pen.outlet;
                free.insert(self.read_block(outlet.store, block)?)
            }
        })
    }

    /// Returns a block with space for the fragment: one that is rewritten anyway, otherwise the
    /// fullest with enough space, otherwise a hole, otherwise a new block.
    fn place_for(&mut self, fragment: &Fragment<'_>, open: &BTreeMap<u32, Vec<Piece>>) -> u32 {
        let len = fragment.len_bytes();
        let used = |block: &u32| self.used.get(block).copied().unwrap_or(0);
        let has_room = |block: &&u32| BLOCK_BYTES - used(block) >= len;
        if let Some((block, _)) = open.last_key_value().filter(|(block, _)| has_room(block)) {
            return *block;
        }
        if let Some((block, _)) = open.first_key_value().filter(|(block, _)| has_room(block)) {
            return *block;
        }
        if let Some((_, block)) = self.room.range((len, 0)..).next() {
            return *block;
        }
        loop {
            let first = u64::from(self.first_hole);
            if let Some(lost) = self.lost.iter().find(|lost| lost.contains(&first)) {
                self.first_hole = u32::try_from(lost.end).expect("the walk ends before that");
            } else if self.used.contains_key(&self.first_hole) {
                self.first_hole += 1;
            } else {
                return self.first_hole;
            }
        }
    }

    /// Writes a block to a new place; on an error, nothing has changed.
    fn write_block(&self, block: u32, pieces: &[Piece], pen: &mut Pen<'_>) -> Result<()> {
        let mut edit = Edit {
            store: pen.outlet.store,
            tree: &self.tree,
            generation: pen.generation,
            limit: pen.limit,
            ownership: Ownership {
                branch: Generation(0),
                inheritance: None,
            },
            ledger: pen.ledger,
            gives_up: false,
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
            let space = pen.outlet.space;
            let place = space.allocate_promised().ok_or(Error::NoSpace)?;
            let first = Pointer::data(place.addr, pen.generation, crc32(&*bytes));
            pointer = pen.persist.place(pen.outlet, first, place, &bytes);
        }
        edit.set(&leaf, u64::from(block), &[pointer]);
        Ok(())
    }
}

fn bad(what: &'static str) -> Error {
    CorruptKind::Catalogue(what).into()
}

const _: () = assert!(FRAGMENT_HEADER_BYTES < BLOCK_BYTES);
