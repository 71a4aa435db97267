//! The hand-over to another program: the keeper starts a worker of that program beside the one that
//! serves, and the new worker proves that it can read the pool. Only then does the keeper tell the
//! serving worker to leave everything to the new one.
//!
//! # Invariants
//! - A waiting worker opens nothing for writing before the keeper tells it to start, which happens
//!   once the previous worker can no longer change the pool.
//! - A program that never serves costs one line of the log and, if it hangs after its proof, a
//!   pause of `pause_max`.

use super::control::{Message, ToWorker};
use super::worker_process::{Program, Start, Worker, kill_group};
use super::{Keeper, Owner, State, describe, has_ended, is_over, notify, reap};
use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The time within which another program must prove that it could serve; users do not wait for it.
const PREPARE_TIME: Duration = Duration::from_secs(10);
/// The minimum time that the program may take to serve the volumes, for which users wait.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// The program may take this multiple of the time that a worker took before, if that is longer.
const PAUSE_FACTOR: u32 = 4;
/// The time that another program may take to serve, once users no longer wait for it.
pub(super) const UPGRADE_TIME: Duration = Duration::from_secs(30);

/// A worker of another program that waits until it may serve.
pub(super) struct Standby {
    program: Program,
    worker: Worker,
    /// The time by which it must prove that it could serve; `None` once it has.
    deadline: Option<Instant>,
    /// `Keeper::side_changes` when it was started.
    side_changes: u64,
}

impl Standby {
    /// Returns the time by which it must prove that it could serve, if it has not yet.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns the descriptors to poll for a change of its state.
    pub(super) fn poll_fds(&self) -> [PollFd<'_>; 2] {
        [
            PollFd::new(self.worker.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.worker.pulse.as_fd(), PollFlags::empty()),
        ]
    }

    /// Returns the worker's fault if it has one, and kills it.
    fn fault(&self, is_stopped: bool) -> Option<String> {
        let pid = self.worker.pid;
        let is_late = self.deadline.is_some_and(|until| Instant::now() >= until);
        if is_over(&self.worker.pulse) || has_ended(pid) {
            kill_group(pid);
            let how = reap(pid).map(|status| describe(&status));
            return Some(how.unwrap_or_else(|| "killed".to_owned()));
        }
        let fault = if is_stopped {
            "the daemon was asked to stop".to_owned()
        } else if is_late {
            let seconds = PREPARE_TIME.as_secs();
            format!("it did not report within {seconds} s that it can read the pool")
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
            tracing::warn!("refused a hand-over: another one is in progress");
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
                    side_changes: self.side_changes,
                });
            }
            Err(error) => self.refuse(&error.to_string(), Some(current)),
        }
    }

    /// Checks on the waiting worker while `current` serves.
    pub(super) fn look_at_standby(&mut self, current: &Worker) {
        let Some(mut standby) = self.standby.take() else {
            return;
        };
        for (message, _) in standby.worker.control.read() {
            if message == Message::Prepared && standby.deadline.take().is_some() {
                tracing::info!(
                    pid = standby.worker.pid,
                    "the new program is ready to serve"
                );
                self.hands_over = true;
                if let Err(error) = current.control.tell(&ToWorker::HandOver) {
                    tracing::error!(%error, "cannot ask the worker to hand over");
                }
            }
        }
        let is_stopped = self.stops > 0 && !self.hands_over;
        match standby.fault(is_stopped) {
            Some(fault) => {
                self.lingering.push(standby.worker.pid);
                // If the serving worker is already handing over, the old program follows it.
                self.refuse(&fault, (!self.hands_over).then_some(current));
            }
            None => self.standby = Some(standby),
        }
    }

    /// Lets the waiting worker serve, now that no other worker does.
    pub(super) fn start_standby(&mut self) -> Option<State> {
        let Standby {
            program,
            mut worker,
            deadline,
            side_changes,
        } = self.standby.take()?;
        if deadline.is_some() {
            self.end(&worker);
            self.refuse("the old worker died before the new one was ready", None);
            return None;
        }
        if side_changes != self.side_changes {
            // It has the files of the sides as of when it was started.
            self.end(&worker);
            self.refuse("a side was added or removed meanwhile; try again", None);
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

    /// Ends the waiting worker, because there is nothing to wait for any more.
    pub(super) fn end_standby(&mut self) {
        if let Some(standby) = self.standby.take() {
            self.end(&standby.worker);
        }
    }

    /// Records that the program that was started does not serve.
    pub(super) fn has_failed_to_take_over(&mut self, how: &str) {
        let failure = format!("the new program could not serve ({how})");
        tracing::error!(
            reason = how,
            "the new program does not come to serve; the old one continues"
        );
        self.serving.upgrade_failure = Some(failure);
    }

    /// Records that the program that was to take over is not started; `current` goes on.
    fn refuse(&mut self, why: &str, current: Option<&Worker>) {
        self.serving.upgrades += 1;
        self.has_failed_to_take_over(why);
        let Some(current) = current else { return };
        let news = ToWorker::Serving(self.serving.clone());
        if let Err(error) = current.control.tell(&news) {
            tracing::warn!(%error, "cannot report the result of the hand-over to the worker");
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

/// Returns how long users may wait for another program to serve, if a worker of this pool took
/// `usual` before.
fn pause_max(usual: Option<Duration>) -> Duration {
    let several = usual.unwrap_or_default().saturating_mul(PAUSE_FACTOR);
    several.clamp(PAUSE_MIN, UPGRADE_TIME)
}

/// Returns the monotonic time, by which a service manager tells old notices from new ones.
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
