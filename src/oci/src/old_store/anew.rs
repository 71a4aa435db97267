//! A layer's tar made anew of the layer's files, where the store keeps nothing of the tar itself: the
//! same files, but not the same bytes.
//!
//! Whiteouts become those of an image: overlayfs has devices and an attribute for them, aufs has names,
//! and a driver that keeps whole trees has none ([`difference`](super::difference)).

use super::difference::add_difference;
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::limits::DEPTH_MAX;
use crate::made_stream::MadeStream;
use crate::tree::{add_children, names};
use cowshed_sys::{beneath, xattr};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The start of the names of whiteouts.
const WHITEOUT: &[u8] = b".wh.";
/// The start of the names that aufs has for itself.
const OF_AUFS: &[u8] = b".wh..wh.";
/// The name that hides everything of the layers below its directory, without the start of a whiteout.
const OPAQUE: &[u8] = b".wh..opq";
/// The starts of overlayfs's attributes: of a mount by root, and of one in a user namespace.
const OVERLAY: [&str; 2] = ["trusted.overlay.", "user.overlay."];

/// The files of a layer.
pub(super) enum Files {
    /// What overlayfs holds above the layers below.
    Overlay(OwnedFd),
    /// What aufs holds above the layers below.
    Aufs(OwnedFd),
    /// All files, and those of the layer below.
    Tree {
        tree: OwnedFd,
        below: Option<OwnedFd>,
    },
}

impl Files {
    /// Returns the layer's tar, made while it is read.
    pub(super) fn into_tar(self) -> Result<MadeStream> {
        MadeStream::start(move |out| {
            let mut layer = LayerWriter::new(out, Compression::None)?;
            let (Self::Overlay(root) | Self::Aufs(root) | Self::Tree { tree: root, .. }) = &self;
            let root = root.as_fd();
            layer.add(root, b"./")?;
            match &self {
                Self::Overlay(_) => add_upper(&mut layer, root, &mut Vec::new(), overlay_entry)?,
                Self::Aufs(_) => add_upper(&mut layer, root, &mut Vec::new(), aufs_entry)?,
                Self::Tree { below: None, .. } => add_children(&mut layer, root)?,
                Self::Tree {
                    below: Some(below), ..
                } => add_difference(&mut layer, root, below.as_fd())?,
            }
            Ok(layer.finish()?.0)
        })
    }
}

/// The meaning of a name in a folder of an overlay.
enum Entry {
    /// An object.
    Object,
    /// A directory that hides what the layers below have in it.
    Opaque,
    /// A whiteout of this path.
    Whiteout(Vec<u8>),
    /// The overlay's own.
    Nothing,
}

/// Tells what the object at a path means.
type Tell = fn(BorrowedFd<'_>, &[u8]) -> Result<Entry>;

/// Adds everything in the directory `path`, with image whiteouts for those of the overlay.
fn add_upper<W: Write>(
    layer: &mut LayerWriter<W>,
    root: BorrowedFd<'_>,
    path: &mut Vec<u8>,
    tell: Tell,
) -> Result<()> {
    let failed = |errno| Error::entry("read the directory", path, errno);
    if path.iter().filter(|byte| **byte == b'/').count() > DEPTH_MAX {
        return Err(failed(Errno::ENAMETOOLONG));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let here = beneath::open_plain(root, path, flags).map_err(failed)?;
    let mut found = names(&here).map_err(failed)?;
    drop(here);
    found.sort();
    let len = path.len();
    for (name, is_directory) in found {
        if len > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let entry = tell(root, path)?;
        match &entry {
            Entry::Nothing => {}
            Entry::Whiteout(path) => layer.whiteout(path)?,
            Entry::Object | Entry::Opaque => {
                layer.add(root, path)?;
                if let Entry::Opaque = entry {
                    layer.whiteout(&[path, b"/".as_slice(), OPAQUE].concat())?;
                }
                if is_directory {
                    add_upper(layer, root, path, tell)?;
                }
            }
        }
        path.truncate(len);
    }
    Ok(())
}

/// Source: the kernel's `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque directories".
fn overlay_entry(root: BorrowedFd<'_>, path: &[u8]) -> Result<Entry> {
    let failed = |source: io::Error| Error::entry("read", path, source);
    let object = beneath::open_plain(root, path, OFlag::O_PATH).map_err(|e| failed(e.into()))?;
    let stat = beneath::stat_itself(&object).map_err(|e| failed(e.into()))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR if stat.st_rdev == 0 => return Ok(Entry::Whiteout(path.to_vec())),
        libc::S_IFREG | libc::S_IFDIR => {}
        _ => return Ok(Entry::Object),
    }
    let mut entry = Entry::Object;
    for name in xattr::list(&object).map_err(failed)? {
        match overlay_attribute(&name) {
            Some("opaque") if xattr::get(&object, &name).map_err(failed)? == b"y" => {
                entry = Entry::Opaque;
            }
            Some("redirect" | "metacopy") => {
                return Err(Error::LayerFile {
                    file: path.into(),
                    fault: "its content is in a layer below (redirect_dir or metacopy of overlayfs)",
                });
            }
            _ => {}
        }
    }
    Ok(entry)
}

/// Returns the name of an attribute of overlayfs without its start.
fn overlay_attribute(name: &CString) -> Option<&str> {
    let name = name.to_str().ok()?;
    OVERLAY.iter().find_map(|start| name.strip_prefix(start))
}

fn aufs_entry(_: BorrowedFd<'_>, path: &[u8]) -> Result<Entry> {
    let start = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at(start);
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(Entry::Object);
    };
    Ok(if hidden == OPAQUE || !name.starts_with(OF_AUFS) {
        Entry::Whiteout([parent, hidden].concat())
    } else {
        Entry::Nothing
    })
}
