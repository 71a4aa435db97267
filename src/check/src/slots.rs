//! The superblock slots and their copies: which one is the newest, and which are lost.

use super::finding::{Detail, FindingKind, Findings, Note, Place};
use cowshed_format::Superblock;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, CorruptKind, Error, Result};
use cowshed_format::device::Device;
use cowshed_format::layout::TAIL_BLOCKS;
use std::collections::BTreeSet;

/// The contents of a superblock's place.
enum Content {
    Valid(Box<Superblock>),
    /// Zeros: never written.
    Blank,
    Lost(Error),
}

/// One of the four places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotPlace {
    pub(super) slot: u8,
    pub(super) copy: bool,
}

/// The contents of the four places.
pub(super) struct Slots {
    /// The newest valid superblock.
    pub(super) newest: Superblock,
    /// Its slot.
    pub(super) slot: u8,
    /// The places of the newest slot that do not hold it.
    pub(super) lost: Vec<SlotPlace>,
    /// True if a place of either slot is damaged.
    pub(super) damaged: bool,
}

/// Reads the four places. The newest valid superblock counts, in whichever place it is.
///
/// # Errors
/// `NotAPool`, `Incompatible`, or the error of slot 0 when no place holds a superblock.
pub(super) fn read(
    device: &dyn Device,
    findings: &mut Findings,
    notes: &mut Vec<Note>,
) -> Result<Slots> {
    let primary = [0, 1].map(|slot| read_block(device, BlockAddr(slot)));
    // A newer version may keep its state elsewhere: an older slot beside it must not be used
    // instead.
    if let [Content::Lost(error @ Error::Incompatible { .. }), _]
    | [_, Content::Lost(error @ Error::Incompatible { .. })] = &primary
        && let &Error::Incompatible {
            version,
            known,
            features,
        } = error
    {
        return Err(Error::Incompatible {
            version,
            known,
            features,
        });
    }
    let uuid = newest(&primary).map(|best| best.uuid);
    // The slots may give different lengths, if the pool has grown between them.
    let device_blocks = device.len_bytes() / BLOCK_BYTES as u64;
    let sizes = primary.iter().filter_map(Content::block_count);
    let ends: BTreeSet<u64> = sizes.chain([device_blocks]).collect();
    let copies = ends.into_iter().map(|end| read_copies(device, end, uuid));
    let places: Vec<_> = [primary].into_iter().chain(copies).collect();
    let valid = places
        .iter()
        .filter_map(|pair| Some((newest(pair)?, of(pair))));
    // Of equals the first one, which is the primary.
    let Some((newest, slot)) = valid.rev().max_by_key(|(found, _)| found.generation) else {
        return Err(no_superblock(&places[0]));
    };
    let end = newest.layout.block_count();
    let newest = newest.clone();
    let mut slots = Slots {
        newest,
        slot,
        lost: Vec::new(),
        damaged: false,
    };
    slots.compare(&places[0], &read_copies(device, end, uuid), findings, notes);
    Ok(slots)
}

/// Returns the four places of the pool whose newest superblock is `newest`, with what they hold.
pub(super) fn all(
    device: &dyn Device,
    newest: &Superblock,
) -> Vec<(SlotPlace, Option<Box<Superblock>>)> {
    let place = |slot, copy| {
        let addr = newest.layout.superblock_slots(slot)[usize::from(copy)];
        let found = match read_block(device, addr) {
            Content::Valid(found) => Some(found),
            Content::Blank | Content::Lost(_) => None,
        };
        (SlotPlace { slot, copy }, found)
    };
    let places = [(0, false), (0, true), (1, false), (1, true)];
    places.map(|(slot, copy)| place(slot, copy)).into()
}

/// Returns the copies of both slots of a pool that ends at block `end`.
fn read_copies(device: &dyn Device, end: u64, uuid: Option<[u8; 16]>) -> [Content; 2] {
    let tail = end.saturating_sub(TAIL_BLOCKS);
    [0, 1].map(|slot| match read_block(device, BlockAddr(tail + slot)) {
        // A superblock that an earlier pool left at this place is not a copy of this pool's.
        Content::Valid(found)
            if uuid.is_some_and(|uuid| uuid != found.uuid) || found.layout.block_count() != end =>
        {
            Content::Lost(CorruptKind::NoSuperblock.into())
        }
        content => content,
    })
}

