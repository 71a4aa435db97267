//! A root file system in a folder, as a layer stream: sorted, so that the same tree gives the same
//! digest.
//!
//! Other file systems mounted in the folder appear as empty folders, and sockets not at all: a
//! host's `/proc` or a daemon's socket is not part of an image.

use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::limits::COPY_BUFFER_BYTES;
use crate::tree::add_children;
use cowshed_format::base::Cancel;
use nix::fcntl::{FcntlArg, fcntl};
use std::io::{self, BufWriter, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

/// The size of the pipe, in bytes: the maximum that an unprivileged process may request.
const PIPE_BYTES: i32 = 1 << 20;

/// The layer stream of a folder, produced by its own thread while it is read.
pub(super) struct FolderStream {
    pipe: Option<PipeReader>,
    maker: Option<JoinHandle<Result<()>>>,
}

impl FolderStream {
    /// Starts to read `folder`.
    pub(super) fn new(folder: OwnedFd) -> Result<Self> {
        let cancel = Cancel::current();
        let failed = |source| Error::io("start to read the directory", source);
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
                Err(_) => {
                    return Err(io::Error::other(
                        "the thread that reads the directory panicked",
                    ));
                }
            }
        }
        Ok(len)
    }
}

impl Drop for FolderStream {
    fn drop(&mut self) {
        // Without a reader the producer's next write fails, and so the thread ends.
        self.pipe = None;
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}

fn write_folder(folder: &OwnedFd, out: impl Write) -> Result<()> {
    let mut layer = LayerWriter::new(out, Compression::None)?;
    layer.add(folder.as_fd(), b"./")?;
    add_children(&mut layer, folder.as_fd())?;
    let (mut out, _) = layer.finish()?;
    out.flush()
        .map_err(|source| Error::io("write the layer", source))
}
