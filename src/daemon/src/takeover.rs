//! The worker's part in a hand-over to another program: whether that program can take over, and the
//! order to the keeper to prepare it. The rest is the keeper's (`keeper::handover`,
//! `keeper::succession`).

use super::keeper::{HANDOVER, ToKeeper, is_understood};
use super::open_pool::OpenPool;
use anyhow::Context;
use cowshed_engine as engine;
use cowshed_export::{ExportError, Transport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The arguments with which any program is asked whether it can take over; the question follows.
const QUESTION_ARGUMENTS: [&str; 2] = ["serve", "--can-take-over"];
/// The time within which a program must say whether it can take over.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest reply.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The question to a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Question {
    handover: u32,
    format: u32,
}

/// The reply of a program that can take over.
#[derive(Debug, Serialize, Deserialize)]
struct CanTakeOver {
    version: String,
}

/// Returns this program's reply to the question whether it can take over from the daemon.
///
/// # Errors
/// The reason why it cannot.
pub fn answer(question: &str) -> anyhow::Result<String> {
    let question: Question =
        serde_json::from_str(question).context("parse the daemon's question")?;
    let Question { handover, format } = question;
    if !is_understood(handover) {
        anyhow::bail!("the running daemon's hand-over has version {handover}, not {HANDOVER}");
    }
    if format != engine::FORMAT_VERSION {
        let known = engine::FORMAT_VERSION;
        anyhow::bail!("the running daemon's pools have format {format}, not {known}");
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(serde_json::to_string(&CanTakeOver { version })?)
}

/// Asks the program in `file` whether it can take over; returns its version.
///
/// # Errors
/// The reason why it cannot, as far as the program reports it.
fn ask(file: &OwnedFd) -> anyhow::Result<String> {
    let question = serde_json::to_string(&Question {
        handover: HANDOVER,
        format: engine::FORMAT_VERSION,
    })?;
    let mut child = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .args(QUESTION_ARGUMENTS)
        .arg(&question)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("run the new program")?;
    let output = child
        .stdout
        .take()
        .context("read the new program's reply")?;
    let answered = read_answer(&output);
    // It has replied, or took too long; children that it started may still hold its streams.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.kill();
    let ended = child
        .wait_with_output()
        .context("read the new program's reply")?;
    let parsed = answered
        .as_ref()
        .ok()
        .and_then(|text| serde_json::from_str(text).ok());
    if let Some(CanTakeOver { version }) = parsed {
        return Ok(version);
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let is_late = matches!(&answered, Err(error) if error.kind() == io::ErrorKind::TimedOut);
    let nothing = if is_late {
        "it does not answer"
    } else {
        "its reply is not valid"
    };
    let reason = said.lines().next_back().unwrap_or(nothing);
    anyhow::bail!("the new program cannot take over: {reason}")
}

/// Reads the reply to its end, within the time limit.
fn read_answer(output: &(impl AsFd + ?Sized)) -> io::Result<String> {
    let deadline = Instant::now() + ANSWER_TIME;
    let mut reader = File::from(output.as_fd().try_clone_to_owned()?);
    let mut bytes = Vec::new();
    while bytes.len() as u64 <= ANSWER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut piece = [0; 512];
        match reader.read(&mut piece)? {
            0 => break,
            len => bytes.extend_from_slice(&piece[..len]),
        }
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Makes the daemon that has `open_pool` open hand over to the program in `file`, started with
/// `arguments`, if that program can take over.
///
/// # Errors
/// The reason why it cannot, or why this daemon cannot hand over.
pub fn hand_over(
    open_pool: &OpenPool,
    keeper: &ToKeeper,
    file: &OwnedFd,
    arguments: &[OsString],
) -> anyhow::Result<()> {
    if keeper.is_keeper_gone() {
        anyhow::bail!("the daemon's keeper is gone; stop the daemon and start it again");
    }
    let export = open_pool.daemon_export()?;
    if export.transport() == Transport::IoUring {
        let dir = export.mount_point().to_owned();
        return Err(ExportError::NoSuccessor { dir }.into());
    }
    let version = ask(file)?;
    tracing::info!(version, "asked to hand over");
    keeper
        .prepare(file.as_fd(), arguments)
        .context("ask the keeper to hand over")
}
