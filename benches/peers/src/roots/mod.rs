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

/// What makes roots.
pub(crate) trait Peer {
    /// One or two words, with which `--peer` finds it.
    fn name(&self) -> &str;

    /// What it is, for the report.
    fn what(&self) -> String;

    /// Why it cannot be had here.
    fn missing(&self) -> Option<String>;

    /// Makes it ready in a new folder, for so many bytes of images and roots.
    ///
    /// # Errors
    /// When it cannot be made.
    fn open(&self, folder: PathBuf, bytes: u64) -> anyhow::Result<Box<dyn Roots>>;
}

/// Images and roots, all of which go when it is dropped.
pub(crate) trait Roots {
    /// Unpacks an image, durably.
    ///
    /// # Errors
    /// When it cannot.
    fn unpack(&mut self, image: &str, tar: &Path) -> anyhow::Result<()>;

    /// Makes a root of an image, and says where it is mounted.
    ///
    /// # Errors
    /// When it cannot.
    fn create(&mut self, image: &str, root: &str) -> anyhow::Result<PathBuf>;

    /// Unmounts a root and removes it.
    ///
    /// # Errors
    /// When it cannot.
    fn remove(&mut self, root: &str) -> anyhow::Result<()>;

    /// The paths that a root changed, relative to it.
    ///
    /// # Errors
    /// When it cannot.
    fn changes(&mut self, image: &str, root: &str) -> anyhow::Result<Vec<PathBuf>>;

    /// Makes a layer of what a root changed, durably; `changed` is what `changes` said.
    ///
    /// # Errors
    /// When it cannot.
    fn commit(&mut self, root: &str, changed: &[PathBuf]) -> anyhow::Result<()>;

    /// Finishes what goes on in the background, and gives the host what is free.
    ///
    /// # Errors
    /// When it cannot.
    fn settle(&mut self) -> anyhow::Result<()>;

    /// What the host gives for all of it.
    ///
    /// # Errors
    /// When that cannot be read.
    fn host_bytes(&self) -> anyhow::Result<u64>;
}

/// All peers, in the order of the report.
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

/// Two builds of cowshed, and nothing else.
pub(crate) fn builds(before: &Path, after: &Path) -> Vec<Box<dyn Peer>> {
    Build::compared(before, after)
        .into_iter()
        .map(|(name, build)| -> Box<dyn Peer> { Box::new(cowshed::Cowshed::new(name, build)) })
        .collect()
}
