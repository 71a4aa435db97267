//! Removes in the background what calls have given up: mounts, devices and volumes.
//!
//! A task whose subject is still in use is retried. What is not done when the reaper stops is left
//! to the next start, which recognizes it by its name under `work/`.
//!
//! A commit leaves a mounted, writable volume with exactly the contents that the next layer's
//! Prepare needs. The reaper keeps it for a short time as a *leftover*.

use super::record::Index;
use cowshed_format::base::sync::{Mutex, RwLock};
use cowshed_format::base::{self, VolumeId};
use cowshed_host::{self as container, Host};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The time for which a leftover waits for the next layer.
const LEFTOVER_TIME: Duration = Duration::from_secs(3);
/// Number of retries of tasks in use for a caller that waits.
const TELL_TRIES: u32 = 16;
/// The pause before a retry: the first one, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A task.
#[derive(Clone, Debug)]
enum Task {
    /// Removes a volume that is no longer needed.
    Volume(VolumeId),
    /// Unmounts a frozen volume if no view and no overlay uses it by then.
    View(VolumeId),
    /// Removes the leftover on this snapshot if no Prepare has taken it by then.
    Leftover(String, VolumeId),
}

enum Order {
    Do(Task, Instant),
    /// Report when everything possible is done.
    Tell(Sender<()>),
    Stop,
}

/// Does the tasks on its own thread.
pub(super) struct Reaper {
    orders: Mutex<Sender<Order>>,
    leftovers: Arc<Mutex<HashMap<String, VolumeId>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Disconnected when the thread is done.
    ended: Mutex<Receiver<()>>,
}

impl Reaper {
    /// Starts with the leavings of earlier processes; `size_bytes` is the size of the empty file
    /// system that is prepared.
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
        for id in host.roots().passing_volumes() {
            reaper.volume(id);
        }
        // Their last reader may have been removed just before the predecessor's end.
        for id in host.roots().frozen() {
            reaper.view(id);
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
                // Dropped, and so noticed, however the thread ends.
                let _end = end;
                work.run(&queue, size_bytes);
            })?;
        *reaper.thread.lock() = Some(thread);
        Ok(reaper)
    }

    fn order(&self, order: Order) {
        // After the end no thread takes orders; the next start does the work.
        let _ = self.orders.lock().send(order);
    }

    /// Orders the volume to be taken out of use and removed.
    pub(super) fn volume(&self, id: VolumeId) {
        self.order(Order::Do(Task::Volume(id), Instant::now()));
    }

    /// Orders the frozen volume to be unmounted if no view and no overlay uses it.
    pub(super) fn view(&self, id: VolumeId) {
        self.order(Order::Do(Task::View(id), Instant::now()));
    }

    /// Keeps the volume for a short time for the next layer that is prepared on `parent`.
    pub(super) fn leftover(&self, parent: &str, id: VolumeId) {
        let earlier = self.leftovers.lock().insert(parent.to_owned(), id);
        if let Some(earlier) = earlier {
            self.volume(earlier);
        }
        let due = Instant::now() + LEFTOVER_TIME;
        self.order(Order::Do(Task::Leftover(parent.to_owned(), id), due));
    }

    /// Returns the leftover on `parent`, which then belongs to the caller.
    pub(super) fn take_leftover(&self, parent: &str) -> Option<VolumeId> {
        self.leftovers.lock().remove(parent)
    }

    /// Waits until every task that is not in use is done, but not longer than `patience`.
    pub(super) fn drain(&self, patience: Duration) {
        let (teller, told) = channel();
        self.order(Order::Tell(teller));
        // After a timeout or the thread's end there is nothing more to wait for.
        let _ = told.recv_timeout(patience);
    }

    /// Makes a last attempt at every task and ends the thread; waits for that up to `patience`.
    /// Returns true if the thread has ended.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        self.order(Order::Stop);
        let Some(thread) = self.thread.lock().take() else {
            return true;
        };
        if self.ended.lock().recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the removal of unused volumes hangs, and is left to the next start");
            return false;
        }
        // The thread has reported the panic.
        let _ = thread.join();
        true
    }
}

/// The growth of the pause between retries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backoff {
    Grow,
    /// A caller asked for an attempt now, which says nothing about how long the subject will be in
    /// use.
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
        if let Err(error) = self.host.roots().empty(size_bytes) {
            tracing::warn!(%error, "cannot create the empty file system yet");
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
                    // The caller may have given up.
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

    /// Does every task whose subject is not in use for long.
    fn finish(&mut self) {
        for _ in 0..TELL_TRIES {
            self.work_off(None, Backoff::Keep);
            if self.waiting.is_empty() {
                return;
            }
            thread::sleep(RETRY_MIN);
        }
    }

    /// Does the tasks due by `until`, or all; those in use are retried after a pause.
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
                    tracing::warn!(
                        %error, task = ?waiting.task,
                        "a task failed, and is tried again"
                    );
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
                let is_wanted = || self.index.read().readers(*id) > 0;
                self.host.roots().release(&volume, &is_wanted)
            }
            Task::Leftover(parent, id) => {
                {
                    let mut leftovers = self.leftovers.lock();
                    if leftovers.get(parent) != Some(id) {
                        // The call that has taken it takes care of it.
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
        self.host.roots().discard(&volume)?;
        match pool.remove(&volume) {
            Ok(()) | Err(base::Error::NoSuchVolume(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
