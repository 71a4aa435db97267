//! An open pool with the host's services on it: the context of every command on a pool.
//!
//! In the daemon the volumes are mounted as files for its whole life. A command that opens the pool
//! itself mounts them only if it needs block devices, and unmounts them when it ends.

use super::keeper::{Serving, ToKeeper};
use super::request::HostPath;
use super::state_folder::StateFolder;
use anyhow::Context;
use cowshed_engine::{Pool, uuid_of};
use cowshed_export::{self as export, Cleaned, Export};
use cowshed_format::base::{Error, Result as PoolResult};
use cowshed_format::device::Device;
use cowshed_host::{self as container, Host};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder, in the state folder, where a command that opens the pool itself mounts the volumes.
pub(super) const FILES: &str = "files";
/// The folder, in the state folder, where the daemon mounts the volumes by default.
pub(super) const VOLUMES: &str = "volumes";

/// Removes what a killed process left at `dir` where it had mounted the volumes: first the mounts
/// of containers, then their devices and the volumes' own mount.
///
/// # Errors
/// When a live process serves there, or a mount cannot be removed.
pub(super) fn clear_stale(dir: &Path) -> anyhow::Result<()> {
    for mount in container::clean_stale_mounts(dir)? {
        tracing::info!(mount = %mount.display(), "unmounted a mount of a killed process");
    }
    let cleaned = export::clean_stale(dir)?;
    tell_cleaned(&cleaned, dir);
    Ok(())
}

/// Removes everything that killed processes left which served the pool with this state folder. The
/// caller holds the folder's lock, so none of them is alive.
///
/// # Errors
/// Like those of `clear_stale`.
pub fn clear_folder(folder: &Path) -> anyhow::Result<()> {
    for dir in [FILES, VOLUMES] {
        clear_stale(&folder.join(dir))?;
    }
    clear_devices(folder)
}

/// Detaches the loop devices that killed processes left, whatever happened to their mount.
///
/// # Errors
/// When a device cannot be detached.
pub(super) fn clear_devices(folder: &Path) -> anyhow::Result<()> {
    let cleaned = export::clean_recorded(&folder.join(export::DEVICES))?;
    tell_cleaned(&cleaned, folder);
    Ok(())
}

/// Returns the identity of the pool on a device, from a superblock that this program understands.
///
/// # Errors
/// As `Pool::open`, as far as the superblock goes.
pub(super) fn uuid_on(device: &dyn Device) -> PoolResult<[u8; 16]> {
    let Some(mirror) = device.mirror() else {
        return uuid_of(device);
    };
    let (mut found, mut refusal) = (None, Error::NotAPool);
    for side in mirror.open_sides() {
        match uuid_of(side.device()) {
            Ok(uuid) if Some(uuid) == mirror.pool_uuid() => found = Some(uuid),
            Ok(_) => {}
            Err(error @ Error::Incompatible { .. }) => return Err(error),
            Err(error) => refusal = error,
        }
    }
    found.ok_or(refusal)
}

fn tell_cleaned(cleaned: &Cleaned, dir: &Path) {
    if cleaned.mounts > 0 || !cleaned.detached.is_empty() {
        let (dir, devices) = (dir.display(), cleaned.detached.len());
        tracing::info!(%dir, devices, "removed the mounts and loop devices of a killed process");
    }
    for stale in &cleaned.busy {
        let (device, by) = (stale.device.display(), &stale.by);
        tracing::warn!(%device, %by, "a loop device of a killed process is in use; end that use");
    }
}

/// The command needs a daemon, and this process, which has the pool at this path open, is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this needs the daemon")]
pub struct NeedsDaemon(pub HostPath);

/// An open pool on this host.
pub struct OpenPool {
    pool: Pool,
    path: HostPath,
    /// The daemon's files and loop devices.
    export: Option<Arc<Export>>,
    /// The processes that serve, if this is the daemon.
    serving: Option<Arc<Mutex<Serving>>>,
    /// The process that starts the daemon's workers, if this is the daemon.
    keeper: Option<Arc<ToKeeper>>,
    hosted: Mutex<Option<Hosted>>,
}

/// Images and containers of the pool. The host releases its mounts before the folder is released.
struct Hosted {
    host: Arc<Host>,
    state: StateFolder,
}

impl OpenPool {
    /// Returns the pool at `path`, opened for one command.
    #[must_use]
    pub const fn of_command(pool: Pool, path: HostPath) -> Self {
        Self {
            pool,
            path,
            export: None,
            serving: None,
            keeper: None,
            hosted: Mutex::new(None),
        }
    }

