//! Layers that are written to files, compressed, before they go elsewhere: their digests are known
//! only then.

use super::Images;
use super::recipe::FromVolume;
use crate::error::{Error, Result};
use crate::layers::write_layer;
use crate::mounts::random_hex;
use crate::record;
use cowshed_ext4diff::compare_trees;
use cowshed_oci::recipe::{self, RecipeError};
use cowshed_oci::{Compression, Digest, LayerBlob, LayerSummary, LayerWriter};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A layer that is wanted in a file.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The identity of the stack up to it.
    pub(super) chain_id: Digest,
    /// The digest of its tar.
    pub(super) diff_id: Digest,
}

/// A layer, compressed in a file.
pub(super) struct Spooled {
    file: File,
    pub(super) summary: LayerSummary,
}

impl Images {
    /// Writes a layer to `file`; `below` is the stack without it. The layer has another digest than
    /// the wanted one if it has no recipe that fits.
    pub(super) fn spool_layer(
        &self,
        below: Option<Digest>,
        wanted: Wanted,
        compression: Compression,
        file: File,
    ) -> Result<Spooled> {
        let new = self.mounts.view(&self.layer(wanted.chain_id)?)?;
        if let Some(summary) = self.rebuild(wanted, new.path(), compression, &file)? {
            return Ok(Spooled { file, summary });
        }
        let changes = match below {
            Some(below) => {
                let base = self.mounts.view(&self.layer(below)?)?;
                compare_trees(base.path(), new.path())?
            }
            None => {
                let empty = EmptyFolder::make(self.mounts.state_dir())?;
                compare_trees(&empty.path, new.path())?
            }
        };
        let layer = LayerWriter::new(BufWriter::new(file), compression)?;
        let (out, summary) = write_layer(layer, new.path(), &changes)?;
        let file = out
            .into_inner()
            .map_err(|error| spool_failed(error.into_error()))?;
        Ok(Spooled { file, summary })
    }
}

impl Images {
    /// Writes a layer to `file` as it was imported; `None` if it has no recipe that fits, and then
    /// the file is empty.
    fn rebuild(
        &self,
        wanted: Wanted,
        root: &Path,
        compression: Compression,
        file: &File,
    ) -> Result<Option<LayerSummary>> {
        let Some(volume) = record::recipe_volume(self.pool(), wanted.chain_id)? else {
            return Ok(None);
        };
        let root = File::open(root).map_err(Error::io("open", root))?;
        let out = BufWriter::new(file);
        let rebuilt = recipe::rebuild(FromVolume::new(volume), root.as_fd(), out, compression);
        let fault = match rebuilt {
            Ok((mut out, summary)) if summary.diff_id == wanted.diff_id => {
                out.flush().map_err(spool_failed)?;
                return Ok(Some(summary));
            }
            // It is the recipe of another tar.
            Ok(_) => RecipeError::Digest,
            Err(RecipeError::Failed(error)) => return Err(error.into()),
            Err(fault) => fault,
        };
        tracing::warn!(layer = %wanted.diff_id, %fault, "a layer is not written as it was imported");
        file.set_len(0).map_err(spool_failed)?;
        (&*file).rewind().map_err(spool_failed)?;
        Ok(None)
    }
}

impl Spooled {
    /// Returns the layer for one image; several images may share it.
    pub(super) fn blob(&self) -> LayerBlob<'_> {
        LayerBlob {
            media_type: self.summary.compression.layer_media_type(),
            digest: self.summary.blob_digest,
            size_bytes: self.summary.blob_size_bytes,
            content: Box::new(FromStart {
                file: &self.file,
                offset_bytes: 0,
            }),
        }
    }
}

/// A reader of a file from its start, without a position that is shared with others.
struct FromStart<'a> {
    file: &'a File,
    offset_bytes: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.offset_bytes)?;
        self.offset_bytes += u64::try_from(len).map_err(io::Error::other)?;
        Ok(len)
    }
}

fn spool_failed(source: io::Error) -> Error {
    Error::Io {
        action: "write a layer to",
        path: "a temporary file".into(),
        source,
    }
}

/// Creates a file in `folder` that vanishes with its last descriptor.
pub(super) fn unnamed_file(folder: &Path) -> Result<File> {
    let path = folder.join(format!("layer-{}", random_hex::<16>()?));
    let mut options = File::options();
    let opened = options.read(true).write(true).create_new(true).open(&path);
    let file = opened.map_err(Error::io("create", &path))?;
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    Ok(file)
}

/// The empty folder with which the lowest layer is compared.
struct EmptyFolder {
    path: PathBuf,
}

impl EmptyFolder {
    fn make(folder: &Path) -> Result<Self> {
        let path = folder.join("work").join(random_hex::<16>()?);
        fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
        Ok(Self { path })
    }
}

impl Drop for EmptyFolder {
    fn drop(&mut self) {
        // An empty folder that remains is removed at the next start.
        let _ = fs::remove_dir(&self.path);
    }
}
