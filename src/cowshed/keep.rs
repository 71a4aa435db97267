//! The start and end of the keeper: opens what the workers need before the first one starts, and
//! clears it away after the last one. In between, `daemon::keeper` does its work.

use super::console::Console;
use super::failure::Exit;
use super::open::Place;
use super::open_pool::{FILES, VOLUMES, clear_devices, clear_stale};
use super::serve::{Ready, Serve, tell_failure, tell_ready};
use super::state::StateFolder;
use super::{logging, plugin};
use anyhow::Context;
use cowshed_daemon::keeper::{self, InheritedFds, Keeper, KeeperSignals};
use cowshed_daemon::request::HostPath;
use cowshed_daemon::{Listening, service_manager};
use cowshed_engine as engine;
use cowshed_export::{Connection, HandoverState};
use cowshed_format::device::{FileDevice, FileOptions, lock_pool};
use cowshed_sys as sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// The time to wait for the reader of the output.
const READER_TIME_MS: u16 = 1000;

/// Keeps a worker serving the pool until a signal; returns how it ended. The failing part has
/// reported the reason by then.
///
/// # Errors
/// The reason why the keeper cannot start.
pub(super) fn keep(serve: &Serve, place: &Place, console: &Console) -> anyhow::Result<Exit> {
    let signals = KeeperSignals::block().context("catch signals")?;
    sys::process::set_name(c"cowshed");
    if let Some(told) = &serve.keeper {
        let owner = |inherited_fds: &InheritedFds| {
            let mut state = StateFolder::of_another(
                inherited_fds.folder.clone(),
                inherited_fds.folder_lock.try_clone()?,
            );
            state.keep(true);
            let mount = inherited_fds.connection.dir().to_owned();
            Ok(Owner::new(state, mount, None))
        };
        let status = keeper::resume(told, signals, owner).context("take over as the keeper")?;
        return Ok(Exit::from_status(status));
    }
    if serve.detached {
        // Fails only if the parent has already made this process a group leader.
        let _ = nix::unistd::setsid();
    }
    if let Err(error) = sys::mount::set_io_flusher() {
        // The export reports it too, with the consequences.
        tracing::debug!(%error, "cannot set PR_SET_IO_FLUSHER");
    }
    let (inherited_fds, state) = take(serve, place)?;
    let mount = inherited_fds.connection.dir().to_owned();
    let told = Tell {
        console,
        detached: serve.detached,
        ready: Ready {
            pool: place.pool.clone(),
            socket: HostPath::new(inherited_fds.listening.path())?,
            mount: HostPath::new(&mount)?,
            containerd_socket: serve.containerd.containerd_socket.clone(),
            pid: std::process::id(),
            worker: 0,
            log: None,
        },
    };
    let owner = Owner::new(state, mount, Some(told));
    let keeper = Keeper::new(owner, signals, inherited_fds).context("inspect the pool's file")?;
    Ok(Exit::from_status(keeper.run()))
}

/// Opens everything that must outlive a worker.
fn take(serve: &Serve, place: &Place) -> anyhow::Result<(InheritedFds, StateFolder)> {
    let pool = lock_pool(place.pool.as_path()).map_err(|error| place.explain(error))?;
    let uuid = pool
        .try_clone()
        .map_err(|source| cowshed_format::base::Error::io("open the pool", source))
        .and_then(|pool| FileDevice::on_locked(pool, FileOptions::default()))
        .and_then(|device| engine::uuid_of(&device))
        .map_err(|error| place.explain(error))?;
    let state = StateFolder::take(uuid)?;
    let default_dir = state.path().join(VOLUMES);
    let dir = serve
        .mount
        .as_ref()
        .map_or(default_dir.as_path(), HostPath::as_path);
    for dir in [dir, &state.path().join(FILES)] {
        clear_stale(dir)?;
    }
    clear_devices(state.path())?;
    let what = || format!("listen on {}", place.socket);
    let listening = match service_manager::listening_socket().with_context(what)? {
        Some(socket) => take_socket(socket, place)?,
        None => Listening::bind(place.socket.as_path()).with_context(what)?,
    };
    let containerd = serve.containerd.listen()?;
    let plugin = serve.docker_plugin_socket.as_ref().map(plugin::listen);
    let plugin = plugin.transpose()?;
    let handover_state = HandoverState::create().context("create the hand-over state")?;
    let folder = state.path().to_owned();
    let folder_lock = state.lock().try_clone_to_owned();
    let folder_lock = folder_lock
        .context("take the lock of the state directory")?
        .into();
    let connection = Connection::mount(dir, None, serve.fuse.unwrap_or_default().transport())
        .with_context(|| format!("mount the volumes at {}", dir.display()))?;
    let inherited_fds = InheritedFds {
        pool,
        folder,
        folder_lock,
        listening,
        containerd,
        plugin,
        handover_state,
        connection,
    };
    Ok((inherited_fds, state))
}

