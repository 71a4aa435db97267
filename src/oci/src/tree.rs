//! Writing a tree of files as the entries of a layer, sorted, so that the same tree gives the same
//! bytes.

use super::error::{Error, Result};
use super::layer::LayerWriter;
use super::limits::DEPTH_MAX;
use cowshed_sys::beneath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An object by its path beneath a root, and its name in the layer.
#[derive(Clone, Debug, Default)]
struct Place {
    path: Vec<u8>,
    name: Vec<u8>,
}

/// Adds the object at `path` beneath `root`, with everything in it, under `name`. An empty path is
/// the root itself.
///
/// # Errors
/// As [`LayerWriter::add`].
pub fn add_tree<W: Write>(
    layer: &mut LayerWriter<W>,
    root: BorrowedFd<'_>,
    path: &[u8],
    name: &[u8],
) -> Result<()> {
    let place = Place {
        path: path.to_vec(),
        name: name.to_vec(),
    };
    layer.add_as(root, path, name)?;
    if is_directory(root, path).map_err(|errno| Error::entry("inspect", name, errno))? {
        children(layer, root, place, None, 0)?;
    }
    Ok(())
}

/// Adds everything in the directory `root`; a mount point in it becomes an empty folder.
///
/// # Errors
/// As [`LayerWriter::add`].
pub(super) fn add_children<W: Write>(
    layer: &mut LayerWriter<W>,
    root: BorrowedFd<'_>,
) -> Result<()> {
    let failed = |errno: Errno| Error::io("inspect the directory", errno.into());
    let device = beneath::stat_itself(root).map_err(failed)?.st_dev;
    children(layer, root, Place::default(), Some(device), 0)
}

fn children<W: Write>(
    layer: &mut LayerWriter<W>,
    root: BorrowedFd<'_>,
    mut place: Place,
    device: Option<u64>,
    depth: usize,
) -> Result<()> {
    let failed = |errno| Error::entry("read the directory", &place.path, errno);
    if depth > DEPTH_MAX {
        return Err(failed(Errno::ENAMETOOLONG));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let here = beneath::open_plain(root, &place.path, flags).map_err(failed)?;
    let at = beneath::stat_itself(&here).map_err(failed)?;
    if device.is_some_and(|device| device != at.st_dev) {
        return Ok(());
    }
    let mut names = names(&here).map_err(failed)?;
    drop(here);
    names.sort();
    let lens = (place.path.len(), place.name.len());
    for (child, is_directory) in names {
        for text in [&mut place.path, &mut place.name] {
            if !text.is_empty() {
                text.push(b'/');
            }
            text.extend_from_slice(&child);
        }
        layer.add_as(root, &place.path, &place.name)?;
        if is_directory {
            children(layer, root, place.clone(), device, depth + 1)?;
        }
        place.path.truncate(lens.0);
        place.name.truncate(lens.1);
    }
    Ok(())
}

fn is_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<bool, Errno> {
    let object = beneath::open_plain(root, path, OFlag::O_PATH)?;
    let mode = beneath::stat_itself(object)?.st_mode;
    Ok(mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Returns the names in a directory, and whether each is a directory.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            Some(kind) => kind == nix::dir::Type::Directory,
            None => is_directory(directory.as_fd(), name)?,
        };
        names.push((name.to_vec(), is_directory));
    }
    Ok(names)
}
