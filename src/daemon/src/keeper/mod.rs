//! The keeper: the daemon's main process, which outlives the one that serves.
//!
//! It has no pool, and one thread beside the log's, which starts nothing. It holds every descriptor
//! that must not be closed while somebody uses a volume (`inherited_fds`), starts a *worker* that
//! serves with them, and when that dies, starts another one, which goes on where the first one was:
//! users see a pause.
//!
//! # Invariants
//! - A successor opens the pool only when the dead worker cannot change it any more (`fence`).
//! - The keeper never touches a file of the mount, nor of a file system on a volume: without a
//!   worker it would wait for ever.
//! - When there is to be no successor, the mount is ended, so that users get errors: so it is with
//!   a mount whose requests come over rings, which are lost with a worker.
//! - If the keeper dies, its worker goes on, and stops in order; nobody follows it.

mod arguments;
mod children;
mod control;
mod fence;
mod handover;
mod inherited_fds;
mod restarts;
mod shield;
mod signals;
mod succession;
mod watchdog;
mod worker;

pub use arguments::own as own_arguments;
pub use control::{ToKeeper, ToWorker};
pub use inherited_fds::{
    HANDOVER, InheritedFdParts, InheritedFds, Serving, Told, is_understood, take_descriptor,
};
pub use shield::restore_oom_score;
pub use signals::KeeperSignals;
pub use succession::resume;
pub use worker::{KEEPER_ARGUMENT, STANDBY_ARGUMENT, WORKER_ARGUMENT, plain_arguments};

use super::service_manager::{self, notify};
use children::{describe, exit_status, has_ended, reap, was_killed};
use control::Message;
use cowshed_export::Transport;
use cowshed_sys::{mount, write_back};
use fence::{Left, PoolFile};
use handover::{Standby, UPGRADE_TIME};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use restarts::{Death, Next, Restarts};
use signals::News;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant, SystemTime};
use watchdog::Watchdog;
use worker::{Program, Start, Worker, kill_group};

/// How long a dead worker may go on in a call that could change the pool; a disk that answers
/// later than this is taken for broken.
const FENCE_TIME: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const FENCE_POLL_MIN: Duration = Duration::from_millis(1);
const FENCE_POLL_MAX: Duration = Duration::from_millis(20);
/// How long a worker that ends is waited for before it counts as one whose threads linger.
const REAP_TIME: Duration = Duration::from_millis(100);
/// How long the end of a dead worker is waited for once the mount has been ended.
const END_TIME: Duration = Duration::from_secs(10);
/// The exit status of a failure that no worker told.
const FAILED: u8 = 1;

/// What the keeper's owner does for it.
pub trait Owner {
    /// The first worker serves, as this process.
    fn serves(&mut self, worker: u32);
    /// It ends without having served, because of that.
    fn does_not_serve(&mut self, why: &str);
    /// Opens the log again.
    fn reopen_log(&mut self);
    /// Waits a while until the log is written.
    fn flush_log(&mut self);
    /// Nobody serves any more: clears away what is left of the mounts.
    fn clear_away(&mut self);
}

/// Holds what must outlive the workers, and sees to it that there is one.
pub struct Keeper<O> {
    owner: O,
    signals: KeeperSignals,
    inherited_fds: InheritedFds,
    pool: PoolFile,
    /// The pool's file, opened apart from the workers': it learns of a failed write although the
    /// worker that was told of it died of something else at that moment.
    witness: File,
    serving: Serving,
    restarts: Restarts,
    watchdog: Watchdog,
    oom_score: Option<i32>,
    /// How many signals to stop have come, and how many of them the worker was sent.
    stops: u32,
    stops_sent: u32,
    /// A worker of another program that waits until it may serve.
    standby: Option<Standby>,
    /// Whether the worker was told to leave everything to the one that waits.
    hands_over: bool,
    /// The program of the worker that took over, until it serves.
    next: Option<Program>,
    /// How long a worker of this pool took to serve the volumes.
    usual_time: Option<Duration>,
    /// The ends of `life` of the workers before.
    predecessors: Vec<OwnedFd>,
    /// Dead workers of which threads linger.
    lingering: Vec<u32>,
    has_served: bool,
}

/// What the keeper is about to do.
enum State {
    /// A worker runs; until then it must serve, if it is another program's.
    Runs(Worker, Option<Instant>),
    /// A worker that died since then.
    Dies(Worker, Instant),
    /// No worker until then.
    Waits(Instant),
    /// All is over, with this exit status.
    Over(u8),
}

