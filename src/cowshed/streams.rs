//! The streams of a command, which may be pipes whose other end is not served: reading, writing and
//! opening them ends when the command is cancelled.
//!
//! # Invariants
//! - The flags of the caller's open files do not change: other processes share them.

use cowshed_format::base::Cancel;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The interval at which a command that waits for the other end checks whether it was cancelled.
const CANCEL_POLL_MS: u16 = 100;
/// Number of bytes that a writable pipe takes without blocking: one page, `PIPE_BUF`.
const PIECE_BYTES: usize = 4096;
/// The length of a pipe through which much goes: the largest that a user may ask for by default.
const PIPE_BYTES: i32 = 1 << 20;
/// The major number of `/dev/null` and its like, on which writing never waits.
const MEMORY_DEVICES: u32 = 1;

/// An input of a command, read until its end or until the command is cancelled.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    cancel: Cancel,
    /// True once a pipe was made longer, if that is possible.
    is_wide: bool,
}

impl Input {
    /// Returns `file` as an input of the command that `cancel` cancels.
    #[must_use]
    pub(super) const fn new(file: File, cancel: Cancel) -> Self {
        Self {
            file,
            cancel,
            is_wide: false,
        }
    }

    /// Opens the file, pipe or device at `path`.
    ///
    /// # Errors
    /// The host's error.
    pub(super) fn open(path: &Path, cancel: &Cancel) -> io::Result<Self> {
        // Opening a named pipe would wait for its writer; instead, reading waits.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits())
            .open(path)?;
        Ok(Self::new(file, cancel.clone()))
    }

