//! Reading from a mirror: which side answers, and what happens to a place that one cannot read.
//!
//! What the host has in memory is read at once. For anything else, while there are several good
//! sides, one of the side's own threads reads, and the caller waits for it for a limited time: a side
//! that does not answer stops nobody, since another side is asked then. A side is asked last as long
//! as it owes answers.
//!
//! # Invariants
//! - Only good sides are read.
//! - A place is written anew on a side only while nothing else changes it (`writing`), and after it
//!   has been read again from both sides.

use super::side::Side;
use super::{MirrorDevice, SideId, no_side};
use crate::base::sync::Guard;
use crate::base::sync::atomic::Ordering;
use crate::base::{BLOCK_BYTES, BlockAddr, Result};
use crate::side::SIDES_MAX;
use std::sync::Arc;
use std::time::Duration;

/// Neighbouring reads of up to this many bytes are answered by the same side, so that the host reads
/// ahead, and keeps each piece in memory once.
const REGION_BYTES: u64 = 1 << 20;
/// A side is preferred for its regions unless it has this many requests more than another one.
const LONGER_QUEUE: usize = 2;
/// Maximum number of unreadable blocks that are noted at a time.
const UNREADABLE_MAX: usize = 1024;
/// Time after which another side is asked.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whose answers are still wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    /// Those of sides that answer within the time for one.
    Prompt,
    Any,
}

/// The good sides, in the order in which they are asked.
struct Readers {
    sides: Guard<Arc<Vec<Arc<Side>>>>,
    order: [usize; SIDES_MAX],
    count: usize,
}

impl Readers {
    fn iter(&self) -> impl Iterator<Item = &Arc<Side>> {
        let order = self.order[..self.count].iter();
        order.map(|index| &self.sides[*index])
    }
}

impl MirrorDevice {
    /// Returns the good sides, the one first that is to answer a read at `offset_bytes`.
    fn readers(&self, offset_bytes: u64) -> Readers {
        let sides = self.sides();
        let (mut order, mut count) = ([0; SIDES_MAX], 0);
        let good = sides.iter().enumerate().filter(|(_, side)| side.is_good());
        for (index, _) in good.take(SIDES_MAX) {
            order[count] = index;
            count += 1;
        }
        let good = &mut order[..count];
        if let Some(preferred) = self.preferred.get() {
            // The others may differ from it.
            good.sort_by_key(|index| sides[*index].id != *preferred);
        } else if count > 1 {
            let queue = |index: usize| sides[index].in_flight.load(Ordering::Relaxed);
            let preferred = usize::try_from(offset_bytes / REGION_BYTES % count as u64);
            let preferred = preferred.expect("few sides");
            let shortest = (0..count).min_by_key(|place| queue(good[*place]));
            let shortest = shortest.unwrap_or(preferred);
            let is_longer = queue(good[preferred]) >= queue(good[shortest]) + LONGER_QUEUE;
            good.swap(0, if is_longer { shortest } else { preferred });
            // The order of those that owe no answer stays.
            good.sort_by_key(|index| sides[*index].owes_answers());
        }
        Readers {
            sides,
            order,
            count,
        }
    }

