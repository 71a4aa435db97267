//! The queue of lines for the log: the threads that log add lines here and never wait for the disk.
//!
//! # Invariants
//! - `push` neither waits for the disk nor fails. Lines that do not fit are counted.
//! - The lock is never held while a line is written out.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The most bytes that may wait to be written; further lines are lost until there is room again.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// The time that a panicking thread waits for the lock, which the panic may have left held.
const LOCK_TIME: Duration = Duration::from_millis(100);

/// The lines that wait to be written. Clones are the same queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Number of lines that were lost since the last batch.
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    reopen: bool,
    /// Lines were taken out and are not yet written.
    is_writing: bool,
}

/// The next work of the log's thread.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The lines, the oldest first.
    pub lines: VecDeque<Vec<u8>>,
    /// Number of lines before these that did not fit.
    pub lost: u64,
    /// True if the file is to be opened again first.
    pub reopen: bool,
}

impl Queue {
    /// Adds a line, or counts it as lost if there is no room.
    pub(super) fn push(&self, line: Vec<u8>) {
        let Some(mut state) = self.0.state.try_lock_for(LOCK_TIME) else {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            self.0.changed.notify_all();
            return;
        };
        if state.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting_bytes += line.len();
        state.lines.push_back(line);
        self.0.changed.notify_all();
    }

    /// Requests that the file is opened again before the next line.
    pub(super) fn reopen(&self) {
        self.0.state.lock().reopen = true;
        self.0.changed.notify_all();
    }

    /// Waits for work.
    pub(super) fn take(&self) -> Batch {
        let mut state = self.0.state.lock();
        state.is_writing = false;
        self.0.changed.notify_all();
        while state.lines.is_empty() && !state.reopen && !self.has_lost() {
            self.0.changed.wait(&mut state);
        }
        state.is_writing = true;
        state.waiting_bytes = 0;
        Batch {
            lines: std::mem::take(&mut state.lines),
            lost: self.0.lost.swap(0, Ordering::Relaxed),
            reopen: std::mem::take(&mut state.reopen),
        }
    }

    fn has_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed) > 0
    }

    /// Waits until everything is written out, but not longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let Some(mut state) = self.0.state.try_lock_for(LOCK_TIME) else {
            return;
        };
        while state.is_writing || !state.lines.is_empty() || state.reopen || self.has_lost() {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_finds_the_lock_held_is_counted() {
        let queue = Queue::default();
        let held = queue.0.state.lock();
        let pushing = {
            let queue = queue.clone();
            std::thread::spawn(move || queue.push(b"lost".to_vec()))
        };
        pushing.join().unwrap();
        drop(held);
        queue.push(b"kept".to_vec());
        let batch = queue.take();
        assert_eq!((batch.lines.len(), batch.lost), (1, 1));
    }

    #[test]
    fn lines_that_nobody_writes_out_are_counted_and_nobody_waits() {
        let queue = Queue::default();
        let line = vec![b'x'; 1000];
        let room = WAITING_BYTES_MAX / line.len();
        for _ in 0..room + 7 {
            queue.push(line.clone());
        }
        queue.flush(Duration::from_millis(1));
        let batch = queue.take();
        assert_eq!((batch.lines.len(), batch.lost), (room, 7));
        queue.push(b"again".to_vec());
        let batch = queue.take();
        assert_eq!((batch.lines.len(), batch.lost), (1, 0));
    }
}
