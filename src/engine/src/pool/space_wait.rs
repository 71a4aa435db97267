//! Making room when there is none: by finishing what frees blocks, by growing, and by waiting
//! until somebody else has made some.
//!
//! # Invariants
//! - Whoever makes or awaits room holds no lock, so that removing, discarding, growing,
//!   checkpoints and reading go on meanwhile.
//! - `SpaceWait::events` rises whenever blocks may have become free, so that a writer that read it
//!   before it looked for room misses nothing.

use super::handle::Pool;
use super::info::FullPolicy;
use super::prune::Pace;
use super::shared::Shared;
use crate::space::Demand;
use cowshed_format::base::cancel;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::sync::{Condvar, Mutex};
use cowshed_format::base::waiting::{self, Waiting};
use cowshed_format::base::{Error, Result};
use std::time::{Duration, Instant};

/// How often somebody else may take what was freed for a writer before it gives up.
const ROUNDS_MAX: u32 = 4;
/// How often a held writer looks by itself: a writer that failed beside it may have given back
/// what it held, which nobody tells.
const TICK: Duration = Duration::from_millis(250);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where writers wait for room.
#[derive(Default)]
pub(super) struct SpaceWait {
    events: AtomicU64,
    gate: Mutex<()>,
    changed: Condvar,
    /// It has been logged that writes are held.
    told: AtomicBool,
    /// It has been logged that a held write was refused.
    given_up: AtomicBool,
    /// Writers that found no room and have not ended yet.
    held: AtomicUsize,
    /// Nobody waits any longer, whatever the policy.
    refusing: AtomicBool,
}

impl SpaceWait {
    /// Says that blocks may have become free, or that nobody needs to wait any longer.
    pub(super) fn tell(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        // A waiter looks at the count under the gate, so that it cannot sleep through this.
        drop(self.gate.lock());
        self.changed.notify_all();
    }

    /// Whether a writer waits.
    pub(super) fn is_awaited(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }
}

/// How long one write waits for room.
pub(super) struct Patience<'a> {
    shared: &'a Shared,
    /// Known from the first time that there is no room.
    deadline: Option<Instant>,
    /// The count of events before the write last looked for room.
    seen: u64,
    /// The thread's owner knows that it waits.
    waiting: Option<Waiting>,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.waiting.is_some() {
            self.shared.space_wait.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<'a> Patience<'a> {
    /// As long as the pool's policy says.
    pub(super) fn of(shared: &'a Shared) -> Self {
        Self {
            shared,
            deadline: None,
            seen: shared.space_wait.events.load(Ordering::Acquire),
            waiting: None,
        }
    }

    /// When it ends; `None` when nothing is waited for.
    fn deadline(&mut self) -> Option<Instant> {
        let time = match self.shared.full.policy {
            FullPolicy::Wait(time) => time,
            FullPolicy::WaitAttached(time) if waiting::is_owned() => time,
            FullPolicy::WaitAttached(_) | FullPolicy::Error => return None,
        };
        let now = Instant::now();
        // A time that no clock reaches is as good as a year.
        let end = || now.checked_add(time).unwrap_or(now + YEAR);
        Some(*self.deadline.get_or_insert_with(end))
    }
}

impl Pool {
    /// Holds no write any longer, from now on, and refuses those that are held: for whoever wants
    /// to unmount and close without waiting for room that nobody makes.
    pub fn stop_holding(&self) {
        self.shared
            .space_wait
            .refusing
            .store(true, Ordering::Release);
        self.shared.space_wait.tell();
    }
}

impl Shared {
    /// Promises `blocks` blocks for `demand`, and makes room for them where that is possible.
    pub(super) fn reserve(&self, blocks: u64, demand: Demand) -> Result<()> {
        self.with_room(|| self.space.reserve(blocks, demand).then_some(()))
    }

    /// Takes room with `take`; where there is none, makes some and takes again.
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

    /// Makes what was freed lately usable, or else lets the pool grow; answers whether there may
    /// be room now. Where nothing changed since the last checkpoint, there is none to write: a
    /// full pool answers without I/O.
    fn make_room(&self) -> Result<bool> {
        let seen = self.checkpoints.load(Ordering::Acquire);
        let blocks = self.space.layout().block_count();
        if self.has_backlog()
            && let Err(error) = cancel::never(|| self.reclaim_all(Pace::Seldom))
        {
            // What else was freed is usable all the same.
            tracing::warn!("a removed volume could not be reclaimed: {error}");
        }
        let mut checkpointer = self.checkpointer.lock();
        if self.checkpoints.load(Ordering::Acquire) == seen {
            // Streams that set blocks aside give them back at the cut.
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

    /// Holds a write that found no room, and answers whether it should look again; if not, its
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
            // A thread that serves many is not free to wait unless another takes its place.
            let Some(waiting) = waiting::begin() else {
                return Ok(false);
            };
            patience.waiting = Some(waiting);
            self.space_wait.held.fetch_add(1, Ordering::Relaxed);
        }
        self.tell_held();
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
                // At the deadline it looks one last time.
                return Ok(true);
            }
        }
    }

    /// Refuses to go on with a pool that is closed, or whose device has failed.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.check_open()?;
        self.device.error().map_or(Ok(()), Err)
    }

    /// Returns true if a write that failed with `error` may be held. By default a full host is told
    /// to the writer at once: no command of the pool's makes room there.
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
                "the pool is full, and writes are held{most}: \
                 grow it (cowshed pool grow), or remove or trim something"
            );
        }
    }

    /// Says, once until there is room, that a write that was held is refused now.
    fn tell_given_up(&self) {
        if !self.space_wait.given_up.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "nobody made room in the full pool in time, and writes that were held are refused \
                 now: what writes to the volumes gets \"no space left\""
            );
        }
    }

    /// Says that held writes go on, once there is room.
    pub(super) fn tell_released(&self) {
        self.space_wait.given_up.store(false, Ordering::Release);
        if self.space_wait.told.load(Ordering::Relaxed)
            && self.space_wait.told.swap(false, Ordering::AcqRel)
        {
            tracing::info!("the pool has room again, and writes are no longer held");
        }
    }
}
