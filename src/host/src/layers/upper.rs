//! The changes of an overlay root: a frozen lower layer, and a snapshot of the root's own volume with
//! the upper folder in it.
//!
//! The changes are found from the upper folder alone (`cowshed-ext4diff`). They are written as a
//! layer straight from it, and committed by applying that layer to a clone of the lower volume: the
//! next layer is a volume as any other, with blocks that it shares with the one below.

use super::{LayerRoom, Layers, Mounted, Sizing, write_layer};
use crate::error::{Error, Result};
use crate::mounts::filesystem::Mode;
use crate::mounts::{WorkVolumes, ext4, overlay};
use cowshed_engine::Volume;
use cowshed_ext4diff::{TreeChanges, changes_of_upper};
use cowshed_format::base::cancel::Cancel;
use cowshed_oci::{
    self as oci, ApplyOptions, Compression, LayerDigest, LayerInfo, LayerReader, LayerSummary,
    LayerWriter,
};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread;

/// The changes of an overlay root at one instant.
pub(crate) struct Upper<'l> {
    layers: &'l Layers,
    /// The lower layer.
    lower: Volume,
    /// The snapshot of the root's own volume; its file system is clean.
    own: Volume,
    /// The guard that removes that snapshot, and what is made here.
    work: WorkVolumes<'l>,
}

impl<'l> Upper<'l> {
    /// Returns the changes in `snapshot`, which is frozen. `work` removes it later.
    pub(crate) fn of_snapshot(
        layers: &'l Layers,
        lower: Volume,
        snapshot: Volume,
        mut work: WorkVolumes<'l>,
    ) -> Result<Self> {
        let is_clean = ext4::superblock(&snapshot)?.is_some_and(|found| found.is_clean());
        let own = if is_clean {
            snapshot
        } else {
            layers.mounts.settled_clone(&snapshot, &mut work)?
        };
        Ok(Self {
            layers,
            lower,
            own,
            work,
        })
    }

    /// Returns the changes.
    pub(crate) fn changes(&self) -> Result<TreeChanges> {
        self.with_changes(|_, changes| Ok(changes))
    }

    /// Writes the changes to `layer`, and finishes it.
    pub(crate) fn write<W: Write>(&self, layer: LayerWriter<W>) -> Result<(W, LayerSummary)> {
        self.with_changes(|upper, changes| write_layer(layer, upper, &changes))
    }

    /// Returns a frozen clone of the lower layer with the changes applied, and the layer's digest.
    /// The clone has a temporary name; the caller gives it its final one.
    pub(crate) fn commit(mut self, sizing: Sizing) -> Result<Committed<'l>> {
        let mounts = &self.layers.mounts;
        let pool = mounts.pool();
        let volume = pool.clone_volume(&self.lower, &mounts.work_name()?)?;
        self.work.push(volume.clone());
        let mounted = mounts.mount_for_work(&volume, Mode::Fill)?;
        let mut room = LayerRoom::new(mounts, &volume, mounted.path(), Mounted::ForWork, sizing)?;
        let layer = self
            .with_changes(|upper, changes| transfer(upper, &changes, mounted.path(), &mut room))?;
        room.settle()?;
        mounted.unmount()?;
        // A write that found no space may have been refused when it was written out.
        mounts.check_complete(&volume)?;
        pool.freeze(&volume)?;
        Ok(Committed {
            volume,
            layer,
            work: self.work,
        })
    }

    /// Runs `work` with the upper folder and the changes in it, while the snapshot is mounted.
    fn with_changes<T>(&self, work: impl FnOnce(&Path, TreeChanges) -> Result<T>) -> Result<T> {
        let mounts = &self.layers.mounts;
        let own = mounts.mount_for_work(&self.own, Mode::Frozen)?;
        let upper = own.path().join(overlay::UPPER);
        // A root that was never mounted has no upper folder. One that cannot be read is an error: its
        // changes must not be taken for none.
        let has_upper = upper.try_exists().map_err(Error::io("inspect", &upper))?;
        let changes = if has_upper {
            let lower = mounts.view(&self.lower)?;
            changes_of_upper(lower.path(), &upper)?
        } else {
            TreeChanges::new()
        };
        let root = if has_upper { &*upper } else { own.path() };
        let done = work(root, changes)?;
        own.unmount()?;
        Ok(done)
    }
}

/// A volume that was made of the changes of an overlay root.
pub(crate) struct Committed<'l> {
    /// The frozen volume, with a temporary name.
    pub volume: Volume,
    /// The layer with the changes.
    pub layer: LayerDigest,
    /// The guard that removes the volume, if it keeps its name, and the snapshot.
    pub work: WorkVolumes<'l>,
}

impl Committed<'_> {
    /// Returns the volume, whose temporary name the caller replaces; removes what it was made of.
    pub(crate) fn into_volume(mut self) -> Volume {
        self.work.release(&self.volume);
        self.volume
    }
}

/// Writes the changes as a layer and applies it at `target` at the same time.
fn transfer(
    upper: &Path,
    changes: &TreeChanges,
    target: &Path,
    room: &mut LayerRoom<'_>,
) -> Result<LayerDigest> {
    let failed = |source| Error::Io {
        action: "create a pipe for",
        path: target.to_owned(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let cancel = Cancel::current();
    thread::scope(|scope| {
        let writing = thread::Builder::new()
            .name("layer".to_owned())
            .spawn_scoped(scope, || {
                cancel.during(|| -> Result<()> {
                    let out = BufWriter::new(writer);
                    let layer = LayerWriter::new(out, Compression::None)?;
                    let (mut out, _) = write_layer(layer, upper, changes)?;
                    out.flush()
                        .map_err(|source| oci::Error::io("write the layer", source).into())
                })
            })
            .map_err(failed)?;
        let applied = apply(Box::new(reader), target, room);
        let written = match writing.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (applied, written) {
            // The writer found that nobody reads any longer.
            (Err(error), Err(ended)) if ended.raw_os_error() == Some(libc::EPIPE) => Err(error),
            (_, Err(error)) => Err(error),
            (applied, Ok(())) => applied,
        }
    })
}

fn apply(
    layer: Box<dyn io::Read + Send>,
    target: &Path,
    room: &mut LayerRoom<'_>,
) -> Result<LayerDigest> {
    let root = File::open(target).map_err(Error::io("open", target))?;
    let mut layer = LayerReader::over(layer, &LayerInfo::of_plain_tar())?;
    let options = ApplyOptions {
        require_end_marker: true,
        is_plain_tar: false,
    };
    oci::apply_with(root.into(), &mut layer, options, room).map_err(|error| room.explain(error))?;
    Ok(layer.finish()?)
}
