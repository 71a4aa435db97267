//! Programs of this host: running and timing them, and reporting their output on failure.

use crate::signals::{self, Registered};
use anyhow::{Context, bail};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The output of a program that succeeded, and its duration.
pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) took: Duration,
}

/// Returns a command line from words.
pub(crate) fn command<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a program that must succeed.
///
/// # Errors
/// When it cannot be started, fails, or the user has asked to stop.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> anyhow::Result<Ran> {
    wait(command(program, arguments))
}

/// Like `run`, for a prepared command.
///
/// # Errors
/// Like those of `run`.
pub(crate) fn wait(command: Command) -> anyhow::Result<Ran> {
    signals::go_on()?;
    let ran = tidy(command);
    signals::go_on()?;
    ran
}

/// Like `wait`, but also while stopping: for cleanup.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn tidy(mut command: Command) -> anyhow::Result<Ran> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", words(&command)))?;
    let registered = Registered::new(child.id());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let errors = std::thread::spawn(move || read_all(&mut stderr));
    let output = read_all(&mut stdout);
    await_end(&child)?;
    let took = started.elapsed();
    drop(registered);
    let status = child.wait()?;
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        bail!(
            "{} failed ({status}): {}",
            words(&command),
            said(&errors, &output)
        );
    }
    Ok(Ran { output, took })
}

fn read_all(stream: &mut Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // The output before an error is worth showing.
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end without reaping the process, so its number stays taken.
fn await_end(child: &Child) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop).context("wait for a program"),
        }
    }
}

/// Returns the last lines of a program's error output, or of its output if there is none.
fn said(errors: &str, output: &str) -> String {
    let text = if errors.trim().is_empty() {
        output
    } else {
        errors
    };
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

fn words(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = all.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Returns the path of a program, if the search path has it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Reports the first missing program and the package that contains it.
pub(crate) fn missing_programs(needed: &[(&str, &str)]) -> Option<String> {
    let (program, package) = needed.iter().find(|(program, _)| find(program).is_none())?;
    Some(format!(
        "there is no {program} (Debian's package {package})"
    ))
}

/// Reports that the kernel lacks a file system, if it does.
pub(crate) fn missing_file_system(name: &str) -> Option<String> {
    let knows = || {
        let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        list.lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    };
    if knows() {
        return None;
    }
    // A kernel without modules refuses, which is an answer too.
    let _ = tidy(command("modprobe", [name]));
    (!knows()).then(|| format!("this kernel has no {name}"))
}

/// Returns the space allocated for a file or for all files of a folder, as `du` counts it.
///
/// # Errors
/// When something in it cannot be read.
pub(crate) fn allocated_bytes(path: &Path) -> anyhow::Result<u64> {
    let about =
        fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if !about.is_dir() {
        return Ok(about.blocks() * 512);
    }
    let arguments: [OsString; 4] = [
        "--summarize".into(),
        "--block-size=1".into(),
        "--one-file-system".into(),
        path.into(),
    ];
    let ran = run("du", arguments)?;
    let number = ran.output.split_whitespace().next().unwrap_or_default();
    number.parse().context("read what du says")
}

/// Returns a path as a text argument.
///
/// # Errors
/// When it is not UTF-8.
pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("the path {} is not UTF-8", path.display()))
}
