//! Clearing away what calls have given up, behind them: mounts, devices and volumes.
//!
//! What is still in use is tried again. What is not done when this stops is cleared away by the
//! next start, which knows it by its name in work.
//!
//! A commit leaves a mounted, writable volume that is just what the next layer's Prepare needs. It
//! waits here for a moment to be asked for, as a *leftover*.

use super::record::Index;
use cowshed_format::base::sync::{Mutex, RwLock};
use cowshed_format::base::{self, VolumeId};
use cowshed_host::{self as container, Host};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a leftover waits for the next layer.
const LEFTOVER_TIME: Duration = Duration::from_secs(3);
/// How often what is in use is tried again for one who waits.
const TELL_TRIES: u32 = 16;
/// After what time something in use is tried again: at first, and at last.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug)]
enum Task {
    /// Nobody needs the volume any more.
    Volume(VolumeId),
    /// Nobody looks at the volume any more, unless somebody does by now.
    View(VolumeId),
    /// Nobody has asked for the leftover on this snapshot, unless somebody has.
    Leftover(String, VolumeId),
}

enum Order {
    Do(Task, Instant),
    /// Say when all is done that can be done.
    Tell(Sender<()>),
    Stop,
}

/// Clears away, on a thread of its own.
pub(super) struct Reaper {
    orders: Mutex<Sender<Order>>,
    leftovers: Arc<Mutex<HashMap<String, VolumeId>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Told when the thread is done.
    ended: Mutex<Receiver<()>>,
}

impl Reaper {
    /// Starts with what earlier processes have left; `size_bytes` is the size of the empty file
    /// system that is made ready.
    pub(super) fn start(
        host: Arc<Host>,
        index: Arc<RwLock<Index>>,
        size_bytes: u64,
    ) -> std::io::Result<Self> {
        let (orders, queue) = channel();
        let (end, ended) = channel();
        let leftovers: Arc<Mutex<HashMap<String, VolumeId>>> = Arc::default();
        let reaper = Self {
            orders: Mutex::new(orders),
            leftovers: Arc::clone(&leftovers),
            thread: Mutex::new(None),
            ended: Mutex::new(ended),
        };
        for id in host.passing_volumes() {
            reaper.volume(id);
        }
        let work = Work {
            host,
            index,
            leftovers,
            waiting: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || {
                // Dropped, and so heard of, however this ends.
                let _end = end;
                work.run(&queue, size_bytes);
            })?;
        *reaper.thread.lock() = Some(thread);
        Ok(reaper)
    }

    fn order(&self, order: Order) {
        // After the end there is nobody to do it; the next start does.
        let _ = self.orders.lock().send(order);
    }

    /// Has the volume taken out of use and removed.
    pub(super) fn volume(&self, id: VolumeId) {
        self.order(Order::Do(Task::Volume(id), Instant::now()));
    }

    /// Has the volume unmounted if no view looks at it.
    pub(super) fn view(&self, id: VolumeId) {
        self.order(Order::Do(Task::View(id), Instant::now()));
    }

    /// Keeps the volume for whoever prepares the next layer on `parent`, for a moment.
    pub(super) fn leftover(&self, parent: &str, id: VolumeId) {
        let earlier = self.leftovers.lock().insert(parent.to_owned(), id);
        if let Some(earlier) = earlier {
            self.volume(earlier);
        }
        let due = Instant::now() + LEFTOVER_TIME;
        self.order(Order::Do(Task::Leftover(parent.to_owned(), id), due));
    }

    /// The leftover on `parent`, which is the caller's then.
    pub(super) fn take_leftover(&self, parent: &str) -> Option<VolumeId> {
        self.leftovers.lock().remove(parent)
    }

    /// Waits until all is done that is not in use, but not longer than `patience`.
    pub(super) fn drain(&self, patience: Duration) {
        let (teller, told) = channel();
        self.order(Order::Tell(teller));
        // Too late or ended: either way nothing more is to be waited for.
        let _ = told.recv_timeout(patience);
    }

