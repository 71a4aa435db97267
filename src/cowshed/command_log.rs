//! The log of a command: its `tracing` output on the error stream. A daemon's log is
//! `cowshed_daemon::log`.

use super::console::takes_escapes;
use std::io::{self, Write};
use tracing_subscriber::EnvFilter;

/// Starts the log.
pub(super) fn start(filter: EnvFilter) {
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Lossy(io::stderr()))
        .with_ansi(takes_escapes())
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// A stream whose failures are ignored.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
