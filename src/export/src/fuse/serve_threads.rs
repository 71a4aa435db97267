//! The threads that serve: one for each descriptor, more while a disk is at work, and one in place
//! of each thread that waits. With rings, also one for each ring, and helpers that wait instead of
//! them.
//!
//! # Invariants
//! - As many threads as there are descriptors are ready to serve, however many wait; up to
//!   `WAITING_MAX` may wait, and further requests are refused permission to wait.
//! - A mount hangs without its threads, and a ring without its thread: if one cannot continue, the
//!   mount is ended.
//! - `ServeThreads` has descriptors of the serving threads' own table, so it exists in those
//!   threads only; other threads use its `Control`.

use super::disk_pressure::DiskPressure;
use super::dispatch::RequestServer;
use super::files::VolumeFiles;
use super::rings::{self, Queues};
use super::transport::{self, End};
use cowshed_engine::Waiter;
use cowshed_sys::{interrupt, mount, time_slice};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The maximum number of requests that wait at once: more than the kernel sends in the background.
/// Each occupies a thread with its buffer.
pub(super) const WAITING_MAX: usize = 512;
/// The maximum number of requests that helpers serve at once because a disk is slow: requests that
/// wait for space need helpers, too.
pub(super) const DISK_HELPERS_MAX: usize = 32;
/// The minimum number of serving threads while a disk is at work, so that the disk gets as many
/// requests at once.
const SLOW_THREADS: usize = 16;
/// The minimum time for which the additional threads stay: starting one takes longer than many
/// requests.
const SLOW_THREADS_STAY_MS: u64 = 5000;
/// The time for which an idle helper waits for work.
const HELPER_IDLE: Duration = Duration::from_secs(2);

const THIS_THREAD: Pid = Pid::from_raw(0);

/// The work of a helper.
type Errand = Box<dyn FnOnce(&ServeThreads) + Send>;

/// The numbers of threads, and the means to stop them.
#[derive(Default)]
pub(super) struct Control {
    stopping: AtomicBool,
    /// Number of threads beyond those that are needed.
    surplus: AtomicUsize,
    state: Mutex<State>,
    ended: Condvar,
    errand_came: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of threads that should be ready.
    wanted: usize,
    /// Number of threads that have started and not ended.
    alive: usize,
    /// Number of these threads that wait.
    waiting: usize,
    /// Number of threads that serve rings, or wait instead of them.
    of_rings: usize,
    /// Number of these that are helpers, and number of idle helpers.
    helpers: usize,
    idle_helpers: usize,
    /// The work that is queued for helpers.
    errands: VecDeque<Errand>,
    threads: Vec<JoinHandle<()>>,
}

impl State {
    fn surplus(&self) -> usize {
        self.alive.saturating_sub(self.waiting + self.wanted)
    }
}

impl Control {
    /// Makes the threads end after their present request. Must be called again until they have
    /// ended: a thread that is just about to wait for a request is missed.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for thread in &self.state.lock().threads {
            interrupt::interrupt(thread);
        }
        self.errand_came.notify_all();
    }

    /// Returns true if all remaining threads wait for space.
    pub(super) fn only_waits(&self) -> bool {
        let state = self.state.lock();
        state.waiting > 0 && state.alive == state.waiting && state.of_rings == 0
    }

    /// Lets the calling thread end if there are too many; it counts as ended from now on.
    fn leave(&self) -> bool {
        let mut state = self.state.lock();
        let leaves = state.surplus() > 0;
        if leaves {
            state.alive -= 1;
            self.surplus.store(state.surplus(), Ordering::Relaxed);
        }
        leaves
    }

    /// Waits until all threads have ended.
    pub(super) fn join(&self) {
        let mut state = self.state.lock();
        while state.alive + state.of_rings > 0 {
            self.ended.wait(&mut state);
        }
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a FUSE thread panicked");
            }
        }
    }
}

/// The descriptors and queues that serve a mount.
pub(super) struct Means {
    pub(super) dir: PathBuf,
    pub(super) devices: Vec<OwnedFd>,
    #[expect(dead_code, reason = "closed with the rest")]
    pub(super) witnesses: Vec<OwnedFd>,
    /// The queues, if requests come over rings.
    pub(super) queues: Option<Queues>,
}

/// The served files, and the means to serve them.
pub(super) struct ServeThreads {
    control: Arc<Control>,
    files: VolumeFiles,
    /// Closed with the rest, including the witnesses.
    means: Means,
    disk_pressure: DiskPressure,
    /// The time until which more threads than descriptors are wanted, in milliseconds since
    /// `begun`; 0 if they are not.
    larger_until: AtomicU64,
    begun: Instant,
    /// The processors on which this process may run.
    processors: Option<CpuSet>,
}

