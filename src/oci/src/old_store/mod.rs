//! Stores of other programs on this host: the images that Docker, containerd, Podman and others have,
//! read without those programs.
//!
//! | module | reads |
//! |---|---|
//! | `docker` | Docker's own store since 1.10 |
//! | `graph` | Docker's store up to 1.9 |
//! | `containers` | containers/storage: Podman, Buildah, CRI-O |
//! | `containerd` | containerd's content, and that of Docker in it; its database is `bolt`'s |
//!
//! A layer is its own tar where the store has it, or what tar-split kept of it and its files
//! (`split`), else its files written `anew`; `layer` says which, and `drivers` where the files
//! are. The result is an [`Image`] as any other.
//!
//! # Invariants
//! - Nothing in the store is written, and `in_use` refuses one that a program may be changing.
//! - The store is untrusted: no path of it leads outside, no symbolic link is followed on the way to a
//!   layer, and those in a layer are resolved within it. What is read into memory has a limit.
//! - A fault of an image is that image's: the others are read.

mod anew;
mod bolt;
mod containerd;
mod containers;
mod crc64;
mod difference;
mod docker;
mod drivers;
mod folder;
mod graph;
mod in_use;
mod layer;
mod split;

use crate::error::{Error, Result};
use crate::source::Image;
use cowshed_format::base::cancel;
pub(crate) use folder::Budget;
use folder::Folder;
use in_use::Locks;
pub(crate) use layer::OldLayer;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the containerd that Docker starts itself has its store.
const CONTAINERD_OF_DOCKER: &str = "containerd/daemon";

/// The images of one store, or of several in one folder.
type Found = Vec<OldImage>;

/// An old store, which no program changes as long as this exists.
pub struct OldStore {
    images: Vec<OldImage>,
    _locks: Locks,
}

/// An image of an old store.
pub struct OldImage {
    id: String,
    names: Vec<String>,
    image: Result<Image>,
}

impl OldStore {
    /// Opens the store in `folder`.
    ///
    /// # Errors
    /// `NotAStore`, `StoreInUse`, `StoreLink`, `StoreFile` for a list of images that cannot be read, and errors of
    /// the host.
    pub fn open(folder: &Path) -> Result<Self> {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(folder);
        match opened {
            Ok(opened) => Self::read(&Folder::new(OwnedFd::from(opened))),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::NotAStore),
            Err(error) => Err(Error::io("open the store", error)),
        }
    }

    fn read(store: &Folder) -> Result<Self> {
        let mut locks = Locks::default();
        docker::lock(store, &mut locks)?;
        let mut found = docker::read(store)?;
        let newer = found.as_deref_mut().unwrap_or_default();
        let mut others = vec![graph::read(store, newer)?];
        others.push(containers::read(store, &mut locks)?);
        others.push(containerd::read(store, &mut locks)?);
        if let Some(store) = store.folder(CONTAINERD_OF_DOCKER)? {
            others.push(containerd::read(&store, &mut locks)?);
        }
        for images in others.into_iter().flatten() {
            found.get_or_insert_default().extend(images);
        }
        // An image whose reading was cancelled is not at fault.
        cancel::check()?;
        Ok(Self {
            images: found.ok_or(Error::NotAStore)?,
            _locks: locks,
        })
    }

    /// Returns the images that have a name, and those that no other was made of.
    #[must_use]
    pub fn images(&self) -> &[OldImage] {
        &self.images
    }
}

/// Returns the images without the steps of builds: those without a name whose layers another image has
/// below its own, or a named one as its own.
fn without_steps(images: Found) -> Found {
    let mut below = HashSet::new();
    for image in &images {
        let mut stacks = image.image().map(Image::stack_ids).unwrap_or_default();
        if image.names.is_empty() {
            stacks.pop();
        }
        below.extend(stacks);
    }
    let is_step = |image: &OldImage| {
        let highest = image.image().ok().and_then(|image| image.stack_ids().pop());
        image.names.is_empty() && highest.is_some_and(|stack| below.contains(&stack))
    };
    images.into_iter().filter(|image| !is_step(image)).collect()
}

impl OldImage {
    const fn new(id: String, names: Vec<String>, image: Result<Image>) -> Self {
        Self { id, names, image }
    }

    /// Adds names that another list gives the image.
    fn add_names(&mut self, names: Vec<String>) {
        for name in names {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
        if let Ok(image) = &mut self.image {
            image.set_reference_names(self.names.clone());
        }
    }

    /// Returns its id in the store.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns its names in the store.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the image, or the reason why it cannot be read.
    ///
    /// # Errors
    /// `NotInStore`, `StoreFile`, `DigestMismatch`, `StorageDriver` and others.
    pub const fn image(&self) -> Result<&Image, &Error> {
        self.image.as_ref()
    }
}

#[cfg(test)]
mod tests;
