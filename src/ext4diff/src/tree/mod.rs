//! The list of changes, and comparing two mounted trees.
//!
//! Both trees are mounts that nobody changes meanwhile, so paths are stable. Symbolic
//! links are never followed.
//!
//! The two file systems are clones, so an object that nobody touched has the same inode number and
//! change time on both sides and is not compared further. (The upper folder of an overlayfs, in
//! `upper`, is not a clone.) For the others the metadata, attributes
//! and link targets are compared, and the content only if all of those are equal.
//!
//! # Invariants
//! - A change is listed after all directories above it, and the list is sorted by path.
//! - A removed directory is listed alone, an added or replacing one with everything in it.
//! - If one name of a file with several is listed, all its names are, so that a layer made from the
//!   list keeps them one file.

mod upper;

pub use upper::changes_of_upper;

use cowshed_format::base::{Cancelled, cancel};
use cowshed_sys::{beneath, extent, xattr};
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, HashMap, btree_map};
use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Buffer for comparing contents, in bytes.
const BUFFER_BYTES: usize = 256 << 10;
/// An attribute that belongs to the host's security module and not to the tree.
const HOST_XATTR: &[u8] = b"security.selinux";

/// The kind of a change to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TreeChange {
    /// Only the new tree has it.
    Added,
    /// Both have it, and it differs; or it is a directory above a change.
    Changed,
    /// Only the base has it.
    Removed,
}

/// The reason why two trees were not compared.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The host failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The object of the action.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

type Result<T, E = TreeError> = std::result::Result<T, E>;

impl TreeError {
    /// Returns a closure that makes an `Io` error about `action` on `path`, for `map_err`.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Changes by path relative to the root; the root itself is the empty path.
pub type TreeChanges = BTreeMap<TreePath, TreeChange>;

/// A relative path, sorted by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(pub OsString);

impl TreePath {
    /// Returns the path of these bytes.
    #[must_use]
    pub fn from_bytes(path: Vec<u8>) -> Self {
        Self(OsString::from_vec(path))
    }

    /// Returns it as a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Returns its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<PathBuf> for TreePath {
    fn from(path: PathBuf) -> Self {
        Self(path.into_os_string())
    }
}

/// Returns the changes from the tree at `base` to the tree at `new`.
///
/// # Errors
/// `Io` if an object cannot be read, and `Cancelled`.
pub fn compare(base: &Path, new: &Path) -> Result<TreeChanges> {
    let mut comparison = Comparison::open(base, new, true)?;
    comparison.roots()?;
    while let Some(directory) = comparison.pending.pop() {
        comparison.directory(&directory)?;
    }
    Ok(finish(comparison))
}

/// Returns the changes once all directories are compared.
fn finish(mut comparison: Comparison) -> TreeChanges {
    comparison.split_and_joined_links();
    comparison.whole_link_groups();
    directories_above(&mut comparison.changes);
    comparison.changes
}

/// One of the two trees.
struct Side {
    root: PathBuf,
    directory: File,
    /// True for the upper folder of an overlayfs, which has whiteouts.
    is_upper: bool,
}

struct Comparison {
    base: Side,
    new: Side,
    changes: TreeChanges,
    /// The names on the new side of each file that has several on a side, by inode number.
    names: HashMap<u64, Vec<PathBuf>>,
    /// Directories that exist on both sides and were not compared yet.
    pending: Vec<PathBuf>,
    /// Paths on both sides that have other names on a side, with their inode numbers.
    linked: Vec<(PathBuf, u64, u64)>,
    buffers: (Vec<u8>, Vec<u8>),
    /// True if both trees are clones of one file system.
    are_clones: bool,
}

impl Side {
    fn open(root: &Path, is_upper: bool) -> Result<Self> {
        let directory = File::open(root).map_err(TreeError::io("open", root))?;
        Ok(Self {
            root: root.to_owned(),
            directory,
            is_upper,
        })
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        let full = self.root.join(path);
        fs::symlink_metadata(&full).map_err(TreeError::io("inspect", &full))
    }

