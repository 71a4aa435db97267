//! Runs a command in the daemon that has the pool open, or else in this process.

use super::console::Console;
use super::failure::Exit;
use super::open::Place;
use super::streams::is_block_device;
use super::{attach, container, gc, image, mirror, pool, signals, tree, volume};
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::protocol::ProtocolError;
use cowshed_daemon::request::pool::Command as PoolRequest;
use cowshed_daemon::request::{Command, FileOrPipe, image as images, serving, volume as volumes};
use cowshed_daemon::{Client, Connection};
use cowshed_engine::Pool;
use cowshed_format::base::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

/// The time to wait for a daemon that starts or stops.
const DAEMON_STARTS: Duration = Duration::from_secs(5);
/// The interval at which the daemon is looked for meanwhile.
const DAEMON_RETRY: Duration = Duration::from_millis(50);

/// Runs `command` in the daemon if there is one, else on the pool opened here.
///
/// # Errors
/// The command's error when it runs here; a daemon reports its failures itself.
pub(super) fn run_anywhere(
    command: Command,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    match reach(place)? {
        Reached::Daemon(client) => run_in_daemon(&client, command, place, console),
        Reached::Pool(pool) => {
            if pool.is_read_only() {
                console.message(&place.reason_to_read(&pool));
            }
            say_degraded(&command, &pool, place, console);
            let open_pool = OpenPool::of_command(pool, place.pool.clone());
            run_here(&command, open_pool, console).map(|()| Exit::Done)
        }
    }
}

/// Says that the pool is used without a side, where the command does not show that itself.
fn say_degraded(command: &Command, pool: &Pool, place: &Place, console: &Console) {
    if let Command::Pool(PoolRequest::Status { .. } | PoolRequest::Mirror(_)) = command {
        return;
    }
    let sides = pool.sides().unwrap_or_default();
    if let Some(line) = mirror::degraded_line(&sides) {
        console.message(&format!("pool {}: {line}", place.pool));
    }
}

/// Runs a command that changes nothing on what one side of a mirror has, whatever the other sides
/// have.
///
/// # Errors
/// The command's error.
pub(super) fn run_on_one_side(
    command: &Command,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    let pool = place
        .open_one_side()
        .map_err(|error| place.explain(error))?;
    let open_pool = OpenPool::of_command(pool, place.pool.clone());
    run_here(command, open_pool, console).map(|()| Exit::Done)
}

/// Who has the pool open.
pub(super) enum Reached {
    /// A daemon.
    Daemon(Client),
    /// This process, from now on.
    Pool(Pool),
}

/// Finds the daemon that has the pool open, or else opens the pool here. If a daemon's socket exists
/// but no daemon replies, and the pool is in use, a daemon may just be starting or stopping: then it
/// waits for that.
///
/// # Errors
/// When the pool cannot be opened.
pub(super) fn reach(place: &Place) -> anyhow::Result<Reached> {
    let deadline = Instant::now() + DAEMON_STARTS;
    loop {
        let connection = Client::connect(place.socket.as_path())
            .with_context(|| format!("connect to the daemon on {}", place.socket))?;
        if let Connection::Daemon(client) = connection {
            return Ok(Reached::Daemon(client));
        }
        match place.open() {
            Ok(pool) => return Ok(Reached::Pool(pool)),
            Err(Error::InUse) if place.socket.as_path().exists() && Instant::now() < deadline => {
                thread::sleep(DAEMON_RETRY);
            }
            Err(error) => return Err(place.explain(error)),
        }
    }
}

