//! Taking turns: long work in the background, in pieces, between which those threads run that
//! somebody waits for.
//!
//! A scheduler that looks around once in some milliseconds lets a thread run that long, though
//! others are ready; a request that found a processor a moment too late waits for all of it.
//!
//! # Invariants
//! - Only threads that said that they are in the background offer turns: the same work is done by
//!   others, too, when they have to wait for it.
//! - Turns are offered where nothing is locked that a read or a write takes on its way, unless it
//!   has to wait for that very work.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// How long a piece is: what some requests take.
const PIECE: Duration = Duration::from_micros(50);

thread_local! {
    /// Since when it is this thread's turn; `None` where somebody may wait for it.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Nobody waits for what this thread does, until the value is dropped.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Background {
    before: Option<Instant>,
}

impl Background {
    /// From now on.
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

/// Between two steps: lets others run, if this thread is in the background and has had its piece.
/// Answers whether it did.
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
