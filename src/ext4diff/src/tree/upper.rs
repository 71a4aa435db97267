//! The changes that the upper folder of an overlayfs makes to its lower tree.
//!
//! The lower tree is not walked: its objects are looked up by the names in the upper folder, and
//! only a folder that replaces one of the lower tree is listed there, too. The result is what
//! [`compare`](super::compare()) gives of the lower tree and the merged one, except for a file that
//! has several names in the lower tree: overlayfs copies it up under one name, which is then a file
//! of its own, while the others keep the old one. So only that name is listed, as is right for a
//! layer.
//!
//! # Format
//! As in the kernel's documentation of overlayfs: a whiteout is a character device 0/0, or an empty
//! file with the attribute `trusted.overlay.whiteout`; the value `y` of `trusted.overlay.opaque`
//! hides what the lower folder holds. Attributes of containers that begin with `trusted.overlay.`
//! have `trusted.overlay.overlay.` in the upper folder; no layer holds such attributes.
//!
//! # Invariants
//! - The overlay was mounted without `metacopy` and `redirect_dir`: an object in the upper folder
//!   is whole, and stands for the name that it has.

use super::{Comparison, Result, Side, TreeChange, TreeChanges, TreeError, finish};
use cowshed_format::base::cancel;
use cowshed_sys::{beneath, xattr};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The prefix of the attributes in which overlayfs keeps its state.
pub(super) const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
const OPAQUE: &CStr = c"trusted.overlay.opaque";
const WHITEOUT: &CStr = c"trusted.overlay.whiteout";

/// Returns the changes from the tree at `base` to that of an overlayfs whose only lower layer it is
/// and whose upper folder is `upper`.
///
/// # Errors
/// `Io` if an object cannot be read, and `Cancelled`.
pub fn changes_of_upper(base: &Path, upper: &Path) -> Result<TreeChanges> {
    let mut comparison = Comparison::open(base, upper, false)?;
    comparison.roots()?;
    while let Some(directory) = comparison.pending.pop() {
        comparison.upper_directory(&directory)?;
    }
    Ok(finish(comparison))
}

impl Comparison {
    /// Compares a folder that is in the upper folder and in the lower tree.
    fn upper_directory(&mut self, path: &Path) -> Result<()> {
        cancel::check()?;
        let hides_all = self.new.is_opaque(path)?;
        let mut hidden = if hides_all {
            self.base.list(path)?
        } else {
            BTreeMap::new()
        };
        for (name, after) in self.new.list(path)? {
            let child = path.join(&name);
            let before = if hides_all {
                hidden.remove(&name)
            } else {
                self.base.find(&child)?
            };
            let is_whiteout = self.new.is_whiteout(&child, &after)?;
            match (before, is_whiteout) {
                (None, true) => {}
                (Some(_), true) => {
                    self.changes.insert(child.into(), TreeChange::Removed);
                }
                (None, false) => self.added(child, &after, TreeChange::Added)?,
                (Some(before), false) => self.pair(child, &before, &after)?,
            }
        }
        for name in hidden.into_keys() {
            let child = path.join(name);
            self.changes.insert(child.into(), TreeChange::Removed);
        }
        Ok(())
    }
}

impl Side {
    /// Returns the metadata of an object, if it exists.
    fn find(&self, path: &Path) -> Result<Option<Metadata>> {
        let full = self.root.join(path);
        match fs::symlink_metadata(&full) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TreeError::io("inspect", &full)(error)),
        }
    }

    fn is_opaque(&self, path: &Path) -> Result<bool> {
        Ok(self.xattr(path, OPAQUE)?.is_some_and(|value| value == b"y"))
    }

    fn is_whiteout(&self, path: &Path, found: &Metadata) -> Result<bool> {
        if found.file_type().is_char_device() {
            return Ok(found.rdev() == 0);
        }
        Ok(found.is_file() && found.len() == 0 && self.xattr(path, WHITEOUT)?.is_some())
    }

    /// Returns what the folder holds, without whiteouts.
    pub(super) fn list_visible(&self, path: &Path) -> Result<BTreeMap<OsString, Metadata>> {
        let mut found = self.list(path)?;
        if !self.is_upper {
            return Ok(found);
        }
        let mut whiteouts: Vec<PathBuf> = Vec::new();
        for (name, metadata) in &found {
            if self.is_whiteout(&path.join(name), metadata)? {
                whiteouts.push(name.into());
            }
        }
        for name in whiteouts {
            found.remove(name.as_os_str());
        }
        Ok(found)
    }

    /// Returns the value of an object's attribute, if it has it.
    fn xattr(&self, path: &Path, name: &CStr) -> Result<Option<Vec<u8>>> {
        let bytes = path.as_os_str().as_bytes();
        let read = beneath::open_plain(self.directory.as_fd(), bytes, OFlag::O_PATH)
            .map_err(io::Error::from)
            .and_then(|object| xattr::get(&object, name));
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODATA as i32) => Ok(None),
            Err(error) => {
                let full = self.root.join(path);
                Err(TreeError::io("read the attributes of", &full)(error))
            }
        }
    }
}
