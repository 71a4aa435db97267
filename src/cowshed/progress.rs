//! Progress bars on the terminal that is the command's error stream.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::fs::File;
use std::io::{self, Write};

/// A progress bar, or nothing if none is to be shown. It vanishes when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Returns a bar that shows nothing.
    #[must_use]
    pub(super) fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
        }
    }

    /// Returns a bar on the terminal `file`, `columns` wide.
    #[must_use]
    pub(super) fn shown(
        file: File,
        columns: u16,
        what: &'static str,
        total_bytes: Option<u64>,
    ) -> Self {
        let target = ProgressDrawTarget::term_like(Box::new(Terminal { file, columns }));
        let bar = ProgressBar::with_draw_target(total_bytes, target);
        let template = match total_bytes {
            Some(_) => {
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        };
        // An unknown template falls back to the crate's default bar.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// Adds `len_bytes` to the progress.
    pub(super) fn advance(&self, len_bytes: u64) {
        self.bar.inc(len_bytes);
    }

    /// Sets the progress to `done`.
    pub(super) fn advance_to(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Sets the progress to `done` of `total`.
    pub(super) fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress bars one below the other, or nothing if none are to be shown. They vanish when dropped.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Bars {
    /// Returns bars that show nothing.
    #[must_use]
    pub(super) fn hidden() -> Self {
        Self {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            bars: Vec::new(),
        }
    }

    /// Returns a bar for each name and number of bytes, on the terminal `file`, `columns` wide.
    #[must_use]
    pub(super) fn shown(file: File, columns: u16, things: &[(String, u64)]) -> Self {
        let target = ProgressDrawTarget::term_like(Box::new(Terminal { file, columns }));
        let all = MultiProgress::with_draw_target(target);
        let template = "{prefix} {msg:11} {wide_bar} {binary_bytes}/{binary_total_bytes}";
        let bars = things.iter().map(|(name, bytes)| {
            let bar = all.add(ProgressBar::new(*bytes));
            // An unknown template falls back to the crate's default bar.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar
        });
        let bars = bars.collect();
        Self { all, bars }
    }

    /// Sets the number of bytes of one thing.
    pub(super) fn set_total(&self, index: usize, total_bytes: u64) {
        if let Some(bar) = self.bars.get(index) {
            bar.set_length(total_bytes);
        }
    }

    /// Sets one bar to `bytes` and says what is done.
    pub(super) fn set(&self, index: usize, bytes: u64, doing: &'static str) {
        if let Some(bar) = self.bars.get(index) {
            bar.set_position(bytes);
            bar.set_message(doing);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in &self.bars {
            bar.finish_and_clear();
        }
        // A terminal that cannot be written to shows nothing to remove.
        let _ = self.all.clear();
    }
}

/// A terminal reached through a file.
#[derive(Debug)]
struct Terminal {
    file: File,
    columns: u16,
}

impl Terminal {
    fn control(&self, count: usize, letter: char) -> io::Result<()> {
        if count == 0 {
            Ok(())
        } else {
            self.write_str(&format!("\x1b[{count}{letter}"))
        }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.columns
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.control(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.control(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.control(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.control(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.write_str(&format!("{s}\n"))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        (&self.file).write_all(s.as_bytes())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        (&self.file).flush()
    }
}
