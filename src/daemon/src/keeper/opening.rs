//! The start and end of the keeper: opens what the workers need before the first one starts, and
//! clears it away after the last one.

use super::inherited_fds::SideFile;
use super::{InheritedFds, Keeper, KeeperSignals, succession};
use crate::open_pool::{FILES, VOLUMES, clear_devices, clear_stale, uuid_on};
use crate::program::{Program, Started};
use crate::request::HostPath;
use crate::serve_options::ServeOptions;
use crate::state_folder::StateFolder;
use crate::{Listening, log, service_manager};
use anyhow::Context;
use cowshed_export::{Connection, HandoverState};
use cowshed_format::base::{Error, Result as PoolResult};
use cowshed_format::device::mirror::{Found, absolute, open_files};
use cowshed_format::device::{FileDevice, FileOptions, lock_pool};
use cowshed_sys as sys;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Keeps a worker serving the pool until a signal; returns the exit status. The failing part has
/// reported the reason by then.
///
/// # Errors
/// The reason why the keeper cannot start.
pub fn run(options: &ServeOptions, program: &impl Program) -> anyhow::Result<u8> {
    let signals = KeeperSignals::block().context("catch signals")?;
    sys::process::set_name(c"cowshed");
    if let Err(error) = sys::mount::set_io_flusher() {
        // The export reports it too, with the consequences.
        tracing::debug!(%error, "cannot set PR_SET_IO_FLUSHER");
    }
    let (inherited_fds, state) = open(options, program)?;
    let socket = HostPath::new(inherited_fds.listening.path())?;
    let owner = Owner {
        mount: HostPath::new(inherited_fds.connection.dir())?,
        state,
        report: Some(Report {
            program,
            pool: options.pool.clone(),
            socket,
        }),
    };
    let keeper = Keeper::new(owner, signals, inherited_fds).context("inspect the pool's file")?;
    Ok(keeper.run())
}

/// Goes on as the keeper with what the program that this process ran before has `told`; returns the
/// exit status.
///
/// # Errors
/// The reason why it cannot.
pub fn take_over<P: Program>(told: &str) -> anyhow::Result<u8> {
    let signals = KeeperSignals::block().context("catch signals")?;
    sys::process::set_name(c"cowshed");
    let owner = |inherited_fds: &InheritedFds| {
        let mut state = StateFolder::of_another(
            inherited_fds.folder.clone(),
            inherited_fds.folder_lock.try_clone()?,
        );
        state.keep(true);
        Ok(Owner::<P> {
            mount: HostPath::new(inherited_fds.connection.dir())?,
            state,
            report: None,
        })
    };
    succession::resume(told, signals, owner).context("take over as the keeper")
}

/// Opens everything that must outlive a worker.
fn open(
    options: &ServeOptions,
    program: &impl Program,
) -> anyhow::Result<(InheritedFds, StateFolder)> {
    let (sides, uuid) = lock_sides(options).map_err(|error| program.explain(error))?;
    let state = StateFolder::take(uuid)?;
    let default_dir = state.path().join(VOLUMES);
    let dir = options
        .mount
        .as_ref()
        .map_or(default_dir.as_path(), HostPath::as_path);
    for dir in [dir, &state.path().join(FILES)] {
        clear_stale(dir)?;
    }
    clear_devices(state.path())?;
    let what = || format!("listen on {}", options.socket);
    let listening = match service_manager::listening_socket().with_context(what)? {
        Some(socket) => take_socket(socket, options, program)?,
        None => Listening::bind(options.socket.as_path()).with_context(what)?,
    };
    let containerd = options.containerd_socket.as_ref().map(listen);
    let containerd = containerd.transpose()?;
    let plugin = options.docker_plugin_socket.as_ref().map(listen);
    let plugin = plugin.transpose()?;
    let handover_state = HandoverState::create().context("create the hand-over state")?;
    let folder = state.path().to_owned();
    let folder_lock = state.lock().try_clone_to_owned();
    let folder_lock = folder_lock
        .context("take the lock of the state directory")?
        .into();
    let connection = Connection::mount(dir, None, options.transport)
        .with_context(|| format!("mount the volumes at {}", dir.display()))?;
    let inherited_fds = InheritedFds {
        sides,
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

/// Locks the pool's file, and the files of the other sides if it is mirrored. Also returns the pool's
/// identity.
///
/// # Errors
/// As `mirror::open_pool`.
fn lock_sides(options: &ServeOptions) -> PoolResult<(Vec<SideFile>, [u8; 16])> {
    let device = |file: &File| {
        let file = file.try_clone();
        let file = file.map_err(|source| Error::io("open the pool", source))?;
        FileDevice::on_locked(file, FileOptions::default())
    };
    let path = absolute(options.pool.as_path())?;
    let pool = lock_pool(&path)?;
    let first = Found {
        path: path.clone(),
        device: Arc::new(device(&pool)?),
    };
    let mut others = Vec::new();
    let all = open_files(first, |path| {
        let file = lock_pool(path)?;
        let opened = device(&file)?;
        others.push(SideFile::new(path.to_owned(), file));
        Ok(opened)
    })?;
    let uuid = uuid_on(&*all)?;
    if let Some(mirror) = all.mirror() {
        // A path may lead to something else than a side.
        let open = mirror.open_sides();
        others.retain(|file| open.iter().any(|side| side.path() == file.path));
    }
    let mut sides = vec![SideFile::new(path, pool)];
    sides.append(&mut others);
    Ok((sides, uuid))
}

/// Listens on the socket of a service; creates its folder.
///
/// # Errors
/// When the socket cannot be created, or another process listens there.
fn listen(path: &HostPath) -> anyhow::Result<Listening> {
    let what = || format!("listen on {path}");
    if let Some(folder) = path.as_path().parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    Listening::bind(path.as_path()).with_context(what)
}

/// Takes the socket that the service manager listens on, if it is the one that clients of the pool
/// connect to.
fn take_socket(
    socket: OwnedFd,
    options: &ServeOptions,
    program: &impl Program,
) -> anyhow::Result<Listening> {
    let listening = Listening::take(socket).context("take the service manager's socket")?;
    let found = HostPath::new(listening.path())?;
    if !found.is_same_place(&options.socket) {
        return Err(program.wrong_socket(&found));
    }
    Ok(listening)
}

/// What the report that the pool is served needs.
struct Report<'a, P> {
    program: &'a P,
    pool: HostPath,
    socket: HostPath,
}

/// The data that the keeper's end needs.
struct Owner<'a, P> {
    mount: HostPath,
    /// The folder is removed last, when nothing is mounted in it any more.
    state: StateFolder,
    /// Those that wait for the report. `None` once another program has reported that it serves.
    report: Option<Report<'a, P>>,
}

impl<P: Program> super::Owner for Owner<'_, P> {
    fn serves(&mut self, worker: u32) {
        if let Some(Report {
            program,
            pool,
            socket,
        }) = &self.report
        {
            let started = Started {
                socket: socket.clone(),
                mount: self.mount.clone(),
                worker,
            };
            let Started { socket, mount, .. } = &started;
            tracing::info!(%pool, %mount, %socket, worker, "ready");
            program.serves(&started);
        }
    }

    fn does_not_serve(&mut self, why: &str) {
        if let Some(report) = &self.report {
            report.program.does_not_serve(why);
        }
    }

    fn reopen_log(&mut self) {
        log::reopen();
    }

    fn flush_log(&mut self) {
        log::flush();
    }

    fn clear_away(&mut self) {
        let files = self.state.path().join(FILES);
        for dir in [self.mount.as_path(), &files] {
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
