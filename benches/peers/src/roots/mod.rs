//! Roots of containers: each peer unpacks the same images onto the same backing, and makes writable
//! roots of them.

mod compare;
mod copies;
mod cowshed;
mod images;
mod loads;
mod overlay;
mod work;

pub(crate) use work::{run, works};

use crate::service::{Build, RINGS};
use std::path::{Path, PathBuf};

/// A maker of roots.
pub(crate) trait Peer {
    /// Returns one or two words, with which `--peer` finds it.
    fn name(&self) -> &str;

    /// Returns its description, for the report.
    fn what(&self) -> String;

    /// Returns the reason why it is unavailable here.
    fn missing(&self) -> Option<String>;

    /// Prepares it in a new folder, for this number of bytes of images and roots.
    ///
    /// # Errors
    /// When it cannot be prepared.
    fn open(&self, folder: PathBuf, bytes: u64) -> anyhow::Result<Box<dyn Roots>>;
}

/// Images and roots, all of which are removed on drop.
pub(crate) trait Roots {
    /// Unpacks an image, durably.
    ///
    /// # Errors
    /// When that fails.
    fn unpack(&mut self, image: &str, tar: &Path) -> anyhow::Result<()>;

    /// Makes a root of an image, and returns its mount point.
    ///
    /// # Errors
    /// When that fails.
    fn create(&mut self, image: &str, root: &str) -> anyhow::Result<PathBuf>;

    /// Unmounts a root and removes it.
    ///
    /// # Errors
    /// When that fails.
    fn remove(&mut self, root: &str) -> anyhow::Result<()>;

    /// Returns the paths that a root changed, relative to it.
    ///
    /// # Errors
    /// When that fails.
    fn changes(&mut self, image: &str, root: &str) -> anyhow::Result<Vec<PathBuf>>;

    /// Makes a layer of a root's changes, durably; `changed` is the result of `changes`.
    ///
    /// # Errors
    /// When that fails.
    fn commit(&mut self, root: &str, changed: &[PathBuf]) -> anyhow::Result<()>;

    /// Finishes background work, and returns free space to the host.
    ///
    /// # Errors
    /// When that fails.
    fn settle(&mut self) -> anyhow::Result<()>;

    /// Returns the space of the host that everything takes.
    ///
    /// # Errors
    /// When that cannot be read.
    fn host_bytes(&self) -> anyhow::Result<u64>;
}

/// Returns all peers, in the order of the report.
pub(crate) fn peers(program: &Path) -> Vec<Box<dyn Peer>> {
    let rings = Build::new(program, &["--fuse", RINGS]);
    vec![
        Box::new(cowshed::Cowshed::new("cowshed", Build::new(program, &[]))),
        Box::new(cowshed::Cowshed::new("cowshed (io-uring)", rings)),
        Box::new(overlay::Overlay),
        Box::new(copies::Copies::plain()),
        Box::new(copies::Copies::reflink()),
        Box::new(copies::Copies::btrfs()),
    ]
}

/// Returns two builds of cowshed, and nothing else.
pub(crate) fn builds(before: &Path, after: &Path) -> Vec<Box<dyn Peer>> {
    Build::compared(before, after)
        .into_iter()
        .map(|(name, build)| -> Box<dyn Peer> { Box::new(cowshed::Cowshed::new(name, build)) })
        .collect()
}
