//! Layers that are written to files, compressed, before they go elsewhere: their digests are known
//! only then.

use super::Images;
use super::import::labelled_size;
use super::recipe::FromVolume;
use crate::error::{Error, Result};
use crate::layers::write_layer;
use crate::mounts::random_hex;
use crate::record;
use cowshed_ext4diff::compare_trees;
use cowshed_oci::recipe::{self, RecipeError, Tar};
use cowshed_oci::{self as oci, Compression, Digest, LayerBlob, LayerSummary, LayerWriter};
use std::cell::Cell;
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
    /// The reason why it is not as it was imported.
    pub(super) why_anew: Option<String>,
}

/// A file for a layer.
pub(super) struct Place<'p> {
    pub(super) file: File,
    /// Its folder, as messages name it.
    pub(super) folder: &'p Path,
}

impl Images {
    /// Writes a layer to a file; `below` is the stack without it. The layer has another digest than
    /// the wanted one if it has no recipe that fits.
    pub(super) fn spool_layer(
        &self,
        below: Option<Digest>,
        wanted: Wanted,
        compression: Compression,
        place: Place<'_>,
    ) -> Result<Spooled> {
        let Place { file, folder } = place;
        let errno = Cell::new(None);
        let out = Out {
            file: &file,
            errno: &errno,
        };
        let written = self.write_or_rebuild(below, wanted, compression, &out);
        let (summary, why_anew) = written.map_err(|error| match errno.get() {
            Some(errno) => Error::io("write a layer to the folder", folder)(
                io::Error::from_raw_os_error(errno),
            ),
            None => error,
        })?;
        Ok(Spooled {
            file,
            summary,
            why_anew,
        })
    }

    /// Returns the layer that was written, and the reason if it is not as it was imported.
    fn write_or_rebuild(
        &self,
        below: Option<Digest>,
        wanted: Wanted,
        compression: Compression,
        out: &Out<'_>,
    ) -> Result<(LayerSummary, Option<String>)> {
        let new = self.mounts.view(&self.layer(wanted.chain_id)?)?;
        let fault = match self.rebuild(wanted, new.path(), compression, out)? {
            Ok(summary) => return Ok((summary, None)),
            Err(fault) => fault,
        };
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
        let layer = LayerWriter::new(BufWriter::new(out), compression)?;
        let (mut buffered, summary) = write_layer(layer, new.path(), &changes)?;
        buffered.flush().map_err(write_failed)?;
        let is_other = summary.diff_id != wanted.diff_id;
        Ok((summary, is_other.then_some(fault)))
    }

    /// Writes a layer as it was imported. If it has no recipe that fits, the file is empty, and the
    /// inner error says why.
    fn rebuild(
        &self,
        wanted: Wanted,
        root: &Path,
        compression: Compression,
        out: &Out<'_>,
    ) -> Result<Result<LayerSummary, String>> {
        let Some(volume) = record::recipe_volume(self.pool(), wanted.chain_id)? else {
            return Ok(Err("the pool has no recipe of its tar".to_owned()));
        };
        let root = File::open(root).map_err(Error::io("open", root))?;
        let tar = Tar {
            digest: wanted.diff_id,
            // What an image's record says of it may have come in a stream.
            size_bytes: labelled_size(&self.layer(wanted.chain_id)?),
        };
        let buffered = BufWriter::new(out);
        let recipe = FromVolume::new(volume);
        match recipe::rebuild(recipe, tar, root.as_fd(), buffered, compression) {
            Ok((mut buffered, summary)) => {
                buffered.flush().map_err(write_failed)?;
                Ok(Ok(summary))
            }
            Err(RecipeError::Failed(error)) => Err(error.into()),
            Err(fault) => {
                out.errno.set(None);
                out.file.set_len(0).map_err(write_failed)?;
                (&*out.file).rewind().map_err(write_failed)?;
                Ok(Err(fault.to_string()))
            }
        }
    }
}

/// A file that is written, and keeps the host's error of that.
struct Out<'f> {
    file: &'f File,
    errno: &'f Cell<Option<i32>>,
}

impl Write for &Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file;
        file.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.errno.set(error.raw_os_error());
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

fn write_failed(source: io::Error) -> Error {
    oci::Error::io("write the layer", source).into()
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
