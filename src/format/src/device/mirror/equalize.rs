//! Making the good sides equal after a stop, and bringing one that was away up to date.
//!
//! # Invariants
//! - A place is made equal while nothing else changes it (`writing`).
//! - A side that cannot be written is left out, durably, before the call returns.

use super::side::{Progress, Role, Side};
use super::{MirrorDevice, SideId, SideState};
use crate::base::sync::atomic::Ordering;
use crate::base::{BLOCK_BYTES, BlockAddr, Error, Generation, MirrorError, Result};
use crate::side::Lack;
use std::sync::Arc;

impl MirrorDevice {
    /// Makes a range the same on all good sides: as `chosen` has it if that is sound, else as the
    /// first other side whose bytes are; if none are, as `chosen` has it.
    ///
    /// # Errors
    /// `Io` when no side can be read, or no good side is left.
    pub fn make_equal(
        &self,
        chosen: SideId,
        offset_bytes: u64,
        len_bytes: usize,
        is_sound: &dyn Fn(&[u8]) -> bool,
    ) -> Result<()> {
        self.equalize(Some(chosen), offset_bytes, len_bytes, is_sound)
            .map(drop)
    }

    /// Makes a range the same on all good sides, as one of them has it whose bytes are sound; returns
    /// false, and changes nothing, if none are. Of a mirror that is only read, a side that is not right
    /// stays so.
    ///
    /// # Errors
    /// `Io` when none are and one could not be read, since it may be another time; when no good side is
    /// left.
    pub fn make_right(
        &self,
        offset_bytes: u64,
        len_bytes: usize,
        is_sound: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        if self.read_only.load(Ordering::Acquire) {
            let mut bytes = vec![0; len_bytes];
            return self.read_verified(&mut bytes, offset_bytes, false, is_sound);
        }
        self.equalize(None, offset_bytes, len_bytes, is_sound)
    }

    fn equalize(
        &self,
        chosen: Option<SideId>,
        offset_bytes: u64,
        len_bytes: usize,
        is_sound: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let copying = self.writing.write();
        self.check()?;
        let mut sides = self.sides().to_vec();
        sides.retain(|side| side.is_good());
        // The chosen one first; the order is stable.
        sides.sort_by_key(|side| Some(side.id) != chosen);
        let read = |side: &Arc<Side>| {
            let mut bytes = vec![0; len_bytes];
            let outcome = side.device.read_at(&mut bytes, offset_bytes);
            outcome.map(|()| bytes)
        };
        let mut found: Vec<_> = sides.iter().map(read).collect();
        let sound = |bytes: &Result<Vec<u8>>| bytes.as_ref().is_ok_and(|bytes| is_sound(bytes));
        let index = match (found.iter().position(sound), chosen) {
            (Some(index), _) => index,
            (None, None) => {
                return found
                    .into_iter()
                    .find_map(Result::err)
                    .map_or(Ok(false), Err);
            }
            (None, Some(_)) => match found.iter().position(Result::is_ok) {
                Some(index) => index,
                None => {
                    let failure = found.pop().and_then(Result::err);
                    return Err(failure.unwrap_or_else(super::no_side));
                }
            },
        };
        let bytes = found.swap_remove(index)?;
        sides.swap_remove(index);
        for (side, old) in sides.iter().zip(&found) {
            if old.as_ref().is_ok_and(|old| *old == bytes) {
                continue;
            }
            if let Err(error) = side.device.write_at(&bytes, offset_bytes) {
                self.note_failure(side, &error);
            }
        }
        drop(copying);
        self.settle()?;
        Ok(true)
    }

    /// Lets changes go to a side that is behind, from now on. Its label says that it is behind,
    /// and that it lacks at least `lack`. Returns what it lacks. The pool has `pool_bytes`.
    ///
    /// # Errors
    /// `Io`; `TooSmall` when it cannot hold the pool.
    pub fn join(&self, side: &Arc<Side>, lack: Lack, pool_bytes: u64) -> Result<Lack> {
        let device_bytes = side.device.len_bytes();
        if device_bytes < pool_bytes && side.device.grow(pool_bytes).is_err() {
            let path = side.path.clone();
            return Err(MirrorError::TooSmall {
                path,
                device_bytes,
                pool_bytes,
            }
            .into());
        }
        let mut table = self.table.lock();
        self.check()?;
        let Some(entry) = table.entry_mut(side.id) else {
            return Err(interrupted(side));
        };
        let SideState::Behind(known) = entry.state else {
            return Err(interrupted(side));
        };
        let lack = known.and(lack);
        entry.state = SideState::Behind(lack);
        let has_label = side.label().is_some_and(|label| label.set == *table);
        if !has_label {
            table.advance();
            self.write_labels(&table, Side::is_good);
        }
        drop(table);
        self.settle()?;
        self.write_own_label(side)?;
        if let Some((offset_bytes, len_bytes)) = *self.log.lock() {
            side.device.map_log(offset_bytes, len_bytes)?;
        }
        let Progress {
            copied_bytes,
            total_bytes,
        } = &side.progress;
        copied_bytes.store(0, Ordering::Relaxed);
        total_bytes.store(0, Ordering::Relaxed);
        let _copying = self.writing.write();
        let table = self.table.lock();
        self.check()?;
        // It may have been taken out meanwhile.
        if table.entry(side.id).is_none() || side.role() != Role::Away {
            return Err(interrupted(side));
        }
        side.set_role(Role::Joining);
        Ok(lack)
    }

