//! A device that fails on purpose, for tests: any operation, at its nth call, once or for ever,
//! with nothing or only half of it done; and blocks that cannot be read.
//!
//! It wraps another device and is told explicitly which calls fail; a seed can choose when.
//!
//! # Invariants
//! - A call that fails with `Errno` does not reach the wrapped device; one that fails with `Short`
//!   reaches it with its first half.
//! - Every call is counted from one, failed or not.

use super::{Device, gather};
use crate::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use parking_lot::RwLock;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `read_at`.
    Read,
    /// `write_at` and `write_vectored_at`.
    Write,
    /// `store_log`.
    Store,
    /// `flush`.
    Flush,
    /// `discard`.
    Discard,
    /// `grow`.
    Grow,
}

impl Operation {
    const COUNT: usize = 6;

    const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Store => 2,
            Self::Flush => 3,
            Self::Discard => 4,
            Self::Grow => 5,
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::Read => "read the pool",
            Self::Write => "write the pool",
            Self::Store => "write the log",
            Self::Flush => "flush the pool",
            Self::Discard => "release space to the host",
            Self::Grow => "grow the pool",
        }
    }
}

/// The duration of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// The nth call alone fails.
    Once,
    /// The nth call and all after it fail.
    Forever,
}

/// What a failing call does before it returns an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Errno(i32),
    /// The first half of it, rounded down to whole blocks (a store: to bytes; a flush or a growth:
    /// nothing).
    Short(i32),
}

impl Effect {
    const fn errno(self) -> i32 {
        match self {
            Self::Errno(errno) | Self::Short(errno) => errno,
        }
    }

    /// Returns how much of `len` is done, in whole `unit`s.
    const fn done(self, len: usize, unit: usize) -> usize {
        match self {
            Self::Errno(_) => 0,
            Self::Short(_) => len / 2 / unit * unit,
        }
    }
}

/// One planned fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// The number of the failing call, counted from one since the device was made.
    pub nth: u64,
    /// The duration of the fault.
    pub lasting: Lasting,
    /// What the failing call does.
    pub effect: Effect,
}

impl Fault {
    /// Returns a single fault chosen by `seed`: one of `operations`, at one of its first `within`
    /// calls, with EIO, short or not. One seed always chooses the same fault.
    ///
    /// # Panics
    /// When `operations` is empty or `within` is zero.
    #[must_use]
    pub fn seeded(seed: u64, operations: &[Operation], within: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let effect = if random.random() {
            Effect::Short(libc::EIO)
        } else {
            Effect::Errno(libc::EIO)
        };
        Self {
            operation: operations[random.random_range(0..operations.len())],
            nth: random.random_range(1..=within),
            lasting: Lasting::Once,
            effect,
        }
    }

    const fn hits(&self, operation: Operation, call: u64) -> bool {
        self.operation.index() == operation.index()
            && match self.lasting {
                Lasting::Once => call == self.nth,
                Lasting::Forever => call >= self.nth,
            }
    }
}

/// A device that fails as planned and otherwise does what the wrapped device does.
pub struct FaultyDevice {
    inner: Arc<dyn Device>,
    plan: RwLock<Vec<Fault>>,
    calls: [AtomicU64; Operation::COUNT],
    failures: AtomicU64,
    /// Blocks that cannot be read until they are written.
    unreadable: RwLock<BTreeSet<u64>>,
}

