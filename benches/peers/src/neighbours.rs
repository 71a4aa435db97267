//! Others that keep a host busy, as containers do that compute: one process for each processor,
//! which never waits. Each is in a session of its own, for which the kernel has a group of the
//! scheduler where autogroups are on (sched(7)), as it has for each container.

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getppid, setsid};
use std::process::{Child, Command, Stdio};

/// The option with which this program is one of them.
pub(crate) const OPTION: &str = "--be-busy";

/// All of them, until it is dropped.
pub(crate) struct Neighbours(Vec<Child>);

impl Neighbours {
    /// Lets them begin.
    ///
    /// # Errors
    /// When the host gives no process.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut neighbours = Self(Vec::new());
        for _ in 0..processors {
            // Itself, even if its file has been replaced meanwhile.
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
            // It may have ended with what began it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What one of them does: nothing, for as long as `beginner` lives, the process that began it.
///
/// # Errors
/// When the kernel would not end it with that.
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
