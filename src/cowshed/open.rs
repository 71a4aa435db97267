//! Finding the pool that a command means, and opening it.

use super::daemon_process::how_to_stop;
use super::failure::Usage;
use cowshed_daemon::request::HostPath;
use cowshed_daemon::unfinished;
use cowshed_daemon::{Client, Connection};
use cowshed_engine::{OpenOptions, Pool, uuid_of};
use cowshed_format::base::{self, BLOCK_BYTES, CorruptKind, Error, MirrorError};
use cowshed_format::device::mirror::{Found, absolute, open_pool};
use cowshed_format::device::{Device, FileDevice, FileOptions, MirrorDevice};
use cowshed_format::side::{SLOTS, SideEntry, SideLabel, label_places};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The path of the superuser's pool unless another one is named.
pub(super) const DEFAULT_POOL: &str = "/var/lib/cowshed/pool";

/// The advice where the path may have led to a side of a mirror.
const OTHER_SIDE: &str = "if it was a side of a mirror, give the path of another side with --pool";

/// A pool's path and its daemon's socket.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The pool's file or block device.
    pub pool: HostPath,
    /// The daemon's socket.
    pub socket: HostPath,
}

impl Place {
    /// Returns the place of the named pool, or the default.
    ///
    /// # Errors
    /// `Usage` when no pool was named and the caller is not the superuser.
    pub(super) fn new(pool: Option<&HostPath>, socket: Option<&HostPath>) -> anyhow::Result<Self> {
        let pool = match pool {
            Some(pool) => pool.clone(),
            None if nix::unistd::geteuid().is_root() => HostPath::new(DEFAULT_POOL)?,
            None => {
                let what = format!(
                    "no pool was given; use --pool PATH or set COWSHED_POOL \
                     (the default, {DEFAULT_POOL}, is the superuser's)"
                );
                return Err(Usage(what).into());
            }
        };
        let socket = socket.cloned().unwrap_or_else(|| pool.with_suffix(".sock"));
        Ok(Self { pool, socket })
    }

    /// Adds an explanation and advice to `error` from opening or creating the pool.
    #[must_use]
    pub(super) fn explain(&self, error: Error) -> anyhow::Error {
        let advice = match &error {
            Error::InUse => Some(self.advice_in_use()),
            Error::NotAPool => Some(format!("{error}; {OTHER_SIDE}")),
            Error::Io { action, source } => Self::advice_on(action, source),
            Error::Mirror(MirrorError::Diverged { .. }) => Some(format!(
                "{error}; `volume ls --this-side` and `pool check --this-side` show what the side \
                 at --pool has, and `cowshed --pool PATH pool mirror keep` keeps what PATH has, \
                 and gives it to the others"
            )),
            Error::Mirror(MirrorError::NoGoodSide { .. }) => Some(format!(
                "{error}; if it is lost for good, `cowshed --pool PATH pool mirror keep --force` \
                 goes on with what PATH has"
            )),
            Error::Mirror(MirrorError::Alone) => Some(format!(
                "{error}, since its label is damaged; give the path of another side with --pool, \
                 or if there is none, use `cowshed --pool {} pool mirror keep --force`",
                self.pool
            )),
            _ => None,
        };
        let pool = format!("pool {}", self.pool);
        match advice {
            Some(advice) => anyhow::Error::msg(advice).context(pool),
            None => anyhow::Error::new(error).context(pool),
        }
    }

    fn advice_in_use(&self) -> String {
        // systemd listens before the daemon does.
        let listens = std::env::var_os("LISTEN_FDS").is_some();
        if !listens && let Ok(Connection::Daemon(client)) = Client::connect(self.socket.as_path()) {
            return format!(
                "a daemon has it open (it answers on {}); to change its options, use \
                 `cowshed serve --upgrade`; to stop it: {}",
                self.socket,
                how_to_stop(client)
            );
        }
        let usual = self.pool.with_suffix(".sock");
        if usual != self.socket
            && let Ok(Connection::Daemon(_)) = Client::connect(usual.as_path())
        {
            return format!(
                "no daemon answers on {}, but one does on {usual}; omit --socket",
                self.socket
            );
        }
        let mut advice = format!(
            "the pool is in use by another process (no daemon answers on {}); wait for it to end",
            self.socket
        );
        if let Some(others) = self.other_sides() {
            let paths = others.iter().map(|path| path.display().to_string());
            let paths = paths.collect::<Vec<_>>().join(", ");
            if !paths.is_empty() {
                advice.push_str(&format!(
                    ", or if a daemon was started with another side, give that path with --pool \
                     ({paths})"
                ));
            }
            advice.push_str(
                ", or if it was started with a path that is no side any more, give the daemon's \
                 socket with --socket",
            );
        }
        advice
    }

