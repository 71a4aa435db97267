//! The threads that serve: one for each descriptor, and others in the place of those that wait.
//!
//! # Invariants
//! - As many threads as there are descriptors are ready to serve, whatever waits; up to
//!   `WAITING_MAX` may wait, and more are told not to.
//! - `Crew` has descriptors of the serving threads' own table, so it lives in those threads only;
//!   what others may see of it is its `Control`.

use super::files::VolumeFiles;
use super::transport::{self, End};
use crate::base::waiting::{self, Owner};
use crate::sys::interrupt;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

/// The most requests that wait at once: more than the kernel sends in the background. Each keeps a
/// thread with its buffer.
const WAITING_MAX: usize = 512;

/// How many threads there are, and telling them to stop.
#[derive(Default)]
pub(super) struct Control {
    stopping: AtomicBool,
    /// How many threads there are beyond those that are needed.
    surplus: AtomicUsize,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// How many are to be ready.
    wanted: usize,
    /// How many have been started and not ended.
    alive: usize,
    /// How many of them wait.
    waiting: usize,
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
        while state.alive > 0 {
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

/// What the threads serve and through what.
pub(super) struct Crew {
    control: Arc<Control>,
    files: VolumeFiles,
    devices: Vec<OwnedFd>,
    /// Closed with the rest.
    _witnesses: Vec<OwnedFd>,
}

impl Crew {
    /// Starts a thread for each device.
    ///
    /// # Errors
    /// When the host gives no thread; those that it gave have ended then.
    pub(super) fn start(
        control: &Arc<Control>,
        files: VolumeFiles,
        devices: Vec<OwnedFd>,
        witnesses: Vec<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        let crew = Arc::new(Self {
            control: control.clone(),
            files,
            devices,
            _witnesses: witnesses,
        });
        let mut state = control.state.lock();
        state.wanted = crew.devices.len();
        for _ in 0..crew.devices.len() {
            if let Err(error) = crew.add_thread(&mut state) {
                drop(state);
                crew.give_up();
                return Err(error);
            }
        }
        drop(state);
        Ok(crew)
    }

    fn give_up(&self) {
        if let Err(error) = interrupt::prepare() {
            tracing::warn!(%error, "threads that wait for a request cannot be stopped");
            return;
        }
        while self.control.state.lock().alive > 0 {
            self.control.stop();
            thread::yield_now();
        }
        self.control.join();
    }

    fn add_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        // Those that left before.
        state.threads.retain(|thread| !thread.is_finished());
        let crew = self.clone();
        // Several threads may share a descriptor; each answers where it has read.
        let device = state.alive % self.devices.len();
        let thread = thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || crew.work(device))?;
        state.threads.push(thread);
        state.alive += 1;
        Ok(())
    }

    fn work(self: Arc<Self>, device: usize) {
        waiting::own_thread(Arc::new(StandIns(self.clone())));
        let place = Place {
            control: &self.control,
            has_left: Cell::new(false),
        };
        let device = self.devices[device].as_fd();
        match transport::serve(device, &self.files, || place.goes_on()) {
            Ok(End::Gone | End::Told) => {}
            Err(error) => tracing::error!(%error, "a FUSE thread failed"),
        }
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

/// Puts another thread in the place of one that waits.
struct StandIns(Arc<Crew>);

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