    /// Writes the present set to the label of a side that is not good.
    fn write_own_label(&self, side: &Arc<Side>) -> Result<()> {
        let table = self.table.lock();
        if table.entry(side.id).is_none() {
            return Err(interrupted(side));
        }
        side.write_label(&self.label(&table, side.id))
            .map_err(|error| {
                side.fail(&error);
                interrupted(side)
            })
    }

    /// Notes durably that what a joining side lacked below the block `below` has been copied to it.
    ///
    /// # Errors
    /// `Interrupted` when it has failed; `Io` when no good side is left.
    pub fn note_copied(&self, side: &Arc<Side>, below: BlockAddr) -> Result<()> {
        // All up to it was written before the flush.
        let until = Generation(self.durable.load(Ordering::Acquire));
        if let Err(error) = side.flush() {
            side.fail(&error);
            return Err(interrupted(side));
        }
        let mut table = self.table.lock();
        self.check()?;
        let entry = table.entry_mut(side.id);
        let Some(SideState::Behind(lack)) = entry.map(|entry| &mut entry.state) else {
            return Err(interrupted(side));
        };
        lack.until = lack.until.max(until);
        lack.below = below;
        table.advance();
        self.write_labels(&table, Side::is_good);
        drop(table);
        self.settle()?;
        self.write_own_label(side)
    }

    /// Stops sending changes to a side that has not become good.
    pub fn give_up_joining(&self, side: &Side) {
        let _copying = self.writing.write();
        if side.role() == Role::Joining {
            side.set_role(Role::Away);
        }
    }

    /// Sets the number of bytes that are to be copied to a side.
    pub fn expect_bytes(&self, side: &Side, total_bytes: u64) {
        let total = &side.progress.total_bytes;
        total.store(total_bytes, Ordering::Relaxed);
    }

    /// Copies a range from the good sides to one that joins, whatever that has in memory: a host may
    /// have what it failed to write. What no good side can read is left out: it is lost on all of
    /// them. Returns the blocks that not all good sides are known to have alike: the side has what one
    /// of them has.
    ///
    /// # Errors
    /// `Interrupted` when the side failed or was removed.
    pub fn copy(&self, side: &Side, offset_bytes: u64, len_bytes: usize) -> Result<Vec<BlockAddr>> {
        let mut bytes = vec![0; len_bytes];
        let _copying = self.writing.write();
        self.check()?;
        let mut differing = Vec::new();
        match self.read_compared(&mut bytes, offset_bytes) {
            Some(unlike) => {
                copy_bytes(side, offset_bytes, &bytes)?;
                differing = unlike;
            }
            None => {
                // Each side may lack another block.
                for (block, at) in bytes.chunks_mut(BLOCK_BYTES).zip(0..) {
                    let offset_bytes = offset_bytes + at * BLOCK_BYTES as u64;
                    if let Err(error) = self.read_any(block, offset_bytes) {
                        tracing::warn!(offset_bytes, %error, "a block cannot be copied to a side");
                        continue;
                    }
                    copy_bytes(side, offset_bytes, block)?;
                    differing.push(BlockAddr(offset_bytes / BLOCK_BYTES as u64));
                }
            }
        }
        let copied = &side.progress.copied_bytes;
        copied.fetch_add(len_bytes as u64, Ordering::Relaxed);
        Ok(differing)
    }

    /// Copies a range to a side that joins from a good one whose bytes are accepted; returns false if
    /// there is none.
    ///
    /// # Errors
    /// `Interrupted` when the side failed or was removed.
    pub fn copy_right(
        &self,
        side: &Side,
        offset_bytes: u64,
        len_bytes: usize,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let mut bytes = vec![0; len_bytes];
        let _copying = self.writing.write();
        self.check()?;
        let is_found = self.read_right(&mut bytes, offset_bytes, accept);
        if is_found {
            copy_bytes(side, offset_bytes, &bytes)?;
        }
        Ok(is_found)
    }

    /// Makes a side good that has got everything it lacked.
    ///
    /// # Errors
    /// `Interrupted` when it has failed; `Io` when no good side is left.
    pub fn complete(&self, side: &Arc<Side>) -> Result<()> {
        if let Err(error) = side.flush() {
            side.fail(&error);
            return Err(interrupted(side));
        }
        let mut table = self.table.lock();
        self.check()?;
        let Some(entry) = table.entry_mut(side.id) else {
            return Err(interrupted(side));
        };
        // From here on, nobody returns `Ok` after it has failed before the labels say so, and they
        // are changed with the table's lock only.
        if !side.become_good() {
            return Err(interrupted(side));
        }
        entry.state = SideState::Good;
        table.advance();
        // Its own label last: until it is durable, it does not count without the others, so there is
        // no moment at which each of them could be used apart without the others' knowledge.
        self.write_labels(&table, |other| other.id != side.id && other.is_good());
        if side.is_good()
            && let Err(error) = side.write_label(&self.label(&table, side.id))
        {
            self.note_failure(side, &error);
        }
        drop(table);
        self.settle()?;
        if side.is_good() {
            Ok(())
        } else {
            Err(interrupted(side))
        }
    }
}

fn copy_bytes(side: &Side, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
    if side.role() != Role::Joining {
        return Err(interrupted(side));
    }
    side.device.write_at(bytes, offset_bytes).map_err(|error| {
        side.fail(&error);
        interrupted(side)
    })
}

fn interrupted(side: &Side) -> Error {
    let path = side.path.clone();
    MirrorError::Interrupted { path }.into()
}
