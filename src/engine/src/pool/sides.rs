//! Opening a mirrored pool: one side's state is chosen, and the other sides are made equal to it.
//!
//! The labels say which sides are good. Of those, the one counts that has the newest superblock,
//! and of several, the one whose log goes furthest: whatever was flushed is on every good side, so
//! each of them has it, and the one that goes furthest cannot be a copy from earlier. Then:
//!
//! - A good side with the same superblock had all that this superblock leads to made durable before
//!   the superblock was written. What can differ is what was written since: the log, which is
//!   copied; bitmaps and superblocks, which are copied; the data of the log's records, which replay
//!   compares with the records' checksums on every side; and blocks to which nothing refers.
//! - A side with an older superblock, whether it missed the last one in a power cut or is a copy
//!   from last week, is behind since that superblock: everything born later is copied to it before
//!   anything is read from it.
//!
//! So the pool has the state of the chosen side, whichever side answers.
//!
//! # Invariants
//! - Before anything is written, the labels of the good sides say durably which sides are behind.
//! - A pool that is only read changes nothing, labels included.

use super::open::find_superblock;
use crate::log::{Position, Replay};
use cowshed_format::Superblock;
use cowshed_format::base::Sequence;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Generation, MirrorError, Result};
use cowshed_format::device::MirrorDevice;
use cowshed_format::device::mirror::Side;
use cowshed_format::group::{self, SLOT_BYTES};
use cowshed_format::side::{Lack, SideId, SideState};
use std::io;
use std::sync::Arc;

/// Number of bytes of the log compared at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// A side that the labels call good, and its newest superblock.
struct Candidate {
    side: Arc<Side>,
    superblock: Superblock,
}

/// The sides, sorted by what they have.
struct Sorted {
    good: Vec<Candidate>,
    behind: Vec<(SideId, Lack)>,
}

/// Chooses the state of a mirrored pool and makes its good sides equal, unless the pool is only to
/// be read.
///
/// # Errors
/// `Mirror` when no good side is there; `Incompatible`, `Corrupt`, `Io` when none can be used.
pub(super) fn prepare_sides(mirror: &MirrorDevice, read_only: bool) -> Result<()> {
    let mut sorted = sort(mirror)?;
    let newest = sorted.good.iter().map(|it| it.superblock.generation).max();
    let newest = newest.ok_or(Error::NotAPool)?;
    let chosen = choose(&sorted.good, newest);
    let superblock = sorted.good[chosen].superblock.clone();
    let mut good = vec![sorted.good[chosen].side.id()];
    for candidate in &sorted.good {
        let (id, generation) = (candidate.side.id(), candidate.superblock.generation);
        if candidate.superblock == superblock {
            good.extend((id != good[0]).then_some(id));
        } else if generation < newest {
            sorted.behind.push((id, Lack::since(generation)));
        } else {
            sorted.behind.push((id, Lack::ALL));
        }
    }
    for (_, lack) in &mut sorted.behind {
        // Later generations than this were another life of the pool.
        *lack = lack.and_since(newest);
    }
    mirror.begin(&good, &sorted.behind, newest, read_only)?;
    if read_only || good.len() < 2 {
        return Ok(());
    }
    make_equal(mirror, good[0], &superblock)
}