/// Takes the socket that the service manager listens on, if it is the one that clients of the pool
/// connect to.
fn take_socket(socket: OwnedFd, place: &Place) -> anyhow::Result<Listening> {
    let listening = Listening::take(socket).context("take the service manager's socket")?;
    let found = HostPath::new(listening.path())?;
    if !found.is_same_place(&place.socket) {
        anyhow::bail!(
            "the service manager listens on {found}, but commands on the pool {} look for the \
             daemon at {}; make ListenStream= and COWSHED_POOL= agree, or use cowshed@.service, \
             where both follow from its name",
            place.pool,
            place.socket
        );
    }
    Ok(listening)
}

/// The receivers of the report that the pool is served.
struct Tell<'a> {
    console: &'a Console,
    detached: bool,
    ready: Ready,
}

/// Returns true if the output takes a line without blocking the keeper: a pipe may be full without
/// a reader.
fn takes_a_line(console: &Console) -> bool {
    let mut fds = [PollFd::new(console.output().as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::from(READER_TIME_MS)).is_ok_and(|ready| ready > 0)
}

/// The data that the keeper's end needs.
struct Owner<'a> {
    mount: PathBuf,
    /// The folder is removed last, when nothing is mounted in it any more.
    state: StateFolder,
    tell: Option<Tell<'a>>,
}

impl<'a> Owner<'a> {
    fn new(state: StateFolder, mount: PathBuf, tell: Option<Tell<'a>>) -> Self {
        Self { mount, state, tell }
    }
}

impl keeper::Owner for Owner<'_> {
    fn serves(&mut self, worker: u32) {
        let Some(Tell {
            console,
            detached,
            mut ready,
        }) = self.tell.take()
        else {
            return;
        };
        ready.worker = worker;
        tracing::info!(
            pool = %ready.pool, mount = %ready.mount, socket = %ready.socket, worker, "ready"
        );
        if !takes_a_line(console) {
            tracing::warn!("cannot report that the daemon is ready: no process reads the report");
            return;
        }
        let told = if detached {
            tell_ready(ready, console)
        } else {
            ready.show(console)
        };
        if let Err(error) = told {
            tracing::warn!(%error, "cannot report that the daemon is ready");
        }
    }

    fn does_not_serve(&mut self, why: &str) {
        if let Some(Tell {
            console,
            detached: true,
            ..
        }) = self.tell.take()
        {
            tell_failure(why, console);
        }
    }

    fn reopen_log(&mut self) {
        logging::reopen();
    }

    fn flush_log(&mut self) {
        logging::flush();
    }

    fn clear_away(&mut self) {
        let files = self.state.path().join(FILES);
        for dir in [&self.mount, &files] {
            if let Err(error) = clear_stale(dir) {
                tracing::error!(
                    %error, dir = %dir.display(),
                    "cannot remove the mounts below a directory"
                );
            }
        }
        if let Err(error) = clear_devices(self.state.path()) {
            tracing::error!(%error, "cannot detach all loop devices");
        }
    }
}
