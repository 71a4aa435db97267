//! The input and outputs of one command, and the display of its results.
//!
//! The streams are plain files, whether they belong to this process or came from a client of the
//! daemon: a command cannot tell the difference, and need not. Results go to the output, all other
//! text to the error stream. This module does not know what the results mean.

use super::output::{self, Column};
use super::progress::{Bars, Progress};
use super::streams::{Input, Output};
use cowshed_daemon::request::{Command, Request, Style};
use cowshed_format::base::{Cancel, printable_lines};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest time that a message waits for its reader, in milliseconds; after that it is dropped.
const MESSAGE_TIME_MS: u16 = 1000;

/// Returns the style with the properties of this process's own error stream.
#[must_use]
pub(super) fn on_this_terminal(mut style: Style) -> Style {
    if takes_escapes() {
        const USUAL_COLUMNS: u16 = 80;
        let columns = comfy_table::Table::new().use_stderr().width();
        style.terminal_columns = Some(columns.unwrap_or(USUAL_COLUMNS));
    }
    style
}

/// Returns true if the error stream is a terminal that takes escapes (`TERM` names one that does),
/// and its user wants them (`NO_COLOR` is unset or empty).
pub(super) fn takes_escapes() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// The reader of the results has closed its end, so nothing can be reported to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output was closed")]
pub(super) struct OutputClosed;

/// The input and outputs of one command.
#[derive(Debug)]
pub(super) struct Console {
    input: File,
    output: File,
    error: File,
    style: Style,
    cancel: Cancel,
}

impl Console {
    /// Returns a console on `streams`: input, output, error.
    #[must_use]
    pub(super) fn new(streams: [OwnedFd; 3], style: Style, cancel: Cancel) -> Self {
        let [input, output, error] = streams.map(File::from);
        Self {
            input,
            output,
            error,
            style,
            cancel,
        }
    }

    /// Returns a console on this process's own streams.
    ///
    /// # Errors
    /// When one of the three is closed.
    pub(super) fn of_this_process(style: Style, cancel: Cancel) -> io::Result<Self> {
        Ok(Self::new(own_streams()?, style, cancel))
    }

