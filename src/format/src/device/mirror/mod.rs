//! A mirror: a device that is kept on several others, its sides, at the same addresses.
//!
//! A change goes to every side that is good; a flush goes to all of them at the same time. A read
//! is answered by one side; what that side cannot read, another one is asked for. Who knows a
//! block's checksum can have the sides asked until one answers with it (`read_verified`), and then
//! the others get the same bytes.
//!
//! It does not know which side has the newest state after a stop: the engine compares them
//! (`pool::sides`), and calls `begin`. Until then nothing may be written.
//!
//! # Invariants
//! - Outside of a change that is under way, all good sides have the same bytes wherever anything
//!   refers to, except for what has rotted.
//! - No call that changes something returns `Ok` unless every side that does not have the change
//!   is marked as behind in the durable labels of all good sides, and at least one good side has
//!   the change. If the last good side fails, nothing returns `Ok` any more.
//! - A side's own label says that it is behind before the first change goes to a side that lacks
//!   something, and until it has been flushed with all of it.
//! - `writing` is shared by whoever changes the sides, and exclusive for copying from one side to
//!   another: what is copied is not changed meanwhile. Locks in their order: `writing`, `table`,
//!   a side's `flushing`. `sides` is changed only under `table`.

mod equalize;
mod files;
mod keep;
mod media;
mod members;
mod reading;
mod side;

pub use files::{
    absolute, is_gone, is_same_file, open_files, open_handed_over, open_pool, open_sides,
};
pub use keep::{keep_side, label_anew};
pub use media::Media;
pub use members::{Found, SideReport, SideStanding};
pub use side::{Side, newest_label};

use super::Device;
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::{ArcSwap, Guard, Mutex, RwLock};
use crate::base::{Error, Result};
use crate::record::HEADER_BYTES;
use crate::side::{Lack, SideId, SideLabel, SideSet, SideState};
use side::Role;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

/// A device kept on several sides.
pub struct MirrorDevice {
    /// The pool's identity; not known before the pool is made.
    pool: OnceLock<[u8; 16]>,
    /// The sides that were there when the mirror was opened: their descriptors stay open.
    founders: Vec<Arc<Side>>,
    /// The sides whose devices are open.
    sides: ArcSwap<Vec<Arc<Side>>>,
    /// Shared by changes, exclusive for copying.
    writing: RwLock<()>,
    /// The set of sides that the good sides' labels hold, or are about to.
    table: Mutex<SideSet>,
    /// The generation of the last superblock that is durable on all good sides.
    durable: AtomicU64,
    /// The error of the last good side.
    failed: OnceLock<io::Error>,
    /// True while nothing may be written to the sides.
    read_only: AtomicBool,
    /// The log region.
    log: Mutex<Option<(u64, u64)>>,
    /// The side that answers all reads that it can, if not every good side may.
    preferred: OnceLock<SideId>,
    /// Blocks that a side could not read, while another one could.
    unreadable: Mutex<Vec<(SideId, u64)>>,
    /// Number of blocks written anew on a side.
    healed: AtomicU64,
}

impl MirrorDevice {
    fn sides(&self) -> Guard<Arc<Vec<Arc<Side>>>> {
        self.sides.load()
    }

    fn check(&self) -> Result<()> {
        if self.read_only.load(Ordering::Acquire) {
            return Err(Error::ReadOnly);
        }
        match self.failed.get() {
            None => Ok(()),
            Some(source) => Err(Error::io("use the mirror", Error::copy_io(source))),
        }
    }

    /// Changes every side that is written. A side that fails is left out, durably, before this
    /// returns; a host that has no space refuses the whole change.
    fn change(&self, change: impl Fn(&dyn Device) -> Result<()>) -> Result<()> {
        let _writing = self.writing.read();
        self.change_sides(change, |_| {})
    }

    fn change_sides(
        &self,
        change: impl Fn(&dyn Device) -> Result<()>,
        undo: impl Fn(&dyn Device),
    ) -> Result<()> {
        self.check()?;
        let sides = self.sides();
        let mut done = Vec::with_capacity(sides.len());
        for side in sides.iter().filter(|side| side.is_written()) {
            match change(&*side.device) {
                Ok(()) => done.push(side),
                Err(error) if error.is_host_full() && side.is_good() => {
                    done.iter().for_each(|side| undo(&*side.device));
                    return Err(error);
                }
                Err(error) => self.note_failure(side, &error),
            }
        }
        self.confirm(&sides, &done)
    }

