//! Resources that must be removed in any case: each value removes its own when it is dropped, and
//! reports a failure on the error stream.
//!
//! A value that depends on another is dropped first: fields are declared in that order.

use crate::host::{command, run, text, tidy};
use anyhow::Context;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// The time for which a busy resource is retried.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// A folder with all its contents.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Creates a new one, in `parent`.
    pub(crate) fn new_in(parent: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("make a folder in {}", parent.display()))?;
        Ok(Self(folder.keep()))
    }

    /// Creates it at a path inside an existing folder.
    pub(crate) fn at(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&path).with_context(|| format!("make the folder {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // File systems still mounted below are left alone, and reported.
        let arguments = ["--recursive", "--force", "--one-file-system"];
        let mut remove = command("rm", arguments);
        report(tidy({
            remove.arg(&self.0);
            remove
        }));
    }
}

/// A mounted file system.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Runs `mount` with options, a source, and a mount point, which is created if it does not
    /// exist.
    pub(crate) fn new(options: &[&str], source: &Path, point: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(point)?;
        let paths = [text(source)?, text(point)?];
        run("mount", options.iter().chain(&paths))?;
        Ok(Self(point.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Unmounts, waits while busy, and finally detaches the mount.
pub(crate) fn unmount(point: &Path) {
    let arguments = |options: &[&str]| {
        let mut umount = command("umount", options);
        umount.arg(point);
        umount
    };
    if again(|| tidy(arguments(&[]))).is_err() {
        report(tidy(arguments(&["--lazy"])));
    }
}

/// Returns the mount points below a folder, the innermost first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(folder))
        .collect();
    below.reverse();
    below
}

/// A loop device.
pub(crate) struct LoopDevice {
    path: PathBuf,
    /// The device is detached already, so it vanishes with its last descriptor, even if this
    /// program is killed.
    _last: File,
}

impl LoopDevice {
    /// Attaches `file` with blocks of 4 KiB; `direct` bypasses the host's page cache.
    pub(crate) fn attach(file: &Path, direct: bool) -> anyhow::Result<Self> {
        let direct = format!("--direct-io={}", if direct { "on" } else { "off" });
        let words = ["--find", "--show", "--sector-size=4096", &direct];
        let ran = run("losetup", words.iter().chain(&[text(file)?]))?;
        let path = PathBuf::from(ran.output.trim());
        let last = File::open(&path);
        detach(&path);
        Ok(Self {
            _last: last.with_context(|| format!("open {}", path.display()))?,
            path,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Detaches a device once no process has it open.
pub(crate) fn detach(path: &Path) {
    let mut detach = command("losetup", ["--detach"]);
    detach.arg(path);
    report(tidy(detach));
}

/// Returns the loop devices whose file is below a folder.
pub(crate) fn loops_below(folder: &Path) -> Vec<PathBuf> {
    let words = ["--list", "--noheadings", "--output=NAME,BACK-FILE"];
    let list = tidy(command("losetup", words)).map_or_else(|_| String::new(), |ran| ran.output);
    let ours = list.lines().filter_map(|line| {
        let (device, file) = line.trim().split_once(' ')?;
        Path::new(file.trim())
            .starts_with(folder)
            .then(|| PathBuf::from(device))
    });
    ours.collect()
}

/// A process that serves until it is stopped.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it in its own process group.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn();
        Ok(Self {
            child: child.with_context(|| format!("start {name}"))?,
            name,
        })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// # Errors
    /// When it has ended.
    pub(crate) fn expect_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended by itself ({status})", self.name),
        }
    }

    fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()).map(Pid::from_raw) else {
            return;
        };
        // It may have ended; its children end with it only if it is killed.
        let _ = match signal {
            Signal::SIGKILL => killpg(pid, signal),
            _ => kill(pid, signal),
        };
    }

    fn ends_in(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal);
            if self.ends_in(PATIENCE) {
                return;
            }
            eprintln!("{} does not end at {signal}", self.name);
        }
    }
}

/// Retries while busy, until it succeeds or patience ends.
fn again<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// Waits until `holds` returns true.
///
/// # Errors
/// When it does not in time, or the user has asked to stop.
pub(crate) fn eventually(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        crate::signals::go_on()?;
        if Instant::now() > deadline {
            anyhow::bail!("{what} did not come about");
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn report<T>(result: anyhow::Result<T>) {
    if let Err(error) = result {
        eprintln!("left behind: {error:#}");
    }
}