impl Content {
    fn block_count(&self) -> Option<u64> {
        match self {
            Self::Valid(found) => Some(found.layout.block_count()),
            _ => None,
        }
    }
}

impl Slots {
    fn compare(
        &mut self,
        primary: &[Content; 2],
        copies: &[Content; 2],
        findings: &mut Findings,
        notes: &mut Vec<Note>,
    ) {
        for slot in [0u8, 1] {
            let pair = [&primary[usize::from(slot)], &copies[usize::from(slot)]];
            for (copy, content) in [false, true].into_iter().zip(pair) {
                let lost = match content {
                    Content::Valid(found) if found.uuid != self.newest.uuid => {
                        Detail::Fact("it belongs to another pool")
                    }
                    Content::Valid(found)
                        if **found != self.newest && found.generation == self.newest.generation =>
                    {
                        Detail::Fact("it differs from the other superblock of its generation")
                    }
                    Content::Valid(found) => {
                        if slot == self.slot && **found != self.newest {
                            notes.push(Note::CopyOutdated { slot });
                            self.lost.push(SlotPlace { slot, copy });
                        }
                        continue;
                    }
                    // The older slot may never have been written, and its copy not since the pool
                    // grew.
                    Content::Blank if slot != self.slot => continue,
                    Content::Lost(_) if slot != self.slot && copy && self.moved(pair[0]) => {
                        continue;
                    }
                    Content::Blank => Detail::Fact("it was never written"),
                    Content::Lost(error) => Detail::of(error),
                };
                let place = Place::Superblock { slot, copy };
                findings.add(FindingKind::SuperblockUnreadable, place, lost);
                self.damaged = true;
                if slot == self.slot {
                    self.lost.push(SlotPlace { slot, copy });
                }
            }
        }
    }

    /// Returns true if the pool has grown since `slot` was written, so that its copy lies
    /// elsewhere.
    fn moved(&self, slot: &Content) -> bool {
        match slot {
            Content::Valid(found) => found.layout != self.newest.layout,
            Content::Blank => true,
            Content::Lost(_) => false,
        }
    }
}

fn newest(places: &[Content; 2]) -> Option<&Superblock> {
    let valid = places.iter().filter_map(|content| match content {
        Content::Valid(found) => Some(&**found),
        _ => None,
    });
    valid.max_by_key(|found| found.generation)
}

/// Returns which of the two places `newest` chose.
fn of(places: &[Content; 2]) -> u8 {
    let generation = |content: &Content| match content {
        Content::Valid(found) => Some(found.generation),
        _ => None,
    };
    u8::from(generation(&places[1]) >= generation(&places[0]))
}

fn read_block(device: &dyn Device, addr: BlockAddr) -> Content {
    if addr.0 >= device.len_bytes() / BLOCK_BYTES as u64 {
        return Content::Blank;
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    // Of a mirror, a side that has a superblock here counts before one that does not.
    let is_superblock = |bytes: &[u8]| {
        matches!(
            Superblock::decode(bytes),
            Ok(_) | Err(Error::Incompatible { .. })
        )
    };
    let read = device.read_accepted(&mut bytes, addr.offset_bytes(), false, &is_superblock);
    if let Err(error) = read {
        return Content::Lost(error);
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Content::Blank;
    }
    match Superblock::decode(&bytes) {
        Ok(found) => Content::Valid(Box::new(found)),
        Err(error) => Content::Lost(error),
    }
}

/// Returns the reason why there is no pool: the more telling of the two slots' errors.
fn no_superblock(primary: &[Content; 2]) -> Error {
    let errors = primary.iter().filter_map(|content| match content {
        Content::Lost(Error::Corrupt(kind)) => Some(Error::Corrupt(*kind)),
        Content::Lost(Error::Io { action, source }) => {
            Some(Error::io(action, Error::copy_io(source)))
        }
        _ => None,
    });
    let rank = |error: &Error| match error {
        Error::Corrupt(_) => 2,
        Error::Io { .. } => 1,
        _ => 0,
    };
    errors.max_by_key(rank).unwrap_or(Error::NotAPool)
}
