//! The files of a layout or archive, by path: in a folder, or in a seekable tar file.

use crate::error::{Error, Part, Printable, Result};
use crate::limits::{MEMBER_LINKS_MAX, MEMBERS_MAX, READ_BUFFER_BYTES, TOP_NAMES_MAX};
use crate::old_store::Budget;
use crate::tarball::{Kind, TarReader};
use cowshed_format::base::cancel;
use cowshed_sys::beneath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The maximum length of the path of a document or blob; a longer path belongs to a root file
/// system.
const MEMBER_PATH_BYTES_MAX: usize = 512;

/// Files by path, below one folder of the input.
pub(super) struct Blobs {
    files: Files,
    /// The folder, with a slash at its end; empty for the top.
    prefix: Vec<u8>,
    /// What is left for documents, if they are those of many images.
    budget: Option<Budget>,
}

enum Files {
    Folder(OwnedFd),
    Archive(Archive),
}

/// A name at the top of the files.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TopName {
    pub(super) name: Vec<u8>,
    pub(super) is_folder: bool,
}

/// A tar file's members.
pub(super) struct Archive {
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    Data {
        offset_bytes: u64,
        len_bytes: u64,
    },
    /// A link to another member, by its path.
    Link(Vec<u8>),
}

/// An open blob.
pub(super) struct Blob {
    pub(super) size_bytes: u64,
    pub(super) content: Box<dyn Read + Send>,
}

impl Blobs {
    pub(super) const fn folder(folder: OwnedFd) -> Self {
        Self {
            files: Files::Folder(folder),
            prefix: Vec::new(),
            budget: None,
        }
    }

    /// Returns the same files, whose documents count in `budget`.
    pub(super) fn within(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Reads the headers of all members. An archive with more members than an image can have is a
    /// root file system, and the excess ones are ignored.
    pub(super) fn archive(file: File) -> Result<Self> {
        let failed = |source| Error::io("read the image", source);
        let size_bytes = file.metadata().map_err(failed)?.len();
        let file = Arc::new(file);
        let window = Window::new(file.try_clone().map_err(failed)?, 0, u64::MAX);
        let mut reader = TarReader::new(BufReader::with_capacity(READ_BUFFER_BYTES, window));
        let mut members = HashMap::new();
        while let Some(entry) = reader.next_entry_seeking()? {
            cancel::check()?;
            let (offset_bytes, len_bytes) = reader.data_place();
            if offset_bytes
                .checked_add(len_bytes)
                .is_none_or(|end| end > size_bytes)
            {
                return Err(Error::Archive(io::ErrorKind::UnexpectedEof.into()));
            }
            let Some(path) = lexical(&[], &entry.path) else {
                continue;
            };
            let parent = path
                .iter()
                .rposition(|byte| *byte == b'/')
                .map_or(0, |slash| slash);
            let member = match entry.kind {
                Kind::File if entry.size_bytes == len_bytes => Some(Member::Data {
                    offset_bytes,
                    len_bytes,
                }),
                Kind::Symlink => lexical(&path[..parent], &entry.link).map(Member::Link),
                Kind::HardLink => lexical(&[], &entry.link).map(Member::Link),
                _ => None,
            };
            if let Some(member) = member {
                members.insert(path, member);
            }
            if members.len() > MEMBERS_MAX {
                break;
            }
        }
        Ok(Self {
            files: Files::Archive(Archive { file, members }),
            prefix: Vec::new(),
            budget: None,
        })
    }

    /// Returns the same files, relative to the folder `name` at their top.
    pub(super) fn below(mut self, name: &[u8]) -> Self {
        self.prefix.extend_from_slice(name);
        self.prefix.push(b'/');
        self
    }

    /// Returns the names at the top, sorted: a bounded number of them, enough to detect the form.
    pub(super) fn top_names(&self) -> Result<Vec<TopName>> {
        let mut names = match &self.files {
            Files::Folder(folder) => top_of_folder(folder, &self.prefix)?,
            Files::Archive(archive) => archive.top_names(&self.prefix),
        };
        names.sort();
        Ok(names)
    }

    /// Returns true if the folder `path`, with a slash at its end, contains a name for which `fits`
    /// returns true.
    pub(super) fn has_name_below(&self, path: &[u8], fits: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let path = [&self.prefix, path].concat();
        let names = match &self.files {
            Files::Folder(folder) => match top_of_folder(folder, &path) {
                Ok(names) => names,
                Err(Error::Entry { .. }) => return Ok(false),
                Err(error) => return Err(error),
            },
            Files::Archive(archive) => archive.top_names(&path),
        };
        Ok(names.iter().any(|name| fits(&name.name)))
    }

    /// Returns the file at `path`; `None` if there is none.
    pub(super) fn find(&self, path: &[u8]) -> Result<Option<Blob>> {
        let path = [&self.prefix, path].concat();
        match &self.files {
            Files::Folder(folder) => find_in_folder(folder, &path),
            Files::Archive(archive) => archive.find(&path),
        }
    }

    /// Returns the file at `path`, which is the part `what` and must exist.
    pub(super) fn open(&self, path: &[u8], what: Part) -> Result<Blob> {
        self.find(path)?.ok_or_else(|| Error::Missing {
            what,
            name: Printable::from(path),
        })
    }

    /// Returns the whole document at `path`; `None` if there is none.
    pub(super) fn document(&self, path: &[u8], what: Part, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.find(path)? else {
            return Ok(None);
        };
        if blob.size_bytes > max {
            return Err(Error::Document {
                what,
                fault: "it is too large",
            });
        }
        let mut bytes = Vec::new();
        if let Some(budget) = &self.budget {
            let len_bytes = usize::try_from(blob.size_bytes).unwrap_or(usize::MAX);
            budget.take(&String::from_utf8_lossy(path), len_bytes)?;
        }
        blob.content
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(Error::archive)?;
        Ok(Some(bytes))
    }
}

impl Archive {
    fn top_names(&self, prefix: &[u8]) -> Vec<TopName> {
        let mut found: HashMap<&[u8], bool> = HashMap::new();
        for path in self.members.keys() {
            let Some(rest) = path.strip_prefix(prefix) else {
                continue;
            };
            let slash = rest.iter().position(|byte| *byte == b'/');
            let name = &rest[..slash.unwrap_or(rest.len())];
            if found.len() < TOP_NAMES_MAX || found.contains_key(name) {
                *found.entry(name).or_default() |= slash.is_some();
            }
        }
        let names = found.into_iter();
        names
            .map(|(name, is_folder)| TopName {
                name: name.to_vec(),
                is_folder,
            })
            .collect()
    }

