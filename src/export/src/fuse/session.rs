//! The life of a served mount: from starting the threads to unmounting, or to handing over.
//!
//! We mount and unmount by ourselves: by path, but never what is not ours.

use super::connection::{Connection, ConnectionParts, Transport};
use super::files::VolumeFiles;
use super::rings::Queues;
use super::serve_threads::{Control, Means, ServeThreads};
use super::transport;
use crate::error::ExportError;
use crate::holders::{Holder, Holders};
use crate::stale::Cleaned;
use crate::target::Directory;
use cowshed_sys::mount::{self, MountEntry};
use cowshed_sys::{file_table, fuse_device, interrupt};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a file that was just closed may keep the mount busy.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// How long the threads may take to see that the mount is gone.
const END_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Where the mount comes from.
pub(crate) enum Origin {
    /// It is made, for this process alone.
    Mount {
        dir: PathBuf,
        threads: Option<usize>,
        transport: Transport,
    },
    /// It is there, and others keep its descriptors too.
    Connection {
        connection: Connection,
        /// Whether an earlier process has served it.
        is_successor: bool,
    },
}

/// A mount with the threads that serve it.
pub(crate) struct Session {
    dir: PathBuf,
    /// What the mount table shows as mounted. It is never used twice, unlike the numbers that the
    /// kernel gives to mounts and their devices, so it tells our mount from a later one.
    source: String,
    transport: Transport,
    cleaned: Cleaned,
    control: Arc<Control>,
    server: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// What the serving threads tell of their mount.
struct Started {
    dir: PathBuf,
    source: String,
    transport: Transport,
    cleaned: Cleaned,
}

/// Where the mount comes from, without descriptors: these belong to one table, and the serving
/// threads have another.
enum Plan {
    Mount {
        dir: PathBuf,
        threads: Option<usize>,
        transport: Transport,
    },
    Serve {
        parts: ConnectionParts,
        witnesses: Vec<RawFd>,
        is_successor: bool,
    },
}

impl Session {
    /// Serves `files`, those of `directory`.
    ///
    /// All of it happens in a thread with a table of descriptors of its own, which the serving
    /// threads share. Were the connection open in the other threads' table, a killed process that
    /// waits for a file system on one of its own volumes would never end: the kernel would keep
    /// the connection, and so the wait, for that very thread.
    pub(crate) fn start(
        files: VolumeFiles,
        directory: Arc<dyn Directory>,
        origin: Origin,
    ) -> Result<Self, ExportError> {
        let (plan, connection) = Plan::new(origin);
        let place = plan.dir().to_owned();
        let dir = place.clone();
        let control = Arc::new(Control::default());
        let (ready, answer) = mpsc::sync_channel(1);
        let serve_threads_control = control.clone();
        let server = thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || {
                let is_new = matches!(plan, Plan::Mount { .. });
                let opened = set_apart(&*directory, &plan).and_then(|()| open(plan));
                let result = opened.and_then(|(started, means)| {
                    match ServeThreads::start(&serve_threads_control, files, means) {
                        Ok(serve_threads) => Ok((started, serve_threads)),
                        Err(error) => {
                            if is_new {
                                forsake(&started.dir);
                            }
                            Err(ExportError::io("start threads that serve", &dir)(error))
                        }
                    }
                });
                let serve_threads = match result {
                    Ok((started, serve_threads)) => {
                        let _ = ready.send(Ok(started));
                        serve_threads
                    }
                    Err(error) => {
                        // The caller waits for it.
                        let _ = ready.send(Err(error));
                        return file_table::close_all();
                    }
                };
                serve_threads_control.join();
                drop(serve_threads);
                drop(directory);
                // All serving threads have been joined; but the kernel closes their table only
                // some time after that, and the pool's lock would stay with it.
                file_table::close_all()
            });
        let server = server.map_err(ExportError::io("serve volumes at", &place))?;
        let started = match answer.recv() {
            Ok(started) => started?,
            Err(gone) => {
                let error = io::Error::other(gone);
                return Err(ExportError::io("serve volumes at", &place)(error));
            }
        };
        // From now on the serving threads' copies are the only ones of this process.
        drop(connection);
        let Started {
            dir,
            source,
            transport,
            cleaned,
        } = started;
        Ok(Self {
            dir,
            source,
            transport,
            cleaned,
            control,
            server: Mutex::new(Some(server)),
        })
    }