impl<O: Owner> Keeper<O> {
    /// A keeper of `inherited_fds`, without a worker yet.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn new(owner: O, signals: KeeperSignals, inherited_fds: InheritedFds) -> io::Result<Self> {
        let oom_score = shield::raise();
        Ok(Self {
            pool: PoolFile::of(&inherited_fds.pool)?,
            witness: File::open(format!("/proc/self/fd/{}", inherited_fds.pool.as_raw_fd()))?,
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

    /// Keeps a worker running until one ends on purpose or no more can run; answers the exit
    /// status, with everything cleared away.
    pub fn run(self) -> u8 {
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

    /// Waits for something to happen, at most until then, and takes the signals that came.
    /// Answers whether a child has ended.
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
            // Rounded up, so that it has passed after that.
            let left = until.saturating_duration_since(Instant::now());
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        // An interrupted or failed wait is followed by another look at everything.
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
                    tracing::info!("the log is opened again");
                    if let Some(worker) = worker {
                        worker.signal(Signal::SIGHUP);
                    }
                }
            }
        }
        child_ended
    }

    fn start(&mut self) -> State {
        if write_back::has_failed(self.witness.as_fd()) {
            self.inherited_fds.handover_state.failure_note()();
        }
        if self.inherited_fds.handover_state.has_device_failed() {
            // Another worker would find in the page cache what the host could not write, and take
            // it for durable.
            tracing::error!(
                "the host failed to write to the pool's device, so no other worker is started; \
                 the volumes are cut off. See to the device, then serve again: the pool comes back \
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
            // Nobody waits for the rest.
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
                // By word of the keeper: a signal may come to all processes of a service at once,
                // and must not count twice.
                if let Err(error) = worker.control.tell(&ToWorker::Stop) {
                    tracing::warn!(%error, "the worker does not hear, and is sent a signal");
                    worker.signal(Signal::SIGTERM);
                }
                self.stops_sent += 1;
            }
        } else if self.stops > 1 {
            tracing::warn!("told to stop twice before the worker serves");
            worker.signal(Signal::SIGKILL);
        }
        State::Runs(worker, deadline)
    }

    /// Takes what the worker has said.
    fn listen(&mut self, worker: &mut Worker) {
        for (message, file) in worker.control.read() {
            match (message, file) {
                (Message::Ready, _) => self.serves(worker),
                (Message::ServesVolumes, _) => {
                    worker.serves_volumes = true;
                    self.usual_time = Some(worker.started.elapsed());
                }
                (Message::Prepare { arguments }, Some(file)) => {
                    let arguments = arguments.into_iter().map(OsString::from_vec);
                    self.prepare(Program::Other(file, arguments.collect()), worker);
                }
                (Message::Prepare { .. }, None) => {
                    tracing::error!("a hand-over without a program");
                }
                (Message::Alive, _) => self.watchdog.answered(worker.pid),
                // Only one that waits says so.
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
        match fence::look(worker.pid, &self.pool) {
            Ok(Left::MayWrite(thread)) if passed >= FENCE_TIME => {
                tracing::error!(
                    thread,
                    "a dead worker's thread may still write to the pool; its disk does not answer"
                );
                return self.give_up(Some(worker.pid), FAILED);
            }
            Err(error) => {
                tracing::error!(%error, "cannot see what is left of the dead worker");
                return self.give_up(Some(worker.pid), FAILED);
            }
            // What ends on purpose is left some time, so that it can be waited for.
            Ok(Left::Harmless(_)) if !worker.ended || passed >= REAP_TIME => {
                tracing::info!(pid = worker.pid, "threads of the dead worker linger");
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

    /// A worker has ended, or could not be started; or only threads of it are left, and how it
    /// ended cannot be known yet.
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
            // It left everything to the next program, which is told to stop, too.
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
            // What it had been sent is lost, and nobody else could answer it.
            tracing::error!(
                "the volumes were served over io_uring, where no other worker can go on; they are \
                 cut off, and their users get errors. Serve again: the pool has all that was \
                 acknowledged"
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
                    "{} workers in a row failed; the volumes are cut off, and their users get errors",
                    restarts::FAILURES_MAX
                );
                self.give_up(None, exit)
            }
        }
    }

    /// Ends the mount, since nobody will serve it.
    fn give_up(&mut self, worker: Option<u32>, exit: u8) -> State {
        self.lingering.extend(worker);
        let connection = self.inherited_fds.connection.parts();
        // By its source it is known to be ours, and not what somebody mounted there since.
        let top = mount::mount_at(&connection.dir).ok().flatten();
        if top.is_some_and(|top| top.source == *connection.source) {
            // It answers EBUSY while it is in use, but has ended the connection by then.
            if let Err(error) = mount::abort(&connection.dir) {
                tracing::debug!(%error, "ended, and in use");
            }
        }
        State::Over(exit)
    }

    /// The worker has stopped, but threads of it wait for a volume that nobody serves any more.
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

    /// Lets go of everything, the pool's lock before the socket's file.
    fn close(mut self, status: u8) -> u8 {
        self.end_standby();
        let deadline = Instant::now() + END_TIME;
        let InheritedFds {
            pool,
            listening,
            connection,
            ..
        } = self.inherited_fds;
        // The last copies: whoever still waits for a volume gets an error.
        drop(connection);
        while !self.lingering.is_empty() && Instant::now() < deadline {
            self.lingering.retain(|pid| reap(*pid).is_none());
            std::thread::sleep(FENCE_POLL_MAX);
        }
        self.owner.clear_away();
        drop(pool);
        drop(listening);
        status
    }
}

/// The time as people and JSON get it.
fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(SystemTime::now())
}

/// Whether nobody has the other end of a pipe any more.
fn is_over(pipe: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any().unwrap_or(false)
}
