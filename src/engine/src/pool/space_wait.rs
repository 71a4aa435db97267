//! Finding space when there is none: by finishing work that frees blocks, by growing, and by
//! waiting until another thread or process has freed some.
//!
//! # Invariants
//! - A thread that frees or awaits space holds no lock, so that removing, discarding, growing,
//!   checkpoints and reading go on meanwhile.
//! - `SpaceWait::events` rises whenever blocks may have become free, so that a writer that read it
//!   before it looked for space misses nothing.

use super::handle::Pool;
use super::info::FullPolicy;
use super::prune::Pace;
use super::shared::Shared;
use super::waiter::{WaitFreely, Waiter, Waiting};
use crate::space::Demand;
use cowshed_format::base::cancel;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::sync::{Condvar, Mutex};
use cowshed_format::base::{Error, Result};
use std::time::{Duration, Instant};

/// How often others may take space that was freed for a writer before the writer gives up.
const ROUNDS_MAX: u32 = 4;
/// Interval at which a held writer looks by itself: a concurrent writer that failed may have
/// returned its blocks, which raises no event.
const TICK: Duration = Duration::from_millis(250);
/// Time without a held write after which writes no longer wait: in a full pool, each checkpoint frees
/// a few blocks, for which one writer goes on and waits again.
const CALM: Duration = Duration::from_secs(10);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The queue of writers that wait for space.
#[derive(Default)]
pub(super) struct SpaceWait {
    events: AtomicU64,
    gate: Mutex<()>,
    changed: Condvar,
    /// True once it has been logged that writes are held.
    told: AtomicBool,
    /// The time when a write was held last.
    last_held: Mutex<Option<Instant>>,
    /// True once it has been logged that a held write was refused.
    given_up: AtomicBool,
    /// Number of writers that found no space and have not ended yet.
    held: AtomicUsize,
    /// True once no writer may wait any longer, whatever the policy.
    refusing: AtomicBool,
}

impl SpaceWait {
    /// Tells waiters that blocks may have become free, or that they need not wait any longer.
    pub(super) fn tell(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        // A waiter reads the count while it holds the gate, so it cannot sleep through this.
        drop(self.gate.lock());
        self.changed.notify_all();
    }

    /// Returns true if no write has been held for a while.
    fn is_calm(&self, now: Instant) -> bool {
        let last = *self.last_held.lock();
        last.is_none_or(|last| now.saturating_duration_since(last) >= CALM)
    }

    /// Returns true if a writer waits.
    pub(super) fn is_awaited(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }
}

/// The time that one write may wait for space.
pub(super) struct Patience<'a> {
    shared: &'a Shared,
    /// Set when the write first finds no space.
    deadline: Option<Instant>,
    /// The count of events before the write last looked for space.
    seen: u64,
    /// Decides whether the thread may wait; `None` for a caller of the pool itself.
    waiter: Option<&'a dyn Waiter>,
    /// Set once the waiter knows that the thread waits.
    waiting: Option<Waiting<'a>>,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.waiting.is_some() {
            self.shared.space_wait.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<'a> Patience<'a> {
    /// Returns the patience that the pool's policy allows.
    pub(super) fn of(shared: &'a Shared, waiter: Option<&'a dyn Waiter>) -> Self {
        Self {
            shared,
            waiter,
            deadline: None,
            seen: shared.space_wait.events.load(Ordering::Acquire),
            waiting: None,
        }
    }

    /// Returns the end of the wait; `None` if the write must not wait.
    fn deadline(&mut self) -> Option<Instant> {
        let time = match self.shared.full.policy {
            FullPolicy::Wait(time) => time,
            FullPolicy::WaitAttached(time) if self.waiter.is_some() => time,
            FullPolicy::WaitAttached(_) | FullPolicy::Error => return None,
        };
        let now = Instant::now();
        // A time beyond the clock's range is cut to a year.
        let end = || now.checked_add(time).unwrap_or(now + YEAR);
        Some(*self.deadline.get_or_insert_with(end))
    }
}

impl Pool {
    /// Stops holding writes from now on, and refuses those that are held: for callers that want to
    /// unmount and close without waiting for space that nobody frees.
    pub fn stop_holding(&self) {
        self.shared
            .space_wait
            .refusing
            .store(true, Ordering::Release);
        self.shared.space_wait.tell();
    }
}

impl Shared {
    /// Promises `blocks` blocks for `demand`, and finds space for them if possible.
    pub(super) fn promise(&self, blocks: u64, demand: Demand) -> Result<()> {
        self.with_room(|| self.space.promise(blocks, demand).then_some(()))
    }

