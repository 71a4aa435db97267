//! Opening an image, whatever its form: OCI layout, docker-archive, root file system; a folder, an
//! archive or a pipe; plain or compressed. What it is, is decided by its content, never by its name.
//!
//! Invariants: every digest and size that the input states is verified, documents before they are
//! believed and layers while they are read ([`LayerReader`]); memory is bounded whatever the input
//! claims. An archive that cannot be seeked in is spooled to an unnamed file, because its documents
//! may come after its layers; a root file system in a pipe is streamed.

mod blobs;
mod docker;
mod folder;
mod index;
mod layer;
mod stream;

use super::config::{ImageConfig, host_architecture};
use super::digest::Digest;
use super::error::{Error, Part, Result};
use blobs::Blobs;
pub use layer::{LayerDigest, LayerReader};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where an image is read from.
pub enum SourceInput {
    /// A folder, a file or a named pipe.
    Path(PathBuf),
    /// A stream, such as standard input.
    Stream(Box<dyn Read + Send>),
}

/// Which image of several is meant.
#[derive(Clone, Debug)]
pub struct Select {
    /// Its name; needed only where there are several.
    pub reference: Option<String>,
    /// Its processor architecture, in Go's words.
    pub architecture: String,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            reference: None,
            architecture: host_architecture().to_owned(),
        }
    }
}

impl Select {
    /// The image of this name, for this host.
    #[must_use]
    pub fn named(reference: Option<&str>) -> Self {
        Self {
            reference: reference.map(str::to_owned),
            ..Self::default()
        }
    }
}

/// What is known of a layer before it is read.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The digest of the uncompressed content; a bare root file system does not state it.
    pub diff_id: Option<Digest>,
    /// The media type, stated or assumed.
    pub media_type: String,
    /// The digest of the stored bytes, where it is stated.
    pub compressed_digest: Option<Digest>,
    /// The number of stored bytes, where it is known.
    pub size_bytes: Option<u64>,
}

/// An image that can be read.
pub struct Image {
    config: Option<ImageConfig>,
    names: Vec<String>,
    manifest_digest: Option<Digest>,
    layers: Vec<LayerInfo>,
    contents: Vec<Content>,
}

/// Where a layer's bytes are.
enum Content {
    /// A blob of the layout or archive.
    Blob(Arc<Blobs>, Vec<u8>),
    /// All of a file.
    File(File),
    /// A folder that is the root file system.
    Folder(OwnedFd),
    /// A stream that can be read once.
    Stream(Mutex<Option<Box<dyn Read + Send>>>),
}

/// The media type of a root file system that states none.
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Image {
    /// Opens the image in `input` that `select` means; `spool_folder` takes an unnamed temporary
    /// file if the input is an archive that cannot be seeked in.
    ///
    /// # Errors
    /// `NotAnImage`, `NoSuchReference`, `SeveralImages` or `NoPlatform` where no image can be
    /// chosen; `DigestMismatch`, `SizeMismatch`, `Missing`, `UnsupportedMediaType` and others where
    /// the chosen one is not sound; `Io` where the host fails.
    pub fn open(input: SourceInput, spool_folder: &Path, select: &Select) -> Result<Self> {
        match input {
            SourceInput::Path(path) => Self::open_path(&path, spool_folder, select),
            SourceInput::Stream(stream) => stream::open(stream, spool_folder, select),
        }
    }

    fn open_path(path: &Path, spool_folder: &Path, select: &Select) -> Result<Self> {
        let failed = |source| Error::io("open the image", source);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Self::open_folder(file.into(), select);
        }
        let mut start = [0; 512];
        let plain = metadata.is_file()
            && file.read_exact_at(&mut start, 0).is_ok()
            && super::tarball::looks_like_header(&start);
        if plain {
            Self::open_archive(file, select)
        } else {
            stream::open(Box::new(file), spool_folder, select)
        }
    }

    fn open_folder(folder: OwnedFd, select: &Select) -> Result<Self> {
        let again = folder
            .try_clone()
            .map_err(|source| Error::io("open the image", source))?;
        let found = Self::find(Blobs::folder(folder), select)?;
        Ok(found.unwrap_or_else(|| Self::root_file_system(Content::Folder(again), None)))
    }

    /// Opens an uncompressed archive that can be seeked in.
    fn open_archive(file: File, select: &Select) -> Result<Self> {
        let failed = |source| Error::io("open the image", source);
        let again = file.try_clone().map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let found = Self::find(Blobs::archive(file)?, select)?;
        Ok(found.unwrap_or_else(|| Self::root_file_system(Content::File(again), Some(size_bytes))))
    }

    /// The image that the documents among `blobs` describe; `None` where there are none.
    fn find(blobs: Blobs, select: &Select) -> Result<Option<Self>> {
        let blobs = Arc::new(blobs);
        let docker = docker::read_manifest(&blobs)?;
        if index::is_layout(&blobs)? {
            return index::open(&blobs, docker.as_deref(), select).map(Some);
        }
        docker
            .map(|entries| docker::open(&blobs, entries, select))
            .transpose()
    }

    fn root_file_system(content: Content, size_bytes: Option<u64>) -> Self {
        let layer = LayerInfo {
            diff_id: None,
            media_type: PLAIN_LAYER.to_owned(),
            compressed_digest: None,
            size_bytes,
        };
        Self {
            config: None,
            names: Vec::new(),
            manifest_digest: None,
            layers: vec![layer],
            contents: vec![content],
        }
    }

    /// The configuration; a bare root file system has none until its layer is read, see
    /// [`ImageConfig::of_single_layer`].
    #[must_use]
    pub const fn config(&self) -> Option<&ImageConfig> {
        self.config.as_ref()
    }

    /// The names that the input gives it.
    #[must_use]
    pub fn reference_names(&self) -> &[String] {
        &self.names
    }

    /// The digest of its manifest, where it has one.
    #[must_use]
    pub const fn manifest_digest(&self) -> Option<Digest> {
        self.manifest_digest
    }

    /// Its layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// The uncompressed content of the layer with this index, verified while it is read.
    ///
    /// # Errors
    /// `AlreadyRead` for the layer of a pipe that was opened before; `Missing` or `Io` where it
    /// cannot be opened.
    ///
    /// # Panics
    /// Where there is no such layer.
    pub fn open_layer(&self, index: usize) -> Result<LayerReader> {
        let failed = |source| Error::io("open the layer", source);
        let stored: Box<dyn Read + Send> = match &self.contents[index] {
            Content::Blob(blobs, path) => blobs.open(path, Part::layer(index))?.content,
            Content::File(file) => {
                let file = file.try_clone().map_err(failed)?;
                Box::new(blobs::Window::new(file, 0, u64::MAX))
            }
            Content::Folder(folder) => Box::new(folder::FolderStream::new(
                folder.try_clone().map_err(failed)?,
            )?),
            Content::Stream(stream) => {
                let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
                stream.take().ok_or(Error::AlreadyRead)?
            }
        };
        let may_stall = matches!(self.contents[index], Content::Stream(_));
        LayerReader::new(stored, index, &self.layers[index], may_stall)
    }
}

/// Whether two references mean the same: docker's short forms are filled in.
fn same_reference(one: &str, other: &str) -> bool {
    one == other || canonical(one) == canonical(other)
}

fn canonical(reference: &str) -> String {
    let short = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let last = short.rsplit('/').next().unwrap_or(short);
    if last.contains([':', '@']) {
        short.to_owned()
    } else {
        format!("{short}:latest")
    }
}

#[cfg(test)]
mod tests;
