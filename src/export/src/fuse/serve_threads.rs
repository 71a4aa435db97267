//! The threads that serve: one for each descriptor, more while a disk is at work, and others in the
//! place of those that wait. With rings, also one for each ring, and helpers that wait in their
//! stead.
//!
//! # Invariants
//! - As many threads as there are descriptors are ready to serve, whatever waits; up to
//!   `WAITING_MAX` may wait, and more are told not to.
//! - A mount without its threads hangs, and a ring without its thread, too: if one cannot go on,
//!   the mount is ended.
//! - `ServeThreads` has descriptors of the serving threads' own table, so it lives in those threads
//!   only; what others may see of it is its `Control`.

use super::disk_pressure::DiskPressure;
use super::files::VolumeFiles;
use super::rings::{self, Queues};
use super::transport::{self, End};
use cowshed_format::base::waiting::{self, Owner};
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

/// The most requests that wait at once: more than the kernel sends in the background. Each keeps a
/// thread with its buffer.
pub(super) const WAITING_MAX: usize = 512;
/// The most requests that helpers do at once for a disk's sake: those that must wait for room need
/// helpers, too.
pub(super) const DISK_HELPERS_MAX: usize = 32;
/// How many threads serve at the least while a disk is at work: as many requests as it gets at
/// once.
const SLOW_THREADS: usize = 16;
/// How long more threads stay at the least: starting one takes longer than many requests.
const SLOW_THREADS_STAY_MS: u64 = 5000;
/// How long a helper waits for more to do.
const HELPER_IDLE: Duration = Duration::from_secs(2);

const THIS_THREAD: Pid = Pid::from_raw(0);

/// What a helper does.
type Errand = Box<dyn FnOnce(&ServeThreads) + Send>;

/// How many threads there are, and telling them to stop.
#[derive(Default)]
pub(super) struct Control {
    stopping: AtomicBool,
    /// How many threads there are beyond those that are needed.
    surplus: AtomicUsize,
    state: Mutex<State>,
    ended: Condvar,
    errand_came: Condvar,
}

#[derive(Default)]
struct State {
    /// How many are to be ready.
    wanted: usize,
    /// How many have been started and not ended.
    alive: usize,
    /// How many of them wait.
    waiting: usize,
    /// How many serve rings, or wait in their stead.
    of_rings: usize,
    /// How many of these are helpers, and how many helpers have nothing to do.
    helpers: usize,
    idle_helpers: usize,
    /// What is to be done by helpers.
    errands: VecDeque<Errand>,
    threads: Vec<JoinHandle<()>>,
}

impl State {
    fn surplus(&self) -> usize {
        self.alive.saturating_sub(self.waiting + self.wanted)
    }
}

impl Control {
    /// Makes the threads end after the request that they are at. To be called again until they
    /// have ended: one that is just about to wait for a request is missed.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for thread in &self.state.lock().threads {
            interrupt::interrupt(thread);
        }
        self.errand_came.notify_all();
    }

    /// Whether the only threads left are those that wait for room.
    pub(super) fn only_waits(&self) -> bool {
        let state = self.state.lock();
        state.waiting > 0 && state.alive == state.waiting && state.of_rings == 0
    }

    /// Lets one thread end, if there are too many; it counts as ended from now on.
    fn leave(&self) -> bool {
        let mut state = self.state.lock();
        let leaves = state.surplus() > 0;
        if leaves {
            state.alive -= 1;
            self.surplus.store(state.surplus(), Ordering::Relaxed);
        }
        leaves
    }

    /// Waits until all have ended.
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

/// Through what a mount is served.
pub(super) struct Means {
    pub(super) dir: PathBuf,
    pub(super) devices: Vec<OwnedFd>,
    #[expect(dead_code, reason = "closed with the rest")]
    pub(super) witnesses: Vec<OwnedFd>,
    /// Where most requests come over rings.
    pub(super) queues: Option<Queues>,
}

/// What the threads serve and through what.
pub(super) struct ServeThreads {
    control: Arc<Control>,
    files: VolumeFiles,
    /// Closed with the rest, the witnesses too.
    means: Means,
    disk_pressure: DiskPressure,
    /// Until when more threads than descriptors are wanted, in milliseconds from `begun` on; 0 when
    /// they are not.
    larger_until: AtomicU64,
    begun: Instant,
    /// Where this process may run.
    processors: Option<CpuSet>,
}

