//! The structure of a pool, piece by piece: for a report about a fault, or to look into a pool that
//! does not open.
//!
//! It judges nothing: `check` does. It gives addresses, counts and births, and no data; the names
//! and labels of volumes are in the entries, and the caller decides whether to show them.
//!
//! # Invariants
//! - What cannot be read is an item of its own, and everything else follows.
//! - A node is given once, for the first volume that leads to it: no bytes make a dump endless.
//! - Memory grows with the number of nodes and of catalogue entries, not with the data.

use super::bitmaps::read_group;
use super::copies;
use super::finding::{Detail, Place};
use super::marks::used_in;
use super::ring;
use super::slots::{self, SlotPlace};
use super::walk::{Position, place};
use cowshed_format::base::{BlockAddr, BlockIndex, Generation, Result, VolumeId};
use cowshed_format::catalogue::{EntryId, RecordEntry, VolumeEntry, fragments};
use cowshed_format::device::Device;
use cowshed_format::node::{self, NODE_BITS};
use cowshed_format::record::Record;
use cowshed_format::{Pointer, PointerKind, Superblock};
use std::collections::{BTreeMap, HashSet};

/// A piece of a pool's structure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Item {
    /// A place of a superblock.
    Superblock {
        /// Slot 0 or 1.
        slot: u8,
        /// True for the copy at the pool's end.
        copy: bool,
        /// The superblock there, if there is a valid one.
        found: Option<Box<Superblock>>,
        /// True if it is the newest: all other items follow from it.
        counts: bool,
    },
    /// A log record that the next open replays.
    LogRecord(Record),
    /// An allocation group.
    Group {
        /// Its number.
        group: u64,
        /// The bitmap slot that counts, and the generation of the checkpoint that wrote it; `None`
        /// if neither is readable.
        slot: Option<(u8, Generation)>,
        /// Number of blocks in use, without the group's header.
        used_blocks: u64,
    },
    /// A volume's entry in the catalogue.
    Volume(Box<VolumeEntry>),
    /// The entry of a record of the crates above.
    Record {
        /// Its number.
        number: u64,
        /// Its kind.
        kind: u16,
        /// Length of its key.
        key_bytes: usize,
        /// Length of its value.
        value_bytes: usize,
    },
    /// A map node.
    Node {
        /// The first volume that leads to it; 0 is the catalogue.
        volume: VolumeId,
        /// Its level; leaves are level 1.
        level: u8,
        /// The first block of the volume that it covers.
        first: BlockIndex,
        /// The pointer to it.
        pointer: Pointer,
    },
    /// Neighbouring blocks of data that lie side by side and were born together.
    Data {
        /// The first volume that leads to them.
        volume: VolumeId,
        /// The first one's place in the volume.
        first: BlockIndex,
        /// The first one's address.
        addr: BlockAddr,
        /// Their number.
        blocks: u64,
        /// Their birth.
        birth: Generation,
    },
    /// A range that was given up.
    Lost {
        /// The volume.
        volume: VolumeId,
        /// The first block.
        first: BlockIndex,
        /// The number of blocks.
        blocks: u64,
    },
    /// Something that cannot be read.
    Damaged {
        /// Its place.
        place: Place,
        /// The fault.
        detail: Detail,
    },
}

/// Gives every piece of the pool on `device`, which no other process may have open.
///
/// # Errors
/// `NotAPool`, `Incompatible` or `Corrupt` when there is no superblock to begin from; the first
/// error of `each`.
pub fn dump(device: &dyn Device, each: &mut dyn FnMut(&Item) -> Result<()>) -> Result<()> {
    let newest = slots::read(device, &mut Default::default(), &mut Vec::new())?.newest;
    for (place, found) in slots::all(device, &newest) {
        let SlotPlace { slot, copy } = place;
        let counts = found.as_deref() == Some(&newest);
        each(&Item::Superblock {
            slot,
            copy,
            found,
            counts,
        })?;
    }
    if !newest.clean {
        ring::records(device, &newest, &mut |record| {
            each(&Item::LogRecord(record))
        })?;
    }
    for group in 0..newest.groups_initialized {
        let current = read_group(device, &newest, group).current;
        each(&Item::Group {
            group,
            used_blocks: current
                .as_ref()
                .map_or(0, |(_, slot)| used_in(&slot.bitmap)),
            slot: current.map(|(slot, found)| (slot, found.generation)),
        })?;
    }
    let mut dump = Dump {
        device,
        groups_start: newest.layout.groups_start(),
        newest: &newest,
        seen: HashSet::new(),
        catalogue: Vec::new(),
        each,
    };
    let (root, height) = (newest.catalogue_root, newest.catalogue_height);
    dump.tree(VolumeId(0), root, height, 0)?;
    for volume in dump.entries()? {
        let (id, root, height) = (volume.id, volume.root, volume.height);
        (dump.each)(&Item::Volume(Box::new(volume)))?;
        dump.tree(id, root, height, 0)?;
    }
    Ok(())
}

struct Dump<'a> {
    device: &'a dyn Device,
    newest: &'a Superblock,
    groups_start: u64,
    /// The nodes given so far.
    seen: HashSet<Pointer>,
    /// The catalogue's blocks.
    catalogue: Vec<(BlockIndex, Pointer)>,
    each: &'a mut dyn FnMut(&Item) -> Result<()>,
}

