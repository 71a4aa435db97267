//! Layers of roots: applying a layer to a root, and writing the changes from one root to another as
//! a layer.
//!
//! A layer is written from one instant: the root's file system is quiesced while a snapshot is
//! taken, and is thawed before the snapshot is compared and read. The comparison is of blocks, so
//! its time grows with the change and not with the root.

use super::{RootUse, Roots};
use crate::error::{Error, Result};
use crate::layers::{Grown, Holder, Instant, LayerRoom, Mounted, Sizing, write_layer};
use crate::mounts::WorkVolumes;
use crate::mounts::filesystem::{self, Mode};
use cowshed_engine::Volume;
use cowshed_oci::{
    self as oci, ApplyOptions, Compression, Dropped, LayerDigest, LayerReader, LayerSummary,
    LayerWriter, Time,
};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The options for writing a layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerOptions {
    /// The compression.
    pub compression: Compression,
    /// The latest modification time: later times are replaced by it.
    pub latest: Option<Time>,
}

/// A root whose file system grows.
struct Held<'a> {
    roots: &'a Roots,
    volume: &'a Volume,
}

impl Holder for Held<'_> {
    fn hold(&self, grow: &dyn Fn(Mode) -> Grown) -> Grown {
        self.roots.with_held(self.volume, |purpose| {
            grow(purpose.map_or(Mode::Fill, RootUse::mode))
        })
    }
}

impl Roots {
    /// Unpacks `layer` into the root, which is mounted for that if it was not; returns the
    /// properties of the layer and notes about omitted data. After a failure the root holds a part
    /// of it.
    ///
    /// # Errors
    /// `Oci` if the layer does not match its description or cannot be trusted, `Pool` with
    /// `NoSpace`, `FileSystemFull`, and any error of the host.
    pub fn fill(
        &self,
        volume: &Volume,
        layer: LayerReader,
        sizing: Sizing,
    ) -> Result<(LayerDigest, Dropped)> {
        let path = self.mount(volume, RootUse::Container)?;
        let applied = self.fill_mounted(volume, &path, layer, sizing);
        let unmounted = self.unmount_device(volume);
        // The first error is the one to report.
        let applied = applied?;
        unmounted.map(|()| applied)
    }

    fn fill_mounted(
        &self,
        volume: &Volume,
        path: &Path,
        mut layer: LayerReader,
        sizing: Sizing,
    ) -> Result<(LayerDigest, Dropped)> {
        let root = File::open(path).map_err(Error::io("open", path))?;
        let holder = Held {
            roots: self,
            volume,
        };
        let mounted = Mounted::Shared(&holder);
        let mut room = LayerRoom::new(&self.mounts, volume, path, mounted, sizing)?;
        let options = ApplyOptions::default();
        let applied = oci::apply_with(root.into(), &mut layer, options, &mut room)
            .and_then(|applied| Ok((layer.finish()?, applied.dropped)));
        let applied = applied.map_err(|error| room.explain(error))?;
        room.settle().map_err(|error| self.mounts.explain(error))?;
        Ok(applied)
    }

    /// Unmounts a root that was handed out as a device, and mounted here only for this work.
    fn unmount_device(&self, volume: &Volume) -> Result<()> {
        let root = self.of(volume.id());
        let mut root = root.lock();
        if root.device.is_none() || root.mounted.is_none() {
            return Ok(());
        }
        drop(self.sync_locked(volume, &root)?);
        let path = self.path(volume.id());
        if filesystem::unmount(&path).is_err() {
            // Another call uses it, and unmounts it at its end.
            return Ok(());
        }
        self.detach_loop(volume)?;
        root.mounted = None;
        let _ = fs::remove_dir(&path);
        Ok(())
    }

    /// Writes the changes from `lower` to `upper` to `out` as a layer. Either may be in use.
    ///
    /// # Errors
    /// Any error of the pool and the host, and `Oci` with errors of `out`.
    pub fn write_changes<W: Write>(
        &self,
        lower: &Volume,
        upper: &Volume,
        out: W,
        options: LayerOptions,
    ) -> Result<(W, LayerSummary)> {
        let mut work = WorkVolumes::new(self.pool());
        let base = self.root_at_an_instant(lower, &mut work)?;
        let volume = self.root_at_an_instant(upper, &mut work)?;
        let mut instant = Instant {
            layers: &self.layers,
            base,
            volume,
            work,
        };
        let changes = instant.changes()?;
        let layer = LayerWriter::new(out, options.compression)?.not_after(options.latest);
        let mount = self.mounts.mount_for_work(&instant.volume, Mode::Frozen)?;
        let written = write_layer(layer, mount.path(), &changes)?;
        mount.unmount()?;
        Ok(written)
    }

    /// Returns the volume if it is frozen, and else a snapshot with all data written to the root.
    pub(super) fn root_at_an_instant(
        &self,
        volume: &Volume,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        if volume.is_frozen() {
            return Ok(volume.clone());
        }
        let root = self.of(volume.id());
        // The root is neither mounted nor sealed meanwhile.
        let _held = root.lock();
        // Checked both before and after: data whose write failed may not be written out any more.
        self.mounts.check_complete(volume)?;
        let snapshot = self
            .mounts
            .snapshot_passing(volume, &self.mounts.work_name()?)
            .inspect(|snapshot| work.push(snapshot.clone()));
        // First of all: a refused write often fails the snapshot, too, and another attempt is no use.
        self.mounts.check_complete(volume)?;
        snapshot.map_err(|error| self.mounts.explain(error))
    }
}
