//! The progress line on the error stream.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const LINE_COLUMNS: usize = 110;

pub(crate) struct Progress {
    started: Instant,
    expected: Duration,
    terminal: bool,
    last: String,
}

impl Progress {
    pub(crate) fn new(expected: Duration) -> Self {
        Self {
            started: Instant::now(),
            expected,
            terminal: std::io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// Starts a round of some work; prints a line if lines stay.
    pub(crate) fn round(&mut self, what: &str) {
        self.last = what.to_owned();
        if self.terminal {
            self.step("");
        } else {
            eprintln!("{}", self.line(""));
        }
    }

    /// Shows a smaller step, only on a terminal.
    pub(crate) fn step(&self, what: &str) {
        if self.terminal {
            let line: String = self.line(what).chars().take(LINE_COLUMNS).collect();
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        }
    }

    /// Prints a message that stays.
    pub(crate) fn say(&self, what: &str) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("{what}");
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn line(&self, what: &str) -> String {
        let (elapsed, expected) = (clock(self.elapsed()), clock(self.expected));
        let separator = if what.is_empty() { "" } else { ": " };
        format!(
            "[{elapsed} of about {expected}] {}{separator}{what}",
            self.last
        )
    }
}

/// Formats a time as minutes and seconds.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
