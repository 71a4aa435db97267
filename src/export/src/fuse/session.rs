//! The life of a served mount: starting the threads, then unmounting or handing over.
//!
//! This module mounts and unmounts by path, but never touches a mount that is not its own.

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

/// The time for which a file that was just closed may keep the mount busy.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// The time that the threads have to notice that the mount is gone.
const END_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// The origin of the mount.
pub(crate) enum Origin {
    /// The mount is created, for this process alone.
    Mount {
        dir: PathBuf,
        threads: Option<usize>,
        transport: Transport,
    },
    /// The mount exists, and others hold its descriptors too.
    Connection {
        connection: Connection,
        /// True if an earlier process has served it.
        is_successor: bool,
    },
}

/// A mount with the threads that serve it.
pub(crate) struct Session {
    dir: PathBuf,
    /// The source in the mount table. It is never reused, unlike the numbers that the kernel gives
    /// to mounts and their devices, so it distinguishes this mount from a later one.
    source: String,
    transport: Transport,
    cleaned: Cleaned,
    control: Arc<Control>,
    server: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// The data about the mount that the serving threads report.
struct Started {
    dir: PathBuf,
    source: String,
    transport: Transport,
    cleaned: Cleaned,
}

/// The origin of the mount, without descriptors: these belong to one table, and the serving threads
/// have another.
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
    /// Serves `files`, which are those of `directory`.
    ///
    /// All of it happens in a thread with its own table of descriptors, which the serving threads
    /// share. If the connection were open in the other threads' table, a killed process that waits
    /// for a file system on one of its own volumes would never end: the kernel would keep the
    /// connection, and so the wait, for that very thread.
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
                            Err(ExportError::io("start the threads that serve", &dir)(error))
                        }
                    }
                });
                let serve_threads = match result {
                    Ok((started, serve_threads)) => {
                        let _ = ready.send(Ok(started));
                        serve_threads
                    }
                    Err(error) => {
                        // The caller waits for this message.
                        let _ = ready.send(Err(error));
                        return file_table::close_all();
                    }
                };
                serve_threads_control.join();
                drop(serve_threads);
                drop(directory);
                // All serving threads have been joined; but the kernel closes their table only some
                // time later, and the pool's lock would be held until then.
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
        // From now on only the serving threads have copies in this process.
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

    /// Returns the mount point.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the transport.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns what was cleared away before mounting.
    pub(crate) fn cleaned(&self) -> &Cleaned {
        &self.cleaned
    }

    /// Ends the threads after their present requests, and leaves the mount to the holder of its
    /// descriptors.
    ///
    /// # Errors
    /// `NoSuccessor` if requests come over rings: the mount is then still served. `Io`, also while
    /// writes wait for space: requests in progress end with this process.
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
            // Writes may wait for as long as the pool's policy says, and nobody serves meanwhile.
            if self.control.only_waits() {
                let error = io::Error::other("writes wait for free space");
                return Err(ExportError::io("stop serving", &self.dir)(error));
            }
        }
        joined(server);
        Ok(())
    }

    /// Unmounts and ends the threads; if the mount is busy, the error names its users, and it is
    /// still served.
    pub(crate) fn stop(&self) -> Result<(), ExportError> {
        if self.check_place()? {
            self.unmount()?;
        }
        self.join();
        Ok(())
    }

    /// Removes the mount from the tree even if it is in use. The threads go on for its users as
    /// long as the process lives.
    pub(crate) fn abandon(&self) {
        if self.stop().is_err() {
            if let Err(error) = mount::unmount_lazy(&self.dir) {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount the volumes");
            }
            // Not joined: the threads end with the last user.
            drop(self.server.lock().take());
        }
    }

    /// Returns true if this mount is still there to be unmounted; `false` if someone has unmounted
    /// it.
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
    /// mount in another namespace can delay for ever; so this wait is limited.
    fn join(&self) {
        let Some(server) = self.server.lock().take() else {
            return;
        };
        let deadline = Instant::now() + END_WAIT;
        while !server.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    dir = %self.dir.display(),
                    "the volumes are unmounted, but another mount namespace has a copy of the mount"
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
    // Signal handlers write to descriptors that these threads do not have, so signals that they
    // took would be lost.
    interrupt::leave_requests_to_others().map_err(ExportError::io(
        "block signals in the threads that serve",
        plan.dir(),
    ))?;
    let mut keep = plan.descriptors();
    keep.extend(directory.descriptors().iter().map(AsRawFd::as_raw_fd));
    file_table::keep_only(&keep).map_err(ExportError::io(
        "make a descriptor table for the threads that serve",
        plan.dir(),
    ))?;
    if let Err(error) = mount::set_io_flusher() {
        tracing::warn!(
            %error,
            "cannot set PR_SET_IO_FLUSHER, so that memory pressure may block the mount"
        );
    }
    Ok(())
}

/// Removes a mount that nobody will serve.
fn forsake(dir: &Path) {
    if let Err(error) = mount::unmount_lazy(dir) {
        tracing::warn!(
            %error, dir = %dir.display(),
            "cannot unmount a mount that no process serves"
        );
    }
}

/// Opens the descriptors for serving, in the table of the threads that will serve.
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

/// Returns the queues of a mount that uses rings; otherwise `None`.
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

/// Copies the devices that others hold too, and the witnesses. The requests that a predecessor took
/// without replying are repeated before any thread reads: a later repetition would bring requests
/// that are being served a second time, and a write could then land after one that followed it.
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

/// Returns as many devices that no other process has. For kernels that repeat nothing (before Linux
/// 6.9): requests that were read from these fail when this process dies, instead of hanging for
/// ever.
fn own_clones(devices: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    devices
        .iter()
        .map(|device| fuse_device::clone(device.as_fd()))
        .collect()
}