impl Dump<'_> {
    /// Gives everything below a pointer at `level` that covers blocks from `first` on.
    fn tree(&mut self, volume: VolumeId, pointer: Pointer, level: u8, first: u64) -> Result<()> {
        let index = BlockIndex(first);
        if pointer.is_hole() {
            return Ok(());
        }
        if pointer.is_lost() {
            let blocks = 1 << (NODE_BITS * u32::from(level));
            return (self.each)(&Item::Lost {
                volume,
                first: index,
                blocks,
            });
        }
        if pointer.kind() != Some(PointerKind::Node) || !self.newest.layout.holds(pointer) {
            let detail = Detail::Fact("it is no pointer to a node");
            return self.damaged(volume, level, index, pointer, detail);
        }
        if !self.seen.insert(pointer) {
            return Ok(());
        }
        let read = copies::read(self.device, pointer, self.groups_start, |bytes| {
            Ok(Box::new(node::decode(bytes)))
        });
        let entries = match read {
            Ok(entries) => entries,
            Err(error) => {
                return self.damaged(volume, level, index, pointer, Detail::of(&error));
            }
        };
        (self.each)(&Item::Node {
            volume,
            level,
            first: index,
            pointer,
        })?;
        if level == 1 {
            return self.leaf(volume, &entries[..], first);
        }
        let span = 1 << (NODE_BITS * u32::from(level - 1));
        for (entry, first) in entries.iter().zip((first..).step_by(span)) {
            self.tree(volume, *entry, level - 1, first)?;
        }
        Ok(())
    }

    fn leaf(&mut self, volume: VolumeId, entries: &[Pointer], first: u64) -> Result<()> {
        let blocks: Vec<(u64, Pointer)> = (first..).zip(entries.iter().copied()).collect();
        let joins = |(a, left): &(u64, Pointer), (b, right): &(u64, Pointer)| {
            let adjoin = left.addr().0 + 1 == right.addr().0 || left.is_lost() && right.is_lost();
            a + 1 == *b && adjoin && left.birth() == right.birth() && left.kind() == right.kind()
        };
        for run in blocks.chunk_by(joins) {
            let (at, pointer) = run[0];
            let (first, blocks) = (BlockIndex(at), run.len() as u64);
            if pointer.is_hole() {
                continue;
            }
            if volume == VolumeId(0) {
                let run = run.iter().map(|(at, pointer)| (BlockIndex(*at), *pointer));
                self.catalogue.extend(run);
            }
            (self.each)(&if pointer.is_lost() {
                Item::Lost {
                    volume,
                    first,
                    blocks,
                }
            } else {
                Item::Data {
                    volume,
                    first,
                    addr: pointer.addr(),
                    blocks,
                    birth: pointer.birth(),
                }
            })?;
        }
        Ok(())
    }

    fn damaged(
        &mut self,
        volume: VolumeId,
        level: u8,
        first: BlockIndex,
        pointer: Pointer,
        detail: Detail,
    ) -> Result<()> {
        let at = Position {
            level,
            first: first.0,
        };
        let place = place(volume, at, pointer);
        (self.each)(&Item::Damaged { place, detail })
    }

    /// Gives the records in the catalogue, and returns the volumes.
    fn entries(&mut self) -> Result<Vec<VolumeEntry>> {
        let mut parts: BTreeMap<EntryId, BTreeMap<u16, Vec<u8>>> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for (block, pointer) in std::mem::take(&mut self.catalogue) {
            let read = copies::read(self.device, pointer, self.groups_start, |bytes| {
                let part = |part: &cowshed_format::catalogue::Fragment<'_>| {
                    (part.entry, part.part, part.parts, part.payload.to_vec())
                };
                Ok(fragments(bytes)?.iter().map(part).collect::<Vec<_>>())
            });
            match read {
                Ok(found) => {
                    for (entry, part, count, payload) in found {
                        counts.insert(entry, count);
                        parts.entry(entry).or_default().insert(part, payload);
                    }
                }
                Err(error) => {
                    self.damaged(VolumeId(0), 0, block, pointer, Detail::of(&error))?;
                }
            }
        }
        let mut volumes = Vec::new();
        for (entry, found) in parts {
            let is_whole = counts.get(&entry) == u16::try_from(found.len()).ok().as_ref();
            let bytes: Vec<u8> = found.into_values().flatten().collect();
            let place = match entry {
                EntryId::Volume(id) => Place::Volume(VolumeId(id)),
                EntryId::Record(number) => Place::Record(number),
            };
            let outcome = match entry {
                _ if !is_whole => Err(Detail::Fact("a part of its entry is missing")),
                EntryId::Volume(_) => VolumeEntry::decode(&bytes)
                    .map(|volume| volumes.push(volume))
                    .map_err(Detail::Corrupt),
                EntryId::Record(number) => match RecordEntry::decode(&bytes) {
                    Ok(record) => {
                        (self.each)(&Item::Record {
                            number,
                            kind: record.kind,
                            key_bytes: record.key.len(),
                            value_bytes: record.value.len(),
                        })?;
                        Ok(())
                    }
                    Err(kind) => Err(Detail::Corrupt(kind)),
                },
            };
            if let Err(detail) = outcome {
                (self.each)(&Item::Damaged { place, detail })?;
            }
        }
        Ok(volumes)
    }
}
