//! The worker: the process that has the pool open and serves it with the descriptors of its keeper.
//!
//! A successor serves the volumes first, because everything else may wait for them: kernel
//! operations that its predecessor had begun (a mount, for example) end only then. It takes over
//! what is mounted, and removes what was interrupted once no thread of the predecessor is left.

use super::failure;
use super::import_volume::remove_unfinished;
use super::open::Place;
use super::open_pool::OpenPool;
use super::plugin::Plugin;
use super::remote::Commands;
use super::running;
use super::serve::Serve;
use super::state::StateFolder;
use super::{logging, panics};
use anyhow::Context;
use cowshed_daemon::keeper::{self, HANDOVER, InheritedFds, Serving, ToKeeper, ToWorker, Told};
use cowshed_daemon::request::Style;
use cowshed_daemon::request::serving::Running;
use cowshed_daemon::snapshotter;
use cowshed_daemon::{Listening, Server};
use cowshed_engine::{self as engine, FullOptions, Notes, Pool};
use cowshed_export::{DEVICES, Export, ExportOptions, Transport};
use cowshed_format::device::{FileDevice, FileOptions};
use cowshed_sys as sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// The time that running commands get to end once they are cancelled.
const COMMANDS_TIME: Duration = Duration::from_secs(20);
/// The time to wait for what is in use.
const BUSY_TIME: Duration = Duration::from_secs(10);
/// The interval of the retries meanwhile.
const BUSY_RETRY: Duration = Duration::from_millis(250);
/// The time to wait for the threads of a dead worker. They end when the volumes that they wait for
/// are served; only a host that hangs takes longer.
const PREDECESSOR_TIME: Duration = Duration::from_secs(30);

/// An order to a worker.
#[derive(Debug)]
pub(super) enum Event {
    /// Stop in order; a second `Stop` means at once.
    Stop,
    /// Leave everything to the program that the keeper has prepared.
    HandOver,
}

/// Serves until a signal, or until another program is to serve.
///
/// # Errors
/// Any reason why it cannot serve or stop cleanly.
pub(super) fn work(serve: &Serve, told: &str, place: &Place, style: &Style) -> anyhow::Result<()> {
    // From here on signals are queued until everything is ready to be undone.
    let (events, queue) = events().context("catch signals")?;
    sys::process::set_name(c"cowshed");
    let told: Told = serde_json::from_str(told).context("parse the keeper's message")?;
    if !keeper::is_understood(told.handover) {
        let theirs = told.handover;
        anyhow::bail!("the keeper's hand-over has version {theirs}, not {HANDOVER}");
    }
    keeper::restore_oom_score(told.oom_score);
    if let Err(error) = sys::mount::set_io_flusher() {
        // The export reports it too, with the consequences.
        tracing::debug!(%error, "cannot set PR_SET_IO_FLUSHER");
    }
    let mut inherited = Inherited::take(told).context("take the keeper's descriptors")?;
    let control = Arc::clone(&inherited.control);
    panics::tell(&control);
    if serve.standby {
        prove(serve, place, &inherited.inherited_fds)?;
        match wait_for_start(&control) {
            Some(serving) => inherited.know(serving),
            // This process is not needed any more.
            None => return Ok(()),
        }
    }
    hear_keeper(&inherited, events).context("listen to the keeper")?;
    let mount = inherited.inherited_fds.connection.dir();
    let running = running::of_this_process(serve, place, style, mount)?;
    let daemon = Daemon::start(serve, place, inherited, running).inspect_err(|error| {
        if let Some(line) = failure::line(error) {
            control.failed(&line);
        }
    })?;
    if control.ready().is_err() {
        tracing::warn!("the keeper is gone");
    }
    let first = queue.recv().context("wait for a signal")?;
    let ended = match first {
        Event::Stop => daemon.stop(&queue),
        Event::HandOver => {
            daemon.hand_over();
            return control.handed_over().context("hand over to the keeper");
        }
    };
    // If the keeper is gone, there is no process to report to.
    let _ = control.ended();
    ended
}

/// Proves that this program could serve the pool with these options, without changing anything.
fn prove(serve: &Serve, place: &Place, inherited_fds: &InheritedFds) -> anyhow::Result<()> {
    let _: FullOptions = serve.full.options(place)?;
    let options = FileOptions {
        direct: serve.direct,
        read_only: true,
    };
    let locked = inherited_fds.pool.try_clone().context("open the pool")?;
    FileDevice::on_locked(locked, options)
        .and_then(|device| engine::uuid_of(&device))
        .map_err(|error| place.explain(error))?;
    Ok(())
}

/// Waits until no other worker serves; `None` when the keeper has ended.
fn wait_for_start(control: &ToKeeper) -> Option<Serving> {
    control.prepared().ok()?;
    loop {
        if let ToWorker::Start(serving) = control.hear()? {
            return Some(serving);
        }
    }
}