    fn list(&self, path: &Path) -> Result<BTreeMap<OsString, Metadata>> {
        let full = self.root.join(path);
        let read = || -> io::Result<_> {
            fs::read_dir(&full)?
                .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?))))
                .collect()
        };
        read().map_err(TreeError::io("list", &full))
    }

    fn xattrs(&self, path: &Path) -> Result<Vec<(CString, Vec<u8>)>> {
        let read = || -> io::Result<_> {
            let bytes = path.as_os_str().as_bytes();
            let object = beneath::open_plain(self.directory.as_fd(), bytes, OFlag::O_PATH)?;
            let mut names = xattr::list(&object)?;
            names.retain(|name| name.as_bytes() != HOST_XATTR && !self.hides(name));
            names.sort();
            names
                .into_iter()
                .map(|name| Ok((name.clone(), xattr::get(&object, &name)?)))
                .collect()
        };
        read().map_err(TreeError::io(
            "read the attributes of",
            &self.root.join(path),
        ))
    }

    /// Returns true for an attribute in which overlayfs keeps its state.
    fn hides(&self, name: &CStr) -> bool {
        self.is_upper && name.to_bytes().starts_with(upper::OVERLAY_XATTRS)
    }

    fn open_file(&self, path: &Path) -> Result<File> {
        let full = self.root.join(path);
        File::open(&full).map_err(TreeError::io("open", &full))
    }

    fn link_target(&self, path: &Path) -> Result<PathBuf> {
        let full = self.root.join(path);
        fs::read_link(&full).map_err(TreeError::io("read the link", &full))
    }
}

impl Comparison {
    /// Opens two trees, which are clones, or else a tree and an upper folder over it.
    fn open(base: &Path, new: &Path, are_clones: bool) -> Result<Self> {
        Ok(Self {
            base: Side::open(base, false)?,
            new: Side::open(new, !are_clones)?,
            changes: TreeChanges::new(),
            names: HashMap::new(),
            pending: vec![PathBuf::new()],
            linked: Vec::new(),
            buffers: (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]),
            are_clones,
        })
    }

    /// Compares the two root directories themselves.
    fn roots(&mut self) -> Result<()> {
        let root = Path::new("");
        let (before, after) = (self.base.metadata(root)?, self.new.metadata(root)?);
        if !self.same_object(root, &before, &after)? {
            self.changes
                .insert(PathBuf::new().into(), TreeChange::Changed);
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        cancel::check()?;
        let base = self.base.list(path)?;
        let mut new = self.new.list(path)?;
        for (name, before) in base {
            let child = path.join(&name);
            match new.remove(&name) {
                None => {
                    self.changes.insert(child.into(), TreeChange::Removed);
                }
                Some(after) => self.pair(child, &before, &after)?,
            }
        }
        for (name, after) in new {
            self.added(path.join(name), &after, TreeChange::Added)?;
        }
        Ok(())
    }

    fn pair(&mut self, path: PathBuf, before: &Metadata, after: &Metadata) -> Result<()> {
        if before.file_type() != after.file_type() {
            return self.added(path, after, TreeChange::Changed);
        }
        if !self.same_object(&path, before, after)? {
            self.changes
                .insert(path.clone().into(), TreeChange::Changed);
        }
        if after.is_dir() {
            self.pending.push(path);
        } else if has_other_names(before) || has_other_names(after) {
            self.names
                .entry(after.ino())
                .or_default()
                .push(path.clone());
            self.linked.push((path, before.ino(), after.ino()));
        }
        Ok(())
    }

    fn note_names(&mut self, path: &Path, metadata: &Metadata) {
        if has_other_names(metadata) {
            self.names
                .entry(metadata.ino())
                .or_default()
                .push(path.to_owned());
        }
    }

    /// Lists an object that exists only on the new side, with everything in it.
    fn added(&mut self, path: PathBuf, after: &Metadata, change: TreeChange) -> Result<()> {
        let mut pending = Vec::new();
        if after.is_dir() {
            pending.push(path.clone());
        }
        self.note_names(&path, after);
        self.changes.insert(path.into(), change);
        while let Some(directory) = pending.pop() {
            cancel::check()?;
            for (name, after) in self.new.list_visible(&directory)? {
                let child = directory.join(name);
                if after.is_dir() {
                    pending.push(child.clone());
                } else {
                    self.note_names(&child, &after);
                }
                self.changes.insert(child.into(), TreeChange::Added);
            }
        }
        Ok(())
    }

    /// Returns true if an object of the same type on both sides is the same, apart from its links
    /// and the entries of a directory.
    fn same_object(&mut self, path: &Path, before: &Metadata, after: &Metadata) -> Result<bool> {
        if self.are_clones && is_untouched(before, after) {
            return Ok(true);
        }
        let size_matters = before.is_file();
        let same_metadata = before.mode() == after.mode()
            && (before.uid(), before.gid()) == (after.uid(), after.gid())
            && (before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec())
            && before.rdev() == after.rdev()
            && (!size_matters || before.len() == after.len());
        if !same_metadata || self.base.xattrs(path)? != self.new.xattrs(path)? {
            return Ok(false);
        }
        if after.is_symlink() {
            return Ok(self.base.link_target(path)? == self.new.link_target(path)?);
        }
        if after.is_file() {
            return self.same_content(path, after.len());
        }
        Ok(true)
    }

    /// Compares two files of the same size; ranges that are holes on both sides are not read.
    fn same_content(&mut self, path: &Path, size_bytes: u64) -> Result<bool> {
        let (before, after) = (self.base.open_file(path)?, self.new.open_file(path)?);
        let failed = |root: &Path| {
            let path = root.join(path);
            move |source| TreeError::io("read", &path)(source)
        };
        let mut at = 0;
        loop {
            cancel::check()?;
            let data = [
                extent::next_data(&before, at, size_bytes).map_err(failed(&self.base.root))?,
                extent::next_data(&after, at, size_bytes).map_err(failed(&self.new.root))?,
            ];
            let Some(next) = data.into_iter().flatten().map(|data| data.start).min() else {
                return Ok(true);
            };
            at = next;
            let old = fill(&before, &mut self.buffers.0, at).map_err(failed(&self.base.root))?;
            let new = fill(&after, &mut self.buffers.1, at).map_err(failed(&self.new.root))?;
            if self.buffers.0[..old] != self.buffers.1[..new] {
                return Ok(false);
            }
            if old == 0 {
                return Ok(true);
            }
            at += old as u64;
        }
    }

    /// Marks the names that were one file and are now two, or vice versa: two sides agree about a
    /// name if the first common name of its file is the same on both.
    fn split_and_joined_links(&mut self) {
        // Sorted by bytes, so that the result does not depend on the order of the walk.
        self.linked
            .sort_by(|(a, ..), (b, ..)| a.as_os_str().cmp(b.as_os_str()));
        let first = |pairs: &mut dyn Iterator<Item = (u64, &PathBuf)>| {
            let mut firsts = HashMap::new();
            for (inode, path) in pairs {
                firsts.entry(inode).or_insert_with(|| path.clone());
            }
            firsts
        };
        let before = first(&mut self.linked.iter().map(|(path, inode, _)| (*inode, path)));
        let after = first(&mut self.linked.iter().map(|(path, _, inode)| (*inode, path)));
        for (path, old, new) in &self.linked {
            if before.get(old) != after.get(new) {
                self.changes
                    .entry(path.clone().into())
                    .or_insert(TreeChange::Changed);
            }
        }
    }

    fn whole_link_groups(&mut self) {
        for names in self.names.values() {
            let is_listed = |path: &PathBuf| self.changes.contains_key(&path.clone().into());
            if names.len() > 1 && names.iter().any(is_listed) {
                for path in names {
                    self.changes
                        .entry(path.clone().into())
                        .or_insert(TreeChange::Changed);
                }
            }
        }
    }
}

