//! A root file system in a folder, as the layer stream that it makes: sorted, so that the same tree
//! gives the same digest.
//!
//! Other file systems mounted in the folder appear as empty folders, and sockets not at all: a
//! host's `/proc` or a daemon's socket is no part of an image.

use crate::base::Cancel;
use crate::oci::compression::Compression;
use crate::oci::error::{Error, Result};
use crate::oci::layer::LayerWriter;
use crate::oci::limits::{COPY_BUFFER_BYTES, DEPTH_MAX};
use crate::sys::beneath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use std::io::{self, BufWriter, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

/// The most that a pipe holds, in bytes: what an unprivileged process may ask for.
const PIPE_BYTES: i32 = 1 << 20;

/// The layer stream of a folder, made by a thread of its own while it is read.
pub(super) struct FolderStream {
    pipe: Option<PipeReader>,
    maker: Option<JoinHandle<Result<()>>>,
}

impl FolderStream {
    /// Starts to read `folder`.
    pub(super) fn new(folder: OwnedFd) -> Result<Self> {
        let cancel = Cancel::current();
        let failed = |source| Error::io("start to read the folder", source);
        let (pipe, writer) = io::pipe().map_err(failed)?;
        // A larger pipe means fewer switches between the two threads; a smaller one works as well.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let maker = std::thread::Builder::new()
            .name("folder".to_owned())
            .spawn(move || {
                let out = BufWriter::with_capacity(COPY_BUFFER_BYTES, writer);
                cancel.during(|| write_folder(&folder, out))
            })
            .map_err(failed)?;
        Ok(Self {
            pipe: Some(pipe),
            maker: Some(maker),
        })
    }
}

impl Read for FolderStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match &mut self.pipe {
            Some(pipe) => pipe.read(buffer)?,
            None => 0,
        };
        if len == 0
            && !buffer.is_empty()
            && let Some(maker) = self.maker.take()
        {
            match maker.join() {
                Ok(answer) => answer?,
                Err(_) => return Err(io::Error::other("reading the folder came to a sudden end")),
            }
        }
        Ok(len)
    }
}

impl Drop for FolderStream {
    fn drop(&mut self) {
        // Without a reader the maker's next write fails, and so the thread ends.
        self.pipe = None;
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}

fn write_folder(folder: &OwnedFd, out: impl Write) -> Result<()> {
    let stat = beneath::stat_itself(folder)
        .map_err(|errno| Error::io("look at the folder", errno.into()))?;
    let mut layer = LayerWriter::new(out, Compression::None)?;
    layer.add(folder.as_fd(), b"./")?;
    write_children(folder, &mut layer, &mut Vec::new(), stat.st_dev, 0)?;
    let (mut out, _) = layer.finish()?;
    out.flush()
        .map_err(|source| Error::io("write the layer", source))
}

fn write_children<W: Write>(
    folder: &OwnedFd,
    layer: &mut LayerWriter<W>,
    path: &mut Vec<u8>,
    device: u64,
    depth: usize,
) -> Result<()> {
    let failed = |path: &[u8], errno| Error::entry("read the folder", path, errno);
    if depth > DEPTH_MAX {
        return Err(failed(path, Errno::ENAMETOOLONG));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let here = beneath::open_plain(folder.as_fd(), path, flags).map_err(|e| failed(path, e))?;
    let at = beneath::stat_itself(&here).map_err(|e| failed(path, e))?;
    if at.st_dev != device {
        return Ok(());
    }
    let mut names = names(&here).map_err(|errno| failed(path, errno))?;
    drop(here);
    names.sort();
    let parent_len = path.len();
    for (name, is_directory) in names {
        if parent_len > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        layer.add(folder.as_fd(), path)?;
        if is_directory {
            write_children(folder, layer, path, device, depth + 1)?;
        }
        path.truncate(parent_len);
    }
    Ok(())
}

/// The names in a directory, and which of them are directories.
fn names(directory: &OwnedFd) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
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
            None => {
                let object = beneath::open_plain(directory.as_fd(), name, OFlag::O_PATH)?;
                let mode = beneath::stat_itself(object)?.st_mode;
                mode & libc::S_IFMT == libc::S_IFDIR
            }
        };
        names.push((name.to_vec(), is_directory));
    }
    Ok(names)
}
