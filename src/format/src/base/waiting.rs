//! Telling a thread's owner that the thread is about to wait for long, for example for space in a
//! full pool.
//!
//! A thread that serves many clients must not simply wait: its owner may start another thread in
//! its place, or refuse. A thread without an owner may wait freely. Locks and I/O do not count as
//! waits here.

use std::cell::RefCell;
use std::sync::Arc;

/// The owner of a thread, which is asked before the thread waits.
pub trait Owner: Send + Sync {
    /// Returns true if the thread may wait now; a call of `ended` follows each `true`.
    fn may_begin(&self) -> bool;

    /// Tells the owner that the thread's wait is over.
    fn ended(&self);

    /// Returns true if the thread may not wait here and its present work will be started anew
    /// elsewhere: then the work's result here is not final.
    fn begins_anew(&self) -> bool {
        false
    }
}

thread_local! {
    static OWNER: RefCell<Option<Arc<dyn Owner>>> = const { RefCell::new(None) };
}

/// Makes `owner` the one that is asked before this thread waits.
pub fn own_thread(owner: Arc<dyn Owner>) {
    OWNER.set(Some(owner));
}

/// Gives this thread an owner that lets it wait, unless it has an owner.
pub fn own_freely() {
    OWNER.with_borrow_mut(|owner| {
        owner.get_or_insert_with(|| Arc::new(Free));
    });
}

/// Returns true if this thread has an owner, that is, serves a mount or an attached device.
#[must_use]
pub fn is_owned() -> bool {
    OWNER.with_borrow(Option::is_some)
}

/// The owner of a thread that may always wait.
struct Free;

impl Owner for Free {
    fn may_begin(&self) -> bool {
        true
    }

    fn ended(&self) {}
}

/// A wait in progress: it ends when this is dropped, in the same thread.
#[must_use]
pub struct Waiting(Option<Arc<dyn Owner>>);

/// Begins a wait; `None` if this thread must not wait and has to return at once.
pub fn begin() -> Option<Waiting> {
    let owner = OWNER.with_borrow(Clone::clone);
    match owner {
        Some(owner) if !owner.may_begin() => None,
        owner => Some(Waiting(owner)),
    }
}

/// Returns true if this thread's present work will be started anew elsewhere, so that its failure
/// here does not count.
#[must_use]
pub fn begins_anew() -> bool {
    OWNER.with_borrow(|owner| owner.as_ref().is_some_and(|owner| owner.begins_anew()))
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(owner) = &self.0 {
            owner.ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

    struct Room(AtomicI32);

    impl Owner for Room {
        fn may_begin(&self) -> bool {
            self.0
                .fetch_update(SeqCst, SeqCst, |room| (room > 0).then(|| room - 1))
                .is_ok()
        }

        fn ended(&self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn an_owner_is_asked_and_told_and_a_free_thread_waits_as_it_likes() {
        std::thread::spawn(|| {
            assert!(begin().is_some());
            assert!(!is_owned());
            let room = Arc::new(Room(AtomicI32::new(1)));
            own_thread(room.clone());
            let waiting = begin();
            assert!(waiting.is_some());
            assert!(begin().is_none());
            drop(waiting);
            assert!(begin().is_some());
            assert_eq!(room.0.load(SeqCst), 1);
            // The present owner stays.
            own_freely();
            let _waiting = begin();
            assert_eq!(room.0.load(SeqCst), 0);
        })
        .join()
        .unwrap();
    }
}
