//! `cowshed serve`: the daemon, which keeps a pool open, its volumes mounted, and its socket ready.
//!
//! Without `--foreground` the command starts itself again in a new session, waits until that
//! process is ready or has failed, and reports which. The new process is the keeper
//! (`cowshed_daemon::keeper`), which starts the worker (`cowshed_daemon::worker`); both have their
//! options from `Serve::options`, and their commands and words from `daemon_program`.
//!
//! Stopping (SIGTERM or SIGINT): the daemon takes no further command, cancels running ones,
//! unmounts containers and volumes, and closes the pool. It names what is in use and retries for a
//! while; a second signal ends the retries. What is still in use then is written out and cut off,
//! and the exit status is 1.

use super::console::Console;
use super::containerd::Containerd;
use super::daemon_program::DaemonProgram;
use super::failure::{Damage, Exit};
use super::full::Full;
use super::fuse::Fuse;
use super::open::Place;
use super::scrub_schedule::ScrubOptions;
use super::upgrade;
use anyhow::Context;
use clap::Args;
use cowshed_daemon::request::{HostPath, Style};
use cowshed_daemon::{ServeOptions, keeper, log, takeover, worker};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// `cowshed serve`
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  cowshed serve\n  cowshed serve --mount /mnt/volumes\n  \
    cowshed serve --full-policy wait=300 --max-size 500G\n  \
    cowshed serve --containerd-socket /run/cowshed/containerd.sock\n  \
    cowshed serve --upgrade\n  cowshed serve --upgrade --max-size 800G\n\n\
    SIGTERM stops it: it unmounts everything and closes the pool. What is in use is named and \
    waited for,\nfor ten seconds; then, or at a second SIGTERM, it is cut off.\n\nTwo processes serve: when the one that has the \
    pool open dies, the other one starts\nit again, and users of the volumes see a pause."
)]
pub(super) struct Serve {
    /// Where the volumes appear as files [default: /run/cowshed/<the pool's uuid>/volumes]
    #[arg(long, value_name = "DIR", value_parser = super::arguments::place::path())]
    pub mount: Option<HostPath>,
    /// Stay in the foreground and log to the standard error
    #[arg(long)]
    pub foreground: bool,
    /// Read and write the pool past the host's page cache
    #[arg(long)]
    pub direct: bool,
    /// How requests for the volumes reach this program. With io-uring (Linux 6.14 and later), one
    /// request after another takes about half the time, but when the worker is killed, users get
    /// errors instead of a pause, and --upgrade is refused. auto is threads [default: auto]
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = false)]
    pub fuse: Option<Fuse>,
    #[command(flatten)]
    pub full: Full,
    #[command(flatten)]
    pub containerd: Containerd,
    #[command(flatten)]
    pub scrub: ScrubOptions,
    /// The log's file, rotated by size; SIGHUP opens it again [default: the error stream with
    /// --foreground; else POOL.log beside a pool file in a directory of root's own, and a file in
    /// /var/log/cowshed for every other pool]
    #[arg(long, value_name = "FILE", value_parser = super::arguments::place::path())]
    pub log: Option<HostPath>,
    /// Serve data volumes to Docker Engine on a socket, as the volume driver of the socket's name:
    /// /run/docker/plugins/cowshed.sock is where Docker looks for the driver cowshed
    #[arg(long, value_name = "PATH", value_parser = super::arguments::place::path())]
    pub docker_plugin_socket: Option<HostPath>,
    /// Have the daemon that runs hand over to this program; the volumes stay in use meanwhile.
    /// Options given with it change; where one cannot while the daemon runs, nothing does
    #[arg(long)]
    pub upgrade: bool,
    /// With --upgrade: options that are not given go back to their defaults
    #[arg(long, requires = "upgrade")]
    pub replace_options: bool,
    /// Set by `serve` itself for the process that it leaves behind.
    #[arg(long, hide = true, requires = "foreground")]
    pub detached: bool,
    /// Set by a keeper for its worker.
    #[arg(long, hide = true, value_name = "JSON", requires = "foreground")]
    pub worker: Option<String>,
    /// Set by a keeper for a worker that is to wait until it may serve.
    #[arg(long, hide = true, requires = "worker")]
    pub standby: bool,
    /// Set by a keeper for the program that it becomes.
    #[arg(long, hide = true, value_name = "JSON", requires = "foreground")]
    pub keeper: Option<String>,
    /// Asked by a daemon that is to hand over to this program.
    #[arg(long, hide = true, value_name = "JSON")]
    pub can_take_over: Option<String>,
}

