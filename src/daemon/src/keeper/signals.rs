//! The signals of a keeper: blocked from the beginning, and read one by one.
//!
//! So none is lost while a worker is started, nor while this process becomes another program: what
//! has not been read by then, that program reads.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// What a keeper is told by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// To stop.
    Stop,
    /// A process that it started has ended.
    Child,
    /// To open the log again. A terminal that is closed sends the same.
    ReopenLog,
}

/// The signals that have come.
pub struct KeeperSignals {
    descriptor: SignalFd,
}

impl KeeperSignals {
    /// From now on they wait to be read. Only for a process that has no other thread yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn block() -> io::Result<Self> {
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

    /// The next one, if one has come.
    pub(super) fn next(&self) -> Option<News> {
        // It fails for nothing that a later call would not tell, too.
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
