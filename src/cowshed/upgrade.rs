//! `cowshed serve --upgrade`: the running daemon hands over to this program.
//!
//! The client sends its own program as an open file, with arguments if options are to change. The
//! daemon asks that program whether it can take over, and the keeper starts it beside the worker
//! that serves. Once it has read the pool, the worker stops serving without unmounting anything,
//! and the new program goes on. If the new program does not come to serve, the old one follows it.
//! The client waits, and asks the daemon that then serves for the result.

use super::console::Console;
use super::failure::Exit;
use super::open::Place;
use super::output::facts;
use super::running;
use super::serve::Serve;
use anyhow::Context;
use cowshed_daemon::keeper::{HANDOVER, Serving, is_understood};
use cowshed_daemon::request::Command as Request;
use cowshed_daemon::request::serving::{self, Running};
use cowshed_daemon::{Answer, Client, Connection};
use cowshed_engine as engine;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time within which a program must say whether it can take over.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest reply.
const ANSWER_BYTES_MAX: u64 = 4096;
/// The maximum time of the whole hand-over; a program that does not serve is given up earlier.
const HAND_OVER_TIME: Duration = Duration::from_secs(120);
/// The interval at which the daemon is asked meanwhile.
const HAND_OVER_POLL: Duration = Duration::from_millis(50);

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

/// Replies to the question whether this program can take over from the daemon.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn answer(question: &str, console: &Console) -> anyhow::Result<()> {
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
    let text = serde_json::to_string(&CanTakeOver { version })?;
    console.print(&format!("{text}\n"))
}

/// Asks the program in `file` whether it can take over; returns its version.
///
/// # Errors
/// The reason why it cannot, as far as the program reports it.
pub(super) fn ask(file: &OwnedFd) -> anyhow::Result<String> {
    let question = serde_json::to_string(&Question {
        handover: HANDOVER,
        format: engine::FORMAT_VERSION,
    })?;
    let mut child = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .args(["serve", "--can-take-over", &question])
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

/// Makes the daemon hand over to this program, and reports which process serves then.
///
/// # Errors
/// When no daemon runs, this program cannot take over, or the old program had to go on.
pub(super) fn upgrade(
    asked: Option<&Serve>,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    let before = serving(place, console).context("upgrade the daemon")?;
    let program = File::open("/proc/self/exe").context("open this program")?;
    let [_, output, error] = console.streams();
    let client = connect(place)?;
    let request = console.request(Request::Serving(request(asked, place, console)?));
    let answer = client
        .run(&request, [program.as_fd(), output, error])
        .with_context(|| format!("hand over by the daemon on {}", place.socket))?;
    match answer {
        Answer {
            status: 0,
            refusal: None,
        } => {}
        Answer {
            refusal: Some(refusal),
            ..
        } => {
            anyhow::bail!("the daemon on {}: {refusal}", place.socket)
        }
        // The daemon has reported the reason.
        Answer { status, .. } => return Ok(Exit::from_status(status)),
    }
    let deadline = Instant::now() + HAND_OVER_TIME;
    let after = loop {
        match serving(place, console) {
            Ok(now) if now.upgrades > before.upgrades => break now,
            // The old worker still serves, or none does yet.
            Ok(_) | Err(_) if Instant::now() < deadline => thread::sleep(HAND_OVER_POLL),
            Ok(_) => anyhow::bail!("the daemon did not hand over in time; see its log"),
            Err(error) => return Err(error.context("ask who serves")),
        }
    };
    if let Some(failure) = after.upgrade_failure {
        let (version, worker) = (after.version, after.worker);
        anyhow::bail!("{failure}; version {version} serves again, as process {worker}");
    }
    console.result(&after, || {
        facts([
            ("version", after.version.clone()),
            ("keeper", after.keeper.to_string()),
            ("worker", after.worker.to_string()),
        ])
    })?;
    Ok(Exit::Done)
}

/// Returns the request to the daemon; `asked` has the options that are to change.
fn request(
    asked: Option<&Serve>,
    place: &Place,
    console: &Console,
) -> anyhow::Result<serving::Command> {
    let Some(asked) = asked else {
        return Ok(serving::Command::Upgrade);
    };
    let running: Running = ask_daemon(serving::Command::Running, place, console).context(
        "query the running daemon's options (a daemon older than this version must first be \
         upgraded without options)",
    )?;
    let arguments = running::with_options(&running, asked, console.style())?;
    let bytes = arguments
        .iter()
        .map(|argument| argument.as_bytes().to_vec());
    Ok(serving::Command::UpgradeWith {
        arguments: bytes.collect(),
    })
}

fn connect(place: &Place) -> anyhow::Result<Client> {
    let connection = Client::connect(place.socket.as_path())
        .with_context(|| format!("connect to the daemon on {}", place.socket))?;
    match connection {
        Connection::Daemon(client) => Ok(client),
        Connection::Nobody => anyhow::bail!(
            "no daemon answers on {}; start one with `cowshed serve`",
            place.socket
        ),
    }
}

/// Asks the daemon which processes serve.
fn serving(place: &Place, console: &Console) -> anyhow::Result<Serving> {
    ask_daemon(serving::Command::Serving, place, console)
}

/// Sends the daemon a request whose reply is one value.
fn ask_daemon<T: DeserializeOwned>(
    question: serving::Command,
    place: &Place,
    console: &Console,
) -> anyhow::Result<T> {
    let client = connect(place)?;
    // The reply fits into a pipe.
    let (mut reader, writer) = io::pipe().context("read the daemon's reply")?;
    let [input, _, error] = console.streams();
    let request = console.request(Request::Serving(question));
    let answer = client
        .run(&request, [input, writer.as_fd(), error])
        .with_context(|| format!("ask the daemon on {}", place.socket))?;
    drop(writer);
    if let Some(refusal) = answer.refusal {
        anyhow::bail!("the daemon on {}: {refusal}", place.socket);
    }
    let mut text = String::new();
    reader
        .read_to_string(&mut text)
        .context("read the daemon's reply")?;
    serde_json::from_str(&text).context("parse the daemon's reply")
}