fn run_in_daemon(
    client: &Client,
    mut command: Command,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    let own_file = open_own_file(&mut command)?;
    let [mut input, mut output, error] = console.streams();
    match &own_file {
        Some(OwnFile::Input(file)) => input = file.as_fd(),
        Some(OwnFile::Output(file)) => output = file.as_fd(),
        None => {}
    }
    let request = console.request(command);
    let answer = match client.run(&request, [input, output, error]) {
        Err(ProtocolError::Io(cause)) if is_gone(&cause) => anyhow::bail!(
            "the daemon on {} stopped or was restarted during this command, which may have been \
             done or not; check the result, and repeat the command if necessary",
            place.socket
        ),
        Err(ProtocolError::Foreign) => anyhow::bail!(
            "the process that listens on {} is not a cowshed daemon; give the daemon's socket with \
             --socket",
            place.socket
        ),
        Err(error @ ProtocolError::Version { .. }) => {
            return Err(error).with_context(|| format!("the daemon on {}", place.socket));
        }
        answer => answer.with_context(|| {
            format!("the daemon on {} did not answer; see its log", place.socket)
        })?,
    };
    match answer.refusal {
        Some(refusal)
            if ["unknown variant", "unknown field"]
                .iter()
                .any(|what| refusal.contains(what)) =>
        {
            anyhow::bail!(
                "the daemon on {} is of another version, which does not know this command ({refusal}); \
             `cowshed serve --upgrade` starts this version while the volumes stay in use",
                place.socket
            )
        }
        Some(refusal) => anyhow::bail!("the daemon on {}: {refusal}", place.socket),
        None => Ok(Exit::from_status(answer.status)),
    }
}

/// Returns true if the other end of the connection has closed it without a message.
fn is_gone(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

/// A file that only this process can open under the given name.
enum OwnFile {
    Input(File),
    Output(File),
}

/// Opens a file that is named through this process, such as `/dev/fd/63`, and replaces it in the
/// command by the pipe.
fn open_own_file(command: &mut Command) -> anyhow::Result<Option<OwnFile>> {
    let (file, is_input) = match command {
        Command::Volume(volumes::Command::Import(import)) => (&mut import.source, true),
        Command::Volume(volumes::Command::Export { target, .. }) => (target, false),
        Command::Image(images::Command::Import(import)) => (&mut import.source, true),
        Command::Image(images::Command::Export(export)) => (&mut export.file, false),
        _ => return Ok(None),
    };
    let FileOrPipe::File(path) = &*file else {
        return Ok(None);
    };
    if !file.is_of_the_caller() {
        return Ok(None);
    }
    let mut options = File::options();
    options.read(is_input).write(!is_input);
    if !is_input && is_block_device(path.as_path()) {
        // The kernel refuses it while the device is mounted or claimed by a volume manager.
        options.custom_flags(libc::O_EXCL);
    }
    let opened = options.open(path.as_path());
    let opened = opened.with_context(|| format!("open {path}"))?;
    *file = FileOrPipe::Pipe;
    Ok(Some(if is_input {
        OwnFile::Input(opened)
    } else {
        OwnFile::Output(opened)
    }))
}

fn run_here(command: &Command, open_pool: OpenPool, console: &Console) -> anyhow::Result<()> {
    signals::cancel_on_signals(console.cancel())?;
    let ran = run(command, &open_pool, console);
    let closed = open_pool.close();
    ran.and(closed)
}

/// Runs `command` on an open pool, as work that the console's token cancels.
///
/// # Errors
/// The command's error, or that it was interrupted.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let ran = console
        .cancel()
        .during(|| run_to_its_end(command, open_pool, console));
    // Whatever error a cancelled command returns, it was interrupted.
    ran.map_err(|error| match console.cancel().check() {
        Err(cancelled) => anyhow::Error::new(cancelled).context(error.to_string()),
        Ok(()) => error,
    })
}

fn run_to_its_end(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    match command {
        Command::Pool(command) => pool::run(command, open_pool, console),
        Command::Volume(command) => volume::run(command, open_pool, console),
        Command::Attach(command) => attach::run(command, open_pool, console),
        Command::Image(command) => image::run(command, open_pool, console),
        Command::Container(command) => container::run(command, open_pool, console),
        Command::Gc(command) => gc::run(command, open_pool, console),
        Command::Tree(command) => tree::run(command, open_pool.pool(), console),
        Command::Serving(serving::Command::Serving) => {
            let serving = open_pool.serving().context("no daemon is running")?;
            let text = serde_json::to_string(&serving)?;
            console.print(&text)
        }
        Command::Serving(_) => {
            anyhow::bail!("only a daemon can be upgraded")
        }
    }
}
