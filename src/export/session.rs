//! The mount itself and the threads that serve it.
//!
//! We mount and unmount by ourselves rather than through fuser: it would fall back to
//! `fusermount`, and unmount by path whatever lies there by then.

use super::error::ExportError;
use super::fuse::VolumeFiles;
use super::holders::{Holder, Holders};
use super::target::Directory;
use crate::sys::file_table;
use crate::sys::mount::{self, MountEntry, MountFlags};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the mount table shows as the type; also how a stale mount is known to be ours.
pub(super) const FS_TYPE: &str = "fuse.cowshed";
/// How many mounts this process has made.
static MOUNTS: AtomicU64 = AtomicU64::new(0);
/// How long a file that was just closed may keep the mount busy.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// How long the threads may take to see that the mount is gone.
const END_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// A mount with the threads that serve it.
pub(super) struct Session {
    dir: PathBuf,
    /// What the mount table shows as mounted. It is never used twice, unlike the numbers that the
    /// kernel gives to mounts and their devices, so it tells our mount from a later one.
    source: String,
    server: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Session {
    /// Mounts `files`, those of `directory`, at `dir`, an existing directory without links, and
    /// serves them.
    ///
    /// All of it happens in a thread with a table of descriptors of its own, which the serving
    /// threads share. Were the connection open in the other threads' table, a killed process that
    /// waits for a file system on one of its own volumes would never end: the kernel would keep
    /// the connection, and so the wait, for that very thread.
    pub(super) fn start(
        files: VolumeFiles,
        directory: Arc<dyn Directory>,
        dir: &Path,
        threads: usize,
    ) -> Result<Self, ExportError> {
        let number = MOUNTS.fetch_add(1, Ordering::Relaxed);
        let source = format!("cowshed-{}-{number}", std::process::id());
        let (ready, answer) = mpsc::sync_channel(1);
        let (place, shown) = (dir.to_owned(), source.clone());
        let server = thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || {
                let opened = set_apart(&*directory, &place)
                    .and_then(|()| open(files, &place, &shown, threads));
                let session = match opened {
                    Ok(session) => session,
                    Err(error) => {
                        // The caller waits for it.
                        let _ = ready.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = ready.send(Ok(()));
                session.run()?;
                drop(directory);
                // All serving threads have been joined; but the kernel closes their table only
                // some time after that, and the pool's lock would stay with it.
                file_table::close_all()
            });
        let server = server.map_err(ExportError::io("serve volumes at", dir))?;
        match answer.recv() {
            Ok(started) => started?,
            Err(gone) => {
                let error = io::Error::other(gone);
                return Err(ExportError::io("serve volumes at", dir)(error));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            source,
            server: Mutex::new(Some(server)),
        })
    }

    /// Where it is mounted.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts and ends the threads; or says who keeps it busy, and goes on serving.
    pub(super) fn stop(&self) -> Result<(), ExportError> {
        if self.check_place()? {
            self.unmount()?;
        }
        self.join();
        Ok(())
    }

    /// Takes the mount out of the tree whoever uses it. The threads go on for those, as long as
    /// the process lives.
    pub(super) fn abandon(&self) {
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
        match server.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a FUSE thread failed"),
            Err(_) => tracing::error!("a FUSE thread panicked"),
        }
    }
}

fn open_channel() -> Result<File, ExportError> {
    let path = Path::new("/dev/fuse");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ExportError::NoFuse,
            _ => ExportError::io("open", path)(error),
        })
}

/// Prepares this thread, and those that it starts, for serving.
fn set_apart(directory: &dyn Directory, dir: &Path) -> Result<(), ExportError> {
    file_table::keep_only(&directory.descriptors())
        .map_err(ExportError::io("set descriptors apart for", dir))?;
    if let Err(error) = mount::set_io_flusher() {
        tracing::warn!(%error, "memory pressure may stall the mount against itself");
    }
    Ok(())
}

/// Mounts, and shakes hands with the kernel, in the thread that will serve.
fn open(
    files: VolumeFiles,
    dir: &Path,
    source: &str,
    threads: usize,
) -> Result<fuser::Session<VolumeFiles>, ExportError> {
    let channel = open_channel()?;
    let descriptor = channel.as_raw_fd();
    let options =
        format!("fd={descriptor},rootmode=40700,user_id=0,group_id=0,default_permissions");
    let flags = MountFlags::MS_NOSUID | MountFlags::MS_NODEV | MountFlags::MS_NOEXEC;
    mount::mount(OsStr::new(source), dir, FS_TYPE, flags, &options).map_err(|error| match error
        .raw_os_error()
    {
        Some(libc::ENODEV) => ExportError::NoFuse,
        Some(libc::EPERM) => ExportError::NotRoot,
        _ => ExportError::io("mount volumes at", dir)(error),
    })?;
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads);
    config.clone_fd = true;
    // The kernel lets root alone in; fuser's own check would refuse requests that the kernel
    // makes on nobody's behalf.
    config.acl = fuser::SessionACL::All;
    fuser::Session::from_fd(files, OwnedFd::from(channel), config.acl, config).map_err(|error| {
        // Nobody serves it: leave no dead mount behind.
        let _ = mount::unmount_lazy(dir);
        ExportError::io("serve volumes at", dir)(error)
    })
}
