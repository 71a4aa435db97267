//! The recipes of the tars that layers came from: a frozen volume for each, `recipe/<chain id>`, which
//! comes, is counted and goes with the layer's own.
//!
//! With it a layer is written as it was read, byte by byte. A layer without one was made here or by an
//! older version, or came in a stream; its tar is made of its files.

use super::Images;
use crate::error::{Error, Result};
use crate::mounts::{Mounts, WorkVolumes};
use crate::record;
use cowshed_engine::Volume;
use cowshed_format::base;
use cowshed_oci::recipe::{self, HEAD_BYTES, Recorder};
use cowshed_oci::{self as oci, Digest};
use std::cell::Cell;
use std::io::{self, Read, Write};

/// The largest recipe that is kept. That of a layer of a million files has less than a tenth of it.
const BYTES_MAX: u64 = 1 << 30;

/// A volume into which a recipe is recorded.
pub(super) struct NewRecipe {
    volume: Volume,
    /// Number of bytes in it, with the head.
    len_bytes: Cell<u64>,
}

impl NewRecipe {
    /// Makes a temporary volume, of which only what is written takes space.
    pub(super) fn begin(mounts: &Mounts, work: &mut WorkVolumes<'_>) -> Result<Self> {
        let name = mounts.work_name()?;
        let volume = mounts.pool().create_volume(&name, BYTES_MAX)?;
        work.push(volume.clone());
        Ok(Self {
            volume,
            len_bytes: Cell::new(HEAD_BYTES as u64),
        })
    }

    /// Returns what records into the volume.
    pub(super) fn recorder(&self) -> Result<Recorder<'_>> {
        Recorder::new(Box::new(Appending(self))).map_err(failed)
    }

    /// Freezes the volume, as the recipe of the tar with this digest. `recorded` is how recording
    /// ended; returns `None` if the recipe is too large to be kept.
    pub(super) fn end(
        self,
        recorded: io::Result<()>,
        tar: Digest,
        mounts: &Mounts,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Option<Volume>> {
        let (pool, volume) = (mounts.pool(), &self.volume);
        match recorded {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                pool.remove(volume)?;
                work.release(volume);
                tracing::warn!(%tar, "the recipe of a layer is too large to be kept");
                return Ok(None);
            }
            recorded => recorded.map_err(failed)?,
        }
        let stream_bytes = self.len_bytes.get() - HEAD_BYTES as u64;
        volume.write_at(&recipe::head(stream_bytes, tar), 0)?;
        pool.resize(volume, self.len_bytes.get())?;
        pool.freeze(volume)?;
        Ok(Some(self.volume))
    }
}

/// Returns the pool's error in an error of a stream.
fn failed(error: io::Error) -> Error {
    match error.downcast::<base::Error>() {
        Ok(error) => error.into(),
        Err(error) => oci::Error::io("record the recipe of a layer", error).into(),
    }
}

/// Writes behind what is there.
struct Appending<'r>(&'r NewRecipe);

impl Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.0.len_bytes.get();
        let end = at.saturating_add(bytes.len() as u64);
        if end > BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.0.volume.write_at(bytes, at);
        written.map_err(io::Error::other)?;
        self.0.len_bytes.set(end);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a volume from its start.
pub(super) struct FromVolume {
    volume: Volume,
    offset_bytes: u64,
}

impl FromVolume {
    pub(super) const fn new(volume: Volume) -> Self {
        Self {
            volume,
            offset_bytes: 0,
        }
    }
}

impl Read for FromVolume {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.volume.size_bytes().saturating_sub(self.offset_bytes);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.volume.read_at(&mut buffer[..len], self.offset_bytes);
        read.map_err(|error| match error {
            // It is damaged; the layer can be written without it.
            base::Error::Corrupt(_) => io::ErrorKind::InvalidData.into(),
            error => io::Error::other(error),
        })?;
        self.offset_bytes += len as u64;
        Ok(len)
    }
}

impl Images {
    /// Returns the bytes that only a layer holds, with its recipe.
    pub(super) fn layer_own_bytes(&self, chain_id: Digest) -> Result<u64> {
        let layer = self.layer(chain_id)?.info()?.own_bytes;
        let recipe = record::recipe_volume(self.pool(), chain_id)?;
        let recipe = recipe.map(|recipe| recipe.info()).transpose()?;
        Ok(layer + recipe.map_or(0, |recipe| recipe.own_bytes))
    }
}
