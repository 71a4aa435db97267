//! Opening images in any form: OCI layout, docker-archive of any age, skopeo's folder, root file
//! system; a folder, an archive or a pipe; plain or compressed. The form is detected from the
//! content (see `form`), never from the name.
//!
//! Invariants: every digest and size that the input states is verified, documents before they are
//! used and layers while they are read ([`LayerReader`]); memory is bounded whatever the input
//! claims. An unseekable archive is spooled to an unnamed file, because its documents may come
//! after its layers; a root file system in a pipe is streamed.

mod blobs;
mod docker;
mod folder;
mod form;
mod index;
mod layer;
pub(crate) mod legacy;
mod old;
mod remote;
mod store;
mod stream;

use super::config::ImageConfig;
use super::digest::{Digest, chain_above};
use super::error::{Error, Part, Printable, Result};
use super::old_store::OldLayer;
use super::platform::Platform;
use blobs::Blobs;
use form::Form;
pub use layer::{LayerDigest, LayerReader};
pub(crate) use old::Target;
pub use remote::{Document, Remote};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
pub(crate) use store::Unpacked;

/// The source of an image.
pub enum SourceInput {
    /// A folder, a file or a named pipe.
    Path(PathBuf),
    /// A stream, such as standard input.
    Stream(Box<dyn Read + Send>),
}

/// The selection among the images of an input.
#[derive(Clone, Debug)]
pub struct Select {
    /// The name of the only one to select, if there are several.
    pub reference: Option<String>,
    /// The requested platform; by default the one that suits the host best is selected.
    pub platform: Option<Platform>,
    /// The platform on which the image will run.
    pub host: Platform,
    /// True if the input is a root file system, whatever it looks like.
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
    /// Selects the image of this name, for this host.
    #[must_use]
    pub fn named(reference: Option<&str>) -> Self {
        Self {
            reference: reference.map(str::to_owned),
            ..Self::default()
        }
    }

    /// Returns the platform by which images are ranked.
    fn wanted(&self) -> &Platform {
        self.platform.as_ref().unwrap_or(&self.host)
    }

    /// Returns how well an image for `platform` suits, 0 best; `None` if it does not.
    fn rank(&self, platform: &Platform) -> Option<usize> {
        self.wanted().rank(platform, self.platform.is_some())
    }
}

/// The data about a layer that is known before it is read.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The digest of the uncompressed content; a bare root file system does not state it.
    pub diff_id: Option<Digest>,
    /// The media type, stated or assumed.
    pub media_type: String,
    /// The digest of the stored bytes, if it is stated.
    pub compressed_digest: Option<Digest>,
    /// The number of stored bytes, if it is known.
    pub size_bytes: Option<u64>,
    /// What tells the layer from any other of any store on this host, if the store that it comes from
    /// keeps no digest of it.
    pub origin: Option<Digest>,
}

impl LayerInfo {
    /// Returns the data of a tar archive without any statement about it.
    #[must_use]
    pub fn of_plain_tar() -> Self {
        Self {
            diff_id: None,
            media_type: PLAIN_LAYER.to_owned(),
            compressed_digest: None,
            size_bytes: None,
            origin: None,
        }
    }
}

/// An image that can be read.
pub struct Image {
    config: Option<ImageConfig>,
    names: Vec<String>,
    /// The manifest, byte by byte.
    manifest: Option<Vec<u8>>,
    /// The platform that an index states for it.
    stated_platform: Option<Platform>,
    /// Its platform, if the host does not run it.
    other_platform: Option<Platform>,
    layers: Vec<LayerInfo>,
    contents: Vec<Content>,
}

/// The place of a layer's bytes.
enum Content {
    /// A blob of the layout or archive.
    Blob(Arc<Blobs>, Vec<u8>),
    /// A whole file.
    File(File),
    /// A folder that is the root file system.
    Folder(OwnedFd),
    /// A stream that can be read once.
    Stream(Mutex<Option<Box<dyn Read + Send>>>),
    /// A layer of an old store.
    Old(OldLayer),
    /// Another place, which may let the reader wait.
    Remote(Arc<dyn Remote>),
}