impl Serve {
    /// Returns the command and its options for another process, without the options that processes
    /// pass to each other.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--foreground".into()];
        let mut add = |name: &str, value: &OsStr| {
            arguments.extend([OsString::from(name), value.to_owned()]);
        };
        let plugin = &self.docker_plugin_socket;
        for (name, path) in [
            ("--mount", &self.mount),
            ("--log", &self.log),
            ("--docker-plugin-socket", plugin),
        ] {
            if let Some(path) = path {
                add(name, path.as_path().as_os_str());
            }
        }
        if let Some(fuse) = self.fuse {
            add("--fuse", fuse.name().as_ref());
        }
        for (name, is_given) in [("--detached", self.detached), ("--direct", self.direct)] {
            arguments.extend(is_given.then(|| name.into()));
        }
        arguments.extend(self.full.arguments().into_iter().map(Into::into));
        arguments.extend(self.containerd.arguments());
        arguments.extend(self.scrub.arguments().into_iter().map(Into::into));
        arguments
    }

    /// Returns the options of the daemon.
    ///
    /// # Errors
    /// When the pool is of a kind for which one of them is not possible.
    fn options(&self, place: &Place) -> anyhow::Result<ServeOptions> {
        Ok(ServeOptions {
            pool: place.pool.clone(),
            socket: place.socket.clone(),
            mount: self.mount.clone(),
            direct: self.direct,
            transport: self.fuse.unwrap_or_default().transport(),
            full: self.full.options(place)?,
            containerd_socket: self.containerd.containerd_socket.clone(),
            snapshots: self.containerd.options(),
            docker_plugin_socket: self.docker_plugin_socket.clone(),
            scrub: self.scrub.schedule(),
        })
    }

    /// Returns true if anything but the upgrade itself is asked for.
    fn changes_options(&self) -> bool {
        let nothing = ["serve", "--foreground"].map(OsString::from);
        self.replace_options || self.foreground || self.arguments() != nothing
    }
}

/// The report of a daemon that is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub pool: HostPath,
    pub socket: HostPath,
    pub mount: HostPath,
    pub containerd_socket: Option<HostPath>,
    /// The keeper, which receives the signals.
    pub pid: u32,
    pub worker: u32,
    pub log: Option<HostPath>,
}

/// The report of a daemon in the background to the process that started it, as one line.
#[derive(Debug, Serialize, Deserialize)]
enum Start {
    Ready(Ready),
    /// The reason why it does not serve.
    Failed(String),
}

impl Serve {
    /// Returns true if this process is a keeper or a worker.
    pub(super) const fn is_daemon(&self) -> bool {
        self.foreground && self.can_take_over.is_none() && !self.upgrade
    }

    /// Returns true if this process is a keeper that another process started and waits for.
    pub(super) const fn is_awaited(&self) -> bool {
        self.detached && self.worker.is_none() && self.keeper.is_none()
    }
}

/// Reports to the process that started this keeper that it serves.
///
/// # Errors
/// When the output fails.
pub(super) fn tell_ready(ready: Ready, console: &Console) -> anyhow::Result<()> {
    let text = serde_json::to_string(&Start::Ready(ready))?;
    console.print(&format!("{text}\n"))
}

/// Reports to the process that started this keeper why it does not serve.
pub(super) fn tell_failure(line: &str, console: &Console) {
    let reason = line.strip_prefix("cowshed: ").unwrap_or(line).to_owned();
    if let Ok(text) = serde_json::to_string(&Start::Failed(reason)) {
        // A process that no longer waits does not need the report.
        let _ = console.print(&format!("{text}\n"));
    }
}

