//! The orders to a worker, from signals and from the keeper, in one queue.

use crate::log;
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// An order to a worker.
#[derive(Debug)]
pub(super) enum Event {
    /// Stop in order; a second `Stop` means at once.
    Stop,
    /// Leave everything to the program that the keeper has prepared.
    HandOver,
}

/// The queue of orders to this process.
#[derive(Clone)]
pub(super) struct Events {
    pub(super) queue: Sender<Event>,
    stops: Arc<Mutex<Stops>>,
}

/// The number of orders to stop. A service manager may send a signal to all processes of a service:
/// this process then gets both the signal and the keeper's message, which count as one.
#[derive(Debug, Default)]
struct Stops {
    by_keeper: u32,
    by_signal: u32,
    told: u32,
}

impl Events {
    pub(super) fn stop(&self, by_keeper: bool) {
        let mut stops = self.stops.lock();
        if by_keeper {
            stops.by_keeper += 1;
        } else {
            stops.by_signal += 1;
        }
        if stops.by_keeper.max(stops.by_signal) > stops.told {
            stops.told += 1;
            tracing::info!(by_keeper, "stopping");
            // If the queue is gone, this process is ending already.
            let _ = self.queue.send(Event::Stop);
        }
    }
}

/// Returns the queue of orders, which receives the signals, and the sender for other sources.
///
/// # Errors
/// The kernel's error.
pub(super) fn catch() -> std::io::Result<(Events, Receiver<Event>)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // The keeper blocks the signals, and a process inherits the mask of its parent.
    nix::sys::signal::SigSet::all().thread_unblock()?;
    let (sender, queue) = channel();
    let events = Events {
        queue: sender,
        stops: Arc::default(),
    };
    let told = events.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    log::reopen();
                } else {
                    told.stop(false);
                }
            }
        })?;
    Ok((events, queue))
}