/// The media type of a root file system, which states none.
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Image {
    /// Opens the only image in `input` that `select` matches; `spool_folder` is the folder for an
    /// unnamed temporary file if the input is an unseekable archive.
    ///
    /// # Errors
    /// As [`Image::open_all`], and `SeveralImages` if there is more than one.
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
    /// `NotAnImage`, `NotWhole`, `NoSuchReference` or `NoPlatform` if none can be chosen,
    /// `OtherSystem` if one is for another operating system that was not requested;
    /// `DigestMismatch`, `SizeMismatch`, `Missing`, `UnsupportedMediaType` and others if a chosen
    /// one is damaged; `Io` if the host fails.
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

    /// Opens an uncompressed, seekable archive.
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

    /// Returns the images that the documents among `blobs` describe; `None` if there are none.
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

    /// Returns an error if the image is for a platform that was not requested, or for another
    /// operating system; otherwise records whether the host does not run it.
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

    /// Returns a name of the image for messages, or its id; empty for a bare root file system.
    #[must_use]
    pub fn described(&self) -> String {
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
            size_bytes,
            ..LayerInfo::of_plain_tar()
        };
        Self {
            config: None,
            names: Vec::new(),
            manifest: None,
            stated_platform: None,
            other_platform: None,
            layers: vec![layer],
            contents: vec![content],
        }
    }

    /// Returns the configuration; a bare root file system has none until its layer is read, see
    /// [`ImageConfig::of_single_layer`].
    #[must_use]
    pub const fn config(&self) -> Option<&ImageConfig> {
        self.config.as_ref()
    }

    /// Returns the image's names in the input.
    #[must_use]
    pub fn reference_names(&self) -> &[String] {
        &self.names
    }

    /// Returns the digest of the manifest, if there is one.
    #[must_use]
    pub fn manifest_digest(&self) -> Option<Digest> {
        self.manifest().map(Digest::of)
    }

    /// Returns the manifest byte by byte, if there is one.
    #[must_use]
    pub fn manifest(&self) -> Option<&[u8]> {
        self.manifest.as_deref()
    }

    /// Returns the image's platform, if the host's processor does not run it.
    #[must_use]
    pub const fn other_platform(&self) -> Option<&Platform> {
        self.other_platform.as_ref()
    }

    /// Returns the layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// Returns the identity of the stack up to each layer, lowest first: the chain id, where the digests
    /// of the layers are known; else one that counts a layer by its place in the store that has it.
    #[must_use]
    pub fn stack_ids(&self) -> Vec<Digest> {
        let mut below = None;
        let step = |layer: &LayerInfo| {
            let known = layer.diff_id.or(layer.origin);
            let stack = chain_above(below, known.unwrap_or_else(|| Digest::of(b"")));
            below = Some(stack);
            stack
        };
        self.layers.iter().map(step).collect()
    }

    /// Returns the uncompressed content of the layer with this index, verified while it is read.
    ///
    /// # Errors
    /// `AlreadyRead` for the layer of a pipe that was opened before; `Missing` or `Io` if it cannot
    /// be opened.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn open_layer(&self, index: usize) -> Result<LayerReader> {
        let failed = |source| Error::io("open the layer", source);
        let stored: Box<dyn Read + Send> = match &self.contents[index] {
            Content::Blob(blobs, path) => blobs.open(path, Part::layer(index))?.content,
            Content::File(file) => {
                let file = file.try_clone().map_err(failed)?;
                Box::new(blobs::Window::new(file, 0, u64::MAX))
            }
            Content::Folder(folder) => {
                Box::new(folder::layer_of(folder.try_clone().map_err(failed)?)?)
            }
            Content::Old(layer) => layer.open()?,
            Content::Stream(stream) => {
                let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
                stream.take().ok_or(Error::AlreadyRead)?
            }
            Content::Remote(remote) => remote.layer(index, &self.layers[index])?,
        };
        let may_stall = matches!(
            self.contents[index],
            Content::Stream(_) | Content::Remote(_)
        );
        LayerReader::new(stored, index, &self.layers[index], may_stall)
    }
}

#[cfg(test)]
mod tests;
