//! Another program is to take over: a worker of it is started beside the one that serves, and
//! proves that it can read the pool. Only then is the one that serves told to leave everything to
//! it.
//!
//! # Invariants
//! - A worker that waits opens nothing for writing before it is told to start, which it is when the
//!   one before it can change the pool no more.
//! - A program that does not come to serve costs one line of the log and, if it hangs after its
//!   proof, a pause of `pause_max`.

use super::control::{Message, ToWorker};
use super::worker::{Program, Start, Worker, kill_group};
use super::{Keeper, Owner, State, describe, has_ended, is_over, notify, reap};
use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long another program may take to prove that it could serve; users do not wait for it.
const PREPARE_TIME: Duration = Duration::from_secs(10);
/// How long it may take to serve the volumes, for which users wait: at least this.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// As many times what a worker has taken before, where that is longer.
const PAUSE_FACTOR: u32 = 4;
/// How long another program may take to serve, once users do not wait for it any more.
pub(super) const UPGRADE_TIME: Duration = Duration::from_secs(30);

/// A worker of another program that waits until it may serve.
pub(super) struct Standby {
    program: Program,
    worker: Worker,
    /// When it must have proved that it could serve; nothing once it has.
    deadline: Option<Instant>,
}

impl Standby {
    /// When it must have proved that it could serve, if it has not.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What says that something became of it.
    pub(super) fn poll_fds(&self) -> [PollFd<'_>; 2] {
        [
            PollFd::new(self.worker.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.worker.pulse.as_fd(), PollFlags::empty()),
        ]
    }

    /// What is wrong with it, if something is; it is killed then.
    fn fault(&self, is_stopped: bool) -> Option<String> {
        let pid = self.worker.pid;
        let is_late = self.deadline.is_some_and(|until| Instant::now() >= until);
        if is_over(&self.worker.pulse) || has_ended(pid) {
            kill_group(pid);
            let how = reap(pid).map(|status| describe(&status));
            return Some(how.unwrap_or_else(|| "killed".to_owned()));
        }
        let fault = if is_stopped {
            "the daemon was told to stop".to_owned()
        } else if is_late {
            let seconds = PREPARE_TIME.as_secs();
            format!("it did not show within {seconds} s that it can read the pool")
        } else {
            return None;
        };
        kill_group(pid);
        Some(fault)
    }
}

impl<O: Owner> Keeper<O> {
    /// Starts `program` beside `current`, the worker that serves.
    pub(super) fn prepare(&mut self, program: Program, current: &Worker) {
        if self.standby.is_some() {
            tracing::warn!("another program is about to take over already");
            return;
        }
        notify(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=handing over to another program",
            monotonic_us()
        ));
        self.predecessors.retain(|life| !is_over(life));
        let lives = self.predecessors.iter().chain([&current.life]);
        let started = Worker::start(Start {
            program: &program,
            inherited_fds: &self.inherited_fds,
            serving: &self.serving,
            predecessors: lives.map(AsFd::as_fd).collect(),
            oom_score: self.oom_score,
            standby: true,
        });
        match started {
            Ok(worker) => {
                self.standby = Some(Standby {
                    program,
                    worker,
                    deadline: Some(Instant::now() + PREPARE_TIME),
                });
            }
            Err(error) => self.refuse(&error.to_string(), Some(current)),
        }
    }

    /// Sees what became of the worker that waits, while `current` serves.
    pub(super) fn look_at_standby(&mut self, current: &Worker) {
        let Some(mut standby) = self.standby.take() else {
            return;
        };
        for (message, _) in standby.worker.control.read() {
            if message == Message::Prepared && standby.deadline.take().is_some() {
                tracing::info!(pid = standby.worker.pid, "the new program can serve");
                self.hands_over = true;
                if let Err(error) = current.control.tell(&ToWorker::HandOver) {
                    tracing::error!(%error, "the worker does not hear that it is to hand over");
                }
            }
        }
        let is_stopped = self.stops > 0 && !self.hands_over;
        match standby.fault(is_stopped) {
            Some(fault) => {
                self.lingering.push(standby.worker.pid);
                // A worker that leaves everything already is followed by the old program.
                self.refuse(&fault, (!self.hands_over).then_some(current));
            }
            None => self.standby = Some(standby),
        }
    }

    /// Lets the worker that waits serve, now that nobody else does.
    pub(super) fn start_standby(&mut self) -> Option<State> {
        let Standby {
            program,
            mut worker,
            deadline,
        } = self.standby.take()?;
        if deadline.is_some() {
            self.end(&worker);
            self.refuse("the old one died before it was ready", None);
            return None;
        }
        let before = self.serving.clone();
        self.serving.upgrades += 1;
        self.serving.upgrade_failure = None;
        let start = ToWorker::Start(self.serving.clone());
        if let Err(error) = worker.control.tell(&start) {
            self.serving = before;
            self.end(&worker);
            self.refuse(&error.to_string(), None);
            return None;
        }
        worker.started = Instant::now();
        self.next = Some(program);
        let until = worker.started + pause_max(self.usual_time);
        Some(State::Runs(worker, Some(until)))
    }

    /// Ends the worker that waits, since there is nothing to wait for any more.
    pub(super) fn end_standby(&mut self) {
        if let Some(standby) = self.standby.take() {
            self.end(&standby.worker);
        }
    }

    /// The program that was started does not serve.
    pub(super) fn has_failed_to_take_over(&mut self, how: &str) {
        let failure = format!("the new program could not serve ({how})");
        tracing::error!(
            reason = how,
            "the new program does not come to serve; the old one goes on"
        );
        self.serving.upgrade_failure = Some(failure);
    }

    /// The program that was to take over is not started; `current` goes on.
    fn refuse(&mut self, why: &str, current: Option<&Worker>) {
        self.serving.upgrades += 1;
        self.has_failed_to_take_over(why);
        let Some(current) = current else { return };
        let news = ToWorker::Serving(self.serving.clone());
        if let Err(error) = current.control.tell(&news) {
            tracing::warn!(%error, "the worker does not hear how the hand-over went");
        }
        let pid = current.pid;
        notify(&format!("READY=1\nSTATUS=served by process {pid}"));
    }

    /// Kills a worker that never served.
    fn end(&mut self, worker: &Worker) {
        kill_group(worker.pid);
        self.lingering.push(worker.pid);
    }
}

/// How long users may wait for another program to serve, where a worker of this pool has taken
/// `usual` before.
fn pause_max(usual: Option<Duration>) -> Duration {
    let several = usual.unwrap_or_default().saturating_mul(PAUSE_FACTOR);
    several.clamp(PAUSE_MIN, UPGRADE_TIME)
}

/// The clock by which a service manager tells old news from new.
fn monotonic_us() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_two_seconds_unless_this_pool_takes_longer_to_open() {
        let pause = |millis| pause_max(Some(Duration::from_millis(millis)));
        assert_eq!(pause_max(None), Duration::from_secs(2));
        assert_eq!(pause(20), Duration::from_secs(2));
        assert_eq!(pause(1500), Duration::from_secs(6));
        assert_eq!(pause(600_000), UPGRADE_TIME);
    }
}