/// The queue of orders to this process.
#[derive(Clone)]
struct Events {
    queue: Sender<Event>,
    stops: Arc<Mutex<Stops>>,
}

/// The number of orders to stop. A service manager may send a signal to all processes of a service:
/// this process then gets both the signal and the keeper's message, which count as one.
#[derive(Debug, Default)]
struct Stops {
    by_keeper: u32,
    by_signal: u32,
    told: u32,
}

impl Events {
    fn stop(&self, by_keeper: bool) {
        let mut stops = self.stops.lock();
        if by_keeper {
            stops.by_keeper += 1;
        } else {
            stops.by_signal += 1;
        }
        if stops.by_keeper.max(stops.by_signal) > stops.told {
            stops.told += 1;
            tracing::info!(by_keeper, "stopping");
            // If the queue is gone, this process is ending already.
            let _ = self.queue.send(Event::Stop);
        }
    }
}

/// Returns the queue of events, which receives the signals, and the sender for other sources.
fn events() -> std::io::Result<(Events, Receiver<Event>)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // The keeper blocks the signals, and a process inherits the mask of its parent.
    nix::sys::signal::SigSet::all().thread_unblock()?;
    let (sender, queue) = channel();
    let events = Events {
        queue: sender,
        stops: Arc::default(),
    };
    let told = events.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    logging::reopen();
                } else {
                    told.stop(false);
                }
            }
        })?;
    Ok((events, queue))
}

/// The descriptors and state of the keeper, in this process.
struct Inherited {
    serving: Arc<Mutex<Serving>>,
    /// The pool, once it is open.
    opened: Arc<OnceLock<Pool>>,
    inherited_fds: InheritedFds,
    keeps_socket_file: bool,
    control: Arc<ToKeeper>,
    predecessors: Vec<OwnedFd>,
    is_successor: bool,
}

impl Inherited {
    fn take(told: Told) -> std::io::Result<Self> {
        let control = Arc::new(ToKeeper::new(keeper::take_descriptor(told.control)?));
        start_pulse(keeper::take_descriptor(told.pulse)?)?;
        // The kernel closes it with the last thread that has this process's descriptors.
        let _: i32 = keeper::take_descriptor(told.life)?.into_raw_fd();
        let predecessors = told.predecessors.into_iter().map(keeper::take_descriptor);
        let predecessors = predecessors.collect::<Result<_, _>>()?;
        let keeps_socket_file = told.inherited_fds.keeps_socket_file();
        let inherited_fds = InheritedFds::take(told.inherited_fds)?;
        Ok(Self {
            serving: Arc::new(Mutex::new(as_this_worker(told.serving))),
            opened: Arc::default(),
            inherited_fds,
            keeps_socket_file,
            control,
            predecessors,
            is_successor: told.is_successor,
        })
    }

    /// Stores the keeper's current state.
    fn know(&mut self, serving: Serving) {
        *self.serving.lock() = as_this_worker(serving);
    }
}

/// Returns the keeper's part, with this process as the worker.
fn as_this_worker(serving: Serving) -> Serving {
    Serving {
        worker: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..serving
    }
}

/// Gives `pulse` to a thread that does nothing and has no other descriptor. When this process is
/// killed, that thread ends at once, even if other threads wait in the kernel, and closes the
/// pulse: so the keeper notices.
fn start_pulse(pulse: OwnedFd) -> std::io::Result<()> {
    let (sender, apart) = channel();
    thread::Builder::new()
        .name("pulse".to_owned())
        .spawn(move || {
            // The number stays valid in this thread: its owner closes it only in the other threads'
            // table.
            let _ = sender.send(sys::file_table::keep_only(&[pulse.as_raw_fd()]).map(|()| pulse));
            loop {
                thread::park();
            }
        })?;
    let pulse = apart.recv().map_err(std::io::Error::other)??;
    drop(pulse);
    Ok(())
}

/// Carries out the keeper's messages on a thread of its own.
fn hear_keeper(inherited: &Inherited, events: Events) -> std::io::Result<()> {
    let control = Arc::clone(&inherited.control);
    let serving = Arc::clone(&inherited.serving);
    let pings = answer_pings(inherited)?;
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            while let Some(message) = control.hear() {
                match message {
                    // If the queue is gone, this process is ending already.
                    ToWorker::HandOver => drop(events.queue.send(Event::HandOver)),
                    ToWorker::Stop => events.stop(true),
                    ToWorker::Serving(news) => *serving.lock() = as_this_worker(news),
                    // One waiting ping is enough.
                    ToWorker::Ping => drop(pings.try_send(())),
                    ToWorker::Start(_) => {}
                }
            }
            serving.lock().keeper = 0;
            tracing::error!(
                "the keeper is gone; serving continues, but no worker will follow this process"
            );
        })?;
    Ok(())
}