    /// Where it is mounted.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How requests come.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// What was cleared away before mounting.
    pub(crate) fn cleaned(&self) -> &Cleaned {
        &self.cleaned
    }

    /// Ends the threads after the requests that they are at, and leaves the mount to whoever has
    /// its descriptors.
    ///
    /// # Errors
    /// `NoSuccessor` where requests come over rings: it then goes on serving. `Io`, also while writes
    /// wait for room: what is under way ends with this process.
    pub(crate) fn hand_over(&self) -> Result<(), ExportError> {
        if self.transport == Transport::IoUring {
            let dir = self.dir.clone();
            return Err(ExportError::NoSuccessor { dir });
        }
        let Some(server) = self.server.lock().take() else {
            return Ok(());
        };
        interrupt::prepare().map_err(ExportError::io("stop serving", &self.dir))?;
        while !server.is_finished() {
            self.control.stop();
            thread::sleep(POLL);
            // They may wait for as long as the pool's policy says, and nobody serves meanwhile.
            if self.control.only_waits() {
                let error = io::Error::other("writes wait for room");
                return Err(ExportError::io("stop serving", &self.dir)(error));
            }
        }
        joined(server);
        Ok(())
    }

    /// Unmounts and ends the threads; or says who keeps it busy, and goes on serving.
    pub(crate) fn stop(&self) -> Result<(), ExportError> {
        if self.check_place()? {
            self.unmount()?;
        }
        self.join();
        Ok(())
    }

    /// Takes the mount out of the tree whoever uses it. The threads go on for those, as long as
    /// the process lives.
    pub(crate) fn abandon(&self) {
        if self.stop().is_err() {
            if let Err(error) = mount::unmount_lazy(&self.dir) {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount");
            }
            // Not joined: they end with the last user.
            drop(self.server.lock().take());
        }
    }

    /// Whether our mount is there to be unmounted; `false` when someone has done so.
    fn check_place(&self) -> Result<bool, ExportError> {
        let is_ours = |entry: &MountEntry| entry.source == *self.source;
        let mounts = mount::mounts().map_err(ExportError::io("read the mounts of", &self.dir))?;
        let ours: Vec<_> = mounts.iter().filter(|entry| is_ours(entry)).collect();
        let elsewhere: Vec<_> = ours
            .iter()
            .filter(|entry| entry.mount_point != self.dir)
            .map(|entry| Holder::Mount(entry.mount_point.clone()))
            .collect();
        if !elsewhere.is_empty() {
            return Err(self.busy(Holders(elsewhere)));
        }
        let top = mounts.iter().rfind(|entry| entry.mount_point == self.dir);
        match top {
            Some(entry) if is_ours(entry) => Ok(true),
            Some(entry) if !ours.is_empty() => {
                Err(self.busy(Holders(vec![Holder::Mount(entry.mount_point.clone())])))
            }
            _ => Ok(false),
        }
    }

    fn unmount(&self) -> Result<(), ExportError> {
        let deadline = Instant::now() + BUSY_WAIT;
        loop {
            match mount::unmount(&self.dir) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                    return Err(ExportError::io("unmount", &self.dir)(error));
                }
                Err(_) if Instant::now() < deadline => thread::sleep(POLL),
                Err(_) => {
                    return Err(self.busy(Holders::of_mount(&self.dir)));
                }
            }
        }
    }

    fn busy(&self, by: Holders) -> ExportError {
        ExportError::Busy {
            what: self.dir.clone(),
            by,
        }
    }

    /// Waits for the threads. They end when the kernel ends the connection, which a copy of the
    /// mount in another namespace can delay for ever; so this gives up.
    fn join(&self) {
        let Some(server) = self.server.lock().take() else {
            return;
        };
        let deadline = Instant::now() + END_WAIT;
        while !server.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    dir = %self.dir.display(),
                    "unmounted, but a copy of the mount lives on in another mount namespace"
                );
                return;
            }
            thread::sleep(POLL);
        }
        joined(server);
    }
}

fn joined(server: JoinHandle<io::Result<()>>) {
    match server.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a FUSE thread failed"),
        Err(_) => tracing::error!("a FUSE thread panicked"),
    }
}

impl Plan {
    fn new(origin: Origin) -> (Self, Option<Connection>) {
        match origin {
            Origin::Mount {
                dir,
                threads,
                transport,
            } => {
                let plan = Self::Mount {
                    dir,
                    threads,
                    transport,
                };
                (plan, None)
            }
            Origin::Connection {
                connection,
                is_successor,
            } => {
                let witnesses = connection
                    .witnesses
                    .iter()
                    .map(AsRawFd::as_raw_fd)
                    .collect();
                let plan = Self::Serve {
                    parts: connection.parts(),
                    witnesses,
                    is_successor,
                };
                (plan, Some(connection))
            }
        }
    }

