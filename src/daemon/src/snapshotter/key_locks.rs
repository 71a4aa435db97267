//! One lock for each key that a call works on, so that calls for the same key run one after the
//! other.
//!
//! # Invariants
//! - Two keys are locked in their sort order, so that two calls cannot deadlock.

use parking_lot::{ArcMutexGuard, Mutex, RawMutex};
use std::collections::HashMap;
use std::sync::Arc;

/// The keys that are locked or waited for.
#[derive(Default)]
pub(super) struct KeyLocks {
    locks: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// Keeps keys locked.
pub(super) struct KeyGuard<'l> {
    locks: &'l KeyLocks,
    held: Vec<(String, Option<ArcMutexGuard<RawMutex, ()>>)>,
}

impl KeyLocks {
    pub(super) fn lock(&self, key: &str) -> KeyGuard<'_> {
        self.lock_all(&mut [key])
    }

    /// Locks all of `keys`; a duplicate is locked once.
    pub(super) fn lock_all(&self, keys: &mut [&str]) -> KeyGuard<'_> {
        keys.sort_unstable();
        let mut held: Vec<(String, Option<_>)> = Vec::with_capacity(keys.len());
        for key in keys {
            if held.last().is_some_and(|(last, _)| last == key) {
                continue;
            }
            let lock = Arc::clone(self.locks.lock().entry((*key).to_owned()).or_default());
            held.push(((*key).to_owned(), Some(lock.lock_arc())));
        }
        KeyGuard { locks: self, held }
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        for (key, guard) in &mut self.held {
            drop(guard.take());
            let mut locks = self.locks.locks.lock();
            // A thread that waits for the lock has a copy.
            if locks
                .get(key)
                .is_some_and(|lock| Arc::strong_count(lock) == 1)
            {
                locks.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn calls_for_one_key_exclude_each_other_and_nothing_is_left() {
        let locks = KeyLocks::default();
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for index in 0..8 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut keys = if index % 2 == 0 {
                            ["a", "b"]
                        } else {
                            ["b", "a"]
                        };
                        let _held = locks.lock_all(&mut keys);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        drop(locks.lock_all(&mut ["a", "a"]));
        assert!(locks.locks.lock().is_empty());
    }
}
