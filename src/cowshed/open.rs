//! Finding the pool that a command means, and opening it.

use super::failure::Usage;
use cowshed_daemon::request::HostPath;
use cowshed_daemon::unfinished;
use cowshed_engine::{OpenOptions, Pool};
use cowshed_format::base::{self, CorruptKind, Error};
use cowshed_format::device::{FileDevice, FileOptions};
use std::io;
use std::sync::Arc;

/// The path of the superuser's pool unless another one is named.
pub(super) const DEFAULT_POOL: &str = "/var/lib/cowshed/pool";

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
            Error::InUse => Some(format!(
                "the pool is in use by another process (no daemon answers on {}); \
                 wait for it to end",
                self.socket
            )),
            Error::Io { action, source } => self.advice_on(action, source),
            _ => None,
        };
        let pool = format!("pool {}", self.pool);
        match advice {
            Some(advice) => anyhow::Error::msg(advice).context(pool),
            None => anyhow::Error::new(error).context(pool),
        }
    }

    fn advice_on(&self, action: &str, source: &io::Error) -> Option<String> {
        let is_root = nix::unistd::geteuid().is_root();
        Some(match source.kind() {
            // The folder has been created before, unless another process has removed it.
            io::ErrorKind::NotFound if action == "create the pool" => {
                "its directory does not exist; create it first".to_owned()
            }
            io::ErrorKind::NotFound => {
                "there is no such pool; create one with `cowshed pool create --size 10G`".to_owned()
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
            _ => return None,
        })
    }

    /// Opens the pool for this process alone, and removes what killed commands left in it. On a
    /// file system that is mounted read-only, or with a damaged log, opens it for reading only.
    ///
    /// # Errors
    /// The engine's error; `explain` adds advice.
    pub(super) fn open(&self) -> base::Result<Pool> {
        let device = match FileDevice::open(self.pool.as_path(), FileOptions::default()) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                return self.open_to_read();
            }
            opened => opened?,
        };
        let pool = match Pool::open(Arc::new(device), &OpenOptions::default()) {
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
        let device = FileDevice::open(self.pool.as_path(), file)?;
        Pool::open(Arc::new(device), &options)
    }
}