    /// Returns the daemon's open pool, with all services from the start. A successor takes over
    /// what its predecessor had mounted.
    ///
    /// # Errors
    /// When the containers' leftovers cannot be removed.
    pub(super) fn of_daemon(
        pool: Pool,
        path: HostPath,
        export: Arc<Export>,
        state: StateFolder,
        serving: Arc<Mutex<Serving>>,
        keeper: Arc<ToKeeper>,
        is_successor: bool,
    ) -> anyhow::Result<Self> {
        let lent = Arc::clone(&export);
        let host = if is_successor {
            Host::resume(pool.clone(), state.path(), lent)?
        } else {
            Host::with_export(pool.clone(), state.path(), lent)?
        };
        let hosted = Hosted {
            host: Arc::new(host),
            state,
        };
        Ok(Self {
            pool,
            path,
            export: Some(export),
            serving: Some(serving),
            keeper: Some(keeper),
            hosted: Mutex::new(Some(hosted)),
        })
    }

    /// Returns the pool.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the path by which the pool was opened.
    #[must_use]
    pub const fn path(&self) -> &HostPath {
        &self.path
    }

    /// Returns the processes that serve, if this is the daemon.
    #[must_use]
    pub fn serving(&self) -> Option<Serving> {
        self.serving.as_ref().map(|serving| serving.lock().clone())
    }

    /// Returns the process that starts the daemon's workers, if this is the daemon.
    #[must_use]
    pub fn keeper(&self) -> Option<&ToKeeper> {
        self.keeper.as_deref()
    }

    /// Leaves everything mounted for the next process that serves.
    pub(super) fn leave(&self) {
        if let Some(hosted) = &*self.hosted.lock() {
            hosted.host.leave();
        }
    }

    /// Makes this process the one that removes the state folder, once the keeper is gone.
    pub(super) fn keep_folder(&self) {
        if let Some(hosted) = &mut *self.hosted.lock() {
            hosted.state.keep(true);
        }
    }

    /// Returns the daemon's export, if this is the daemon.
    #[must_use]
    pub fn export(&self) -> Option<&Arc<Export>> {
        self.export.as_ref()
    }

    /// Returns the daemon's export, for attachments that must outlive the command.
    ///
    /// # Errors
    /// When this is not the daemon.
    pub fn daemon_export(&self) -> Result<&Arc<Export>, NeedsDaemon> {
        let pool = || NeedsDaemon(self.path.clone());
        self.export.as_ref().ok_or_else(pool)
    }

    /// Returns the images and containers, which are set up on first use.
    ///
    /// # Errors
    /// When the caller is not the superuser, or leftovers cannot be removed.
    pub fn containers(&self) -> anyhow::Result<Arc<Host>> {
        let mut hosted = self.hosted.lock();
        if let Some(hosted) = &*hosted {
            return Ok(Arc::clone(&hosted.host));
        }
        if !nix::unistd::geteuid().is_root() {
            anyhow::bail!("images and containers need mounts; run it as root");
        }
        let state = StateFolder::take(self.pool.uuid())?;
        clear_folder(state.path())?;
        let host = Arc::new(Host::new(self.pool.clone(), state.path())?);
        *hosted = Some(Hosted {
            host: Arc::clone(&host),
            state,
        });
        Ok(host)
    }

    /// Records the volumes that had a write refused.
    pub(super) fn keep_refusals(&self) {
        if let Some(hosted) = &*self.hosted.lock() {
            hosted.host.mounts().keep_refusals();
        }
    }

    /// Unmounts the daemon's containers and volumes; can be retried after a failure.
    ///
    /// # Errors
    /// An error that names what is in use.
    pub(super) fn unmount(&self, export: &Export) -> anyhow::Result<()> {
        if let Some(hosted) = &*self.hosted.lock() {
            hosted.host.close()?;
        }
        Ok(export.unmount()?)
    }

    /// Returns the mount points of containers and data volumes, followed by that of the daemon's
    /// volumes.
    pub(super) fn mounted_paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        if let Some(hosted) = &*self.hosted.lock() {
            let containers = hosted.host.containers().list().into_iter().flatten();
            paths.extend(containers.filter_map(|container| container.mounted));
            paths.extend(hosted.host.data().paths());
            paths.extend(hosted.host.roots().paths());
        }
        paths.extend(
            self.export
                .iter()
                .map(|export| export.mount_point().to_owned()),
        );
        paths
    }

    /// Unmounts what a command that opened the pool mounted, and closes the pool.
    ///
    /// # Errors
    /// The first failure; the pool is closed anyway.
    pub fn close(self) -> anyhow::Result<()> {
        let hosted = self.hosted.into_inner();
        let unmounted = hosted.as_ref().map_or(Ok(()), |hosted| hosted.host.close());
        drop(hosted);
        let closed = self.pool.close().context("close the pool");
        unmounted.context("unmount the volumes")?;
        closed
    }
}