impl FaultyDevice {
    /// Returns a device over `inner` without faults.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self {
            inner,
            plan: RwLock::new(Vec::new()),
            calls: [const { AtomicU64::new(0) }; Operation::COUNT],
            failures: AtomicU64::new(0),
            unreadable: RwLock::default(),
        }
    }

    /// Makes a block unreadable, as a bad sector is, until it is written.
    pub fn spoil(&self, block: BlockAddr) {
        self.unreadable.write().insert(block.0);
    }

    /// Returns true if a block is still unreadable.
    #[must_use]
    pub fn is_spoiled(&self, block: BlockAddr) -> bool {
        self.unreadable.read().contains(&block.0)
    }

    fn check_readable(&self, offset_bytes: u64, len_bytes: usize) -> Result<()> {
        let blocks = blocks_of(offset_bytes, len_bytes);
        if self.unreadable.read().range(blocks).next().is_none() {
            return Ok(());
        }
        self.failures.fetch_add(1, Ordering::SeqCst);
        fail(Operation::Read, Effect::Errno(libc::EIO))
    }

    fn note_written(&self, offset_bytes: u64, len_bytes: usize) {
        if self.unreadable.read().is_empty() {
            return;
        }
        let blocks = blocks_of(offset_bytes, len_bytes);
        self.unreadable
            .write()
            .retain(|block| !blocks.contains(block));
    }

    /// Plans one more fault; of two for the same call, the one planned first counts.
    pub fn inject(&self, fault: Fault) {
        self.plan.write().push(fault);
    }

    /// Plans a fault for the next call of `operation`.
    pub fn fail_next(&self, operation: Operation, lasting: Lasting, effect: Effect) {
        self.inject(Fault {
            operation,
            nth: self.calls(operation) + 1,
            lasting,
            effect,
        });
    }

    /// Drops the whole plan: the device works from now on.
    pub fn heal(&self) {
        self.plan.write().clear();
    }

    /// Returns the number of calls of `operation`.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls[operation.index()].load(Ordering::SeqCst)
    }

    /// Returns the number of calls that failed as planned.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Counts the call and returns how it is to fail, if at all.
    fn next(&self, operation: Operation) -> Option<Effect> {
        let call = self.calls[operation.index()].fetch_add(1, Ordering::SeqCst) + 1;
        let plan = self.plan.read();
        let fault = plan.iter().find(|fault| fault.hits(operation, call))?;
        self.failures.fetch_add(1, Ordering::SeqCst);
        Some(fault.effect)
    }

    fn write(&self, buf: &[u8], offset_bytes: u64, effect: Effect) -> Result<()> {
        let done = effect.done(buf.len(), BLOCK_BYTES);
        if done > 0 {
            self.inner.write_at(&buf[..done], offset_bytes)?;
        }
        fail(Operation::Write, effect)
    }
}

fn blocks_of(offset_bytes: u64, len_bytes: usize) -> Range<u64> {
    let block = BLOCK_BYTES as u64;
    offset_bytes / block..(offset_bytes + len_bytes as u64).div_ceil(block)
}

fn fail(operation: Operation, effect: Effect) -> Result<()> {
    let source = io::Error::from_raw_os_error(effect.errno());
    Err(Error::io(operation.action(), source))
}

impl Device for FaultyDevice {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let Some(effect) = self.next(Operation::Read) else {
            self.check_readable(offset_bytes, buf.len())?;
            return self.inner.read_at(buf, offset_bytes);
        };
        let done = effect.done(buf.len(), BLOCK_BYTES);
        if done > 0 {
            self.inner.read_at(&mut buf[..done], offset_bytes)?;
        }
        fail(Operation::Read, effect)
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.fill_gaps(offset_bytes, len_bytes);
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        match self.next(Operation::Write) {
            None => {
                self.note_written(offset_bytes, buf.len());
                self.inner.write_at(buf, offset_bytes)
            }
            Some(effect) => self.write(buf, offset_bytes, effect),
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        match self.next(Operation::Write) {
            None => {
                let len_bytes = bufs.iter().map(|buf| buf.len()).sum();
                self.note_written(offset_bytes, len_bytes);
                self.inner.write_vectored_at(bufs, offset_bytes)
            }
            Some(effect) => self.write(&gather(bufs), offset_bytes, effect),
        }
    }

    fn flush(&self) -> Result<()> {
        match self.next(Operation::Flush) {
            None => self.inner.flush(),
            Some(effect) => fail(Operation::Flush, effect),
        }
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let Some(effect) = self.next(Operation::Discard) else {
            return self.inner.discard(offset_bytes, len_bytes);
        };
        // A range beyond `usize` is longer than any test's device.
        let done = effect.done(usize::try_from(len_bytes).unwrap_or(0), BLOCK_BYTES);
        if done > 0 {
            self.inner.discard(offset_bytes, done as u64)?;
        }
        fail(Operation::Discard, effect)
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        match self.next(Operation::Grow) {
            None => self.inner.grow(len_bytes),
            Some(effect) => fail(Operation::Grow, effect),
        }
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.inner.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let Some(effect) = self.next(Operation::Store) else {
            return self.inner.store_log(offset_bytes, bytes);
        };
        let done = effect.done(bytes.len(), 1);
        if done > 0 {
            self.inner.store_log(offset_bytes, &bytes[..done])?;
        }
        fail(Operation::Store, effect)
    }

    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
    }

    fn host_free_bytes(&self) -> Result<Option<u64>> {
        self.inner.host_free_bytes()
    }

    fn reserve_host_bytes(&self, len_bytes: u64) -> Result<Option<u64>> {
        self.inner.reserve_host_bytes(len_bytes)
    }

    fn release_host_bytes(&self, keep_bytes: u64, held_bytes: u64) -> Result<u64> {
        self.inner.release_host_bytes(keep_bytes, held_bytes)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.descriptors()
    }
}

#[cfg(test)]
mod tests;
