//! A table of locks, one for each object, and waiting for one.

use crate::error::Result;
use cowshed_format::base::cancel;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// The interval at which a thread that waits for a lock checks for cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// The locks of objects, each of which exists while it is in use.
pub(crate) struct Locks<K> {
    table: Mutex<HashMap<K, Arc<Mutex<()>>>>,
}

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Locks<K> {
    /// Returns the lock of one object: `let lock = …; let _held = lock.lock();`.
    pub(crate) fn of(&self, key: &K) -> Arc<Mutex<()>> {
        Arc::clone(self.table.lock().entry(key.clone()).or_default())
    }

    /// Forgets the lock of an object that was removed.
    pub(crate) fn forget(&self, key: &K) {
        self.table.lock().remove(key);
    }

    /// Forgets the lock of an object unless a thread uses it.
    pub(crate) fn forget_idle(&self, key: &K) {
        let mut table = self.table.lock();
        if table
            .get(key)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            table.remove(key);
        }
    }
}

/// Waits for `lock`, which another command may hold for long, until the work is cancelled.
pub(crate) fn hold(lock: &Mutex<()>) -> Result<MutexGuard<'_, ()>> {
    loop {
        cancel::check()?;
        if let Some(held) = lock.try_lock_for(CANCEL_POLL) {
            return Ok(held);
        }
    }
}
