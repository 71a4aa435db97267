//! The keeper: the daemon's main process, which outlives the process that serves.
//!
//! The keeper runs no engine and has one thread; the only other one, the log's, starts no
//! processes. It holds every descriptor that must not be closed while somebody uses a volume
//! (`inherited_fds`) and starts a *worker* that serves with them. When the worker dies, the keeper
//! starts another one, which goes on where the first one stopped: users see a pause.
//!
//! # Invariants
//! - A successor opens the pool only once the dead worker can no longer change it (`fence`).
//! - The keeper never touches a file of the mount, nor of a file system on a volume: without a
//!   worker, the access would wait for ever.
//! - When there is to be no successor, the keeper ends the mount, so that users get errors. It also
//!   does so when a worker dies whose requests came over rings: they are lost with the worker.
//! - If the keeper dies, its worker goes on, and stops in order; no worker follows it.

mod children;
mod control;
mod fence;
mod handed_arguments;
mod handover;
mod inherited_fds;
mod opening;
mod restarts;
mod shield;
mod sides;
mod signals;
mod succession;
mod watchdog;
mod worker_process;

pub use control::ToKeeper;
pub(crate) use control::ToWorker;
pub use handed_arguments::own as own_arguments;
pub use inherited_fds::Serving;
pub(crate) use inherited_fds::{HANDOVER, InheritedFds, Told, is_understood, take_descriptor};
pub use opening::{run, take_over};
pub(crate) use shield::restore_oom_score;
pub use worker_process::plain_arguments;

use super::service_manager::{self, notify};
use children::{describe, exit_status, has_ended, reap, was_killed};
use control::Message;
use cowshed_export::Transport;
use cowshed_sys::mount;
use fence::Left;
use handover::{Standby, UPGRADE_TIME};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use restarts::{Death, Next, Restarts};
use sides::Watch;
use signals::{KeeperSignals, News};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use watchdog::Watchdog;
use worker_process::{Program, Start, Worker, kill_group};

/// The time that a dead worker may spend in a call that could change the pool; a disk that takes
/// longer is considered broken.
const FENCE_TIME: Duration = Duration::from_secs(60);
/// The interval at which the dead worker is inspected meanwhile.
const FENCE_POLL_MIN: Duration = Duration::from_millis(1);
const FENCE_POLL_MAX: Duration = Duration::from_millis(20);
/// The time that the keeper waits for a worker that ends before it counts the worker's threads as
/// lingering.
const REAP_TIME: Duration = Duration::from_millis(100);
/// The time that the keeper waits for a dead worker to end after the mount has been ended.
const END_TIME: Duration = Duration::from_secs(10);
/// The exit status of a failure that no worker reported.
const FAILED: u8 = 1;

/// The operations that the keeper's owner performs for it.
trait Owner {
    /// Called when the first worker serves; `worker` is its process id.
    fn serves(&mut self, worker: u32);
    /// Called when the keeper ends without having served, with the reason.
    fn does_not_serve(&mut self, why: &str);
    /// Opens the log again.
    fn reopen_log(&mut self);
    /// Waits a while until the log is written.
    fn flush_log(&mut self);
    /// Removes what is left of the mounts, once nobody serves any more.
    fn clear_away(&mut self);
}

/// Holds what must outlive the workers, and keeps one worker running.
struct Keeper<O> {
    owner: O,
    signals: KeeperSignals,
    inherited_fds: InheritedFds,
    /// The files of the pool's sides, as far as they are watched.
    watches: Vec<Watch>,
    /// Number of times that a side was added or removed.
    side_changes: u64,
    serving: Serving,
    restarts: Restarts,
    watchdog: Watchdog,
    oom_score: Option<i32>,
    /// Number of stop signals received, and how many of them were sent to the worker.
    stops: u32,
    stops_sent: u32,
    /// A worker of another program that waits until it may serve.
    standby: Option<Standby>,
    /// True if the serving worker was told to leave everything to the waiting one.
    hands_over: bool,
    /// The program of the worker that took over, until it serves.
    next: Option<Program>,
    /// The time that a worker of this pool took to serve the volumes.
    usual_time: Option<Duration>,
    /// The ends of the `life` pipes of earlier workers.
    predecessors: Vec<OwnedFd>,
    /// Dead workers whose threads linger.
    lingering: Vec<u32>,
    has_served: bool,
}

/// The keeper's state.
enum State {
    /// A worker runs; if it is another program's, it must serve by this time.
    Runs(Worker, Option<Instant>),
    /// A worker that died at this time.
    Dies(Worker, Instant),
    /// No worker until this time.
    Waits(Instant),
    /// The keeper ends with this exit status.
    Over(u8),
}

