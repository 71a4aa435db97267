//! A stream that a thread of its own makes while it is read.

use crate::error::{Error, Result};
use crate::limits::COPY_BUFFER_BYTES;
use cowshed_format::base::Cancel;
use nix::fcntl::{FcntlArg, fcntl};
use std::io::{self, BufWriter, PipeReader, PipeWriter, Read, Write};
use std::thread::JoinHandle;

/// The size of the pipe, in bytes: the maximum that an unprivileged process may request.
const PIPE_BYTES: i32 = 1 << 20;

/// The stream; its end is reached only if it was made without an error.
pub(crate) struct MadeStream {
    pipe: Option<PipeReader>,
    maker: Option<JoinHandle<Result<()>>>,
}

impl MadeStream {
    /// Starts a thread in which `make` writes the stream, and returns the writer.
    pub(crate) fn start<F>(make: F) -> Result<Self>
    where
        F: FnOnce(BufWriter<PipeWriter>) -> Result<BufWriter<PipeWriter>> + Send + 'static,
    {
        let cancel = Cancel::current();
        let failed = |source| Error::io("start to read the directory", source);
        let (pipe, writer) = io::pipe().map_err(failed)?;
        // A larger pipe means fewer switches between the two threads; a smaller one works as well.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let maker = std::thread::Builder::new()
            .name("folder".to_owned())
            .spawn(move || {
                let out = BufWriter::with_capacity(COPY_BUFFER_BYTES, writer);
                cancel.during(|| {
                    let mut out = make(out)?;
                    out.flush()
                        .map_err(|source| Error::io("write the layer", source))
                })
            })
            .map_err(failed)?;
        Ok(Self {
            pipe: Some(pipe),
            maker: Some(maker),
        })
    }
}

impl Read for MadeStream {
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

impl Drop for MadeStream {
    fn drop(&mut self) {
        // Without a reader the producer's next write fails, and so the thread ends.
        self.pipe = None;
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}
