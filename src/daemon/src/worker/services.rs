//! Everything that a worker serves: starting it on the keeper's descriptors, stopping it in order,
//! and leaving it to another program.

use super::events::Event;
use super::inherited::{Inherited, wait_for};
use super::scrubbing::Scrubbing;
use crate::docker::Plugin;
use crate::keeper::ToKeeper;
use crate::open_pool::OpenPool;
use crate::program::Program;
use crate::serve_options::ServeOptions;
use crate::state_folder::StateFolder;
use crate::{Handler, Listening, Server, log, snapshotter, unfinished};
use anyhow::Context;
use cowshed_engine::{Notes, OpenOptions, Pool};
use cowshed_export::{DEVICES, Export, ExportOptions, Transport};
use cowshed_format::device::FileOptions;
use cowshed_sys as sys;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

/// The time that running commands get to end once they are cancelled.
const COMMANDS_TIME: Duration = Duration::from_secs(20);
/// The time to wait for what is in use.
const BUSY_TIME: Duration = Duration::from_secs(10);
/// The interval of the retries meanwhile.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// Everything that serves; the fields are in the order in which they must stop.
pub(super) struct Services<H: Handler> {
    scrubbing: Option<Scrubbing>,
    snapshots: Option<snapshotter::Server>,
    /// The socket where containerd connects; the keeper removes its file, if there is a keeper.
    containerd: Option<Listening>,
    server: Server<H>,
    plugin: Option<Plugin>,
    open_pool: Arc<OpenPool>,
    export: Arc<Export>,
    control: Arc<ToKeeper>,
    keeps_socket_file: bool,
}

impl<H: Handler> Services<H> {
    /// Opens the pool and serves it.
    ///
    /// # Errors
    /// Any reason why it cannot be served.
    pub(super) fn start(
        options: &ServeOptions,
        program: &impl Program<Commands = H>,
        inherited: Inherited,
    ) -> anyhow::Result<Self> {
        let file_options = FileOptions {
            direct: options.direct,
            read_only: false,
        };
        let started = Instant::now();
        // The keeper's memory does not outlive the kernel: its notes were made since the kernel
        // started.
        let handover_state = &inherited.inherited_fds.handover_state;
        let resumes = handover_state.durable();
        let notes = Notes {
            device_failed: Some(Arc::new(handover_state.failure_note())),
            durable: Some(Arc::new(handover_state.durable_note())),
        };
        let open_options = OpenOptions {
            full: options.full,
            resumes,
            notes,
            ..OpenOptions::default()
        };
        let pool = inherited
            .inherited_fds
            .device(options.pool.as_path(), file_options, |path, file| {
                // If the keeper is gone, no worker follows.
                let _ = inherited.control.side_added(path, file);
            })
            .and_then(|device| Pool::open(device, &open_options))
            .map_err(|error| program.explain(error))?;
        tracing::info!(took = ?started.elapsed(), "the pool is open");
        let started = Self::start_on(pool.clone(), options, program, inherited);
        if started.is_err()
            && let Err(error) = pool.close()
        {
            tracing::warn!(%error, "the pool was not closed cleanly");
        }
        started
    }

    fn start_on(
        pool: Pool,
        options: &ServeOptions,
        program: &impl Program<Commands = H>,
        inherited: Inherited,
    ) -> anyhow::Result<Self> {
        let Inherited {
            serving,
            opened,
            inherited_fds,
            keeps_socket_file,
            control,
            predecessors,
            is_successor,
        } = inherited;
        let _ = opened.set(pool.clone());
        match inherited_fds.connection.negotiated().transport() {
            Transport::Threads => tracing::info!(
                "volumes are served by threads; if this process is killed, their users see a pause"
            ),
            Transport::IoUring => tracing::warn!(
                "volumes are served over io_uring; if this process is killed, their users get errors"
            ),
        }
        let export = Export::resume(
            Arc::new(pool.clone()),
            inherited_fds.connection,
            inherited_fds.handover_state,
            ExportOptions::default(),
            is_successor,
        )
        .context("serve the volumes")?;
        let export = Arc::new(export);
        // If the keeper is gone, no process waits for the report.
        let _ = control.serves_volumes();
        wait_for(predecessors);
        export.let_go_of_started();
        if let Err(error) = unfinished::remove(&pool) {
            tracing::warn!(%error, "cannot remove the volume of an interrupted import");
        }
        let state = StateFolder::of_another(inherited_fds.folder, inherited_fds.folder_lock);
        export.note_devices_in(state.path().join(DEVICES));
        let open_pool = OpenPool::of_daemon(
            pool,
            options.pool.clone(),
            Arc::clone(&export),
            state,
            serving,
            Arc::clone(&control),
            is_successor,
        )?;
        let open_pool = Arc::new(open_pool);
        let containerd = inherited_fds.containerd;
        let snapshots = match &containerd {
            Some(socket) => {
                let (socket, host) = (socket.socket()?, open_pool.containers()?);
                let server = snapshotter::Server::start(socket, host, options.snapshots.clone());
                Some(server.context("start the service for containerd")?)
            }
            None => None,
        };
        let commands = program.commands(&open_pool, &control)?;
        let server = Server::start(inherited_fds.listening, commands).context("take commands")?;
        let plugin = match inherited_fds.plugin {
            Some(socket) => Some(Plugin::start(socket, open_pool.containers()?)?),
            None => None,
        };
        let scrubbing = options.scrub.map(|schedule| {
            let pool = open_pool.pool().clone();
            Scrubbing::start(pool, schedule).context("start the thread that scrubs")
        });
        Ok(Self {
            scrubbing: scrubbing.transpose()?,
            snapshots,
            containerd,
            server,
            plugin,
            open_pool,
            export,
            control,
            keeps_socket_file,
        })
    }