/// Lists the directories above the listed paths.
pub(crate) fn directories_above(changes: &mut TreeChanges) {
    let listed: Vec<TreePath> = changes.keys().cloned().collect();
    for path in listed {
        let above = path.as_path().ancestors().skip(1);
        for directory in above.filter(|path| !path.as_os_str().is_empty()) {
            let directory = TreePath::from(directory.to_owned());
            match changes.entry(directory) {
                btree_map::Entry::Vacant(entry) => entry.insert(TreeChange::Changed),
                // A listed directory has its own parents listed too.
                btree_map::Entry::Occupied(_) => break,
            };
        }
    }
}

/// Returns true if clones of one file system hold the very same object: every change to an inode
/// updates its change time.
fn is_untouched(before: &Metadata, after: &Metadata) -> bool {
    let identity = |data: &Metadata| {
        let times = (
            data.ctime(),
            data.ctime_nsec(),
            data.mtime(),
            data.mtime_nsec(),
        );
        let owner = (data.mode(), data.uid(), data.gid());
        (
            data.ino(),
            times,
            owner,
            data.len(),
            data.rdev(),
            data.nlink(),
        )
    };
    identity(before) == identity(after)
}

fn has_other_names(metadata: &Metadata) -> bool {
    !metadata.is_dir() && metadata.nlink() > 1
}

/// Reads from `at` until `buffer` is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
