//! Yielding: long background work runs in pieces, between which the threads run that somebody waits
//! for.
//!
//! A scheduler that reconsiders only every few milliseconds lets a thread run that long though
//! others are ready; a request that became ready just after such a decision waits for all of that
//! time.
//!
//! # Invariants
//! - Only threads that have declared themselves background yield: other threads do the same work
//!   when they have to wait for its result.
//! - A thread yields only where it holds no lock that a read or a write takes, unless that read or
//!   write has to wait for this very work.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// Length of a piece: the time that some requests take.
const PIECE: Duration = Duration::from_micros(50);

thread_local! {
    /// Start of this thread's piece; `None` where somebody may wait for the thread.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// While this value lives, nobody waits for what this thread does.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Background {
    before: Option<Instant>,
}

impl Background {
    /// Makes this thread a background thread from now on.
    pub fn begin() -> Self {
        let before = TURN.with(|turn| turn.replace(Some(Instant::now())));
        Self { before }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        TURN.with(|turn| turn.set(self.before));
    }
}

/// Lets other threads run, if this thread is in the background and its piece is over; called
/// between two steps. Returns true if it yielded.
pub fn offer() -> bool {
    TURN.with(|turn| {
        let is_over = turn.get().is_some_and(|begun| begun.elapsed() >= PIECE);
        if is_over {
            thread::yield_now();
            turn.set(Some(Instant::now()));
        }
        is_over
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece() {
        thread::sleep(2 * PIECE);
    }

    #[test]
    fn only_in_the_background_are_turns_offered_and_once_a_piece() {
        piece();
        assert!(!offer());
        let background = Background::begin();
        piece();
        assert!(offer());
        assert!((0..100).any(|_| !offer()), "each step is no piece");
        {
            let _inner = Background::begin();
        }
        piece();
        assert!(offer());
        drop(background);
        piece();
        assert!(!offer());
    }
}
