//! What is open through the mount: numbered handles, as the kernel passes them with each request.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Open things by handle. A number is never used twice.
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: RwLock::default(),
        }
    }

    /// Keeps `thing` and gives its handle.
    pub(super) fn insert(&self, thing: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, Arc::new(thing));
        handle
    }

    /// What the handle stands for. The lock is not held while it is used.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.open.read().get(&handle).cloned()
    }

    /// Lets go of what the handle stands for, once its last request is done.
    pub(super) fn remove(&self, handle: u64) {
        // Bound first: dropping the thing may call into the pool, which must not happen under
        // the lock.
        let removed = self.open.write().remove(&handle);
        drop(removed);
    }
}