    fn dir(&self) -> &Path {
        match self {
            Self::Mount { dir, .. } => dir,
            Self::Serve { parts, .. } => &parts.dir,
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Mount { .. } => Vec::new(),
            Self::Serve {
                parts, witnesses, ..
            } => [&parts.descriptors[..], witnesses].concat(),
        }
    }
}

/// Prepares this thread, and those that it starts, for serving.
fn set_apart(directory: &dyn Directory, plan: &Plan) -> Result<(), ExportError> {
    // Their handlers write to descriptors that these threads will not have: they would be lost.
    interrupt::leave_requests_to_others()
        .map_err(ExportError::io("leave signals to others for", plan.dir()))?;
    let mut keep = plan.descriptors();
    keep.extend(directory.descriptors().iter().map(AsRawFd::as_raw_fd));
    file_table::keep_only(&keep)
        .map_err(ExportError::io("set descriptors apart for", plan.dir()))?;
    if let Err(error) = mount::set_io_flusher() {
        tracing::warn!(%error, "memory pressure may stall the mount against itself");
    }
    Ok(())
}

/// Takes away a mount that nobody will serve.
fn forsake(dir: &Path) {
    if let Err(error) = mount::unmount_lazy(dir) {
        tracing::warn!(%error, dir = %dir.display(), "a mount that nobody serves is left");
    }
}

/// Opens what is served through, in the table of the threads that will serve.
fn open(plan: Plan) -> Result<(Started, Means), ExportError> {
    match plan {
        Plan::Mount {
            dir,
            threads,
            transport,
        } => {
            let connection = Connection::mount(&dir, threads, transport)?;
            let queues = queues_for(transport, threads, &connection.dir)
                .inspect_err(|_| forsake(&connection.dir))?;
            let started = Started {
                dir: connection.dir.clone(),
                source: connection.source,
                transport,
                cleaned: connection.cleaned,
            };
            let means = Means {
                dir: connection.dir,
                devices: connection.descriptors,
                witnesses: connection.witnesses,
                queues,
            };
            Ok((started, means))
        }
        Plan::Serve {
            parts,
            witnesses,
            is_successor,
        } => {
            let transport = parts.negotiated.transport();
            if is_successor && transport == Transport::IoUring {
                return Err(ExportError::NoSuccessor { dir: parts.dir });
            }
            let taken = take_over(&parts, &witnesses, is_successor);
            let (devices, witnesses) =
                taken.map_err(ExportError::io("serve volumes at", &parts.dir))?;
            let means = Means {
                queues: queues_for(transport, None, &parts.dir)?,
                dir: parts.dir.clone(),
                devices,
                witnesses,
            };
            let started = Started {
                dir: parts.dir,
                source: parts.source,
                transport,
                cleaned: Cleaned::default(),
            };
            Ok((started, means))
        }
    }
}

/// The queues of a mount, where it has such.
fn queues_for(
    transport: Transport,
    threads: Option<usize>,
    dir: &Path,
) -> Result<Option<Queues>, ExportError> {
    match transport {
        Transport::Threads => Ok(None),
        Transport::IoUring => Queues::of_host(threads)
            .map(Some)
            .map_err(ExportError::io("serve volumes at", dir)),
    }
}

/// Takes the devices over that others keep too, and the witnesses. What a predecessor took and did
/// not answer comes again, before anyone reads: asked for later, it would bring what is being
/// served a second time, and a write could then land after one that followed it.
fn take_over(
    parts: &ConnectionParts,
    witnesses: &[RawFd],
    is_successor: bool,
) -> io::Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let mut devices = file_table::own_copies(&parts.descriptors)?;
    let witnesses = file_table::own_copies(witnesses)?;
    if !parts.negotiated.has_resend() {
        devices = own_clones(&devices)?;
    } else if is_successor {
        transport::ask_again(devices[0].as_fd())?;
    }
    Ok((devices, witnesses))
}

/// As many devices that nobody else has. For kernels that send nothing again (before Linux 6.9):
/// what is read from these fails when this process dies, rather than hang for ever.
fn own_clones(devices: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    devices
        .iter()
        .map(|device| fuse_device::clone(device.as_fd()))
        .collect()
}