impl ServeThreads {
    /// Starts a thread for each device, and for the rings.
    ///
    /// # Errors
    /// When the host gives no thread; those that it gave have ended then.
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

    /// Has `work` done with `value` by a helper, which may wait; gives `value` back when `most` are
    /// at work, or the host gives none.
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
                tracing::warn!(%error, "no thread to wait while a ring serves");
                return Err(value);
            }
            state.helpers += 1;
            // It will look for errands before it waits for one.
            state.idle_helpers += 1;
        }
        state
            .errands
            .push_back(Box::new(move |serve_threads| work(serve_threads, value)));
        drop(state);
        self.control.errand_came.notify_one();
        Ok(())
    }

    /// Runs errands until there have been none for a while.
    fn help(&self) {
        // It was started by a ring's thread, which keeps to its processor.
        let freed = self
            .processors
            .map(|all| sched_setaffinity(THIS_THREAD, &all));
        if let Some(Err(error)) = freed {
            tracing::debug!(%error, "a helper shares its ring's processor");
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
            // Where only helpers are left, no errand can come.
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

    /// Whether requests take long because a disk is at work.
    pub(super) fn is_slow(&self) -> bool {
        self.disk_pressure.is_slow()
    }

    /// A request took so long for so many bytes.
    pub(super) fn note(&self, took: Duration, bytes: usize) {
        self.disk_pressure.note(took, bytes);
    }

    /// Has more threads serve while a disk is at work, and less some time after.
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
            // Another thread may have ended that time just now: then the next request begins anew.
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
                tracing::debug!(%error, "no more threads to serve while a disk is at work");
                break;
            }
        }
        let surplus = state.surplus();
        self.control.surplus.store(surplus, Ordering::Relaxed);
    }

    fn give_up(&self) {
        if let Err(error) = interrupt::prepare() {
            tracing::warn!(%error, "threads that wait for a request cannot be stopped");
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
        // Those that left before.
        state.threads.retain(|thread| !thread.is_finished());
        let serve_threads = self.clone();
        // Several threads may share a descriptor; each answers where it has read.
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
        waiting::own_thread(Arc::new(StandIns(self.clone())));
        let place = Place {
            control: &self.control,
            has_left: Cell::new(false),
        };
        let device = self.means.devices[device].as_fd();
        let took = |took, bytes| {
            self.note(took, bytes);
            self.suit_disk_pressure();
        };
        match transport::serve(device, &self.files, || place.goes_on(), took) {
            Ok(End::Gone | End::Told) => {}
            Err(error) => self.end_mount(&error, "FUSE"),
        }
    }

    /// Rather than have its users wait for ever.
    fn end_mount(&self, error: &io::Error, what: &str) {
        tracing::error!(%error, "{what} failed; the mount is ended, and its users get errors");
        if let Err(error) = mount::abort(&self.means.dir) {
            tracing::debug!(%error, "ended, and in use");
        }
    }
}

/// Has this thread run soon after a request has come, however busy the host is.
fn be_prompt() {
    if let Err(error) = time_slice::shorten() {
        tracing::debug!(%error, "on a busy host, requests wait for others' time slices");
    }
}

/// A thread's place among those that are alive, given back however it ends.
struct Place<'a> {
    control: &'a Control,
    /// It was given back already.
    has_left: Cell<bool>,
}

impl Place<'_> {
    /// Whether a thread that is between two requests shall take another one.
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

/// The place of a thread of the rings, given back however it ends.
struct RingPlace<'a>(&'a Control);

impl Drop for RingPlace<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.of_rings -= 1;
        self.0.ended.notify_all();
        self.0.errand_came.notify_all();
    }
}

/// Puts another thread in the place of one that waits.
struct StandIns(Arc<ServeThreads>);

impl Owner for StandIns {
    fn may_begin(&self) -> bool {
        let control = &self.0.control;
        let mut state = control.state.lock();
        if state.waiting == WAITING_MAX {
            return false;
        }
        state.waiting += 1;
        let ready = state.alive.saturating_sub(state.waiting);
        // While stopping, nothing more is served; what waits is finished first.
        if ready < state.wanted
            && !control.stopping.load(Ordering::Relaxed)
            && let Err(error) = self.0.add_thread(&mut state)
        {
            tracing::warn!(%error, "no thread to serve while a request waits");
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
