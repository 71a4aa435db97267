//! Group commit: callers that wait for a barrier share one.

use cowshed_format::base::sync::atomic::{AtomicU64, Ordering};
use cowshed_format::base::sync::{Condvar, Mutex};
use cowshed_format::base::{Result, Sequence};
use cowshed_format::device::Device;

/// Tracks which records are durable, and whether a thread is making more of them so.
pub(super) struct Commit {
    durable: AtomicU64,
    leading: Mutex<bool>,
    done: Condvar,
}

impl Commit {
    pub(super) const fn new(durable: Sequence) -> Self {
        Self {
            durable: AtomicU64::new(durable.0),
            leading: Mutex::new(false),
            done: Condvar::new(),
        }
    }

    /// Returns the last record that is known to be durable.
    pub(super) fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// Notes that a barrier begun after the append of `sequence` has succeeded.
    pub(super) fn covered(&self, sequence: Sequence) {
        self.durable.fetch_max(sequence.0, Ordering::AcqRel);
    }

    /// Returns once `wanted` is durable. One caller leads and issues the barrier for all records
    /// appended by then. The others wait, and lead in turn if that barrier did not cover their
    /// records.
    pub(super) fn flush(
        &self,
        wanted: Sequence,
        appended: impl Fn() -> Sequence,
        device: &dyn Device,
    ) -> Result<()> {
        let mut leading = self.leading.lock();
        while *leading {
            self.done.wait(&mut leading);
        }
        if self.durable() >= wanted {
            return Ok(());
        }
        *leading = true;
        drop(leading);
        let covers = appended();
        let outcome = device.flush();
        if outcome.is_ok() {
            self.covered(covers);
        }
        *self.leading.lock() = false;
        self.done.notify_all();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::device::MemoryDevice;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn concurrent_callers_all_become_durable() {
        let commit = Arc::new(Commit::new(Sequence(0)));
        let device = Arc::new(MemoryDevice::new(1 << 20));
        let appended = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (commit, device, appended) = (
                    Arc::clone(&commit),
                    Arc::clone(&device),
                    Arc::clone(&appended),
                );
                thread::spawn(move || {
                    for _ in 0..200 {
                        let mine = Sequence(appended.fetch_add(1, Ordering::AcqRel) + 1);
                        let all = || Sequence(appended.load(Ordering::Acquire));
                        commit.flush(mine, all, &*device).unwrap();
                        assert!(commit.durable() >= mine);
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(commit.durable(), Sequence(1600));
        assert!(device.flushes() <= 1600);
    }
}
