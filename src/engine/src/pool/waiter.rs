//! Who decides whether a write may wait for space in a full pool.
//!
//! The pool never decides that for a thread that serves others: such a thread must not simply wait,
//! as nobody would serve its other clients meanwhile. Its owner gives each write a [`Waiter`],
//! which starts another thread in its place, or refuses. Locks and I/O do not count as waits here.

/// Decides whether one write may wait. Giving one to a write also says that the write comes from a
/// mounted or attached volume (`FullPolicy::WaitAttached`).
pub trait Waiter {
    /// Returns true if the calling thread may wait now; a call of `ended` follows each `true`.
    fn may_begin(&self) -> bool;

    /// Tells that the wait is over, in the thread that waited.
    fn ended(&self);
}

/// A waiter that always allows it: for threads that serve nobody else.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitFreely;

impl Waiter for WaitFreely {
    fn may_begin(&self) -> bool {
        true
    }

    fn ended(&self) {}
}

/// A wait in progress: it ends when this is dropped.
#[must_use]
pub struct Waiting<'a>(&'a dyn Waiter);

impl<'a> Waiting<'a> {
    /// Begins a wait; `None` if the thread must not wait and has to return at once.
    pub fn begin(waiter: &'a dyn Waiter) -> Option<Self> {
        // A value that is made and dropped would end a wait that has not begun.
        waiter.may_begin().then(|| Self(waiter))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Room(Cell<u32>);

    impl Waiter for Room {
        fn may_begin(&self) -> bool {
            let room = self.0.get();
            self.0.set(room.saturating_sub(1));
            room > 0
        }

        fn ended(&self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn a_waiter_is_asked_and_told() {
        let room = Room(Cell::new(1));
        let waiting = Waiting::begin(&room);
        assert!(waiting.is_some());
        assert!(Waiting::begin(&room).is_none());
        drop(waiting);
        assert!(Waiting::begin(&room).is_some());
        assert_eq!(room.0.get(), 1);
        assert!(Waiting::begin(&WaitFreely).is_some());
    }
}
