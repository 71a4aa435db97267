//! `cowshed serve`: the daemon that keeps a pool open, its volumes mounted, and its socket ready.
//!
//! Without `--foreground` the command starts itself again in a session of its own, waits until
//! that one is ready or has failed, and says which.
//!
//! Stopping (SIGTERM or SIGINT): no further command is taken, running ones are cancelled,
//! containers and volumes are unmounted, the pool is closed. What is in use is named and tried
//! again for `BUSY_TIME`; a second signal ends that wait. What is in use even then is written
//! out and cut off, and the exit status is 1.

use super::console::{Console, Style};
use super::failure::{self, Damage, Exit};
use super::open::Place;
use super::place::HostPath;
use super::remote::Commands;
use super::shed::{FILES, Shed, VOLUMES, clear_stale};
use super::state::StateFolder;
use crate::daemon::Server;
use crate::device::FileOptions;
use crate::export::{Export, ExportOptions};
use crate::pool::Pool;
use crate::sys;
use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long running commands get to end once they are cancelled.
const COMMANDS_TIME: Duration = Duration::from_secs(20);
/// How long what is in use is waited for.
const BUSY_TIME: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// `cowshed serve`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cowshed serve\n  cowshed serve --mount /mnt/volumes\n\n\
    SIGTERM stops it: it unmounts everything and closes the pool. What is in use is named and \
    waited for;\na second SIGTERM cuts it off."
)]
pub(super) struct Serve {
    /// Where the volumes appear as files [default: /run/cowshed/<the pool's uuid>/volumes]
    #[arg(long, value_name = "DIR", value_parser = HostPath::parser())]
    pub mount: Option<HostPath>,
    /// Stay in the foreground and log to the standard error
    #[arg(long)]
    pub foreground: bool,
    /// Read and write the pool past the host's page cache
    #[arg(long)]
    pub direct: bool,
    /// Where the log goes without --foreground [default: the pool's path with .log at its end]
    #[arg(long, value_name = "FILE", value_parser = HostPath::parser())]
    pub log: Option<HostPath>,
    /// Set by `serve` itself for the process that it leaves behind.
    #[arg(long, hide = true, requires = "foreground")]
    pub detached: bool,
}

/// What a daemon tells when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    pool: HostPath,
    socket: HostPath,
    mount: HostPath,
    pid: u32,
    log: Option<HostPath>,
}

impl Ready {
    fn show(&self, console: &Console) -> anyhow::Result<()> {
        console.result(self, || {
            let mut text = format!(
                "serving {} as process {}\nvolumes: {}\nsocket:  {}",
                self.pool, self.pid, self.mount, self.socket
            );
            if let Some(log) = &self.log {
                text.push_str(&format!("\nlog:     {log}"));
            }
            text
        })
    }
}

/// Serves the pool until a signal, or starts a process that does.
///
/// # Errors
/// Whatever keeps the daemon from serving or from stopping cleanly.
pub(super) fn serve(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("serve: it mounts and attaches volumes, which needs root; run it as root");
    }
    if serve.foreground {
        serve_here(serve, place, console)
    } else {
        start_detached(serve, place, console)
    }
}

fn serve_here(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<()> {
    if serve.detached {
        // It is already its group's leader only if something else started it so.
        let _ = nix::unistd::setsid();
    }
    // From here on a signal waits until everything is ready to be undone.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("catch signals")?;
    if let Err(error) = sys::mount::set_io_flusher() {
        // The export tells it too, with what follows from it.
        tracing::debug!(%error, "cannot be marked as part of the writeback path");
    }
    let daemon = Daemon::start(serve, place)?;
    let ready = Ready {
        pool: place.pool.clone(),
        socket: place.socket.clone(),
        mount: HostPath::new(daemon.export.mount_point())?,
        pid: std::process::id(),
        log: None,
    };
    if serve.detached {
        console.print(&format!("{}\n", serde_json::to_string(&ready)?))?;
    } else {
        ready.show(console)?;
    }
    tracing::info!(pool = %place.pool, mount = %ready.mount, socket = %place.socket, "ready");
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "stopping");
    }
    daemon.stop(&mut signals, console)
}

/// Everything that serves; the fields go in the order in which they must stop.
struct Daemon {
    server: Server<Commands>,
    shed: Arc<Shed>,
    export: Arc<Export>,
}

impl Daemon {
    fn start(serve: &Serve, place: &Place) -> anyhow::Result<Self> {
        let options = FileOptions {
            direct: serve.direct,
            read_only: false,
        };
        let pool = place.open(options).map_err(|error| place.explain(error))?;
        let started = Self::start_on(pool.clone(), serve, place);
        if started.is_err()
            && let Err(error) = pool.close()
        {
            tracing::warn!(%error, "the pool was not closed cleanly");
        }
        started
    }

