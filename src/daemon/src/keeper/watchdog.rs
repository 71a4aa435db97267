//! The service manager's watchdog: it is fed when the worker has shown that it works, and only
//! then.
//!
//! A worker that does not answer is killed while there is still time for another one to answer:
//! users see a pause. When the keeper itself hangs, or no worker comes to answer, the service
//! manager starts all of it again.

use super::control::ToWorker;
use super::{Worker, notify, service_manager};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// As many times in the service manager's time the worker is asked.
const ASKED_TIMES: u32 = 4;

/// When the worker is asked, and what it has answered.
pub(super) struct Watchdog {
    /// The service manager's time.
    time: Option<Duration>,
    /// When to ask next.
    next: Instant,
    /// Who was asked and has not answered, and since when.
    asked: Option<(u32, Instant)>,
}

impl Watchdog {
    /// The one that the service manager has asked for, if it has.
    pub(super) fn of_service_manager() -> Self {
        Self {
            time: service_manager::watchdog_time(),
            next: Instant::now(),
            asked: None,
        }
    }

    /// When it has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.time.map(|_| self.next)
    }

    /// The worker has answered.
    pub(super) fn answered(&mut self, pid: u32) {
        if self.asked.is_some_and(|(asked, _)| asked == pid) {
            self.asked = None;
            notify("WATCHDOG=1");
        }
    }

    /// Asks `worker` when it is time, and kills it when it has not answered for too long.
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
                        "the worker has not answered for {:?}, so it is killed and followed by \
                         another one",
                        now - since
                    );
                    worker.signal(Signal::SIGKILL);
                }
            }
            _ => {
                self.asked = Some((worker.pid, now));
                // One that does not even take it does not answer either.
                let _ = worker.control.tell(&ToWorker::Ping);
            }
        }
    }
}
