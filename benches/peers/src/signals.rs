//! Ctrl-C and SIGTERM: they end the program that currently runs; after that, only cleanup is done.
//!
//! Programs run in their own process groups, so that a terminal's ctrl-C reaches only this program.
//! It does not exit at once: the failed program's caller gets `Interrupted`, and on the way out
//! each guard removes its resource.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static STOPPING: AtomicBool = AtomicBool::new(false);
/// The programs that are waited for, by process group.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// The user has asked to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("it was interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Starts listening for signals.
pub(crate) fn listen() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if !STOPPING.swap(true, Ordering::SeqCst) {
                eprintln!("\nstopping: what was set up is taken away first");
            }
            for group in running().iter() {
                // It may have ended by itself.
                let _ = killpg(Pid::from_raw(*group), Signal::SIGTERM);
            }
        }
    });
    Ok(())
}

/// # Errors
/// `Interrupted` once the user has asked to stop.
pub(crate) fn go_on() -> Result<(), Interrupted> {
    if STOPPING.load(Ordering::SeqCst) {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

/// A program that a signal ends, until this is dropped. It must be dropped before the program is
/// reaped, or the signal could hit another program with the same number.
pub(crate) struct Registered(i32);

impl Registered {
    pub(crate) fn new(group: u32) -> Self {
        let group = i32::try_from(group).unwrap_or(i32::MAX);
        running().push(group);
        Self(group)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        running().retain(|group| *group != self.0);
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