    fn start_on(pool: Pool, serve: &Serve, place: &Place) -> anyhow::Result<Self> {
        let state = StateFolder::take(pool.uuid())?;
        let default_dir = state.path().join(VOLUMES);
        let dir = serve
            .mount
            .as_ref()
            .map_or(default_dir.as_path(), HostPath::as_path);
        for dir in [dir, &state.path().join(FILES)] {
            clear_stale(dir)?;
        }
        let export = Export::mount(pool.clone(), dir, ExportOptions::default())
            .with_context(|| format!("mount the volumes at {}", dir.display()))?;
        let export = Arc::new(export);
        let shed = Shed::of_daemon(pool, place.clone(), Arc::clone(&export), state)?;
        let shed = Arc::new(shed);
        let server = Server::start(place.socket.as_path(), Commands::new(Arc::clone(&shed)))
            .with_context(|| format!("listen on {}", place.socket))?;
        Ok(Self {
            server,
            shed,
            export,
        })
    }

    fn stop(self, signals: &mut Signals, console: &Console) -> anyhow::Result<()> {
        let Self {
            mut server,
            shed,
            export,
        } = self;
        let running = server.stop(COMMANDS_TIME);
        if running > 0 {
            tracing::warn!(running, "commands did not end in time");
        }
        let deadline = Instant::now() + BUSY_TIME;
        let mut told = String::new();
        loop {
            let Err(busy) = shed.unmount(&export) else {
                break;
            };
            let line = failure::line(&busy).unwrap_or_default();
            if line != told {
                console.complain(&line);
                told = line;
            }
            let forced = signals.pending().next().is_some();
            if forced || Instant::now() >= deadline {
                return cut_off(server, &shed, busy);
            }
            thread::sleep(BUSY_RETRY);
        }
        // The socket goes last: whoever finds none may open the pool, whose lock goes with it.
        let closed = shed.pool().close().context("close the pool");
        drop(server);
        tracing::info!("stopped");
        closed
    }
}

/// Writes out what can be written, takes the mounts out of sight, and closes the pool under
/// whoever still uses them.
fn cut_off(server: Server<Commands>, shed: &Shed, busy: anyhow::Error) -> anyhow::Result<()> {
    for path in shed.mounted_paths() {
        if let Err(error) = sys::mount::sync_file_system(&path) {
            tracing::error!(%error, path = %path.display(), "not all of it was written out");
        }
        if let Err(error) = sys::mount::unmount_lazy(&path) {
            tracing::error!(%error, path = %path.display(), "it stays mounted");
        }
    }
    let closed = shed.pool().close();
    drop(server);
    closed.context("close the pool")?;
    Err(busy.context("stopped, but cut off what was in use"))
}

/// Starts this program again in the background and waits until it is ready.
fn start_detached(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<()> {
    let log = serve
        .log
        .clone()
        .unwrap_or_else(|| place.pool.with_suffix(".log"));
    let what = || format!("write the log {log}");
    let mut log_file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log.as_path())
        .with_context(what)?;
    let log_start = log_file.seek(SeekFrom::End(0)).with_context(what)?;
    let errors = log_file.try_clone().with_context(what)?;
    let mut child = detached_command(serve, place, console.style())?
        .stderr(errors)
        .spawn()
        .context("serve")?;
    match read_ready(&mut child) {
        Some(ready) => Ready {
            log: Some(log),
            ..ready
        }
        .show(console),
        None => {
            let status = child.wait().context("serve")?;
            let reason = last_complaint(&mut log_file, log_start);
            let reason = reason.unwrap_or_else(|| format!("it ended with {status}; see {log}"));
            if status.code() == Some(Exit::Damaged.status().into()) {
                return Err(Damage(reason).into());
            }
            anyhow::bail!(reason)
        }
    }
}

fn detached_command(serve: &Serve, place: &Place, style: &Style) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("--pool").arg(place.pool.as_path());
    command.arg("--socket").arg(place.socket.as_path());
    command.args(["serve", "--foreground", "--detached"]);
    if let Some(mount) = &serve.mount {
        command.arg("--mount").arg(mount.as_path());
    }
    if serve.direct {
        command.arg("--direct");
    }
    command.args((0..style.verbose).map(|_| "--verbose"));
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(command)
}

/// What the child says when it is ready; nothing if it ends before.
fn read_ready(child: &mut Child) -> Option<Ready> {
    const LINE_BYTES_MAX: u64 = 64 << 10;
    let output = child.stdout.take()?;
    let mut line = String::new();
    BufReader::new(output.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .ok()?;
    serde_json::from_str(&line).ok()
}

/// The last line that a failed child wrote to the log as its failure.
fn last_complaint(log: &mut File, start: u64) -> Option<String> {
    const TAIL_BYTES_MAX: u64 = 64 << 10;
    log.seek(SeekFrom::Start(start)).ok()?;
    let mut tail = Vec::new();
    log.take(TAIL_BYTES_MAX).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines()
        .rev()
        .find_map(|line| line.strip_prefix("cowshed: "))
        .map(str::to_owned)
}
