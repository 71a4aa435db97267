//! Cancelling work whose result nobody waits for any longer.
//!
//! The starter of work makes a [`Cancel`] and runs the work within [`Cancel::during`]. The loops of
//! the work call [`check`], which asks the token of the thread that they run on; a thread that
//! works for another one takes over its token ([`Cancel::current`]). Work that was started without
//! a token is never cancelled: this holds for all clean-up and for background work.
//!
//! The state of a token is one flag. Code that waits for something outside (a pipe, a lock) must
//! wake from time to time and check.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A token that tells work that nobody waits for it any longer. Clones are the same token.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The work was cancelled: by a signal, because its client went away, or because the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

thread_local! {
    static CURRENT: RefCell<Cancel> = RefCell::new(Cancel::default());
}

/// Stops a loop whose work was cancelled.
///
/// # Errors
/// `Cancelled` within [`Cancel::during`] of a cancelled token.
pub fn check() -> Result<(), Cancelled> {
    CURRENT.with_borrow(Cancel::check)
}

/// Runs `act` as work that is never cancelled: work that cleans up after other work, or that
/// several share.
pub fn never<T>(act: impl FnOnce() -> T) -> T {
    Cancel::default().during(act)
}

impl Cancel {
    /// Returns the token of the work that this thread does; a new one where it does none.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.with_borrow(Self::clone)
    }

    /// Runs `act` as work that this token cancels.
    pub fn during<T>(&self, act: impl FnOnce() -> T) -> T {
        /// Restores the token, also if `act` panics.
        struct Restore(Cancel);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.replace(std::mem::take(&mut self.0));
            }
        }
        let _restore = Restore(CURRENT.replace(self.clone()));
        act()
    }

    /// Cancels the work.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns true once the work was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Stops a loop whose work was cancelled.
    ///
    /// # Errors
    /// `Cancelled` after `cancel`.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    /// Returns the flag itself, for signal handlers.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl From<Cancelled> for io::Error {
    fn from(cancelled: Cancelled) -> Self {
        Self::other(cancelled)
    }
}

/// A stream that fails once the work that it was made for is cancelled.
#[derive(Debug)]
pub struct Cancellable<T> {
    inner: T,
    cancel: Cancel,
}

impl<T> Cancellable<T> {
    /// Makes `inner` a stream of the work that this thread does now.
    #[must_use]
    pub fn new(inner: T) -> Self {
        let cancel = Cancel::current();
        Self { inner, cancel }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for Cancellable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn work_is_cancelled_by_its_own_token_and_by_no_other() {
        let (outer, inner) = (Cancel::default(), Cancel::default());
        assert_eq!(check(), Ok(()));
        outer.during(|| {
            inner.cancel();
            assert_eq!(check(), Ok(()), "the token of other work");
            assert_eq!(inner.during(check), Err(Cancelled));
            assert_eq!(check(), Ok(()), "after the other work");
            outer.cancel();
            assert_eq!(check(), Err(Cancelled));
        });
        assert_eq!(check(), Ok(()), "after the work");
    }

    #[test]
    fn work_that_panics_leaves_its_token_behind() {
        let cancel = Cancel::default();
        cancel.cancel();
        let panics = || cancel.during(|| panic!("as meant"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn a_stream_ends_with_the_work_also_on_another_thread() {
        let cancel = Cancel::default();
        let mut stream = cancel.during(|| Cancellable::new(io::repeat(7)));
        let ended = std::thread::spawn(move || {
            stream.read_exact(&mut [0; 64]).unwrap();
            cancel.cancel();
            stream.read(&mut [0; 64]).unwrap_err()
        });
        let error = ended.join().unwrap();
        assert!(error.get_ref().unwrap().is::<Cancelled>(), "{error}");
    }
}
