//! One layer of an old store: where its files are, and what its tar is made of.

use super::anew::Files;
use super::folder::{Folder, missing};
use super::split::SplitTar;
use crate::error::Result;
use std::io::Read;
use std::os::fd::OwnedFd;

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
    /// The name by which the store knows it.
    pub(super) name: String,
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
            name: folder.clone(),
            folder,
            form,
            split: has_split.then_some(split),
            verifies_files: false,
        })
    }

    /// Returns the name by which the store knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
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
