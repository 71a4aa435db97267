//! The folder of a quickstart with its pool, and its unconditional cleanup.

use super::super::open::Place;
use anyhow::Context;
use cowshed_daemon::request::HostPath;
use cowshed_engine::{CreateOptions, Pool};
use cowshed_format::base::size::human;
use cowshed_format::device::{CreateFile, FileDevice};
use cowshed_host::Host;
use cowshed_sys::{mount, program};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Checks that this host has everything that mounting needs.
///
/// # Errors
/// One line that names everything that is missing.
pub(super) fn check_needs() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !mount::is_root() {
        missing.push("root (run it as root, for example with sudo)");
    }
    if !Path::new("/dev/fuse").exists() {
        missing.push("/dev/fuse (modprobe fuse)");
    }
    if !Path::new("/dev/loop-control").exists() {
        missing.push("loop devices (modprobe loop)");
    }
    if program::find("mkfs.ext4").is_none() {
        missing.push("mkfs.ext4 (install the package e2fsprogs)");
    }
    anyhow::ensure!(missing.is_empty(), "it needs {}", missing.join(", "));
    Ok(())
}

/// The quickstart's folder, with a pool and, while that is open, its mounts.
pub(super) struct Workplace {
    dir: PathBuf,
    /// True if the folder itself is removed in the end, not only its contents.
    made_dir: bool,
    /// True if nothing is left to be removed.
    settled: bool,
    host: Option<Arc<Host>>,
    pool: Option<Pool>,
}

impl Workplace {
    /// Creates the folder, or takes an empty one.
    pub(super) fn prepare(dir: Option<&Path>) -> anyhow::Result<Self> {
        let (dir, made_dir) = match dir {
            Some(dir) => (dir.to_owned(), take_folder(dir)?),
            None => (fresh_folder()?, true),
        };
        Ok(Self {
            dir,
            made_dir,
            settled: false,
            host: None,
            pool: None,
        })
    }

    /// Returns the folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the pool's file.
    pub(super) fn pool_path(&self) -> PathBuf {
        self.dir.join("pool")
    }

    /// Returns the path for the sample image.
    pub(super) fn sample_path(&self) -> PathBuf {
        self.dir.join("image")
    }

    fn state_path(&self) -> PathBuf {
        self.dir.join("mounts")
    }

    /// Creates the pool and opens it.
    pub(super) fn create_pool(&mut self, size_bytes: u64) -> anyhow::Result<()> {
        let device = FileDevice::create(self.pool_path(), size_bytes, CreateFile::default())
            .context("create the pool")?;
        Pool::create(&device, &CreateOptions::default()).context("create the pool")?;
        drop(device);
        let path = HostPath::new(self.pool_path())?;
        self.pool = Some(Place::new(Some(&path), None)?.open()?);
        Ok(())
    }

    /// Returns the images and containers of the pool.
    pub(super) fn host(&mut self) -> anyhow::Result<Arc<Host>> {
        if let Some(host) = &self.host {
            return Ok(Arc::clone(host));
        }
        let pool = self.pool.clone().context("the pool is not open")?;
        let host = Arc::new(Host::new(pool, &self.state_path())?);
        self.host = Some(Arc::clone(&host));
        Ok(host)
    }

    /// Waits until the space of removed volumes is free, and returns what is left in use.
    pub(super) fn reclaim(&self) -> anyhow::Result<String> {
        let pool = self.pool.as_ref().context("the pool is not open")?;
        pool.reclaim().context("reclaim what was removed")?;
        pool.checkpoint().context("checkpoint")?;
        let status = pool.status().context("pool status")?;
        Ok(format!(
            "{} of the pool stay in use",
            human(status.used_bytes)
        ))
    }

    /// Unmounts everything and closes the pool.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        let unmounted = self.host.take().map_or(Ok(()), |host| host.close());
        let closed = self.pool.take().map_or(Ok(()), |pool| pool.close());
        unmounted?;
        Ok(closed?)
    }

    /// Leaves the closed pool in place, and returns how to go on.
    pub(super) fn keep(mut self) -> String {
        self.settled = true;
        // Neither folder is needed any longer, and neither has data of the pool.
        let _ = fs::remove_dir_all(self.sample_path());
        let _ = fs::remove_dir(self.state_path());
        format!(
            "Kept the pool with its image and containers. Go on with:\n  \
             export COWSHED_POOL={}\n  cowshed serve\n  cowshed container mount one",
            self.pool_path().display()
        )
    }

    /// Unmounts, closes and removes everything.
    pub(super) fn remove(mut self) -> anyhow::Result<()> {
        self.settled = true;
        self.clear()
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        let dir = mount::resolve(&self.dir).context("resolve the directory")?;
        self.close()
            .with_context(|| format!("cannot remove {}", dir.display()))?;
        let mounts = mount::mounts().context("read the mounts")?;
        if let Some(left) = mounts
            .iter()
            .find(|entry| mount::lies_in(&entry.mount_point, &dir))
        {
            anyhow::bail!(
                "{} is still mounted; unmount it and remove {}",
                left.mount_point.display(),
                dir.display()
            );
        }
        let removed = if self.made_dir {
            fs::remove_dir_all(&dir)
        } else {
            remove_content(&dir)
        };
        removed.with_context(|| format!("remove {}", dir.display()))
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // Only a panic leads here unsettled.
        if !self.settled
            && let Err(error) = self.clear()
        {
            tracing::error!(
                error = format!("{error:#}"), dir = %self.dir.display(),
                "cannot remove the directory of the quickstart"
            );
        }
    }
}

/// Creates the folder, or takes it if it is empty; returns true if it was created.
fn take_folder(dir: &Path) -> anyhow::Result<bool> {
    let what = || format!("lock the directory {}", dir.display());
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            anyhow::ensure!(entries.next().is_none(), "{} is not empty", dir.display());
            Ok(false)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .with_context(what)?;
            Ok(true)
        }
        Err(error) => Err(error).with_context(what),
    }
}

fn fresh_folder() -> anyhow::Result<PathBuf> {
    let parent = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let dir = parent.join(format!("cowshed-quickstart-{:08x}", rand::random::<u32>()));
    let made = fs::DirBuilder::new().mode(0o700).create(&dir);
    made.with_context(|| format!("create the directory {}", dir.display()))?;
    Ok(dir)
}

fn remove_content(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