    /// Returns the paths of the other sides, as the label at the pool's path has them, which another
    /// process may be changing. `None` without a label.
    fn other_sides(&self) -> Option<Vec<PathBuf>> {
        let file = File::open(self.pool.as_path()).ok()?;
        let labels = (0..SLOTS).flat_map(label_places).filter_map(|place| {
            let mut bytes = vec![0; BLOCK_BYTES];
            file.read_exact_at(&mut bytes, place.offset_bytes()).ok()?;
            SideLabel::decode(&bytes)
        });
        let newest = labels.max_by_key(|label| label.set.epoch.number)?;
        let others = newest.set.sides.into_iter();
        let others = others.filter(|entry| entry.id != newest.side);
        let path_of = |entry: SideEntry| PathBuf::from(OsString::from_vec(entry.path));
        Some(others.map(path_of).collect())
    }

    fn advice_on(action: &str, source: &io::Error) -> Option<String> {
        let is_root = nix::unistd::geteuid().is_root();
        Some(match source.kind() {
            // The folder has been created before, unless another process has removed it.
            io::ErrorKind::NotFound if action == "create the pool" => {
                "its directory does not exist; create it first".to_owned()
            }
            io::ErrorKind::NotFound => {
                "there is no such pool; create one with `cowshed pool create --size 10G`, unless it \
                 was a side of a mirror: then give the path of another side with --pool"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied if is_root => {
                "permission denied although this is root; the file is immutable (lsattr), its file \
                 system does not give root access (NFS), or a container may not use the device"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied; run as its owner, or give a pool of your own with --pool"
                    .to_owned()
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "it lies on a file system that is mounted read-only, or the device is read-only; \
                 a daemon writes: remount it (mount -o remount,rw), or read the pool without a \
                 daemon (cowshed volume export, cowshed pool check)"
                    .to_owned()
            }
            _ if is_gone(source) => {
                format!("{action}: {source}; the device is gone or broken; {OTHER_SIDE}")
            }
            _ => return None,
        })
    }

    /// Opens the pool for this process alone, and removes what killed commands left in it. On a
    /// file system that is mounted read-only, or with a damaged log, opens it for reading only.
    ///
    /// # Errors
    /// The engine's error; `explain` adds advice.
    pub(super) fn open(&self) -> base::Result<Pool> {
        let device = match self.device(FileOptions::default()) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                return self.open_to_read();
            }
            opened => opened?,
        };
        let pool = match Pool::open(device, &OpenOptions::default()) {
            Err(Error::Corrupt(CorruptKind::LogRecord(_))) => return self.open_to_read(),
            opened => opened?,
        };
        unfinished::remove(&pool)?;
        Ok(pool)
    }

    /// Returns a line that says why `pool` is opened for reading only.
    pub(super) fn reason_to_read(&self, pool: &Pool) -> String {
        let damaged_at = pool.status().ok().and_then(|status| status.log_damaged_at);
        let reason = match damaged_at {
            Some(sequence) => format!(
                "its log is damaged at record {sequence}, and later changes are missing; the pool \
                 is opened for reading only, until `cowshed pool check --repair` ends the log there"
            ),
            None => "its file system is mounted read-only; the pool is opened for reading only"
                .to_owned(),
        };
        format!("pool {}: {reason}", self.pool)
    }

    /// Opens the pool without writing to it: it is recovered in memory.
    ///
    /// # Errors
    /// Like those of `open`.
    pub(super) fn open_to_read(&self) -> base::Result<Pool> {
        let file = FileOptions {
            read_only: true,
            ..FileOptions::default()
        };
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        Pool::open(self.device(file)?, &options)
    }

    /// Opens one side of a mirror for reading, as `one_side`.
    ///
    /// # Errors
    /// Like those of `open`.
    pub(super) fn open_one_side(&self) -> base::Result<Pool> {
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        Pool::open(self.one_side()?, &options)
    }

    /// Opens the file or device at the path for reading, without the other sides and whatever its
    /// label says.
    ///
    /// # Errors
    /// As `FileDevice::open` and `uuid_of`.
    pub(super) fn one_side(&self) -> base::Result<Arc<dyn Device>> {
        let options = FileOptions {
            read_only: true,
            ..FileOptions::default()
        };
        let device = FileDevice::open(self.pool.as_path(), options)?;
        let uuid = uuid_of(&device)?;
        let found = Found {
            path: absolute(self.pool.as_path())?,
            device: Arc::new(device),
        };
        Ok(Arc::new(MirrorDevice::of_one_side(found, uuid)?))
    }

    /// Opens the pool's file or device, with the other sides if it is mirrored.
    ///
    /// # Errors
    /// As `mirror::open_pool`.
    pub(super) fn device(&self, options: FileOptions) -> base::Result<Arc<dyn Device>> {
        open_pool(self.pool.as_path(), options)
    }
}

/// Returns true for the errors of a device that was removed or is broken.
fn is_gone(source: &io::Error) -> bool {
    let gone = [libc::EIO, libc::ENXIO, libc::ENODEV, libc::ENOMEDIUM];
    source
        .raw_os_error()
        .is_some_and(|errno| gone.contains(&errno))
}