    /// Returns the underlying file, for one who waits in another way.
    #[must_use]
    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// Returns the underlying file.
    #[must_use]
    pub(super) const fn file(&self) -> &File {
        &self.file
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.is_wide && buf.len() > PIECE_BYTES {
            self.is_wide = true;
            widen(&self.file);
        }
        loop {
            wait(&self.file, PollFlags::POLLIN, &self.cancel)?;
            match self.file.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

/// An output of a command, written until the command is cancelled.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    cancel: Cancel,
    /// True if writing may have to wait for a reader.
    may_wait: bool,
    /// The pipe that `file` is, opened for this command alone; see `opened_again`.
    pipe: Pipe,
}

/// A pipe that an output is.
#[derive(Debug)]
enum Pipe {
    /// Nothing long was written yet.
    Unknown,
    /// It takes as many bytes at a time as fit, and never blocks.
    Own(File),
    /// It is none, or cannot be opened again: only a page at a time is sure not to block.
    Shared,
}

impl Output {
    /// Returns `file` as an output of the command that `cancel` cancels.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn new(file: &File, cancel: &Cancel) -> io::Result<Self> {
        let found = file.metadata()?;
        let kind = found.file_type();
        let is_memory = kind.is_char_device() && libc::major(found.rdev()) == MEMORY_DEVICES;
        Ok(Self {
            file: file.try_clone()?,
            cancel: cancel.clone(),
            may_wait: !kind.is_file() && !kind.is_block_device() && !is_memory,
            pipe: Pipe::Unknown,
        })
    }

    /// Opens the existing pipe or device at `path` for writing; waits for a reader of a named pipe.
    /// A block device must not be in use.
    ///
    /// # Errors
    /// The host's error; that the command was cancelled; that a block device is mounted or
    /// otherwise in use.
    pub(super) fn open(path: &Path, cancel: &Cancel) -> io::Result<File> {
        let mut options = File::options();
        let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        if is_block_device(path) {
            // The kernel refuses the open while the device is mounted or claimed by a volume
            // manager.
            flags |= OFlag::O_EXCL;
        }
        options.write(true).custom_flags(flags.bits());
        loop {
            cancel.check()?;
            match options.open(path) {
                Err(error)
                    if error.raw_os_error() == Some(libc::ENXIO)
                        && path
                            .metadata()
                            .is_ok_and(|found| found.file_type().is_fifo()) =>
                {
                    thread::sleep(Duration::from_millis(CANCEL_POLL_MS.into()));
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    let why = "it is mounted or otherwise in use; nothing was written";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
                }
                opened => return opened,
            }
        }
    }
}

pub(super) fn is_block_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.file_type().is_block_device())
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.may_wait {
            self.cancel.check()?;
            return self.file.write(buf);
        }
        if matches!(self.pipe, Pipe::Unknown) && buf.len() > PIECE_BYTES {
            self.pipe = opened_again(&self.file);
        }
        let (mut file, most) = match &self.pipe {
            Pipe::Own(pipe) => (pipe, buf.len()),
            Pipe::Unknown | Pipe::Shared => (&self.file, buf.len().min(PIECE_BYTES)),
        };
        loop {
            wait(file, PollFlags::POLLOUT, &self.cancel)?;
            match file.write(&buf[..most]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens the pipe `file` once more, so that writes to it do not block. The flag for that belongs to
/// the open file, and the caller's is shared with other processes.
fn opened_again(file: &File) -> Pipe {
    let is_pipe = file
        .metadata()
        .is_ok_and(|found| found.file_type().is_fifo());
    if !is_pipe {
        return Pipe::Shared;
    }
    let opened = File::options()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Another user's pipe may not be opened, and one without a reader cannot be.
    opened.map_or(Pipe::Shared, |pipe| {
        widen(&pipe);
        Pipe::Own(pipe)
    })
}

/// Makes a pipe longer, so that both ends have to be woken less often.
fn widen(file: &File) {
    if fcntl(file, FcntlArg::F_GETPIPE_SZ).is_ok_and(|len| len < PIPE_BYTES) {
        // It fails once the pipes of a user have as many pages as they may.
        let _ = fcntl(file, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    }
}

/// Waits until `file` is ready or the command is cancelled.
fn wait(file: &File, events: PollFlags, cancel: &Cancel) -> io::Result<()> {
    loop {
        cancel.check()?;
        let mut fds = [PollFd::new(file.as_fd(), events)];
        match poll(&mut fds, PollTimeout::from(CANCEL_POLL_MS)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::Cancelled;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::path::PathBuf;

    /// Runs `act` on another thread and cancels it once it has begun; returns its error.
    fn cancelled(act: impl FnOnce(Cancel) -> io::Error + Send + 'static) -> io::Error {
        let cancel = Cancel::default();
        let (begun, begins) = std::sync::mpsc::channel();
        let token = cancel.clone();
        let waiting = thread::spawn(move || {
            begun.send(()).unwrap();
            act(token)
        });
        begins.recv().unwrap();
        cancel.cancel();
        waiting.join().unwrap()
    }

    fn is_cancelled(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Cancelled>())
    }

    fn named_pipe() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        (folder, path)
    }

    #[test]
    fn waiting_for_input_ends_when_the_command_is_cancelled() {
        let (reader, _writer) = io::pipe().unwrap();
        let error = cancelled(|cancel| {
            let file = std::os::fd::OwnedFd::from(reader).into();
            Input::new(file, cancel).read(&mut [0; 16]).unwrap_err()
        });
        assert!(is_cancelled(&error), "{error}");
    }

    #[test]
    fn writing_to_a_pipe_that_nobody_reads_ends_when_the_command_is_cancelled() {
        let (_reader, writer) = io::pipe().unwrap();
        let error = cancelled(|cancel| {
            let file = std::os::fd::OwnedFd::from(writer).into();
            let mut output = Output::new(&file, &cancel).unwrap();
            output.write_all(&vec![0; 8 << 20]).unwrap_err()
        });
        assert!(is_cancelled(&error), "{error}");
    }

    #[test]
    fn opening_a_named_pipe_ends_when_the_command_is_cancelled() {
        let (_folder, path) = named_pipe();
        let to = path.clone();
        let error = cancelled(move |cancel| Output::open(&to, &cancel).unwrap_err());
        assert!(is_cancelled(&error), "{error}");
        let error = cancelled(move |cancel| {
            let mut input = Input::open(&path, &cancel).unwrap();
            input.read(&mut [0]).unwrap_err()
        });
        assert!(is_cancelled(&error), "{error}");
    }

    #[test]
    fn all_bytes_go_through_a_named_pipe() {
        let (_folder, path) = named_pipe();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (to, sent) = (path.clone(), bytes.clone());
        let writer = thread::spawn(move || {
            let file = Output::open(&to, &Cancel::default()).unwrap();
            Output::new(&file, &Cancel::default())
                .unwrap()
                .write_all(&sent)
                .unwrap();
        });
        let mut received = Vec::new();
        let mut input = Input::open(&path, &Cancel::default()).unwrap();
        input.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == bytes);
    }
}
