//! The signals of a keeper: blocked from the start, and read one by one.
//!
//! So no signal is lost while a worker is started, nor while this process becomes another program:
//! that program reads the signals that were not read before.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The meaning of a signal to a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Stop.
    Stop,
    /// A child process has ended.
    Child,
    /// Open the log again. A closed terminal causes the same signal.
    ReopenLog,
}

/// Reads the signals that have come.
pub(super) struct KeeperSignals {
    descriptor: SignalFd,
}

impl KeeperSignals {
    /// Blocks the signals, so that they wait to be read. Only for a process that has no other
    /// thread yet.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&set, flags)?;
        Ok(Self { descriptor })
    }

    /// Returns the next signal, if one has come.
    pub(super) fn next(&self) -> Option<News> {
        // It fails for no reason that a later call would not report, too.
        let info = self.descriptor.read_signal().ok().flatten()?;
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(match Signal::try_from(number) {
            Ok(Signal::SIGTERM | Signal::SIGINT) => News::Stop,
            Ok(Signal::SIGCHLD) => News::Child,
            _ => News::ReopenLog,
        })
    }
}

impl AsFd for KeeperSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
