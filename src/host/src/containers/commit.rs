//! Making an image of a container: its changes become one more layer.
//!
//! For a block root the layer's tar is written only to compute its diff id; the layer's volume is the
//! compared snapshot, so that nothing is applied again. For an overlay root the tar is applied to a
//! clone of the image's top layer.

use super::Containers;
use crate::error::Result;
use crate::images::{ImportedImage, NewNames, StackedLayer};
use crate::layers::{Committed, Sizing, write_layer};
use crate::mounts::filesystem::{self, Mode};
use crate::mounts::{WorkVolumes, hold};
use crate::record::{self, ContainerRecord, LayerRecord, RootKind};
use crate::time;
use cowshed_engine::Volume;
use cowshed_format::base::Name;
use cowshed_oci::{
    Compression, Digest, ImageConfig, LayerOrigin, LayerWriter, Reference, chain_above,
};
use std::io;

/// The default command in a layer's history.
const CREATED_BY: &str = "cowshed container commit";

impl Containers {
    /// Makes the image `name` of the container as it is now; the container may be running.
    /// `created_by` goes into the image's history. Durable when it returns.
    ///
    /// # Errors
    /// `Name`, `NotFound` or `Ambiguous`, a name that no layer can hold, and any error of the pool
    /// and the host.
    pub fn commit(
        &self,
        container: &str,
        name: &Name,
        created_by: Option<&str>,
    ) -> Result<ImportedImage> {
        let reference = Reference::parse_given(name.as_str())?;
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let image = self.image_of(&record)?;
        let volume = record.volume(self.pool())?;
        // Checked both before and after: data whose write failed may not be written out any more.
        self.mounts.check_complete(&volume)?;
        let new = match record.root {
            RootKind::Block => self.new_block_layer(&record, &volume)?,
            RootKind::Overlay => self.new_overlay_layer(&record, &volume)?,
        };
        let mut stack = Vec::with_capacity(image.layers.len() + 1);
        for layer in image.layers {
            let volume = self.images.layer(layer.chain_id)?;
            stack.push(StackedLayer {
                record: layer,
                volume,
                reused: true,
                blob: None,
                origin: None,
                recipe: None,
            });
        }
        let below = stack.last().map(|layer| layer.record.chain_id);
        let layer = LayerRecord {
            chain_id: chain_above(below, new.diff_id),
            diff_id: new.diff_id,
            size_bytes: Some(new.size_bytes),
        };
        stack.push(StackedLayer {
            record: layer,
            volume: new.volume,
            reused: false,
            blob: None,
            origin: None,
            recipe: None,
        });
        let origin = LayerOrigin {
            created: &time::now(),
            created_by: created_by.unwrap_or(CREATED_BY),
        };
        let config =
            ImageConfig::parse(image.config.into_bytes())?.with_layer(new.diff_id, origin)?;
        let names = NewNames::taken(vec![reference]);
        let committed = self.images.settle(&config, &names, stack)?;
        // The volume has its final name now; a temporary snapshot below it is removed.
        new.work.keep_named();
        Ok(committed)
    }

    /// Makes the layer of a block root: its volume is the compared snapshot.
    fn new_block_layer(&self, record: &ContainerRecord, volume: &Volume) -> Result<NewLayer<'_>> {
        let mut instant = self.instant(record)?;
        self.mounts.check_complete(volume)?;
        instant.settle()?;
        let changes = instant.changes()?;
        let mount = self.mounts.mount_for_work(&instant.volume, Mode::Frozen)?;
        let layer = LayerWriter::new(io::sink(), Compression::None)?;
        let (_, summary) = write_layer(layer, mount.path(), &changes)?;
        mount.unmount()?;
        Ok(NewLayer {
            diff_id: summary.diff_id,
            size_bytes: summary.size_bytes,
            volume: instant.volume,
            work: instant.work,
        })
    }

    /// Makes the layer of an overlay root: its volume is a clone of the image's top layer, to which
    /// the changes are applied.
    fn new_overlay_layer(&self, record: &ContainerRecord, volume: &Volume) -> Result<NewLayer<'_>> {
        let upper = self.upper(record)?;
        self.mounts.check_complete(volume)?;
        let Committed {
            volume,
            layer,
            work,
        } = upper.commit(Sizing::Following {
            usual_bytes: filesystem::DEFAULT_SIZE_BYTES,
        })?;
        Ok(NewLayer {
            diff_id: layer.diff_id,
            size_bytes: layer.size_bytes,
            volume,
            work,
        })
    }
}

/// A layer made of a container, with its frozen volume.
struct NewLayer<'m> {
    diff_id: Digest,
    size_bytes: u64,
    volume: Volume,
    /// The guard that removes the volume, if it keeps its temporary name, and what it was made of.
    work: WorkVolumes<'m>,
}
