//! Opening images, whatever their form: OCI layout, docker-archive of any age, skopeo's folder,
//! root file system; a folder, an archive or a pipe; plain or compressed. What it is, is decided by
//! its content (see `form`), never by its name.
//!
//! Invariants: every digest and size that the input states is verified, documents before they are
//! believed and layers while they are read ([`LayerReader`]); memory is bounded whatever the input
//! claims. An archive that cannot be seeked in is spooled to an unnamed file, because its documents
//! may come after its layers; a root file system in a pipe is streamed.

mod blobs;
mod docker;
mod folder;
mod form;
mod index;
mod layer;
mod legacy;
mod stream;

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::{Error, Part, Printable, Result};
use super::platform::Platform;
use blobs::Blobs;
use form::Form;
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

/// Which images of an input are meant.
#[derive(Clone, Debug)]
pub struct Select {
    /// The name of the only one that is meant, where there are several.
    pub reference: Option<String>,
    /// The platform that is asked for; else the one that suits the host best is taken.
    pub platform: Option<Platform>,
    /// The platform that the image is to run on.
    pub host: Platform,
    /// The input is a root file system, whatever it looks like.
    pub root_only: bool,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            reference: None,
            platform: None,
            host: Platform::host(),
            root_only: false,
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

    /// The platform that images are ranked by.
    fn wanted(&self) -> &Platform {
        self.platform.as_ref().unwrap_or(&self.host)
    }

    /// How well an image for `platform` suits, 0 best; `None` where it does not.
    fn rank(&self, platform: &Platform) -> Option<usize> {
        self.wanted().rank(platform, self.platform.is_some())
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

impl LayerInfo {
    /// A tar archive of which nothing is stated.
    #[must_use]
    pub fn of_plain_tar() -> Self {
        Self {
            diff_id: None,
            media_type: PLAIN_LAYER.to_owned(),
            compressed_digest: None,
            size_bytes: None,
        }
    }
}

/// An image that can be read.
pub struct Image {
    config: Option<ImageConfig>,
    names: Vec<String>,
    manifest_digest: Option<Digest>,
    /// The platform that an index states for it.
    stated_platform: Option<Platform>,
    /// Its platform, where that is none that the host runs.
    other_platform: Option<Platform>,
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
    /// Opens the only image in `input` that `select` means; `spool_folder` takes an unnamed
    /// temporary file if the input is an archive that cannot be seeked in.
    ///
    /// # Errors
    /// As [`Image::open_all`], and `SeveralImages` where there is more than one.
    pub fn open(input: SourceInput, spool_folder: &Path, select: &Select) -> Result<Self> {
        let mut images = Self::open_all(input, spool_folder, select)?;
        match images.pop() {
            Some(image) if images.is_empty() => Ok(image),
            last => {
                let all = images.iter().chain(&last);
                let available = all.map(Self::described).collect();
                Err(Error::SeveralImages { available })
            }
        }
    }

    /// Opens all images in `input`, or the one that `select` names; there is at least one.
    ///
    /// # Errors
    /// `NotAnImage`, `NotWhole`, `NoSuchReference` or `NoPlatform` where none can be chosen,
    /// `OtherSystem` where one is for another operating system and that was not asked for;
    /// `DigestMismatch`, `SizeMismatch`, `Missing`, `UnsupportedMediaType` and others where a
    /// chosen one is not sound; `Io` where the host fails.
    pub fn open_all(input: SourceInput, spool_folder: &Path, select: &Select) -> Result<Vec<Self>> {
        match input {
            SourceInput::Path(path) => Self::open_path(&path, spool_folder, select),
            SourceInput::Stream(stream) => stream::open(stream, spool_folder, select),
        }
    }

    fn open_path(path: &Path, spool_folder: &Path, select: &Select) -> Result<Vec<Self>> {
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

    fn open_folder(folder: OwnedFd, select: &Select) -> Result<Vec<Self>> {
        let again = folder
            .try_clone()
            .map_err(|source| Error::io("open the image", source))?;
        let root = || Self::root_file_system(Content::Folder(again), None);
        if select.root_only {
            return Ok(vec![root()]);
        }
        let found = Self::find(Blobs::folder(folder), select)?;
        Ok(found.unwrap_or_else(|| vec![root()]))
    }

    /// Opens an uncompressed archive that can be seeked in.
    fn open_archive(file: File, select: &Select) -> Result<Vec<Self>> {
        let failed = |source| Error::io("open the image", source);
        let again = file.try_clone().map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let root = || Self::root_file_system(Content::File(again), Some(size_bytes));
        if select.root_only {
            return Ok(vec![root()]);
        }
        let found = Self::find(Blobs::archive(file)?, select)?;
        Ok(found.unwrap_or_else(|| vec![root()]))
    }

    /// The images that the documents among `blobs` describe; `None` where there are none.
    fn find(blobs: Blobs, select: &Select) -> Result<Option<Vec<Self>>> {
        let (blobs, form) = form::tell(blobs)?;
        let blobs = Arc::new(blobs);
        let mut images = match form {
            Form::Root => return Ok(None),
            Form::Layout(docker) => index::open(&blobs, docker.as_deref(), select)?,
            Form::Directory(manifest) => index::open_directory(&blobs, &manifest, select)?,
            Form::Docker(entries) => docker::open(&blobs, entries, select)?,
            Form::Legacy => legacy::open(&blobs, select)?,
        };
        for image in &mut images {
            image.check_platform(select)?;
        }
        Ok(Some(images))
    }

    /// Refuses the image if it is for a platform that was not asked for, or for another operating
    /// system; else notes that the host does not run it.
    fn check_platform(&mut self, select: &Select) -> Result<()> {
        let of_config = || self.config.as_ref().and_then(ImageConfig::platform);
        let Some(platform) = self.stated_platform.clone().or_else(of_config) else {
            return Ok(());
        };
        if select.rank(&platform).is_some() {
            return Ok(());
        }
        let shown = |platform: &Platform| Printable::from(&*platform.to_string());
        if let Some(wanted) = &select.platform {
            return Err(Error::NoPlatform {
                wanted: shown(wanted),
                available: [platform.to_string()].iter().collect(),
            });
        }
        if platform.os() != select.host.os() {
            return Err(Error::OtherSystem {
                platform: shown(&platform),
                host: shown(&select.host),
            });
        }
        self.other_platform = Some(platform);
        Ok(())
    }

    /// A name of the image for messages, or its id.
    fn described(&self) -> String {
        let id = || {
            self.config
                .as_ref()
                .map(|config| config.digest().to_string())
        };
        let name = self.names.first().cloned();
        name.or_else(id).unwrap_or_default()
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
            stated_platform: None,
            other_platform: None,
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

    /// Its platform, where the host's processor does not run that.
    #[must_use]
    pub const fn other_platform(&self) -> Option<&Platform> {
        self.other_platform.as_ref()
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

#[cfg(test)]
mod tests;
