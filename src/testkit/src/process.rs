//! A daemon in its own process, with its log in a file.

use crate::harness::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a daemon may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Number of lines of a log that are shown after a failure.
const LAST_LINES: usize = 30;

pub struct Process {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `command`, and waits until it is `ready`.
    pub fn start(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
        mut ready: impl FnMut() -> bool,
    ) -> Self {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut process = Self {
            name,
            log,
            child: Some(child),
        };
        eventually(name, || {
            let ended = process.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{name} ended at once");
            ready()
        });
        process
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Kills it, whatever it is doing.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops it, which must succeed.
    pub fn stop(mut self) {
        let status = self.end();
        let name = self.name;
        assert!(
            status.is_some_and(|status| status.success()),
            "{name} ended with {status:?}: {}",
            self.said()
        );
    }

    fn end(&mut self) -> Option<std::process::ExitStatus> {
        let mut child = self.child.take()?;
        signal(child.id(), Signal::SIGTERM);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        drop(child.kill());
        drop(child.wait());
        None
    }

    /// Returns the end of its log.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            if thread::panicking() {
                eprintln!("the last words of {}:\n{}\n", self.name, self.said());
            }
            self.end();
        }
    }
}

pub fn signal(process: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(i32::try_from(process).unwrap()), signal);
}
