//! `cowshed serve --upgrade`: makes the running daemon hand over to this program.
//!
//! This program, the client, sends its own program as an open file, with arguments if options are to
//! change. The daemon asks that program (`cowshed_daemon::takeover`) whether it can take over, and
//! the keeper starts it beside the worker that serves. Once it has read the pool, the worker stops
//! serving without unmounting anything, and the new program goes on. If the new program does not
//! come to serve, the old one follows it. The client waits, and asks the daemon that then serves for
//! the result.

use super::console::Console;
use super::failure::{Exit, Told};
use super::open::Place;
use super::output::facts;
use super::running;
use super::serve::Serve;
use anyhow::Context;
use cowshed_daemon::keeper::Serving;
use cowshed_daemon::request::Command as Request;
use cowshed_daemon::request::serving::{self, Running};
use cowshed_daemon::{Client, Connection};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

/// The maximum time of the whole hand-over; a program that does not serve is given up earlier.
const HAND_OVER_TIME: Duration = Duration::from_secs(120);
/// The interval at which the daemon is asked meanwhile.
const HAND_OVER_POLL: Duration = Duration::from_millis(50);

/// Makes the daemon hand over to this program, and reports which process serves then.
///
/// # Errors
/// When no daemon runs, this program cannot take over, or the old program had to go on.
pub(super) fn upgrade(
    asked: Option<&Serve>,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    let program = File::open("/proc/self/exe").context("open this program")?;
    let request = request(asked, place, console)?;
    let after = hand_over(request, &program, place, console)?;
    console.result(&after, || {
        facts([
            ("version", after.version.clone()),
            ("keeper", after.keeper.to_string()),
            ("worker", after.worker.to_string()),
        ])
    })?;
    Ok(Exit::Done)
}

/// Makes the daemon start a worker of its own program in place of the one that serves.
///
/// # Errors
/// When no daemon runs, it cannot hand over, or the old worker had to go on.
pub(super) fn replace_worker(place: &Place, console: &Console) -> anyhow::Result<()> {
    let worker = serving(place, console)?.worker;
    let program = File::open(format!("/proc/{worker}/exe")).context("open the daemon's program")?;
    hand_over(serving::Command::Upgrade, &program, place, console).map(drop)
}

/// Makes the daemon hand over to a program, and returns which process serves then.
fn hand_over(
    request: serving::Command,
    program: &File,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Serving> {
    let before = serving(place, console).context("upgrade the daemon")?;
    let [_, output, error] = console.streams();
    let client = connect(place)?;
    let answer = client
        .run(
            &console.request(Request::Serving(request)),
            [program.as_fd(), output, error],
        )
        .with_context(|| format!("hand over by the daemon on {}", place.socket))?;
    if let Some(refusal) = answer.refusal {
        anyhow::bail!("the daemon on {}: {refusal}", place.socket);
    }
    if answer.status != 0 {
        return Err(Told(Exit::from_status(answer.status)).into());
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
    Ok(after)
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
    let running: Running = ask_daemon(Request::Serving(serving::Command::Running), place, console)
        .context(
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
    ask_daemon(Request::Serving(serving::Command::Serving), place, console)
}

/// Sends the daemon a request whose reply is one value.
///
/// # Errors
/// When no daemon runs, or it refuses.
pub(super) fn ask_daemon<T: DeserializeOwned>(
    question: Request,
    place: &Place,
    console: &Console,
) -> anyhow::Result<T> {
    let client = connect(place)?;
    // The reply fits into a pipe.
    let (mut reader, writer) = io::pipe().context("read the daemon's reply")?;
    let [input, _, error] = console.streams();
    let request = console.request(question);
    let answer = client
        .run(&request, [input, writer.as_fd(), error])
        .with_context(|| format!("ask the daemon on {}", place.socket))?;
    drop(writer);
    if let Some(refusal) = answer.refusal {
        anyhow::bail!("the daemon on {}: {refusal}", place.socket);
    }
    if answer.status != 0 {
        return Err(Told(Exit::from_status(answer.status)).into());
    }
    let mut text = String::new();
    reader
        .read_to_string(&mut text)
        .context("read the daemon's reply")?;
    serde_json::from_str(&text).context("parse the daemon's reply")
}