/// Replies to the keeper's pings on a thread that hangs if the engine does.
fn answer_pings(inherited: &Inherited) -> std::io::Result<SyncSender<()>> {
    let (sender, pings) = sync_channel(1);
    let (control, pool) = (
        Arc::clone(&inherited.control),
        Arc::clone(&inherited.opened),
    );
    thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            for () in pings {
                // `status` takes the locks that everything else takes. A pool that has stopped
                // still returns it.
                if let Some(pool) = pool.get() {
                    let _ = pool.status();
                }
                let _ = control.alive();
            }
        })?;
    Ok(sender)
}

/// Waits until no thread of a predecessor is left that could still mount or unmount.
fn wait_for(predecessors: Vec<OwnedFd>) {
    let deadline = Instant::now() + PREDECESSOR_TIME;
    for life in predecessors {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(life.as_fd(), PollFlags::empty())];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    tracing::warn!("threads of a dead worker hang: not waiting for them");
                    return;
                }
                Ok(_) => break,
                Err(_) => {}
            }
        }
    }
}

/// Everything that serves; the fields are in the order in which they must stop.
struct Daemon {
    snapshots: Option<snapshotter::Server>,
    /// The socket where containerd connects; the keeper removes its file, if there is a keeper.
    containerd: Option<Listening>,
    server: Server<Commands>,
    plugin: Option<Plugin>,
    open_pool: Arc<OpenPool>,
    export: Arc<Export>,
    control: Arc<ToKeeper>,
    keeps_socket_file: bool,
}

impl Daemon {
    fn start(
        serve: &Serve,
        place: &Place,
        inherited: Inherited,
        running: Running,
    ) -> anyhow::Result<Self> {
        let options = FileOptions {
            direct: serve.direct,
            read_only: false,
        };
        let started = Instant::now();
        let locked = inherited
            .inherited_fds
            .pool
            .try_clone()
            .context("open the pool")?;
        let full = serve.full.options(place)?;
        // The keeper's memory does not outlive the kernel: its notes were made since the kernel
        // started.
        let handover_state = &inherited.inherited_fds.handover_state;
        let resumes = handover_state.durable();
        let notes = Notes {
            device_failed: Some(Arc::new(handover_state.failure_note())),
            durable: Some(Arc::new(handover_state.durable_note())),
        };
        let pool = FileDevice::on_locked(locked, options)
            .and_then(|device| Place::open_on(device, full, resumes, notes))
            .map_err(|error| place.explain(error))?;
        tracing::info!(took = ?started.elapsed(), "the pool is open");
        let started = Self::start_on(pool.clone(), serve, place, inherited, running);
        if started.is_err()
            && let Err(error) = pool.close()
        {
            tracing::warn!(%error, "the pool was not closed cleanly");
        }
        started
    }

    fn start_on(
        pool: Pool,
        serve: &Serve,
        place: &Place,
        inherited: Inherited,
        running: Running,
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
        if let Err(error) = remove_unfinished(&pool) {
            tracing::warn!(%error, "cannot remove the volume of an interrupted import");
        }
        let state = StateFolder::of_another(inherited_fds.folder, inherited_fds.folder_lock);
        export.note_devices_in(state.path().join(DEVICES));
        let open_pool = OpenPool::of_daemon(
            pool,
            place.clone(),
            Arc::clone(&export),
            state,
            serving,
            is_successor,
        )?;
        let open_pool = Arc::new(open_pool);
        let containerd = inherited_fds.containerd;
        let snapshots = match &containerd {
            Some(socket) => {
                let (socket, host) = (socket.socket()?, open_pool.containers()?);
                let options = serve.containerd.options();
                let server = snapshotter::Server::start(socket, host, options);
                Some(server.context("start the service for containerd")?)
            }
            None => None,
        };
        let commands = Commands::new(Arc::clone(&open_pool), Arc::clone(&control), running);
        let server = Server::start(inherited_fds.listening, commands).context("take commands")?;
        let plugin = match inherited_fds.plugin {
            Some(socket) => Some(Plugin::start(socket, open_pool.containers()?)?),
            None => None,
        };
        Ok(Self {
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

    fn stop(self, events: &Receiver<Event>) -> anyhow::Result<()> {
        let Self {
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
            let line = failure::line(&busy).unwrap_or_default();
            if line != told {
                logging::complain(&line);
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
    fn hand_over(self) {
        let Self {
            snapshots,
            mut server,
            mut plugin,
            open_pool,
            export,
            ..
        } = self;
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
fn cut_off(
    server: Server<Commands>,
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