    /// Does nothing more; what it is at is waited for, but not longer than `patience`. Answers
    /// whether it has ended.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        self.order(Order::Stop);
        let Some(thread) = self.thread.lock().take() else {
            return true;
        };
        if self.ended.lock().recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("what was being cleared away hangs, and is left to the next start");
            return false;
        }
        // A panic has been reported by the thread.
        let _ = thread.join();
        true
    }
}

/// Whether what is in use waits longer each time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backoff {
    Grow,
    /// Somebody asked for it to be tried now: that says nothing of how long it will be in use.
    Keep,
}

struct Waiting {
    task: Task,
    due: Instant,
    pause: Duration,
}

struct Work {
    host: Arc<Host>,
    index: Arc<RwLock<Index>>,
    leftovers: Arc<Mutex<HashMap<String, VolumeId>>>,
    waiting: Vec<Waiting>,
}

impl Work {
    fn run(mut self, queue: &Receiver<Order>, size_bytes: u64) {
        if let Err(error) = self.host.empty_root(size_bytes) {
            tracing::warn!(%error, "the empty file system could not be made yet");
        }
        loop {
            let due = self.waiting.iter().map(|waiting| waiting.due).min();
            let order = match due {
                None => queue.recv().map_err(RecvTimeoutError::from),
                Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(Order::Do(task, due)) => self.waiting.push(Waiting {
                    task,
                    due,
                    pause: RETRY_MIN,
                }),
                Ok(Order::Tell(teller)) => {
                    self.finish();
                    // Whoever asked may have given up.
                    let _ = teller.send(());
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return self.work_off(None, Backoff::Grow);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.work_off(Some(Instant::now()), Backoff::Grow);
        }
    }

    /// Does everything that is not in use for long.
    fn finish(&mut self) {
        for _ in 0..TELL_TRIES {
            self.work_off(None, Backoff::Keep);
            if self.waiting.is_empty() {
                return;
            }
            thread::sleep(RETRY_MIN);
        }
    }

    /// Does what is due by then, or everything; what is in use waits longer.
    fn work_off(&mut self, until: Option<Instant>, backoff: Backoff) {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| until.is_none_or(|until| waiting.due <= until));
        self.waiting = later;
        for mut waiting in due {
            let Err(error) = self.carry_out(&waiting.task) else {
                continue;
            };
            waiting.due = Instant::now() + waiting.pause;
            if backoff == Backoff::Grow {
                if waiting.pause == RETRY_MAX {
                    tracing::warn!(%error, task = ?waiting.task, "is tried again");
                }
                waiting.pause = (waiting.pause * 2).min(RETRY_MAX);
            }
            self.waiting.push(waiting);
        }
    }

    fn carry_out(&self, task: &Task) -> container::Result<()> {
        match task {
            Task::Volume(id) => self.remove(*id),
            Task::View(id) => {
                let Ok(volume) = self.host.pool().volume_by_id(*id) else {
                    return Ok(());
                };
                let is_wanted = || self.index.read().views(*id) > 0;
                self.host.release_root(&volume, &is_wanted)
            }
            Task::Leftover(parent, id) => {
                {
                    let mut leftovers = self.leftovers.lock();
                    if leftovers.get(parent) != Some(id) {
                        // Whoever has asked for it sees to it.
                        return Ok(());
                    }
                    leftovers.remove(parent);
                }
                self.remove(*id)
            }
        }
    }

    fn remove(&self, id: VolumeId) -> container::Result<()> {
        let pool = self.host.pool();
        let Ok(volume) = pool.volume_by_id(id) else {
            return Ok(());
        };
        self.host.discard_root(&volume)?;
        match pool.remove(&volume) {
            Ok(()) | Err(base::Error::NoSuchVolume(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
