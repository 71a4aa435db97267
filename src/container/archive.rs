//! Writing an image as an OCI layout archive.
//!
//! The pool does not keep the tar files that layers came from. A layer is made again from its
//! volume and the one below: the same tree, but seldom the same bytes, so its diff id may be new.
//! The configuration then says the new diff ids and so has another digest; the answer tells.

use super::commit::write_layer;
use super::error::{Error, Result};
use super::host::{Host, random_hex};
use super::record::{self, FoundImage, LayerRecord};
use super::tree;
use crate::oci::{
    Compression, Digest, ImageConfig, LayerBlob, LayerSummary, LayerWriter, LayoutImage,
    write_layout,
};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// An image that was written to an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedImage {
    /// The digest of the configuration in the archive.
    pub id: Digest,
    /// The digest of the configuration in the pool; differs if a layer could not be made again
    /// byte by byte.
    pub image: Digest,
    /// The digest of the manifest in the archive.
    pub manifest: Digest,
    /// The names in the archive.
    pub names: Vec<String>,
    /// Its layers, lowest first.
    pub layers: Vec<ExportedLayer>,
}

/// One layer of an exported image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedLayer {
    /// The digest of the uncompressed layer in the archive.
    pub diff_id: Digest,
    /// What it was when the image came into the pool.
    pub original_diff_id: Digest,
    /// Bytes of the layer as it is stored in the archive.
    pub size_bytes: u64,
}

/// A layer, compressed in a file without a name.
struct Spooled {
    file: File,
    summary: LayerSummary,
}

impl Host {
    /// Writes `image` to `out` as an OCI layout in a tar archive, which is a docker-archive too.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`, and what the pool, the host and `out` answer.
    pub fn export_image<W: Write>(
        &self,
        image: &str,
        compression: Compression,
        out: W,
    ) -> Result<(W, ExportedImage)> {
        let FoundImage {
            id,
            record,
            reference,
        } = record::find_image(self.pool(), image)?;
        let names = match reference {
            Some(reference) => vec![reference],
            None => self.names()?.remove(&id).unwrap_or_default(),
        };
        let mut spooled = Vec::with_capacity(record.layers.len());
        let mut below = None;
        for layer in &record.layers {
            spooled.push(self.spool_layer(below, layer, compression)?);
            below = Some(layer);
        }
        let config = ImageConfig::parse(record.config.into_bytes())?;
        let config = with_diff_ids(config, &spooled)?;
        let layers: Vec<ExportedLayer> = record.layers.iter().zip(&spooled).map(report).collect();
        let blobs = spooled
            .iter_mut()
            .map(Spooled::blob)
            .collect::<Result<_>>()?;
        let layout = LayoutImage {
            config: &config,
            names: &names,
            layers: blobs,
        };
        let (out, manifest) = write_layout(out, layout)?;
        let exported = ExportedImage {
            id: config.digest(),
            image: id,
            manifest,
            names,
            layers,
        };
        Ok((out, exported))
    }

    fn spool_layer(
        &self,
        below: Option<&LayerRecord>,
        layer: &LayerRecord,
        compression: Compression,
    ) -> Result<Spooled> {
        let new = self.view(&self.layer(layer.chain_id)?)?;
        let changes = match below {
            Some(below) => {
                let base = self.view(&self.layer(below.chain_id)?)?;
                tree::compare(base.path(), new.path())?
            }
            None => {
                let empty = EmptyFolder::make(self.state_dir())?;
                tree::compare(&empty.path, new.path())?
            }
        };
        let file = unnamed_file(self.state_dir())?;
        let layer = LayerWriter::new(BufWriter::new(file), compression)?;
        let (out, summary) = write_layer(layer, new.path(), &changes)?;
        let file = out
            .into_inner()
            .map_err(|error| spool_failed(error.into_error()))?;
        Ok(Spooled { file, summary })
    }
}

impl Spooled {
    fn blob(&mut self) -> Result<LayerBlob<'_>> {
        self.file.rewind().map_err(spool_failed)?;
        Ok(LayerBlob {
            media_type: self.summary.compression.layer_media_type(),
            digest: self.summary.blob_digest,
            size_bytes: self.summary.blob_size_bytes,
            content: Box::new(Read::by_ref(&mut self.file)),
        })
    }
}

fn report((record, spooled): (&LayerRecord, &Spooled)) -> ExportedLayer {
    ExportedLayer {
        diff_id: spooled.summary.diff_id,
        original_diff_id: record.diff_id,
        size_bytes: spooled.summary.blob_size_bytes,
    }
}

/// The configuration with the diff ids that the layers have now; as it is if they are the same.
fn with_diff_ids(config: ImageConfig, spooled: &[Spooled]) -> Result<ImageConfig> {
    let found: Vec<Digest> = spooled.iter().map(|layer| layer.summary.diff_id).collect();
    if config.diff_ids() == found {
        return Ok(config);
    }
    let invalid = |_| Error::Config("it is not JSON");
    let mut value: serde_json::Value = serde_json::from_slice(config.raw()).map_err(invalid)?;
    value["rootfs"]["diff_ids"] = serde_json::json!(found);
    Ok(ImageConfig::parse(
        serde_json::to_vec(&value).map_err(invalid)?,
    )?)
}

fn spool_failed(source: io::Error) -> Error {
    Error::Io {
        action: "keep a layer in",
        path: "a temporary file".into(),
        source,
    }
}

/// A file in `folder` that is gone with its last descriptor.
fn unnamed_file(folder: &Path) -> Result<File> {
    let path = folder.join(format!("layer-{}", random_hex::<16>()?));
    let mut options = File::options();
    let opened = options.read(true).write(true).create_new(true).open(&path);
    let file = opened.map_err(Error::io("make", &path))?;
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    Ok(file)
}

/// What the lowest layer is compared with.
struct EmptyFolder {
    path: PathBuf,
}

impl EmptyFolder {
    fn make(folder: &Path) -> Result<Self> {
        let path = folder.join("work").join(random_hex::<16>()?);
        fs::create_dir_all(&path).map_err(Error::io("make the folder", &path))?;
        Ok(Self { path })
    }
}

impl Drop for EmptyFolder {
    fn drop(&mut self) {
        // An empty folder that stays is removed at the next start.
        let _ = fs::remove_dir(&self.path);
    }
}
