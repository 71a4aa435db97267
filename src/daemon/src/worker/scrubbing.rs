//! Scrubbing the pool at regular times, in the background.
//!
//! A scrub that a stop or a death of the process interrupted goes on where it was, soon after the
//! next start. What it finds is in the log and in the pool (`Pool::last_scrub`).

use crate::serve_options::ScrubSchedule;
use cowshed_engine::Pool;
use cowshed_format::base::rate_limit::RateLimit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// Time after a start during which no scrub begins: what starts with the host has the disk.
const QUIET_START: Duration = Duration::from_secs(60);
/// Interval at which the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Time after a scrub that failed before the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// The thread that scrubs.
pub(super) struct Scrubbing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scrubbing {
    /// Starts scrubbing `pool`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(pool: Pool, schedule: ScrubSchedule) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("cowshed-scrub".into())
            .spawn(move || run(&pool, schedule, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Scrubbing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has ended the process already.
            let _ = thread.join();
        }
    }
}

fn run(pool: &Pool, schedule: ScrubSchedule, stop: &AtomicBool) {
    let mut not_before = Instant::now() + QUIET_START.min(schedule.every);
    loop {
        let look = LOOK_EVERY.min(schedule.every);
        thread::park_timeout(look.min(not_before.saturating_duration_since(Instant::now())));
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if Instant::now() < not_before {
            continue;
        }
        not_before = Instant::now() + look;
        if is_due(pool, schedule.every) && !scrub(pool, schedule, stop) {
            not_before = Instant::now() + RETRY_AFTER;
        }
    }
}

fn is_due(pool: &Pool, every: Duration) -> bool {
    if pool.is_scrubbed() {
        return false;
    }
    pool.has_unfinished_scrub()
        || pool.last_scrub().is_none_or(|last| {
            // A clock that was set back must not put it off for ever.
            let age = SystemTime::now().duration_since(last.finished);
            age.is_err() || age.is_ok_and(|age| age >= every)
        })
}

/// Scrubs once; returns false if it failed.
fn scrub(pool: &Pool, schedule: ScrubSchedule, stop: &AtomicBool) -> bool {
    let mut limit = RateLimit::new(schedule.bytes_per_second);
    let mut paid = 0;
    // A scrub on command is not kept waiting; this one goes on where that one ends.
    let goes_on = || !stop.load(Ordering::Relaxed) && !pool.is_scrub_awaited();
    let mut progress = |done: u64, _| {
        let bytes = done.saturating_sub(std::mem::replace(&mut paid, done));
        limit.pay(bytes, goes_on)
    };
    match pool.scrub(&mut progress) {
        Err(error) => {
            tracing::warn!(%error, "a scrub failed, and is tried again");
            false
        }
        Ok(report) => {
            let (blocks, healed) = (report.blocks, report.healed);
            let bad = report.bad.len() as u64 + report.bad_omitted;
            if bad > 0 {
                tracing::error!(
                    bad,
                    blocks,
                    healed,
                    "a scrub found damaged blocks; `cowshed pool scrub` says what they belong to"
                );
            } else if report.finished {
                tracing::info!(blocks, healed, "a scrub has read everything in use");
            }
            true
        }
    }
}