    /// Returns once the labels say that the sides that are not among `done` are behind.
    fn confirm(&self, sides: &[Arc<Side>], done: &[&Arc<Side>]) -> Result<()> {
        if sides.iter().any(|side| side.role() == Role::Failing) {
            self.settle()?;
        }
        if done.iter().any(|side| side.is_good()) {
            return Ok(());
        }
        self.check()?;
        // Every side failed, and the last of them is about to be noted.
        self.settle()?;
        Err(Error::io(
            "change the mirror",
            io::Error::other("no side has the change"),
        ))
    }

    fn note_failure(&self, side: &Side, error: &Error) {
        side.fail(error);
        let others_good = self.sides().iter().any(|other| other.is_good());
        if !others_good {
            let source = match error {
                Error::Io { source, .. } | Error::FailStopped { source, .. } => {
                    Error::copy_io(source)
                }
                other => io::Error::from_raw_os_error(other.errno()),
            };
            // The first failure counts.
            let _ = self.failed.set(source);
        }
    }

    /// Makes the labels of all good sides say that those that have failed are behind, durably.
    ///
    /// # Errors
    /// `Io` if no good side is left.
    fn settle(&self) -> Result<()> {
        let mut table = self.table.lock();
        loop {
            self.check()?;
            let sides = self.sides();
            let failing: Vec<_> = sides
                .iter()
                .filter(|side| side.role() == Role::Failing)
                .collect();
            if failing.is_empty() {
                return Ok(());
            }
            let since = crate::base::Generation(self.durable.load(Ordering::Acquire));
            for side in &failing {
                if let Some(entry) = table.entry_mut(side.id)
                    && entry.state == SideState::Good
                {
                    entry.state = SideState::Behind(Lack::since(since));
                }
            }
            table.advance();
            if self.write_labels(&table, |side| side.is_good()) {
                failing.iter().for_each(|side| side.set_role(Role::Away));
            }
        }
    }

    /// Writes the set to the labels of some sides; returns true if none failed.
    fn write_labels(&self, table: &SideSet, which: impl Fn(&Side) -> bool) -> bool {
        let mut all = true;
        for side in self.sides().iter().filter(|side| which(side)) {
            let label = self.label(table, side.id);
            if let Err(error) = side.write_label(&label) {
                self.note_failure(side, &error);
                all = false;
            }
        }
        all
    }

    fn label(&self, table: &SideSet, side: SideId) -> SideLabel {
        SideLabel {
            pool: self.pool.get().copied().unwrap_or_default(),
            side,
            set: table.clone(),
        }
    }

    /// Returns the number of blocks that were written anew on a side.
    #[must_use]
    pub fn healed_blocks(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }

    /// Notes that the superblock of `generation` is durable on all good sides.
    pub fn note_durable(&self, generation: crate::base::Generation) {
        self.durable.store(generation.0, Ordering::Release);
    }

    /// Flushes all sides that are written, at the same time.
    fn flush_sides(&self) -> Result<()> {
        self.check()?;
        let sides = self.sides();
        let written: Vec<_> = sides.iter().filter(|side| side.is_written()).collect();
        let Some((own, others)) = written.split_first() else {
            return Err(no_side());
        };
        let begun: Vec<_> = others.iter().map(|side| side.begin_flush()).collect();
        let mut outcomes = vec![own.flush()];
        outcomes.extend(
            begun
                .into_iter()
                .zip(others)
                .map(|(begun, side)| begun.wait(side)),
        );
        let mut done = Vec::with_capacity(written.len());
        for (side, outcome) in written.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => done.push(side),
                Err(error) => self.note_failure(side, &error),
            }
        }
        self.confirm(&sides, &done)
    }
}

fn no_side() -> Error {
    Error::io("use the mirror", io::Error::other("no side is good"))
}

impl Device for MirrorDevice {
    fn len_bytes(&self) -> u64 {
        let sides = self.sides();
        let good = sides.iter().filter(|side| side.is_good());
        good.map(|side| side.device.len_bytes()).min().unwrap_or(0)
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.read_good(buf, offset_bytes)
    }

    fn read_accepted(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        all: bool,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        self.read_verified(buf, offset_bytes, all, accept)
    }