impl ServeThreads {
    /// Starts a thread for each device, and those for the rings.
    ///
    /// # Errors
    /// If the host refuses a thread; those that were started have ended then.
    pub(super) fn start(
        control: &Arc<Control>,
        files: VolumeFiles,
        means: Means,
    ) -> io::Result<Arc<Self>> {
        let serve_threads = Arc::new(Self {
            control: control.clone(),
            files,
            means,
            disk_pressure: DiskPressure::default(),
            larger_until: AtomicU64::new(0),
            begun: Instant::now(),
            processors: sched_getaffinity(THIS_THREAD).ok(),
        });
        let mut state = control.state.lock();
        state.wanted = serve_threads.means.devices.len();
        let started = (0..serve_threads.means.devices.len())
            .try_for_each(|_| serve_threads.add_thread(&mut state))
            .and_then(|()| serve_threads.add_rings(&mut state));
        drop(state);
        if let Err(error) = started {
            serve_threads.give_up();
            return Err(error);
        }
        Ok(serve_threads)
    }

    fn add_rings(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let Some(queues) = self.means.queues else {
            return Ok(());
        };
        for thread in 0..queues.threads {
            self.add_ring_thread(state, move |serve_threads| {
                serve_threads.work_on_ring(queues, thread)
            })?;
        }
        Ok(())
    }

    fn add_ring_thread(
        self: &Arc<Self>,
        state: &mut State,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        state.threads.retain(|thread| !thread.is_finished());
        let serve_threads = self.clone();
        let thread = thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || {
                let _place = RingPlace(&serve_threads.control);
                be_prompt();
                work(&serve_threads);
            })?;
        state.threads.push(thread);
        state.of_rings += 1;
        Ok(())
    }

    fn work_on_ring(self: &Arc<Self>, queues: Queues, thread: u16) {
        let device = self.means.devices[0].as_fd();
        if let Err(error) = rings::serve(self, device, queues, thread) {
            self.end_mount(&error, "FUSE over io_uring");
        }
    }

    /// Has a helper, which may wait, run `work` with `value`; returns `value` if `most` helpers are
    /// at work, or the host refuses a thread.
    pub(super) fn leave_to_helper<T: Send + 'static>(
        self: &Arc<Self>,
        value: T,
        most: usize,
        work: impl FnOnce(&Self, T) + Send + 'static,
    ) -> Result<(), T> {
        let mut state = self.control.state.lock();
        let at_work = state.helpers - state.idle_helpers + state.errands.len();
        if self.is_stopping() || at_work >= most {
            return Err(value);
        }
        if state.idle_helpers <= state.errands.len() {
            if let Err(error) =
                self.add_ring_thread(&mut state, |serve_threads| serve_threads.help())
            {
                tracing::warn!(%error, "cannot start a thread for a request that waits");
                return Err(value);
            }
            state.helpers += 1;
            // The helper looks for work before it waits.
            state.idle_helpers += 1;
        }
        state
            .errands
            .push_back(Box::new(move |serve_threads| work(serve_threads, value)));
        drop(state);
        self.control.errand_came.notify_one();
        Ok(())
    }

    /// Runs queued work until there has been none for a while.
    fn help(&self) {
        // A ring's thread, which is bound to its processor, started this one.
        let freed = self
            .processors
            .map(|all| sched_setaffinity(THIS_THREAD, &all));
        if let Some(Err(error)) = freed {
            tracing::debug!(%error, "cannot unpin a helper thread from its ring's processor");
        }
        let control = &self.control;
        let mut state = control.state.lock();
        loop {
            if let Some(errand) = state.errands.pop_front() {
                state.idle_helpers -= 1;
                drop(state);
                errand(self);
                state = control.state.lock();
                state.idle_helpers += 1;
                continue;
            }
            let waited = control.errand_came.wait_for(&mut state, HELPER_IDLE);
            // If only helpers are left, no work can come.
            let is_alone = state.of_rings == state.helpers;
            let is_over = waited.timed_out() || self.is_stopping() || is_alone;
            if is_over && state.errands.is_empty() {
                break;
            }
        }
        state.helpers -= 1;
        state.idle_helpers -= 1;
    }

    pub(super) fn files(&self) -> &VolumeFiles {
        &self.files
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.control.stopping.load(Ordering::Relaxed)
    }

    /// Returns true if requests are slow because of a disk.
    pub(super) fn is_slow(&self) -> bool {
        self.disk_pressure.is_slow()
    }

    /// Notes that a request which moved `bytes` took the time `took`.
    pub(super) fn note(&self, took: Duration, bytes: usize) {
        self.disk_pressure.note(took, bytes);
    }

    /// Adds threads while a disk is at work, and reduces their number some time after.
    fn suit_disk_pressure(self: &Arc<Self>) {
        let until = self.larger_until.load(Ordering::Relaxed);
        let is_slow = self.disk_pressure.is_slow() && self.means.queues.is_none();
        if (!is_slow && until == 0) || self.is_stopping() {
            return;
        }
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        let replace = |next| {
            self.larger_until
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if is_slow && until != 0 {
            // If another thread has just ended that time, the next request starts it anew.
            replace(now + SLOW_THREADS_STAY_MS);
            return;
        }
        if now < until {
            return;
        }
        let mut state = self.control.state.lock();
        let next = if is_slow {
            now + SLOW_THREADS_STAY_MS
        } else {
            0
        };
        if !replace(next) {
            return;
        }
        let usual = self.means.devices.len();
        state.wanted = if is_slow {
            usual.max(SLOW_THREADS)
        } else {
            usual
        };
        while state.alive - state.waiting.min(state.alive) < state.wanted {
            if let Err(error) = self.add_thread(&mut state) {
                tracing::debug!(%error, "cannot start more FUSE threads while the disk is slow");
                break;
            }
        }
        let surplus = state.surplus();
        self.control.surplus.store(surplus, Ordering::Relaxed);
    }

    fn give_up(&self) {
        if let Err(error) = interrupt::prepare() {
            tracing::warn!(%error, "cannot stop the threads that wait for a FUSE request");
            return;
        }
        let left = |state: &State| state.alive + state.of_rings;
        while left(&self.control.state.lock()) > 0 {
            self.control.stop();
            thread::yield_now();
        }
        self.control.join();
    }

    fn add_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        // Removes the threads that have ended.
        state.threads.retain(|thread| !thread.is_finished());
        let serve_threads = self.clone();
        // Several threads may share a descriptor; each replies where it has read.
        let device = state.alive % self.means.devices.len();
        let thread = thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || serve_threads.work(device))?;
        state.threads.push(thread);
        state.alive += 1;
        Ok(())
    }

    fn work(self: Arc<Self>, device: usize) {
        be_prompt();
        let stand_ins = StandIns(self.clone());
        let place = Place {
            control: &self.control,
            has_left: Cell::new(false),
        };
        let device = self.means.devices[device].as_fd();
        let took = |took, bytes| {
            self.note(took, bytes);
            self.suit_disk_pressure();
        };
        match transport::serve(device, &self.files, &stand_ins, || place.goes_on(), took) {
            Ok(End::Gone | End::Told) => {}
            Err(error) => self.end_mount(&error, "FUSE"),
        }
    }

    /// Ends the mount, so that its users do not wait for ever.
    fn end_mount(&self, error: &io::Error, what: &str) {
        tracing::error!(%error, "{what} failed; the mount is ended, and its users get errors");
        if let Err(error) = mount::abort(&self.means.dir) {
            tracing::debug!(%error, "cannot abort the mount");
        }
    }
}

