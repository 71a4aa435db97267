//! Taking turns: long work of a thread that nobody waits for, in pieces, between which those run that
//! somebody does wait for.
//!
//! A scheduler that looks around once in some milliseconds lets such a thread run that long, though
//! others are ready; a request that found a processor a moment too late waits for all of it.
//!
//! To be called where nothing is locked that others need.

use std::thread;
use std::time::{Duration, Instant};

/// How long a piece is: what some requests take.
const PIECE: Duration = Duration::from_micros(50);

/// The turns of one thread.
#[derive(Debug)]
pub struct Turns {
    begun: Instant,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
        }
    }
}

impl Turns {
    /// Between two steps: lets others run, if this thread has had its piece.
    pub fn offer(&mut self) {
        if self.begun.elapsed() >= PIECE {
            thread::yield_now();
            self.begun = Instant::now();
        }
    }
}