/// Reads the sides' superblocks.
fn sort(mirror: &MirrorDevice) -> Result<Sorted> {
    let mut sorted = Sorted {
        good: Vec::new(),
        behind: Vec::new(),
    };
    let mut failure = None;
    for side in mirror.open_sides() {
        let id = side.id();
        let found = match find_superblock(side.device()) {
            Ok((found, _)) if Some(found.uuid) == mirror.pool_uuid() => found,
            // What a newer version wrote must not be taken back to an older state.
            Err(error @ Error::Incompatible { .. }) => return Err(error),
            // As if it were not there: it may be readable another time.
            Err(error @ Error::Io { .. }) => {
                failure = failure.or(Some(error));
                continue;
            }
            found => {
                sorted.behind.push((id, Lack::ALL));
                failure = failure.or(found.err());
                continue;
            }
        };
        let claimed = side.claims_behind();
        let lack = claimed.map_or(Lack::since(found.generation), |it| {
            it.and_since(found.generation)
        });
        match (mirror.state_of(id), claimed) {
            (Some(SideState::Good), None) if !side.is_doubted() => sorted.good.push(Candidate {
                side,
                superblock: found,
            }),
            _ => {
                if side.is_doubted() {
                    let source = io::Error::other("the host failed to write it");
                    failure = failure.or(Some(Error::io("use a side", source)));
                }
                sorted.behind.push((id, lack));
            }
        }
    }
    if sorted.good.is_empty() {
        let missing = mirror.missing_good();
        let no_good = missing.map(|missing| MirrorError::NoGoodSide { missing }.into());
        return Err(no_good.or(failure).unwrap_or(Error::NotAPool));
    }
    Ok(sorted)
}

/// Returns the index of the side whose state the pool has: of those with the newest superblock, the
/// first one whose log goes furthest.
fn choose(good: &[Candidate], newest: Generation) -> usize {
    let mut chosen: Option<(usize, Sequence)> = None;
    for (index, candidate) in good.iter().enumerate() {
        if candidate.superblock.generation < newest {
            continue;
        }
        let end = log_end(candidate);
        if chosen.is_none_or(|(_, furthest)| end > furthest) {
            chosen = Some((index, end));
        }
    }
    chosen.map_or(0, |(index, _)| index)
}

/// Returns the sequence behind the last record of a side's log; the lowest if it cannot be read.
fn log_end(candidate: &Candidate) -> Sequence {
    let superblock = &candidate.superblock;
    if superblock.clean {
        return superblock.log_sequence;
    }
    let start = Position {
        sequence: superblock.log_sequence,
        bytes: superblock.log_offset,
    };
    let device = candidate.side.device();
    let mut replay = Replay::new(device, &superblock.layout, start, superblock.log_salt);
    replay
        .find_end()
        .map_or(Sequence(0), |end| end.position.sequence)
}

/// Makes superblocks, log and bitmaps of the good sides equal.
fn make_equal(mirror: &MirrorDevice, chosen: SideId, superblock: &Superblock) -> Result<()> {
    let layout = &superblock.layout;
    let block = |addr: BlockAddr, is_sound: &dyn Fn(&[u8]) -> bool| {
        mirror.make_equal(chosen, addr.offset_bytes(), BLOCK_BYTES, is_sound)
    };
    for slot in [0, 1] {
        for addr in layout.superblock_slots(slot) {
            block(addr, &|bytes| Superblock::decode(bytes).is_ok())?;
        }
    }
    if superblock.clean {
        return Ok(());
    }
    let (start, end) = (
        layout.log_offset_bytes(),
        layout.log_offset_bytes() + layout.log_bytes(),
    );
    let mut at = start;
    while at < end {
        let len = PIECE_BYTES.min(end - at);
        let len_bytes = usize::try_from(len).expect("a mebibyte");
        mirror.make_equal(chosen, at, len_bytes, &|_| true)?;
        at += len;
    }
    for number in 0..superblock.groups_initialized {
        for slot in [0, 1] {
            let at = layout.bitmap_slot(number, slot).offset_bytes();
            mirror.make_equal(chosen, at, SLOT_BYTES, &|bytes| {
                is_slot(bytes, superblock, number)
            })?;
        }
    }
    Ok(())
}

/// Returns true if the bytes of a bitmap slot are whole, or were never written.
pub(super) fn is_slot(bytes: &[u8], superblock: &Superblock, number: u64) -> bool {
    let Ok(bytes) = <&[u8; SLOT_BYTES]>::try_from(bytes) else {
        return false;
    };
    group::decode(bytes, &superblock.uuid, number).is_some() || group::is_blank(bytes)
}
