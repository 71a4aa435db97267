//! The service manager's watchdog: the keeper feeds it only when the worker has shown that it
//! works.
//!
//! The keeper kills a worker that does not reply while there is still time for another one to
//! reply: users see a pause. When the keeper itself hangs, or no worker replies, the service
//! manager restarts the whole daemon.

use super::control::ToWorker;
use super::{Worker, notify, service_manager};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// The number of checks on the worker within the service manager's time.
const ASKED_TIMES: u32 = 4;

/// The state of the requests to the worker.
pub(super) struct Watchdog {
    /// The service manager's time limit.
    time: Option<Duration>,
    /// The time of the next check.
    next: Instant,
    /// The worker that was asked and has not replied, and when it was asked.
    asked: Option<(u32, Instant)>,
}

impl Watchdog {
    /// Returns the watchdog that the service manager has asked for, if it has.
    pub(super) fn of_service_manager() -> Self {
        Self {
            time: service_manager::watchdog_time(),
            next: Instant::now(),
            asked: None,
        }
    }

    /// Returns the time of its next check.
    pub(super) fn next(&self) -> Option<Instant> {
        self.time.map(|_| self.next)
    }

    /// Handles the worker's reply.
    pub(super) fn answered(&mut self, pid: u32) {
        if self.asked.is_some_and(|(asked, _)| asked == pid) {
            self.asked = None;
            notify("WATCHDOG=1");
        }
    }

    /// Asks `worker` when it is time, and kills it when it has not replied for too long.
    pub(super) fn look_at(&mut self, worker: &Worker) {
        let Some(time) = self.time else { return };
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + time / ASKED_TIMES;
        match self.asked {
            Some((pid, since)) if pid == worker.pid => {
                if now - since >= time / 2 {
                    tracing::error!(
                        pid,
                        "the worker has not answered for {:?}, so it is killed and replaced",
                        now - since
                    );
                    worker.signal(Signal::SIGKILL);
                }
            }
            _ => {
                self.asked = Some((worker.pid, now));
                // A worker that does not even take the message does not reply either.
                let _ = worker.control.tell(&ToWorker::Ping);
            }
        }
    }
}
