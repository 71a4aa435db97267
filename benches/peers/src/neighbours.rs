//! Processes that keep a host busy, like containers that compute: one for each processor, which
//! never waits. Each has its own session, for which the kernel creates a scheduler group if
//! autogroups are on (sched(7)), as it does for each container.

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getppid, setsid};
use std::process::{Child, Command, Stdio};

/// The option with which this program becomes one of them.
pub(crate) const OPTION: &str = "--be-busy";

/// All of them, until this is dropped.
pub(crate) struct Neighbours(Vec<Child>);

impl Neighbours {
    /// Starts them.
    ///
    /// # Errors
    /// When the host cannot start a process.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut neighbours = Self(Vec::new());
        for _ in 0..processors {
            // This program itself, even if its file has been replaced meanwhile.
            let child = Command::new("/proc/self/exe")
                .args([OPTION, &std::process::id().to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            neighbours.0.push(child.context("keep a processor busy")?);
        }
        Ok(neighbours)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended with its parent.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Spins for as long as `beginner` lives, the process that started it.
///
/// # Errors
/// When the kernel cannot end it together with that process.
pub(crate) fn be_busy(beginner: i32) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("end with what began this")?;
    setsid().context("begin a session")?;
    while getppid().as_raw() == beginner {
        for _ in 0..1_000_000 {
            std::hint::black_box(0);
        }
    }
    Ok(())
}
