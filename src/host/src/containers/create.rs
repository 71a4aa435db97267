//! Creating containers: the volume and the record, in one transaction.
//!
//! The volume of a block root is a clone of the image's top layer, that of an overlay root a clone of
//! an empty file system. One of another size than its origin is made before the transaction, under a
//! temporary name.

use super::{Containers, CreateContainer, CreatedContainer, words};
use crate::error::{Error, Kind, Result};
use crate::mounts::filesystem;
use crate::mounts::{WorkVolumes, random_hex};
use crate::record::{self, ContainerRecord, FoundImage, RootKind};
use cowshed_engine::{Labels, Volume};
use cowshed_format::base::{self, Name};
use cowshed_oci::Digest;

/// Number of attempts to find a random name before an unlikely long one is used.
const NAME_TRIES: u32 = 8;

/// The image of a container, as its record names it.
struct Origin {
    image: Digest,
    image_name: String,
    layer: Volume,
}

/// The origin of a container's volume.
enum Source {
    /// A clone of this frozen volume.
    Clone(Volume),
    /// This volume, which has a temporary name.
    Ready(Volume),
}

impl Containers {
    /// Creates a container of `image`. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous` for the image, `EmptyImage` if it has no layers,
    /// `ContainerExists`, `TooSmall`, and errors of the pool.
    pub fn create(&self, image: &str, options: &CreateContainer) -> Result<CreatedContainer> {
        let origin = self.origin(image)?;
        let mut work = WorkVolumes::new(self.pool());
        let source = match options.root {
            RootKind::Block => self.block_source(&origin.layer, options.size_bytes, &mut work)?,
            RootKind::Overlay => self.overlay_source(options.size_bytes, &mut work)?,
        };
        let record = self.add_container(origin, &source, options)?;
        work.keep();
        self.pool().flush()?;
        Ok(CreatedContainer {
            id: record.id,
            name: record.name,
        })
    }

    fn origin(&self, image: &str) -> Result<Origin> {
        let FoundImage { id, record, name } = record::find_image(self.pool(), image)?;
        let top = record.layers.last();
        let top = top.ok_or_else(|| Error::EmptyImage(image.into()))?;
        Ok(Origin {
            image: id,
            image_name: name.map_or_else(|| id.to_string(), |name| name.shown),
            layer: self.images.layer(top.chain_id)?,
        })
    }

    /// Returns the origin of a block root's volume.
    fn block_source(
        &self,
        layer: &Volume,
        size_bytes: Option<u64>,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Source> {
        let layer_bytes = layer.size_bytes();
        let size_bytes = match size_bytes {
            Some(size_bytes) => size_bytes,
            None => self
                .layers
                .size_with_room(layer, filesystem::DEFAULT_SIZE_BYTES)?
                .unwrap_or(layer_bytes),
        };
        check_size(size_bytes, layer_bytes)?;
        if size_bytes > layer_bytes {
            let larger = self.mounts.larger_copy(layer, size_bytes, work)?;
            return Ok(Source::Ready(larger));
        }
        Ok(Source::Clone(layer.clone()))
    }

    /// Returns the origin of the volume with an overlay root's changes.
    fn overlay_source(
        &self,
        size_bytes: Option<u64>,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Source> {
        let name = self.mounts.work_name()?;
        match size_bytes.filter(|size_bytes| *size_bytes != filesystem::DEFAULT_SIZE_BYTES) {
            None => {
                let usual_bytes = filesystem::DEFAULT_SIZE_BYTES;
                let empty = filesystem::template(self.pool(), usual_bytes, &name)?;
                Ok(Source::Clone(empty))
            }
            Some(size_bytes) => {
                let fresh = filesystem::fresh(self.pool(), size_bytes, &name)?;
                work.push(fresh.clone());
                Ok(Source::Ready(fresh))
            }
        }
    }

    /// Commits the container's record and volume.
    fn add_container(
        &self,
        origin: Origin,
        source: &Source,
        options: &CreateContainer,
    ) -> Result<ContainerRecord> {
        let _held = self.images.lock_catalogue();
        if record::image(self.pool(), origin.image)?.is_none() {
            // The image was removed while the file system was made.
            return Err(Error::not_found(Kind::Image, &origin.image_name));
        }
        let name = self.free_name(options.name.as_ref())?;
        let id = random_hex::<32>()?;
        let image = (origin.image, origin.image_name);
        let record = ContainerRecord::new(id, &name, image, options.root);
        let volume_name = record::container_volume_name(&record.id)?;
        let mut transaction = self.pool().transaction();
        let volume = match source {
            Source::Ready(ready) => {
                transaction.rename(ready.id(), &volume_name);
                ready.id()
            }
            Source::Clone(below) => transaction.clone_volume(below.id(), &volume_name),
        };
        let label = ("cowshed.container".to_owned(), record.name.clone());
        transaction.set_labels(volume, Labels::from([label]));
        record::put_container(&mut transaction, &record)?;
        transaction.commit()?;
        Ok(record)
    }

    fn free_name(&self, wanted: Option<&Name>) -> Result<Name> {
        let is_taken = |name: &Name| record::is_container_name_taken(self.pool(), name);
        if let Some(wanted) = wanted {
            if is_taken(wanted) {
                return Err(Error::ContainerExists(wanted.clone()));
            }
            return Ok(wanted.clone());
        }
        for _ in 0..NAME_TRIES {
            let name = Name::new(&words::random_name())?;
            if !is_taken(&name) {
                return Ok(name);
            }
        }
        Ok(Name::new(&format!(
            "{}-{}",
            words::random_name(),
            random_hex::<4>()?
        ))?)
    }
}

fn check_size(size_bytes: u64, min_bytes: u64) -> Result<()> {
    if size_bytes < min_bytes {
        return Err(Error::TooSmall { min_bytes });
    }
    if size_bytes > filesystem::MAX_SIZE_BYTES {
        return Err(Error::Pool(base::Error::InvalidSize {
            what: "a container's file system",
            min_bytes,
            max_bytes: filesystem::MAX_SIZE_BYTES,
        }));
    }
    Ok(())
}
