//! What a worker has of its keeper: descriptors, messages, pings, and the lives of earlier workers.

use super::events::{Event, Events};
use crate::keeper::{self, InheritedFds, Serving, ToKeeper, ToWorker, Told};
use cowshed_engine::Pool;
use cowshed_sys as sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// The time to wait for the threads of a dead worker. They end when the volumes that they wait for
/// are served; only a host that hangs takes longer.
const PREDECESSOR_TIME: Duration = Duration::from_secs(30);

/// The descriptors and state of the keeper, in this process.
pub(super) struct Inherited {
    pub(super) serving: Arc<Mutex<Serving>>,
    /// The pool, once it is open.
    pub(super) opened: Arc<OnceLock<Pool>>,
    pub(super) inherited_fds: InheritedFds,
    pub(super) keeps_socket_file: bool,
    pub(super) control: Arc<ToKeeper>,
    pub(super) predecessors: Vec<OwnedFd>,
    pub(super) is_successor: bool,
}

impl Inherited {
    pub(super) fn take(told: Told) -> std::io::Result<Self> {
        let control = Arc::new(ToKeeper::new(keeper::take_descriptor(told.control)?));
        start_pulse(keeper::take_descriptor(told.pulse)?)?;
        // The kernel closes it with the last thread that has this process's descriptors.
        let _: i32 = keeper::take_descriptor(told.life)?.into_raw_fd();
        let predecessors = told.predecessors.into_iter().map(keeper::take_descriptor);
        let predecessors = predecessors.collect::<Result<_, _>>()?;
        let keeps_socket_file = told.inherited_fds.keeps_socket_file();
        let inherited_fds = InheritedFds::take(told.inherited_fds)?;
        Ok(Self {
            serving: Arc::new(Mutex::new(as_this_worker(told.serving))),
            opened: Arc::default(),
            inherited_fds,
            keeps_socket_file,
            control,
            predecessors,
            is_successor: told.is_successor,
        })
    }

    /// Stores the keeper's current state.
    pub(super) fn know(&mut self, serving: Serving) {
        *self.serving.lock() = as_this_worker(serving);
    }
}

/// Returns the keeper's part, with this process as the worker.
fn as_this_worker(serving: Serving) -> Serving {
    Serving {
        worker: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..serving
    }
}

/// Gives `pulse` to a thread that does nothing and has no other descriptor. When this process is
/// killed, that thread ends at once, even if other threads wait in the kernel, and closes the
/// pulse: so the keeper notices.
fn start_pulse(pulse: OwnedFd) -> std::io::Result<()> {
    let (sender, apart) = channel();
    thread::Builder::new()
        .name("pulse".to_owned())
        .spawn(move || {
            // The number stays valid in this thread: its owner closes it only in the other threads'
            // table.
            let _ = sender.send(sys::file_table::keep_only(&[pulse.as_raw_fd()]).map(|()| pulse));
            loop {
                thread::park();
            }
        })?;
    let pulse = apart.recv().map_err(std::io::Error::other)??;
    drop(pulse);
    Ok(())
}

/// Carries out the keeper's messages on a thread of its own.
pub(super) fn hear_keeper(inherited: &Inherited, events: Events) -> std::io::Result<()> {
    let control = Arc::clone(&inherited.control);
    let serving = Arc::clone(&inherited.serving);
    let pings = answer_pings(inherited)?;
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            while let Some(message) = control.hear() {
                match message {
                    // If the queue is gone, this process is ending already.
                    ToWorker::HandOver => drop(events.queue.send(Event::HandOver)),
                    ToWorker::Stop => events.stop(true),
                    ToWorker::Serving(news) => *serving.lock() = as_this_worker(news),
                    // One waiting ping is enough.
                    ToWorker::Ping => drop(pings.try_send(())),
                    ToWorker::Start(_) => {}
                }
            }
            serving.lock().keeper = 0;
            tracing::error!(
                "the keeper is gone; serving continues, but no worker will follow this process"
            );
        })?;
    Ok(())
}

/// Replies to the keeper's pings on a thread that hangs if the engine does.
fn answer_pings(inherited: &Inherited) -> std::io::Result<SyncSender<()>> {
    let (sender, pings) = sync_channel(1);
    let (control, pool) = (
        Arc::clone(&inherited.control),
        Arc::clone(&inherited.opened),
    );
    thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            for () in pings {
                // `status` takes the locks that everything else takes. A pool that has stopped
                // still returns it.
                if let Some(pool) = pool.get() {
                    let _ = pool.status();
                }
                let _ = control.alive();
            }
        })?;
    Ok(sender)
}

/// Waits until no thread of a predecessor is left that could still mount or unmount.
pub(super) fn wait_for(predecessors: Vec<OwnedFd>) {
    let deadline = Instant::now() + PREDECESSOR_TIME;
    for life in predecessors {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(life.as_fd(), PollFlags::empty())];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    tracing::warn!("threads of a dead worker hang: not waiting for them");
                    return;
                }
                Ok(_) => break,
                Err(_) => {}
            }
        }
    }
}