impl<O: Owner> Keeper<O> {
    /// Returns a keeper of `inherited_fds`, without a worker yet.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    fn new(owner: O, signals: KeeperSignals, inherited_fds: InheritedFds) -> io::Result<Self> {
        let oom_score = shield::raise();
        Ok(Self {
            watches: sides::watch(&inherited_fds.sides)?,
            side_changes: 0,
            owner,
            signals,
            inherited_fds,
            serving: Serving {
                keeper: std::process::id(),
                worker: 0,
                version: String::new(),
                restarts: 0,
                upgrades: 0,
                upgrade_failure: None,
                last_failure: None,
            },
            restarts: Restarts::default(),
            watchdog: Watchdog::of_service_manager(),
            oom_score,
            stops: 0,
            stops_sent: 0,
            standby: None,
            hands_over: false,
            next: None,
            usual_time: None,
            predecessors: Vec::new(),
            lingering: Vec::new(),
            has_served: false,
        })
    }

    /// Keeps a worker running until one ends on purpose or no more can run; returns the exit
    /// status, with everything cleared away.
    fn run(self) -> u8 {
        let state = State::Waits(Instant::now());
        self.run_from(state)
    }

    fn run_from(mut self, mut state: State) -> u8 {
        loop {
            state = match state {
                State::Runs(worker, deadline) => self.watch(worker, deadline),
                State::Dies(worker, since) => self.fence(worker, since),
                State::Waits(until) => self.wait(until),
                State::Over(status) => return self.close(status),
            };
        }
    }

    /// Waits for an event, at most until `until`, and takes the pending signals. Returns true if a
    /// child has ended.
    fn sleep(&mut self, worker: Option<&Worker>, until: Option<Instant>) -> bool {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(worker) = worker {
            fds.push(PollFd::new(worker.control.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(worker.pulse.as_fd(), PollFlags::empty()));
        }
        let mut times: Vec<_> = until.into_iter().collect();
        if worker.is_some() {
            times.extend(self.watchdog.next());
            if let Some(standby) = &self.standby {
                fds.extend(standby.poll_fds());
                times.extend(standby.deadline());
            }
        }
        let until = times.into_iter().min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that the time has passed when the wait ends.
            let left = until.saturating_duration_since(Instant::now());
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        // After an interrupted or failed wait, the caller checks everything again.
        let _ = poll(&mut fds, timeout);
        let mut child_ended = false;
        while let Some(news) = self.signals.next() {
            match news {
                News::Stop => {
                    self.stops += 1;
                    notify("STOPPING=1\nSTATUS=stopping");
                }
                News::Child => child_ended = true,
                News::ReopenLog => {
                    self.owner.reopen_log();
                    tracing::info!("reopened the log");
                    if let Some(worker) = worker {
                        worker.signal(Signal::SIGHUP);
                    }
                }
            }
        }
        child_ended
    }

    fn start(&mut self) -> State {
        self.ask_witnesses();
        if self.inherited_fds.handover_state.has_device_failed() {
            // Another worker would find data in the page cache that the host could not write, and
            // take it for durable.
            tracing::error!(
                "the host failed to write to the pool's device, so no other worker is started, and \
                 users of the volumes get errors; repair the device, then serve again: the pool is \
                 as of its last flush"
            );
            notify("STATUS=the pool's device has failed");
            return self.give_up(None, FAILED);
        }
        if let Some(state) = self.start_standby() {
            return state;
        }
        self.predecessors.retain(|life| !is_over(life));
        let started = Worker::start(Start {
            program: &Program::Own,
            inherited_fds: &self.inherited_fds,
            serving: &self.serving,
            predecessors: self.predecessors.iter().map(AsFd::as_fd).collect(),
            oom_score: self.oom_score,
            standby: false,
        });
        match started {
            Ok(worker) => State::Runs(worker, None),
            Err(error) => {
                tracing::error!(%error, "cannot start a worker");
                self.after_death(None, None)
            }
        }
    }

    fn wait(&mut self, until: Instant) -> State {
        let hurry = self.stops > 0;
        if hurry || Instant::now() >= until {
            return self.start();
        }
        if self.sleep(None, Some(until)) {
            self.reap_lingering();
        }
        State::Waits(until)
    }

    fn watch(&mut self, mut worker: Worker, mut deadline: Option<Instant>) -> State {
        if self.sleep(Some(&worker), deadline) {
            self.reap_lingering();
        }
        let served_volumes = worker.serves_volumes;
        self.listen(&mut worker);
        self.look_at_standby(&worker);
        self.watchdog.look_at(&worker);
        if deadline.is_some() && worker.serves_volumes && !served_volumes {
            // Users do not wait for the remaining services.
            deadline = Some(Instant::now() + UPGRADE_TIME);
        }
        if worker.ready.is_some() && deadline.is_some() {
            self.become_next(&worker);
            return State::Runs(worker, None);
        }
        if is_over(&worker.pulse) || has_ended(worker.pid) {
            return State::Dies(worker, Instant::now());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            worker.is_late = true;
            worker.signal(Signal::SIGKILL);
            return State::Dies(worker, Instant::now());
        }
        if worker.ready.is_some() {
            while self.stops_sent < self.stops {
                // The keeper sends a message instead of a signal: a signal may come to all
                // processes of a service at once, and must not count twice.
                if let Err(error) = worker.control.tell(&ToWorker::Stop) {
                    tracing::warn!(%error, "cannot send a message to the worker: sending a signal");
                    worker.signal(Signal::SIGTERM);
                }
                self.stops_sent += 1;
            }
        } else if self.stops > 1 {
            tracing::warn!("asked to stop twice before the worker serves: killing it");
            worker.signal(Signal::SIGKILL);
        }
        State::Runs(worker, deadline)
    }

    /// Handles the messages that the worker has sent.
    fn listen(&mut self, worker: &mut Worker) {
        for (message, file) in worker.control.read() {
            match (message, file) {
                (Message::Ready, _) => self.serves(worker),
                (Message::ServesVolumes, _) => {
                    worker.serves_volumes = true;
                    self.usual_time = Some(worker.started.elapsed());
                    self.forget_doubts();
                }
                (Message::Prepare { arguments }, Some(file)) => {
                    let arguments = arguments.into_iter().map(OsString::from_vec);
                    self.prepare(Program::Other(file, arguments.collect()), worker);
                }
                (Message::SideAdded { path }, Some(file)) => self.add_side(path_of(path), file),
                (Message::SideJoins { path }, _) => self.trust_side(&path_of(path)),
                // The worker waits until its descriptor is closed, which is after this.
                (Message::SideRemoved { path }, _waits) => self.remove_side(&path_of(path)),
                (message @ (Message::Prepare { .. } | Message::SideAdded { .. }), None) => {
                    tracing::error!(?message, "the worker sent a message without its file");
                }
                (Message::Alive, _) => self.watchdog.answered(worker.pid),
                // Only a waiting worker sends this.
                (Message::Prepared, _) => {}
                (Message::HandedOver, _) => {
                    worker.ended = true;
                    worker.handed_over = true;
                }
                (Message::Ended, _) => worker.ended = true,
                (Message::Failed(why), _) => worker.failure = Some(why),
            }
        }
    }

    fn serves(&mut self, worker: &mut Worker) {
        worker.ready = Some(Instant::now());
        self.serving.worker = worker.pid;
        if !self.has_served {
            self.has_served = true;
            self.owner.serves(worker.pid);
        }
        notify(&format!("READY=1\nSTATUS=served by process {}", worker.pid));
    }

    /// Waits until the dead worker cannot change the pool.
    fn fence(&mut self, mut worker: Worker, since: Instant) -> State {
        kill_group(worker.pid);
        self.listen(&mut worker);
        if let Some(status) = reap(worker.pid) {
            return self.after_death(Some(worker), Some(status));
        }
        let passed = since.elapsed();
        let pool: Vec<_> = self.watches.iter().map(|watch| watch.identity).collect();
        match fence::look(worker.pid, &pool) {
            Ok(Left::MayWrite(thread)) if passed >= FENCE_TIME => {
                tracing::error!(
                    thread,
                    "a thread of a dead worker may still write to the pool, because the disk does \
                     not answer; no other worker is started"
                );
                return self.give_up(Some(worker.pid), FAILED);
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot inspect the threads of the dead worker; no other worker is started"
                );
                return self.give_up(Some(worker.pid), FAILED);
            }
            // A worker that ends on purpose gets some time, so that it can be reaped.
            Ok(Left::Harmless(_)) if !worker.ended || passed >= REAP_TIME => {
                tracing::info!(
                    pid = worker.pid,
                    "threads of the dead worker linger, but cannot write to the pool"
                );
                return self.after_death(Some(worker), None);
            }
            Ok(_) => {}
        }
        let pause = (passed / 8).clamp(FENCE_POLL_MIN, FENCE_POLL_MAX);
        if self.sleep(None, Some(Instant::now() + pause)) {
            self.reap_lingering();
        }
        State::Dies(worker, since)
    }

    /// Decides what follows after a worker has ended, or could not be started, or has only
    /// lingering threads left, so that its exit status cannot be known yet.
    fn after_death(&mut self, worker: Option<Worker>, status: Option<WaitStatus>) -> State {
        let how = status.map_or_else(|| "killed".to_owned(), |status| describe(&status));
        let exit = status.as_ref().and_then(exit_status);
        let Some(worker) = worker else {
            return self.follow(None, false, FAILED);
        };
        self.hands_over = false;
        let hands_over = worker.handed_over;
        let (pid, ended) = (worker.pid, worker.ended);
        let how = worker.failure.unwrap_or(how);
        let served = worker.ready.map(|ready| ready.elapsed());
        self.predecessors.push(worker.life);
        if status.is_none() {
            self.lingering.push(pid);
        }
        if ended && !hands_over {
            return match exit {
                Some(exit) => State::Over(exit),
                None => self.end_stopped(pid),
            };
        }
        if ended {
            // The worker left everything to the next program, which is told to stop, too.
            self.stops_sent = 0;
            return State::Waits(Instant::now());
        }
        if !self.has_served {
            self.owner.does_not_serve(&how);
            return State::Over(exit.unwrap_or(FAILED));
        }
        if served.is_none() && self.next.take().is_some() {
            let late = worker.is_late.then_some("it did not serve in time");
            self.has_failed_to_take_over(late.unwrap_or(&how));
            return State::Waits(Instant::now());
        }
        tracing::error!(pid, %how, "the worker died");
        self.serving.last_failure = Some(format!("{} process {pid}: {how}", now()));
        if self.stops > 1 && served.is_none() {
            return self.give_up(None, exit.unwrap_or(FAILED));
        }
        // A successor is told to stop, too.
        self.stops_sent = 0;
        if self.inherited_fds.connection.negotiated().transport() == Transport::IoUring {
            // The requests that were sent to the worker are lost, and no other worker could reply
            // to them.
            tracing::error!(
                "the volumes were served over io_uring, where no other worker can continue; users \
                 of the volumes get errors; serve again: the pool has all that was acknowledged"
            );
            notify("STATUS=the worker died, and no other can follow it over io_uring");
            return self.give_up(None, exit.unwrap_or(FAILED));
        }
        self.follow(served, was_killed(status), exit.unwrap_or(FAILED))
    }

    fn follow(&mut self, served: Option<Duration>, killed: bool, exit: u8) -> State {
        if !self.has_served {
            return State::Over(exit);
        }
        match self.restarts.after(Death { served, killed }) {
            Next::After(pause) => {
                self.serving.restarts += 1;
                let number = self.serving.restarts;
                tracing::warn!(number, ?pause, "starting another worker");
                notify(&format!("STATUS=restarting, {number} times so far"));
                State::Waits(Instant::now() + pause)
            }
            Next::GiveUp => {
                tracing::error!(
                    "{} workers in a row failed; no other worker is started, and users of the \
                     volumes get errors",
                    restarts::FAILURES_MAX
                );
                self.give_up(None, exit)
            }
        }
    }

    /// Ends the mount, because nobody will serve it.
    fn give_up(&mut self, worker: Option<u32>, exit: u8) -> State {
        self.lingering.extend(worker);
        let connection = self.inherited_fds.connection.parts();
        // The source identifies the mount as ours, and not one that somebody has mounted there
        // since.
        let top = mount::mount_at(&connection.dir).ok().flatten();
        if top.is_some_and(|top| top.source == *connection.source) {
            // The call returns EBUSY while the mount is in use, but has ended the connection by
            // then.
            if let Err(error) = mount::abort(&connection.dir) {
                tracing::debug!(%error, "cannot abort the mount");
            }
        }
        State::Over(exit)
    }

    /// Ends a worker that has stopped, but whose threads wait for a volume that nobody serves any
    /// more.
    fn end_stopped(&mut self, pid: u32) -> State {
        self.lingering.retain(|other| *other != pid);
        let _ = self.give_up(None, FAILED);
        let deadline = Instant::now() + END_TIME;
        while Instant::now() < deadline {
            if let Some(status) = reap(pid) {
                return State::Over(exit_status(&status).unwrap_or(FAILED));
            }
            self.sleep(None, Some(Instant::now() + FENCE_POLL_MAX));
        }
        State::Over(FAILED)
    }

    fn reap_lingering(&mut self) {
        self.lingering.retain(|pid| reap(*pid).is_none());
    }

    /// Releases everything, the pool's locks before the socket's file.
    fn close(mut self, status: u8) -> u8 {
        self.end_standby();
        let deadline = Instant::now() + END_TIME;
        let InheritedFds {
            sides,
            listening,
            connection,
            ..
        } = self.inherited_fds;
        // The last copies of the connection's descriptors: a process that still waits for a volume
        // gets an error.
        drop(connection);
        while !self.lingering.is_empty() && Instant::now() < deadline {
            self.lingering.retain(|pid| reap(*pid).is_none());
            std::thread::sleep(FENCE_POLL_MAX);
        }
        self.owner.clear_away();
        drop(sides);
        drop(listening);
        status
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns the current time in the form used for people and in JSON.
fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(SystemTime::now())
}

/// Returns true if no process has the other end of a pipe open any more.
fn is_over(pipe: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any().unwrap_or(false)
}
