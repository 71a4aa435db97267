//! Opening, adopting and closing everything of one pool on this host, in the right order.
//!
//! A [`Host`] does nothing else: it hands out what it has opened. The state folder has a folder for
//! each of the mounts of containers (`mounts`), the own volumes of their overlay roots (`own`) and
//! the lower layers of these (`lower`), roots (`roots`), data volumes (`data`) and operations in
//! progress (`work`); the tables in the headers of the modules `adopt` and `adoption`
//! say what a successor of a process that died concludes from each.
//!
//! # Invariants
//! - Two hosts never use one state folder at a time.
//! - The mounts are the first that are opened and adopted, and the last that are closed: all others
//!   use them.
//! - Operations in progress are undone before anything is adopted, and their volumes are removed
//!   after everything is.

use crate::containers::Containers;
use crate::data::DataVolumes;
use crate::error::Result;
use crate::images::Images;
use crate::layers::Layers;
use crate::mounts::{Mounts, listed_mounts};
use crate::roots::Roots;
use cowshed_engine::Pool;
use cowshed_export::Export;
use cowshed_format::base::cancel;
use std::path::Path;
use std::sync::Arc;

/// The images, containers, roots and data volumes of one pool on this host; thread safe.
pub struct Host {
    mounts: Arc<Mounts>,
    layers: Arc<Layers>,
    images: Arc<Images>,
    containers: Containers,
    roots: Roots,
    data: DataVolumes,
}

impl Host {
    /// Opens the images and containers of `pool`. Mounts and the volumes' files are in `state_dir`,
    /// which no other process may use meanwhile; leftovers of an earlier process there are removed.
    /// The volumes are exported there at the first use.
    ///
    /// # Errors
    /// If the folder cannot be created or leftovers cannot be removed.
    pub fn new(pool: Pool, state_dir: &Path) -> Result<Self> {
        let host = Self::over(Mounts::open(pool, state_dir, None)?);
        host.clean_leftovers()?;
        Ok(host)
    }

    /// As `new`, with the export of a caller, who goes on using it and unmounts it in the end.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_export(pool: Pool, state_dir: &Path, export: Arc<Export>) -> Result<Self> {
        let host = Self::over(Mounts::open(pool, state_dir, Some(export))?);
        host.clean_leftovers()?;
        Ok(host)
    }

    /// As `with_export`, for a successor of a process that died: `export` shows the volumes where
    /// that process did. Mounted containers and roots stay mounted, and so do data volumes that have
    /// users. Everything else was interrupted and is undone; what cannot be undone is left and
    /// logged.
    ///
    /// # Errors
    /// If the folder or the list of mounts cannot be read.
    pub fn resume(pool: Pool, state_dir: &Path, export: Arc<Export>) -> Result<Self> {
        let host = Self::over(Mounts::open(pool, state_dir, Some(export))?);
        let found = host.mounts.begin_adoption()?;
        host.data.adopt(&found);
        host.containers.adopt(&found)?;
        host.roots.adopt(&found);
        host.mounts.end_adoption(&found);
        Ok(host)
    }

    fn over(mounts: Mounts) -> Self {
        let mounts = Arc::new(mounts);
        let layers = Arc::new(Layers::new(&mounts));
        let images = Arc::new(Images::new(&mounts));
        Self {
            containers: Containers::new(&mounts, &layers, &images),
            roots: Roots::new(&mounts, &layers),
            data: DataVolumes::new(&mounts),
            mounts,
            layers,
            images,
        }
    }

    /// Removes the leftovers of interrupted operations of an earlier process: their mounts in the
    /// state folder and their volumes in the pool.
    fn clean_leftovers(&self) -> Result<()> {
        let listed = listed_mounts()?;
        for folder in [
            self.containers.dir(),
            self.containers.own_dir(),
            self.roots.dir(),
            self.data.dir(),
            self.mounts.work_dir(),
            self.mounts.lower_dir(),
        ] {
            self.mounts.unmount_leftovers(&listed, &folder)?;
        }
        if self.pool().is_read_only() {
            return Ok(());
        }
        self.data.clean();
        self.mounts.tidy_refusals();
        self.mounts.remove_leftovers()
    }

    /// Returns the pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        self.mounts.pool()
    }

    /// Returns the mounts, which know no images and containers.
    #[must_use]
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// Returns the comparison of volumes.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Returns the images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Returns the containers.
    #[must_use]
    pub const fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Returns the roots, which containerd and Docker show to their containers.
    #[must_use]
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Returns the data volumes.
    #[must_use]
    pub const fn data(&self) -> &DataVolumes {
        &self.data
    }

    /// Unmounts all containers, roots and data volumes and, if the host owns it, the export. The
    /// pool stays open.
    ///
    /// # Errors
    /// `MountBusy` and similar errors for the first mount that is in use; everything stays usable
    /// then, and closing can be retried.
    pub fn close(&self) -> Result<()> {
        // Runs even if the work was cancelled before: it cleans up after it.
        cancel::never(|| {
            let closed = self.close_mounted();
            // All writes that could be refused were refused by then.
            self.mounts.keep_refusals();
            closed?;
            self.mounts.close()
        })
    }

    fn close_mounted(&self) -> Result<()> {
        self.roots.close()?;
        self.containers.close()?;
        self.data.close()
    }

    /// Forgets the mounts without unmounting them, for a successor to find.
    pub fn leave(&self) {
        self.containers.leave();
        self.data.leave();
        self.roots.leave();
        self.mounts.leave();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "cannot unmount all containers");
        }
    }
}