    /// Unmounts everything and closes the pool; cuts off what is still in use after a while, or
    /// after a second order to stop.
    ///
    /// # Errors
    /// What was cut off, or the engine's error.
    pub(super) fn stop(
        self,
        events: &Receiver<Event>,
        program: &impl Program,
    ) -> anyhow::Result<()> {
        let Self {
            scrubbing,
            snapshots,
            mut containerd,
            mut server,
            mut plugin,
            open_pool,
            export,
            control,
            keeps_socket_file,
        } = self;
        // Unmounting writes out cached data, which must not wait for free space.
        open_pool.pool().stop_holding();
        drop(scrubbing);
        end_calls(snapshots, snapshotter::Server::stop);
        end_plugin(&mut plugin);
        let running = server.stop(COMMANDS_TIME);
        if running > 0 {
            tracing::warn!(running, "commands did not end in time");
        }
        if control.is_keeper_gone() {
            open_pool.keep_folder();
            if keeps_socket_file {
                server.keep_file();
            }
            if let Some(containerd) = &mut containerd {
                containerd.keep_file(true);
            }
            if let Some(plugin) = &mut plugin {
                plugin.keep_file();
            }
        }
        let deadline = Instant::now() + BUSY_TIME;
        let mut told = String::new();
        loop {
            let Err(busy) = open_pool.unmount(&export) else {
                break;
            };
            let line = program.line(&busy).unwrap_or_default();
            if line != told {
                log::complain(&line);
                told = line;
            }
            let forced = events.try_iter().any(|event| matches!(event, Event::Stop));
            if forced || Instant::now() >= deadline {
                return cut_off(server, &open_pool, busy);
            }
            thread::sleep(BUSY_RETRY);
        }
        // The socket is removed last: a process that finds none may open the pool, whose lock is
        // released first.
        let closed = open_pool.pool().close().context("close the pool");
        drop(server);
        tracing::info!("stopped");
        closed
    }

    /// Stops serving and closes the pool, and leaves everything mounted for the program that the
    /// keeper has prepared. What cannot be stopped in order ends with this process, as if the
    /// process were killed.
    pub(super) fn hand_over(self) {
        let Self {
            scrubbing,
            snapshots,
            mut server,
            mut plugin,
            open_pool,
            export,
            ..
        } = self;
        drop(scrubbing);
        end_calls(snapshots, snapshotter::Server::drain);
        end_plugin(&mut plugin);
        let mut running = server.drain(COMMANDS_TIME);
        if running > 0 {
            tracing::warn!(running, "commands did not end in time, and are interrupted");
            running = server.stop(COMMANDS_TIME);
        }
        open_pool.leave();
        // Writes that wait for free space continue to wait in the next worker.
        let holds_writes = open_pool.pool().status().is_ok_and(|now| now.holds_writes);
        if running == 0 && !holds_writes {
            match export.hand_over() {
                Ok(()) => {
                    if let Err(error) = open_pool.pool().close() {
                        tracing::error!(%error, "the pool was not closed cleanly");
                    }
                }
                // Serving ends with this process.
                Err(error) => tracing::warn!(%error, "cannot hand over the mount in order"),
            }
        }
        // Dropping the last reference would unmount what was not handed over.
        std::mem::forget(export);
        tracing::info!("handing over");
    }
}

/// Stops serving containerd; `end` determines what happens to the calls that run.
fn end_calls(
    snapshots: Option<snapshotter::Server>,
    end: fn(&mut snapshotter::Server, Duration) -> bool,
) {
    if let Some(mut snapshots) = snapshots
        && !end(&mut snapshots, COMMANDS_TIME)
    {
        tracing::warn!("calls of containerd did not end in time");
    }
}

/// Stops serving Docker.
fn end_plugin(plugin: &mut Option<Plugin>) {
    if let Some(plugin) = plugin
        && !plugin.stop(COMMANDS_TIME)
    {
        tracing::warn!("calls of the volume plugin did not end in time");
    }
}

/// Writes out what can be written, detaches the mounts, and closes the pool while they are still in
/// use.
fn cut_off<H: Handler>(
    server: Server<H>,
    open_pool: &OpenPool,
    busy: anyhow::Error,
) -> anyhow::Result<()> {
    for path in open_pool.mounted_paths() {
        if let Err(error) = sys::mount::sync_file_system(&path) {
            tracing::error!(%error, path = %path.display(), "cannot flush a file system");
        }
        if let Err(error) = sys::mount::unmount_lazy(&path) {
            tracing::error!(%error, path = %path.display(), "cannot unmount a file system");
        }
    }
    open_pool.keep_refusals();
    let closed = open_pool.pool().close();
    drop(server);
    closed.context("close the pool")?;
    Err(busy.context("stopped, but what was in use was cut off"))
}