impl Ready {
    pub(super) fn show(&self, console: &Console) -> anyhow::Result<()> {
        console.result(self, || {
            let mut text = format!(
                "serving {} as process {}\nvolumes: {}\nsocket:  {}",
                self.pool, self.pid, self.mount, self.socket
            );
            if let Some(socket) = &self.containerd_socket {
                text.push_str(&format!("\ncontainerd: {socket}"));
            }
            if let Some(log) = &self.log {
                text.push_str(&format!("\nlog:     {log}"));
            }
            text
        })
    }
}

/// Serves the pool until a signal, or starts a process that does; returns how that ended.
///
/// # Errors
/// Any reason why the daemon cannot serve or stop cleanly.
pub(super) fn serve(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<Exit> {
    if let Some(question) = &serve.can_take_over {
        let answer = takeover::answer(question)?;
        return console.print(&format!("{answer}\n")).map(|()| Exit::Done);
    }
    if serve.upgrade {
        let asked = serve.changes_options().then_some(serve);
        return upgrade::upgrade(asked, place, console);
    }
    serve.containerd.check()?;
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("serve: mounting and attaching volumes needs root; run it as root");
    }
    if !serve.foreground {
        return start_detached(serve, place, console).map(|()| Exit::Done);
    }
    if let Some(told) = &serve.keeper {
        let status = keeper::take_over::<DaemonProgram<'_>>(told)?;
        return Ok(Exit::from_status(status));
    }
    let options = serve.options(place)?;
    let program = DaemonProgram::new(serve, place, console);
    if let Some(told) = &serve.worker {
        return worker::run(&options, told, serve.standby, &program).map(|()| Exit::Done);
    }
    if serve.detached {
        // Fails only if the parent has already made this process a group leader.
        let _ = nix::unistd::setsid();
    }
    keeper::run(&options, &program).map(Exit::from_status)
}

/// Starts this program again in the background and waits until it is ready.
fn start_detached(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<()> {
    let named = serve.log.as_ref().map(|log| log.as_path().to_owned());
    let named = named.unwrap_or_else(|| log::default_log(place.pool.as_path()));
    let log = HostPath::new(log::resolve(&named))?;
    let what = || format!("log {log}");
    log::make_folder(log.as_path()).with_context(what)?;
    let mut command = detached_command(serve, place, console.style())?;
    match log::open_stream(log.as_path()).with_context(what)? {
        Some(stream) => command.stderr(stream),
        None => command
            .arg("--log")
            .arg(log.as_path())
            .stderr(Stdio::null()),
    };
    let mut child = command.spawn().context("serve")?;
    match read_start(&mut child) {
        Some(Start::Ready(ready)) => Ready {
            log: Some(log),
            ..ready
        }
        .show(console),
        Some(Start::Failed(reason)) => {
            let status = child.wait().context("serve")?;
            if status.code() == Some(Exit::Damaged.status().into()) {
                return Err(Damage(reason).into());
            }
            anyhow::bail!(reason)
        }
        None => {
            let status = child.wait().context("serve")?;
            anyhow::bail!("it ended with {status}; see {log}")
        }
    }
}

fn detached_command(serve: &Serve, place: &Place, style: &Style) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("--pool").arg(place.pool.as_path());
    command.arg("--socket").arg(place.socket.as_path());
    // The caller adds the log's path.
    let without_log = Serve {
        log: None,
        ..serve.clone()
    };
    command.args(without_log.arguments()).arg("--detached");
    command.args((0..style.verbose).map(|_| "--verbose"));
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(command)
}

/// Reads the child's report; `None` if the child ends before it.
fn read_start(child: &mut Child) -> Option<Start> {
    const LINE_BYTES_MAX: u64 = 64 << 10;
    let output = child.stdout.take()?;
    let mut line = String::new();
    BufReader::new(output.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .ok()?;
    serde_json::from_str(&line).ok()
}