    fn forget_read(&self, offset_bytes: u64, len_bytes: u64) {
        for side in self.sides().iter() {
            side.device.forget_read(offset_bytes, len_bytes);
        }
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        if self.check().is_err() {
            return;
        }
        let _writing = self.writing.read();
        for side in self.sides().iter().filter(|side| side.is_written()) {
            side.device.fill_gaps(offset_bytes, len_bytes);
        }
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.change(|side| side.write_at(buf, offset_bytes))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.change(|side| side.write_vectored_at(bufs, offset_bytes))
    }

    fn flush(&self) -> Result<()> {
        self.flush_sides()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.check()?;
        let _writing = self.writing.read();
        let mut outcome = Ok(());
        for side in self.sides().iter().filter(|side| side.is_written()) {
            outcome = outcome.and(side.device.discard(offset_bytes, len_bytes));
        }
        outcome
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.check()?;
        let _writing = self.writing.read();
        let sides = self.sides();
        let mut done = Vec::with_capacity(sides.len());
        for side in sides.iter().filter(|side| side.is_written()) {
            match side.device.grow(len_bytes) {
                Ok(()) => done.push(side),
                Err(error @ Error::Io { .. }) if !error.is_host_full() => {
                    self.note_failure(side, &error);
                }
                Err(error) if !side.is_good() => self.note_failure(side, &error),
                // Nothing uses the length that others have got.
                Err(error) => return Err(error),
            }
        }
        self.confirm(&sides, &done)
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        *self.log.lock() = Some((offset_bytes, len_bytes));
        if self.read_only.load(Ordering::Acquire) {
            return Ok(());
        }
        self.change(|side| side.map_log(offset_bytes, len_bytes))
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let _writing = self.writing.read();
        // The record that one host refused must not be found on another one.
        let head = [0; HEADER_BYTES];
        let head = &head[..bytes.len().min(HEADER_BYTES)];
        self.change_sides(
            |side| side.store_log(offset_bytes, bytes),
            |side| {
                if let Err(error) = side.store_log(offset_bytes, head) {
                    tracing::debug!(%error, "a refused log record stays on one side");
                }
            },
        )
    }

    fn host_bytes(&self) -> Result<u64> {
        self.most_of_good(|side| side.host_bytes())
    }

    fn host_free_bytes(&self) -> Result<Option<u64>> {
        self.least_of_good(|side| side.host_free_bytes())
    }

    fn reserve_host_bytes(&self, len_bytes: u64) -> Result<Option<u64>> {
        self.least_of_good(|side| side.reserve_host_bytes(len_bytes))
    }

    fn release_host_bytes(&self, keep_bytes: u64, held_bytes: u64) -> Result<u64> {
        self.most_of_good(|side| side.release_host_bytes(keep_bytes, held_bytes))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let founders = self.founders.iter();
        founders
            .flat_map(|side| side.device.descriptors())
            .collect()
    }

    fn is_direct(&self) -> bool {
        self.sides().iter().any(|side| side.device.is_direct())
    }

    fn mirror(&self) -> Option<&MirrorDevice> {
        Some(self)
    }
}

impl MirrorDevice {
    fn most_of_good(&self, ask: impl Fn(&dyn Device) -> Result<u64>) -> Result<u64> {
        let most = self.ask_good(ask, u64::max)?;
        Ok(most.unwrap_or(0))
    }

    fn least_of_good(
        &self,
        ask: impl Fn(&dyn Device) -> Result<Option<u64>>,
    ) -> Result<Option<u64>> {
        let least = self.ask_good(ask, |one, other| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        })?;
        Ok(least.flatten())
    }

    /// Asks all good sides, and joins their answers. A side whose host does not tell is passed over
    /// if another one answers: the next change of the pool finds whether it has failed.
    fn ask_good<T>(
        &self,
        ask: impl Fn(&dyn Device) -> Result<T>,
        join: impl Fn(T, T) -> T,
    ) -> Result<Option<T>> {
        let (mut joined, mut failure) = (None, None);
        for side in self.sides().iter().filter(|side| side.is_good()) {
            match (ask(&*side.device), joined.take()) {
                (Ok(answer), None) => joined = Some(answer),
                (Ok(answer), Some(before)) => joined = Some(join(before, answer)),
                (Err(error), before) => {
                    joined = before;
                    failure.get_or_insert(error);
                }
            }
        }
        match (joined, failure) {
            (None, Some(error)) => Err(error),
            (joined, _) => Ok(joined),
        }
    }
}

#[cfg(test)]
mod tests;