    fn find(&self, path: &[u8]) -> Result<Option<Blob>> {
        let mut path = path;
        for _ in 0..MEMBER_LINKS_MAX {
            match self.members.get(path) {
                None => return Ok(None),
                Some(Member::Link(target)) => path = target,
                Some(Member::Data {
                    offset_bytes,
                    len_bytes,
                }) => {
                    let file = self
                        .file
                        .try_clone()
                        .map_err(|e| Error::io("read the image", e))?;
                    let content = Box::new(Window::new(file, *offset_bytes, *len_bytes));
                    return Ok(Some(Blob {
                        size_bytes: *len_bytes,
                        content,
                    }));
                }
            }
        }
        Ok(None)
    }
}

/// Returns the names in the folder `path` beneath `folder`.
fn top_of_folder(folder: &OwnedFd, path: &[u8]) -> Result<Vec<TopName>> {
    let failed = |errno| Error::entry("read the directory", path, errno);
    let path = if path.is_empty() {
        b".".as_slice()
    } else {
        path
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let here = beneath::open_in_root(folder.as_fd(), path, flags).map_err(failed)?;
    let mut listing = Dir::from_fd(here).map_err(failed)?;
    let mut names = Vec::new();
    for entry in listing.iter().take(TOP_NAMES_MAX) {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(TopName {
                name: name.to_vec(),
                is_folder: entry.file_type() == Some(nix::dir::Type::Directory),
            });
        }
    }
    Ok(names)
}

/// Opens a regular file beneath the folder; symbolic links may lead to other places inside the
/// folder. What is none is not even opened: opening a device does things.
fn find_in_folder(folder: &OwnedFd, path: &[u8]) -> Result<Option<Blob>> {
    let object = match beneath::open_in_root(folder.as_fd(), path, OFlag::O_PATH) {
        Ok(object) => object,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(Error::entry("open", path, errno)),
    };
    let inspected = |errno: Errno| Error::entry("inspect", path, errno);
    let stat = beneath::stat_itself(&object).map_err(inspected)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(None);
    }
    let file =
        beneath::reopen_to_read(&object).map_err(|errno| Error::entry("open", path, errno))?;
    Ok(Some(Blob {
        size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
        content: Box::new(File::from(file)),
    }))
}

/// Returns `path` relative to `base`, without `.`, `..` and empty components; `None` if it leads
/// outside or is longer than any path of an image.
pub(super) fn lexical(base: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let base = if path.starts_with(b"/") {
        &[][..]
    } else {
        base
    };
    let mut components: Vec<&[u8]> = Vec::new();
    for part in base
        .split(|byte| *byte == b'/')
        .chain(path.split(|byte| *byte == b'/'))
    {
        match part {
            b"" | b"." => {}
            b".." => drop(components.pop()?),
            _ => components.push(part),
        }
    }
    let joined = components.join(&b'/');
    (!joined.is_empty() && joined.len() <= MEMBER_PATH_BYTES_MAX).then_some(joined)
}

/// A section of a file as a stream of its own, which shares no position with others.
pub(super) struct Window {
    file: File,
    offset_bytes: u64,
    left_bytes: u64,
}

impl Window {
    pub(super) const fn new(file: File, offset_bytes: u64, len_bytes: u64) -> Self {
        Self {
            file,
            offset_bytes,
            left_bytes: len_bytes,
        }
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer
            .len()
            .min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        let len = self.file.read_at(&mut buffer[..want], self.offset_bytes)?;
        let len_bytes = u64::try_from(len).map_err(io::Error::other)?;
        self.offset_bytes = self.offset_bytes.saturating_add(len_bytes);
        self.left_bytes -= len_bytes;
        Ok(len)
    }
}

impl io::Seek for Window {
    /// Supports only relative forward steps, which suffice to skip data.
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let io::SeekFrom::Current(step) = to else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let offset = self.offset_bytes.checked_add_signed(step);
        self.offset_bytes = offset.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    #[test]
    fn a_device_in_the_place_of_a_blob_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        // There is no driver for it: opening it would be an error.
        let device = makedev(10, 250);
        let path = folder.path().join("device");
        mknod(&path, SFlag::S_IFCHR, Mode::S_IRWXU, device).unwrap();
        assert!(File::open(&path).is_err());
        std::fs::write(folder.path().join("file"), "text").unwrap();
        let blobs = Blobs::folder(File::open(folder.path()).unwrap().into());
        assert!(blobs.find(b"device").unwrap().is_none());
        assert_eq!(blobs.find(b"file").unwrap().unwrap().size_bytes, 4);
    }
}