    /// Reads from one side. With `limited`, gives up after some time, and returns false then.
    fn read_from(
        side: &Arc<Side>,
        buf: &mut [u8],
        offset_bytes: u64,
        limited: bool,
    ) -> Result<bool> {
        if limited && side.device.read_cached(buf, offset_bytes) {
            return Ok(true);
        }
        side.in_flight.fetch_add(1, Ordering::Relaxed);
        let outcome = if limited {
            side.read_within(buf, offset_bytes, PATIENCE)
        } else {
            side.device.read_at(buf, offset_bytes).map(|()| true)
        };
        side.in_flight.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Reads a range from the good sides in turn, as `want` says that gets each side's answer.
    fn ask(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        mut want: impl FnMut(&Arc<Side>, Result<()>, &[u8]) -> Want,
    ) {
        let readers = self.readers(offset_bytes);
        let mut late = Vec::new();
        let mut now = Want::Any;
        for side in readers.iter() {
            if now == Want::Prompt && side.owes_answers() {
                continue;
            }
            let outcome = Self::read_from(side, buf, offset_bytes, readers.count > 1);
            if matches!(outcome, Ok(false)) {
                late.push(side);
                continue;
            }
            now = want(side, outcome.map(drop), buf);
            if now == Want::Nothing {
                return;
            }
        }
        if now == Want::Prompt {
            return;
        }
        // Nobody else has it: now they are waited for.
        for side in late {
            let outcome = Self::read_from(side, buf, offset_bytes, false);
            if want(side, outcome.map(drop), buf) != Want::Any {
                return;
            }
        }
    }

    /// Reads a range from the good sides in turn until one can.
    pub(super) fn read_any(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let (mut failed, mut is_read) = (Vec::new(), false);
        let mut failure = None;
        self.ask(buf, offset_bytes, |side, outcome, _| {
            match outcome {
                Ok(()) => {
                    is_read = true;
                    return Want::Nothing;
                }
                Err(error) => {
                    failed.push(side.id);
                    failure.get_or_insert(error);
                }
            }
            Want::Any
        });
        if !is_read {
            return Err(failure.unwrap_or_else(no_side));
        }
        self.note_unreadable(&failed, offset_bytes, buf.len());
        Ok(())
    }

    /// Reads a range from the good sides, each block from any of them.
    ///
    /// # Errors
    /// `Io` when no good side can read a block.
    pub(super) fn read_good(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let Err(error) = self.read_any(buf, offset_bytes) else {
            return Ok(());
        };
        if buf.len() <= BLOCK_BYTES {
            return Err(error);
        }
        // Each side may lack another block.
        for (block, at) in buf.chunks_mut(BLOCK_BYTES).zip(0..) {
            self.read_any(block, offset_bytes + at * BLOCK_BYTES as u64)?;
        }
        Ok(())
    }

    /// Reads a range from a good side, and returns the blocks that not every other one is known to have
    /// alike; `None` if no side can read the whole range within the time for one.
    pub(super) fn read_compared(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
    ) -> Option<Vec<BlockAddr>> {
        let readers = self.readers(offset_bytes);
        let limited = readers.count > 1;
        // A single good side is compared with nothing.
        let other_bytes = if limited { buf.len() } else { 0 };
        let (mut other, mut unread) = (vec![0; other_bytes], Vec::new());
        let mut is_read = false;
        let mut differing = Vec::new();
        for side in readers.iter() {
            if is_read && side.owes_answers() {
                unread.push(side);
                continue;
            }
            let bytes = if is_read { &mut other[..] } else { &mut *buf };
            match Self::read_from(side, bytes, offset_bytes, limited) {
                Ok(true) if is_read => add_unlike(buf, &other, offset_bytes, &mut differing),
                Ok(true) => is_read = true,
                Ok(false) | Err(_) => unread.push(side),
            }
        }
        if !is_read {
            return None;
        }
        for side in unread {
            // It may lack one block only.
            for (block, at) in buf.chunks(BLOCK_BYTES).zip(0..) {
                let at = offset_bytes + at * BLOCK_BYTES as u64;
                let bytes = &mut other[..BLOCK_BYTES];
                let is_slow = side.owes_answers();
                let outcome = (!is_slow).then(|| Self::read_from(side, bytes, at, limited));
                match outcome {
                    Some(Ok(true)) => add_unlike(block, bytes, at, &mut differing),
                    Some(Ok(false)) | None => differing.push(BlockAddr(at / BLOCK_BYTES as u64)),
                    Some(Err(_)) => {
                        self.note_unreadable(&[side.id], at, BLOCK_BYTES);
                        differing.push(BlockAddr(at / BLOCK_BYTES as u64));
                    }
                }
            }
        }
        Some(differing)
    }

    /// Reads a range from the good sides in turn until the bytes of one are accepted; the caller
    /// copies.
    pub(super) fn read_right(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> bool {
        let readers = self.readers(offset_bytes);
        // A side that does not answer must not hold up changes.
        readers.iter().any(|side| {
            let outcome = Self::read_from(side, buf, offset_bytes, true);
            outcome.is_ok_and(|is_read| is_read) && accept(buf)
        })
    }

    fn note_unreadable(&self, sides: &[SideId], offset_bytes: u64, len_bytes: usize) {
        if sides.is_empty() {
            return;
        }
        let mut noted = self.unreadable.lock();
        let blocks = offset_bytes..offset_bytes + len_bytes as u64;
        for offset_bytes in blocks.step_by(BLOCK_BYTES) {
            for side in sides {
                let note = (*side, offset_bytes);
                if noted.len() < UNREADABLE_MAX && !noted.contains(&note) {
                    noted.push(note);
                }
            }
        }
    }

    /// Reads blocks from the good sides in turn until the bytes of one are accepted, and writes
    /// them anew on the sides whose bytes are not. With `all`, asks every good side that answers in
    /// time. Returns false if no side has accepted bytes; `buf` holds anything then.
    ///
    /// # Errors
    /// `Io` if no side has accepted bytes and one could not be read.
    pub fn read_verified(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        all: bool,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let mut found: Option<Arc<Side>> = None;
        let (mut bad, mut kept) = (Vec::new(), Vec::new());
        let mut failure = None;
        self.ask(buf, offset_bytes, |side, outcome, bytes| {
            if outcome.is_ok() && accept(bytes) {
                if found.is_none() {
                    found = Some(Arc::clone(side));
                    // The next side's answer takes their place.
                    kept.extend_from_slice(if all { bytes } else { &[] });
                }
            } else {
                bad.push(Arc::clone(side));
                failure = failure.take().or(outcome.err());
            }
            match &found {
                Some(_) if all => Want::Prompt,
                Some(_) => Want::Nothing,
                None => Want::Any,
            }
        });
        let Some(good) = found else {
            // What could not be read may be readable another time.
            return failure.map_or(Ok(false), Err);
        };
        if all {
            buf.copy_from_slice(&kept);
        }
        for side in bad {
            self.heal(&good, &side, buf.len(), offset_bytes, accept);
        }
        Ok(true)
    }

    /// Writes what `good` has over what `bad` has, if that is still not accepted. A place that was
    /// written meanwhile is the same on both.
    fn heal(
        &self,
        good: &Arc<Side>,
        bad: &Arc<Side>,
        len_bytes: usize,
        offset_bytes: u64,
        accept: &dyn Fn(&[u8]) -> bool,
    ) {
        if self.check().is_err() {
            return;
        }
        let _copying = self.writing.write();
        let (mut bytes, mut other) = (vec![0; len_bytes], vec![0; len_bytes]);
        // A side that does not answer must not hold up changes.
        let is_right = |side: &Arc<Side>, bytes: &mut [u8]| {
            let outcome = Self::read_from(side, bytes, offset_bytes, true);
            outcome.is_ok_and(|is_read| is_read) && accept(bytes)
        };
        if !good.is_good() || !bad.is_good() || !is_right(good, &mut bytes) {
            return;
        }
        if is_right(bad, &mut other) {
            return;
        }
        if self.overwrite(bad, &bytes, offset_bytes) {
            self.count_healed(bad, offset_bytes, bytes.len());
        }
    }

    /// Writes over a damaged place of a side, and returns true if its device has taken the bytes; the
    /// caller copies.
    pub(super) fn overwrite(&self, side: &Arc<Side>, bytes: &[u8], offset_bytes: u64) -> bool {
        let outcome = side.device.write_at(bytes, offset_bytes);
        if let Err(error) = &outcome {
            // Nothing is worse than before. A side that fails has more to fail at.
            let path = side.path.display();
            tracing::warn!(%path, offset_bytes, %error, "a damaged block stays as it is");
        }
        outcome.is_ok()
    }

    pub(super) fn count_healed(&self, side: &Side, offset_bytes: u64, len_bytes: usize) {
        let (path, blocks) = (side.path.display(), (len_bytes / BLOCK_BYTES) as u64);
        self.healed.fetch_add(blocks, Ordering::Relaxed);
        tracing::warn!(%path, offset_bytes, blocks, "damaged blocks of a side were written anew");
    }

    /// Writes the blocks anew that a side could not read and still cannot.
    pub fn heal_unreadable(&self) {
        if self.check().is_err() || self.unreadable.lock().is_empty() {
            return;
        }
        for (id, offset_bytes) in std::mem::take(&mut *self.unreadable.lock()) {
            let _copying = self.writing.write();
            let sides = self.sides();
            let Some(bad) = sides.iter().find(|side| side.id == id && side.is_good()) else {
                continue;
            };
            let mut bytes = [0; BLOCK_BYTES];
            // A side that does not answer must not hold up changes.
            match Self::read_from(bad, &mut bytes, offset_bytes, true) {
                Ok(true) => continue,
                Ok(false) => return,
                Err(_) => {}
            }
            let mut others = sides.iter().filter(|side| side.id != id && side.is_good());
            let is_read = others.any(|side| {
                let outcome = Self::read_from(side, &mut bytes, offset_bytes, true);
                outcome.is_ok_and(|is_read| is_read)
            });
            if is_read && self.overwrite(bad, &bytes, offset_bytes) {
                self.count_healed(bad, offset_bytes, bytes.len());
            }
        }
    }
}

/// Adds the blocks in which two readings of a range differ.
fn add_unlike(one: &[u8], other: &[u8], offset_bytes: u64, differing: &mut Vec<BlockAddr>) {
    let blocks = one.chunks(BLOCK_BYTES).zip(other.chunks(BLOCK_BYTES));
    let blocks = (offset_bytes / BLOCK_BYTES as u64..).zip(blocks);
    let unlike = blocks.filter(|(_, (one, other))| one != other);
    differing.extend(unlike.map(|(number, _)| BlockAddr(number)));
}