/// Makes the scheduler run this thread soon after a request arrives, also on a busy host.
fn be_prompt() {
    if let Err(error) = time_slice::shorten() {
        tracing::debug!(
            %error,
            "cannot shorten the time slice of a FUSE thread, so that requests take longer on a \
             busy host"
        );
    }
}

/// A thread's count among the live threads, released however the thread ends.
struct Place<'a> {
    control: &'a Control,
    /// True if the count was released already.
    has_left: Cell<bool>,
}

impl Place<'_> {
    /// Returns true if a thread that is between two requests should take another one.
    fn goes_on(&self) -> bool {
        if self.control.stopping.load(Ordering::Relaxed) {
            return false;
        }
        if self.control.surplus.load(Ordering::Relaxed) > 0 {
            self.has_left.set(self.control.leave());
        }
        !self.has_left.get()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.has_left.get() {
            let mut state = self.control.state.lock();
            state.alive -= 1;
            self.control.ended.notify_all();
        }
    }
}

/// The count of a thread of the rings, released however the thread ends.
struct RingPlace<'a>(&'a Control);

impl Drop for RingPlace<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.of_rings -= 1;
        self.0.ended.notify_all();
        self.0.errand_came.notify_all();
    }
}

/// Starts another thread in place of one that waits.
struct StandIns(Arc<ServeThreads>);

impl RequestServer for StandIns {}

impl Waiter for StandIns {
    fn may_begin(&self) -> bool {
        let control = &self.0.control;
        let mut state = control.state.lock();
        if state.waiting == WAITING_MAX {
            return false;
        }
        state.waiting += 1;
        let ready = state.alive.saturating_sub(state.waiting);
        // While stopping, no new request is served; requests that wait are finished first.
        if ready < state.wanted
            && !control.stopping.load(Ordering::Relaxed)
            && let Err(error) = self.0.add_thread(&mut state)
        {
            tracing::warn!(%error, "cannot start a FUSE thread in place of one that waits");
            state.waiting -= 1;
            return false;
        }
        control.surplus.store(state.surplus(), Ordering::Relaxed);
        true
    }

    fn ended(&self) {
        let control = &self.0.control;
        let mut state = control.state.lock();
        state.waiting -= 1;
        control.surplus.store(state.surplus(), Ordering::Relaxed);
    }
}