    /// Takes space with `take`; if there is none, frees some and takes again.
    pub(super) fn with_room<T>(&self, mut take: impl FnMut() -> Option<T>) -> Result<T> {
        for _ in 0..ROUNDS_MAX {
            if let Some(taken) = take() {
                return Ok(taken);
            }
            if !self.make_room()? {
                break;
            }
        }
        take().ok_or(Error::NoSpace)
    }

    /// Makes recently freed blocks usable, or otherwise lets the pool grow; returns true if there
    /// may be space now. If nothing changed since the last checkpoint, none is written: a full pool
    /// returns without I/O.
    fn make_room(&self) -> Result<bool> {
        let seen = self.checkpoints.load(Ordering::Acquire);
        let blocks = self.space.layout().block_count();
        if self.has_backlog()
            && let Err(error) = cancel::never(|| self.reclaim_all(Pace::Seldom))
        {
            // Other freed blocks are usable all the same.
            tracing::warn!(%error, "cannot reclaim a removed volume yet");
        }
        let mut checkpointer = self.checkpointer.lock();
        if self.checkpoints.load(Ordering::Acquire) == seen {
            // Streams return the blocks that they have reserved at the cut.
            if self.changes.lock().is_empty() {
                drop(checkpointer);
                self.space.await_hidden();
                return self.grow_by_need(blocks);
            }
            self.run(&mut checkpointer)?;
        }
        drop(checkpointer);
        self.space.await_hidden();
        Ok(true)
    }

    /// Holds a write that found no space, and returns true if it should look again; if not, its
    /// patience is over.
    pub(super) fn await_room(&self, patience: &mut Patience<'_>) -> Result<bool> {
        let Some(deadline) = patience.deadline() else {
            return Ok(false);
        };
        if self.space_wait.refusing.load(Ordering::Acquire) {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            self.tell_given_up();
            return Ok(false);
        }
        if patience.waiting.is_none() {
            // A thread that serves many clients is not free to wait unless another takes its place.
            let Some(waiting) = Waiting::begin(patience.waiter.unwrap_or(&WaitFreely)) else {
                return Ok(false);
            };
            patience.waiting = Some(waiting);
            self.space_wait.held.fetch_add(1, Ordering::Relaxed);
        }
        self.tell_held();
        *self.space_wait.last_held.lock() = Some(Instant::now());
        let tick = deadline.min(Instant::now() + TICK);
        let mut gate = self.space_wait.gate.lock();
        loop {
            self.check_alive()?;
            let events = self.space_wait.events.load(Ordering::Acquire);
            if events != patience.seen {
                patience.seen = events;
                return Ok(true);
            }
            if self
                .space_wait
                .changed
                .wait_until(&mut gate, tick)
                .timed_out()
            {
                // At the deadline the writer looks one last time.
                return Ok(true);
            }
        }
    }

    /// Returns an error if the pool is closed or its device has failed.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.check_open()?;
        self.device.error().map_or(Ok(()), Err)
    }

    /// Returns true if a write that failed with `error` may be held. By default, the writer learns
    /// at once that the host is full: no command of the pool frees space there.
    pub(super) fn may_hold(&self, error: &Error) -> bool {
        let by_default = matches!(self.full.policy, FullPolicy::WaitAttached(_));
        error.errno() == libc::ENOSPC && !(by_default && error.is_host_full())
    }

    fn tell_held(&self) {
        if !self.space_wait.told.swap(true, Ordering::AcqRel) {
            let most = match self.full.policy {
                FullPolicy::Wait(time) | FullPolicy::WaitAttached(time) => {
                    format!(" for up to {} s", time.as_secs())
                }
                FullPolicy::Error => String::new(),
            };
            tracing::warn!(
                "the pool is full, and writes wait{most} for free space: grow the pool, or remove \
                 or trim something"
            );
        }
    }

    /// Logs, once until there is space, that a held write is refused now.
    fn tell_given_up(&self) {
        if !self.space_wait.given_up.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the full pool got no free space in time: writes that waited now fail with \"no \
                 space left\"; grow the pool, or remove or trim something"
            );
        }
    }

    /// Logs that held writes go on, once there is space and none has been held for a while.
    pub(super) fn tell_released(&self) {
        if !self.space_wait.is_calm(Instant::now()) {
            return;
        }
        self.space_wait.given_up.store(false, Ordering::Release);
        if self.space_wait.told.load(Ordering::Relaxed)
            && self.space_wait.told.swap(false, Ordering::AcqRel)
        {
            tracing::info!("the pool has free space again, and writes no longer wait");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_until_none_has_been_held_for_a_while() {
        let (wait, now) = (SpaceWait::default(), Instant::now());
        assert!(wait.is_calm(now));
        *wait.last_held.lock() = Some(now);
        assert!(!wait.is_calm(now));
        assert!(!wait.is_calm(now + CALM / 2));
        assert!(wait.is_calm(now + CALM));
    }
}
