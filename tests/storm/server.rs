//! A daemon whose worker is killed repeatedly, and which never outlives its test.

use crate::harness::{
    Bench, PATIENCE, children_of, clear_mounts, eventually, kill_and_wait, mounts_below,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// `cowshed serve`, with its log in a file: hundreds of restarts would fill a pipe that is not
/// read.
pub(crate) struct Server {
    child: Option<Child>,
    log: PathBuf,
    pub(crate) mount: PathBuf,
}

impl Server {
    pub(crate) fn start(bench: &Bench) -> Self {
        let log = bench.path("log");
        let mut command = bench.command(["serve", "--foreground", "--json"]);
        command.stdout(Stdio::piped());
        command.stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self {
            child: Some(child),
            log,
            mount: PathBuf::new(),
        };
        let mut text = String::new();
        while server.mount.as_os_str().is_empty() {
            let len = output.read_line(&mut text).unwrap();
            assert!(len > 0, "the daemon did not start: {}", server.said());
            if let Ok(ready) = serde_json::from_str::<Value>(&text) {
                server.mount = ready["mount"].as_str().unwrap().into();
            }
        }
        server
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Returns its log.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops it, which must succeed and leave nothing behind.
    pub(crate) fn stop(mut self) {
        signal(self.pid(), Signal::SIGTERM);
        let child = self.child.as_mut().unwrap();
        eventually("the daemon's end", || child.try_wait().unwrap().is_some());
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
        let state = self.mount.parent().unwrap();
        assert_eq!(mounts_below(state), Vec::<PathBuf>::new());
        assert!(!state.exists(), "{} was left", state.display());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Only a failed test leads here; two signals end even a busy daemon.
        let deadline = Instant::now() + Duration::from_secs(10);
        for _ in 0..2 {
            signal(child.id(), Signal::SIGTERM);
            thread::sleep(Duration::from_millis(500));
        }
        while child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        if child.try_wait().is_ok_and(|status| status.is_none()) {
            let workers = children_of(child.id());
            let _ = child.kill();
            let _ = child.wait();
            workers.into_iter().for_each(kill_and_wait);
        }
        if let Some(state) = self.mount.parent() {
            clear_mounts(state);
        }
        eprintln!("the daemon's last words: {}", last_lines(&self.said()));
    }
}

fn last_lines(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

/// Returns the worker that takes commands now, and the number of restarts.
pub(crate) fn serving(bench: &Bench) -> (u32, u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = bench.run(["pool", "status", "--json"]);
        let status = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        let worker = status["daemon"]["worker"].as_u64();
        if let (Some(worker), Some(restarts)) = (worker, status["daemon"]["restarts"].as_u64()) {
            return (u32::try_from(worker).unwrap(), restarts);
        }
        // A command to which a dying worker had begun to reply fails.
        assert!(Instant::now() < deadline, "no worker answers: {output:?}");
    }
}

/// Kills the worker, and waits until another one takes commands; returns the duration.
pub(crate) fn kill_worker(bench: &Bench, worker: u32) -> (u32, Duration) {
    let started = Instant::now();
    signal(worker, Signal::SIGKILL);
    loop {
        let (successor, _) = serving(bench);
        if successor != worker {
            return (successor, started.elapsed());
        }
        assert!(started.elapsed() < PATIENCE, "worker {worker} lives on");
    }
}
