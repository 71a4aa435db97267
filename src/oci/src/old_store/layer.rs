//! One layer of an old store: where its files are, and what its tar is made of.

use super::anew::Files;
use super::folder::{Folder, missing};
use super::split::SplitTar;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::limits::COPY_BUFFER_BYTES;
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// The way in which a storage driver keeps a layer's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As the upper folder of overlayfs.
    Overlay,
    /// As a branch of aufs.
    Aufs,
    /// As the whole tree, with the folder of the layer below.
    Tree { below: Option<String> },
}

/// A layer of an old store.
pub(crate) struct OldLayer {
    pub(super) store: Folder,
    /// The folder of its files.
    pub(super) folder: String,
    pub(super) form: Form,
    /// What tar-split keeps of its tar, if it does.
    pub(super) split: Option<String>,
    /// True if each file is verified, as no digest of the tar is known.
    pub(super) verifies_files: bool,
}

impl OldLayer {
    /// Returns the layer with the files in `folder`; `split` is where tar-split would keep its tar.
    pub(super) fn new(store: &Folder, folder: String, form: Form, split: String) -> Result<Self> {
        let has_split = store.file(&split)?.is_some();
        Ok(Self {
            store: store.clone(),
            folder,
            form,
            split: has_split.then_some(split),
            verifies_files: false,
        })
    }

    /// Returns what tells it from any other layer of any store on this host, without reading its files:
    /// a digest of which folders the store and the layer are, of when the layer's was changed last, and
    /// of what tar-split kept.
    ///
    /// # Errors
    /// `NotInStore` if its files or what tar-split kept are missing, and errors of the host.
    pub(crate) fn origin(&self) -> Result<Digest> {
        let below = match &self.form {
            Form::Tree { below } => below.as_deref(),
            Form::Overlay | Form::Aufs => None,
        };
        let mut identity = Hasher::default();
        let (device, inode, _) = identity_of(&self.store)?;
        identity.update(format!("store {device} {inode}\n").as_bytes());
        for path in [Some(&*self.folder), below].into_iter().flatten() {
            let (device, inode, changed) = identity_of(&self.root(path)?)?;
            identity.update(format!("{path}\0{device} {inode} {changed}\n").as_bytes());
        }
        if let Some(name) = &self.split {
            let split = self.store.file(name)?.ok_or_else(|| missing(name))?;
            identity.update(format!("{}\n", digest_of(name, split)?).as_bytes());
        }
        Ok(identity.digest())
    }

    /// Returns true if its tar is made byte by byte.
    pub(crate) const fn is_exact(&self) -> bool {
        self.split.is_some()
    }

    /// Returns its tar, made while it is read.
    ///
    /// # Errors
    /// `NotInStore` if its files or what tar-split kept are missing, and errors of the host.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>> {
        let root = self.root(&self.folder)?;
        if let Some(name) = &self.split {
            let split = self.store.file(name)?.ok_or_else(|| missing(name))?;
            let tar = SplitTar::new(name, split, root, self.verifies_files)?;
            return Ok(Box::new(tar));
        }
        let files = match &self.form {
            Form::Overlay => Files::Overlay(root),
            Form::Aufs => Files::Aufs(root),
            Form::Tree { below } => Files::Tree {
                tree: root,
                below: below.as_ref().map(|below| self.root(below)).transpose()?,
            },
        };
        Ok(Box::new(files.into_tar()?))
    }

    fn root(&self, path: &str) -> Result<OwnedFd> {
        let folder = self.store.folder(path)?.ok_or_else(|| missing(path))?;
        folder.to_owned_fd()
    }
}

/// Returns the device and the number of a folder, and the time of its last change.
fn identity_of(folder: impl AsFd) -> Result<(u64, u64, String)> {
    let stat = beneath::stat_itself(folder)
        .map_err(|errno| Error::io("inspect the directory of a layer", errno.into()))?;
    let changed = format!("{}.{:09}", stat.st_ctime, stat.st_ctime_nsec);
    Ok((stat.st_dev, stat.st_ino, changed))
}

fn digest_of(name: &str, mut file: File) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        cancel::check()?;
        let len = file
            .read(&mut buffer)
            .map_err(|source| Error::entry("read", name.as_bytes(), source))?;
        if len == 0 {
            return Ok(hasher.digest());
        }
        hasher.update(&buffer[..len]);
    }
}
