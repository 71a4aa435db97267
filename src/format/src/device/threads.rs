//! Threads that do what others send them, for calls of a device that the caller must not make
//! itself.
//!
//! A model checker cannot see them: in a model there are none, and the callers do the work.
//!
//! # Invariants
//! - They are started where the pool is opened: a thread that is started later could have a table of
//!   descriptors of its own, as the one that starts it.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

type Work = Box<dyn FnOnce() + Send>;

/// Some threads with one queue.
pub(super) struct Threads {
    queue: Option<mpsc::Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts up to `count` threads.
    pub(super) fn start(name: &str, count: usize) -> Self {
        let count = if cfg!(feature = "shuttle") { 0 } else { count };
        let (queue, works) = mpsc::channel::<Work>();
        let works = Arc::new(Mutex::new(works));
        let start = |_| {
            let works = Arc::clone(&works);
            let run = move || {
                loop {
                    let work = works.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match work {
                        Ok(work) => work(),
                        Err(_) => return,
                    }
                }
            };
            let started = thread::Builder::new().name(name.into()).spawn(run);
            started
                .inspect_err(|error| tracing::warn!(%error, "cannot start a thread for a device"))
                .ok()
        };
        let threads: Vec<_> = (0..count).map_while(start).collect();
        Self {
            queue: (!threads.is_empty()).then_some(queue),
            threads,
        }
    }

    /// Has a thread do `work`; returns false if there is no thread.
    pub(super) fn begin(&self, work: impl FnOnce() + Send + 'static) -> bool {
        let queue = self.queue.as_ref();
        queue.is_some_and(|queue| queue.send(Box::new(work)).is_ok())
    }

    /// Waits until everything that was begun is done, and ends the threads.
    pub(super) fn join(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A thread that had to wait for its own end would wait for ever.
            if thread.thread().id() != thread::current().id() {
                // A panic there has been reported; the callers got errors.
                let _ = thread.join();
            }
        }
    }
}
