//! A folder that stands for `/`, from which no path leads out.

use super::steps::with_suffix;
use super::{KEPT, Present};
use anyhow::Context;
use cowshed_format::base::printable_path;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// No file of configuration is longer.
const BYTES_MAX: u64 = 1 << 20;
/// The symbolic links that are followed on the way to a file, as the kernel does.
const LINKS_MAX: u32 = 40;

/// The folder that stands for `/`.
#[derive(Clone, Debug)]
pub(in crate::setup) struct Root(PathBuf);

impl Root {
    pub(in crate::setup) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Returns true if it is this host's own.
    pub(in crate::setup) fn is_host(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Returns true if something has this path, as seen from inside.
    pub(in crate::setup) fn has(&self, path: &str) -> bool {
        self.place(Path::new(path))
            .is_ok_and(|place| place.exists())
    }

    /// Returns the text of a file; `None` if there is none.
    ///
    /// # Errors
    /// When it is no text, or cannot be read.
    pub(in crate::setup) fn read(&self, path: &Path) -> anyhow::Result<Option<String>> {
        let place = self.place(path).with_context(|| printable_path(path))?;
        read(&place).with_context(|| printable_path(path))
    }

    /// Returns the place on this host of a path inside, with all symbolic links resolved inside. A
    /// rest that does not exist is appended.
    ///
    /// # Errors
    /// `ELOOP`.
    pub(super) fn place(&self, path: &Path) -> io::Result<PathBuf> {
        let mut left: VecDeque<OsString> = names(path).collect();
        let mut inside: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                inside.pop();
                continue;
            }
            inside.push(name);
            let place = self.join(&inside);
            let Ok(target) = fs::read_link(&place) else {
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            inside.pop();
            if target.is_absolute() {
                inside.clear();
            }
            names(&target).rev().for_each(|name| left.push_front(name));
        }
        Ok(self.join(&inside))
    }

    fn join(&self, inside: &[OsString]) -> PathBuf {
        inside
            .iter()
            .fold(self.0.clone(), |path, name| path.join(name))
    }

    /// Returns the path inside of a place on this host.
    pub(super) fn inside(&self, place: &Path) -> PathBuf {
        let inside = place.strip_prefix(&self.0).unwrap_or(place);
        Path::new("/").join(inside)
    }

    /// Returns a file as it is.
    ///
    /// # Errors
    /// When it is no text, or cannot be read.
    pub(super) fn present(&self, path: &Path) -> anyhow::Result<Present> {
        let place = self.place(path)?;
        let kept = read(&with_suffix(&place, KEPT))?;
        Ok(Present {
            text: read(&place)?,
            metadata: fs::metadata(&place).ok(),
            kept,
            place,
        })
    }
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}

fn read(place: &Path) -> io::Result<Option<String>> {
    // A pipe or a device would be waited for. Links were followed before.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(place);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(io::Error::other("it is not a file of configuration"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}
