//! The background threads: checkpoints by time and by need, reclaim, giving space back to the host,
//! growing ahead of need, and logging that space runs out. They hold no strong reference to the
//! pool while they wait, so that dropping its last handle ends them.

use super::prune::Pace;
use super::shared::{Shared, Signal};
use cowshed_format::base::Sequence;
use cowshed_format::base::background_yield::Background;
use cowshed_format::device::Device;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time between a change and the checkpoint that holds it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Maximum time that a pool that is being written keeps freed space from the host.
const PUNCH_EVERY: Duration = Duration::from_secs(60);
/// Minimum time between a postponed checkpoint and its next attempt.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Time after a refusal by the host during which freed space is given back at once.
const HURRY_FOR: Duration = Duration::from_secs(10);
/// Interval at which the threads wake by themselves.
const TICK: Duration = Duration::from_millis(500);

/// Stops the threads of a pool that is being closed, and waits until they have ended.
pub(super) fn stop(shared: &Shared) {
    shared.ask(|wanted| &mut wanted.stop);
    for thread in std::mem::take(&mut *shared.threads.lock()) {
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("a background thread panicked");
        }
    }
}

/// Starts the threads of an open pool.
pub(super) fn start(shared: &Arc<Shared>) {
    let mut threads = shared.threads.lock();
    let mut spawn = |name: &str, work: fn(&Weak<Shared>, &Signal)| {
        let (weak, signal) = (Arc::downgrade(shared), Arc::clone(&shared.signal));
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let _background = Background::begin();
            work(&weak, &signal);
        });
        match thread {
            Ok(thread) => threads.push(thread),
            // Everything still happens when it must, in the threads that need it.
            Err(error) => tracing::warn!(name, %error, "cannot start a background thread"),
        }
    };
    spawn("cowshed-ckpt", checkpoints);
    spawn("cowshed-reclaim", reclaim);
    if shared.device.mirror().is_some() {
        spawn("cowshed-resync", resync);
    }
}

/// Brings the sides of a mirror up to date that are behind.
fn resync(weak: &Weak<Shared>, signal: &Signal) {
    loop {
        {
            let Some(shared) = weak.upgrade() else { return };
            // Nobody else has the pool once this is the last reference.
            let goes_on = || Arc::strong_count(&shared) > 1 && !signal.wanted.lock().stop;
            let outcome = shared.resync(&mut |_, _| goes_on());
            if shared.check_open().is_err() {
                return;
            }
            if let Err(error) = outcome {
                tracing::warn!(%error, "a side of the mirror cannot be brought up to date yet");
            }
        }
        let mut wanted = signal.wanted.lock();
        if !wanted.stop {
            signal.changed.wait_for(&mut wanted, CHECKPOINT_EVERY);
        }
        if wanted.stop {
            return;
        }
    }
}

fn checkpoints(weak: &Weak<Shared>, signal: &Signal) {
    let mut checkpointed = Instant::now();
    let mut checkpoints = 0;
    let mut put_off = false;
    let mut refused: Option<Instant> = None;
    let mut punching = Punching {
        since: Instant::now(),
        appended: Sequence(0),
        due: true,
    };
    loop {
        {
            let mut wanted = signal.wanted.lock();
            if !wanted.checkpoint && !wanted.stop {
                signal.changed.wait_for(&mut wanted, TICK);
            }
            if wanted.stop {
                return;
            }
        }
        let Some(shared) = weak.upgrade() else { return };
        if shared.check_open().is_err() {
            return;
        }
        let asked = std::mem::take(&mut signal.wanted.lock().checkpoint);
        if let Err(error) = shared.grow_ahead() {
            tracing::error!(%error, "the pool has stopped");
            return;
        }
        shared.watch_watermark();
        shared.heal();
        // Other threads run checkpoints too: on request, or when they find no space.
        let finished = shared.checkpoints.load(Ordering::Acquire);
        if std::mem::replace(&mut checkpoints, finished) != finished {
            checkpointed = Instant::now();
            punching.due = true;
        }
        // Space that the pool gives back may satisfy what the host refused.
        if shared.host_reserve.take_refusal() {
            refused = Some(Instant::now());
        }
        let hurry = refused.is_some_and(|at| at.elapsed() < HURRY_FOR);
        let idle = shared.log.used_bytes() == 0 && shared.changes.lock().volumes.is_empty();
        let wait = if put_off {
            RETRY_EVERY
        } else if hurry {
            Duration::ZERO
        } else {
            CHECKPOINT_EVERY
        };
        if (asked && !put_off) || (!idle && checkpointed.elapsed() >= wait) {
            checkpointed = Instant::now();
            punching.due = true;
            let outcome = shared.checkpoint();
            if let (Err(error), false) = (&outcome, put_off) {
                match shared.check_open() {
                    Ok(()) => tracing::warn!(%error, "a checkpoint failed, and is tried again"),
                    Err(_) => tracing::error!(%error, "the pool has stopped"),
                }
            }
            put_off = outcome.is_err();
            checkpoints = shared.checkpoints.load(Ordering::Acquire);
        }
        punching.look(&shared, hurry);
        shared.keep_host_reserve();
    }
}

/// Decides when freed space is given back to the host: once nothing has been written for a while,
/// since a writer would take it again at once, or otherwise after some time.
struct Punching {
    since: Instant,
    appended: Sequence,
    due: bool,
}

impl Punching {
    fn look(&mut self, shared: &Shared, hurry: bool) {
        let appended = shared.log.appended();
        let quiet = std::mem::replace(&mut self.appended, appended) == appended;
        if !self.due || !(hurry || quiet || self.since.elapsed() >= PUNCH_EVERY) {
            return;
        }
        (self.since, self.due) = (Instant::now(), false);
        let punch = || shared.space.punch_stale(&*shared.device);
        if let Err(error) = shared.with_host_reserve(punch) {
            tracing::warn!(%error, "cannot release freed space to the host");
        }
    }
}

fn reclaim(weak: &Weak<Shared>, signal: &Signal) {
    loop {
        {
            let mut wanted = signal.wanted.lock();
            if !wanted.reclaim && !wanted.stop {
                signal.changed.wait_for(&mut wanted, TICK);
            }
            if wanted.stop {
                return;
            }
        }
        let Some(shared) = weak.upgrade() else { return };
        let asked = std::mem::take(&mut signal.wanted.lock().reclaim);
        if shared.check_open().is_err() {
            return;
        }
        if (asked || shared.has_backlog())
            && let Err(error) = shared.reclaim_all(Pace::Seldom)
        {
            if shared.check_open().is_err() {
                return;
            }
            tracing::warn!(%error, "cannot reclaim a removed volume yet");
            drop(shared);
            thread::sleep(CHECKPOINT_EVERY);
        }
    }
}