    /// Returns a console with another input, which shows no progress.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn with_input(&self, input: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            input: File::from(input),
            output: self.output.try_clone()?,
            error: self.error.try_clone()?,
            style: Style {
                terminal_columns: None,
                ..self.style.clone()
            },
            cancel: self.cancel.clone(),
        })
    }

    /// Returns how results are shown.
    #[must_use]
    pub(super) const fn style(&self) -> &Style {
        &self.style
    }

    /// Returns a request for `command` with the style of this console.
    #[must_use]
    pub(super) fn request(&self, command: Command) -> Request {
        Request {
            style: self.style.clone(),
            command,
        }
    }

    /// Returns the token that says when to stop.
    #[must_use]
    pub(super) const fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Returns the standard input. Waiting for it ends with an error when the command is cancelled.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn input(&self) -> io::Result<Input> {
        Ok(Input::new(self.input.try_clone()?, self.cancel.clone()))
    }

    /// Returns the standard output, for results that are bytes.
    #[must_use]
    pub(super) const fn output(&self) -> &File {
        &self.output
    }

    /// Returns the three streams, for sending them to the daemon.
    #[must_use]
    pub(super) fn streams(&self) -> [BorrowedFd<'_>; 3] {
        [self.input.as_fd(), self.output.as_fd(), self.error.as_fd()]
    }

    /// Shows a result: `document` as JSON, or the text that `human` returns, whose control
    /// characters other than line ends are escaped. Names from outside must already be on one line
    /// in that text (`printable`).
    ///
    /// # Errors
    /// `OutputClosed`, or the host's error on the output.
    pub(super) fn result<T: Serialize + ?Sized>(
        &self,
        document: &T,
        human: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut text = if self.style.json {
            serde_json::to_string_pretty(document)?
        } else {
            printable_lines(&human()).into_owned()
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.print(&text)
    }

    /// Returns a table of results for people.
    #[must_use]
    pub(super) fn table(
        &self,
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> String {
        if self.style.no_trunc {
            output::table(columns, rows)
        } else {
            output::short_table(columns, rows)
        }
    }

    /// Writes `text` to the output.
    ///
    /// # Errors
    /// Like those of `result`.
    pub(super) fn print(&self, text: &str) -> anyhow::Result<()> {
        Output::new(&self.output, &self.cancel)
            .and_then(|mut output| output.write_all(text.as_bytes()))
            .map_err(output_error)
    }

    /// Prints a message beside the results, unless `-q`.
    pub(super) fn message(&self, text: &str) {
        if !self.style.quiet {
            self.complain(text);
        }
    }

    /// Prints a message that `-q` does not silence.
    pub(super) fn complain(&self, text: &str) {
        let mut fds = [PollFd::new(self.error.as_fd(), PollFlags::POLLOUT)];
        if let Ok(0) = poll(&mut fds, PollTimeout::from(MESSAGE_TIME_MS)) {
            return;
        }
        // A message that cannot be written is lost, which is not an error.
        let text = printable_lines(text);
        let _ = (&self.error).write_all(format!("{text}\n").as_bytes());
    }

    /// Returns a progress bar for each of some things, shown only on a terminal and not with `-q`.
    #[must_use]
    pub(super) fn bars(&self, things: &[(String, u64)]) -> Bars {
        let shown = if self.style.quiet {
            None
        } else {
            self.style.terminal_columns
        };
        match shown.map(|columns| (columns, self.error.try_clone())) {
            Some((columns, Ok(file))) => Bars::shown(file, columns, things),
            _ => Bars::hidden(),
        }
    }

    /// Returns a progress bar of `total_bytes` (unknown for a pipe), shown only on a terminal and
    /// not with `-q`.
    #[must_use]
    pub(super) fn progress(&self, what: &'static str, total_bytes: Option<u64>) -> Progress {
        let shown = if self.style.quiet {
            None
        } else {
            self.style.terminal_columns
        };
        match shown.map(|columns| (columns, self.error.try_clone())) {
            Some((columns, Ok(file))) => Progress::shown(file, columns, what, total_bytes),
            _ => Progress::hidden(),
        }
    }
}

/// Converts an error of writing to the output.
pub(super) fn output_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        OutputClosed.into()
    } else {
        anyhow::Error::new(error).context("write the output")
    }
}

/// Returns duplicates of this process's input, output and error stream.
///
/// # Errors
/// When one of the three is closed.
pub(super) fn own_streams() -> io::Result<[OwnedFd; 3]> {
    Ok([
        io::stdin().as_fd().try_clone_to_owned()?,
        io::stdout().as_fd().try_clone_to_owned()?,
        io::stderr().as_fd().try_clone_to_owned()?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn console(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>, style: Style) -> Console {
        let error = File::options().write(true).open("/dev/null").unwrap();
        Console::new(
            [input.into(), output.into(), error.into()],
            style,
            Cancel::default(),
        )
    }

    #[test]
    fn a_closed_output_is_told_from_a_failing_one() {
        let (input, _writer) = io::pipe().unwrap();
        let (reader, output) = io::pipe().unwrap();
        drop(reader);
        let closed = console(input, output, Style::default());
        assert!(closed.print("x").unwrap_err().is::<OutputClosed>());

        let (input, _writer) = io::pipe().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let full = console(input, full, Style::default());
        assert!(!full.print("x").unwrap_err().is::<OutputClosed>());
    }

    #[test]
    fn a_result_is_one_json_document_or_the_human_text() {
        for (json, expected) in [(true, "[\n  1,\n  2\n]\n"), (false, "one and two\n")] {
            let (input, _writer) = io::pipe().unwrap();
            let (mut reader, output) = io::pipe().unwrap();
            let style = Style {
                json,
                ..Style::default()
            };
            console(input, output, style)
                .result(&[1, 2], || "one and two".to_owned())
                .unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }
}
