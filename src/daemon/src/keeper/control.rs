//! The messages between a worker and its keeper: lines of JSON, some with a descriptor.

use super::inherited_fds::Serving;
use cowshed_sys::descriptors;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest line: the arguments of a command line, where JSON may need four bytes for one.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The number of bytes read at once.
const PIECE_BYTES: usize = 4096;
/// The longest reason for a failure, for which JSON may need six times as many bytes.
const REASON_CHARS_MAX: usize = 500;
/// The time that a worker waits until the keeper has closed a file.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// A message from a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The worker serves, and takes commands and signals.
    Ready,
    /// The program whose file is passed along is to take over, started with these arguments.
    Prepare {
        /// The bytes of each.
        arguments: Vec<Vec<u8>>,
    },
    /// The worker runs another program, has read the pool, and waits for `ToWorker::Start`.
    Prepared,
    /// The volumes are served; the remaining services follow.
    ServesVolumes,
    /// The reply to `ToWorker::Ping`: the worker's engine works.
    Alive,
    /// The worker has opened and locked the file at this path, which is passed along, as a side.
    SideAdded {
        /// The bytes of the path.
        path: Vec<u8>,
    },
    /// All that the side at this path lacks is about to be copied to it.
    SideJoins {
        /// The bytes of the path.
        path: Vec<u8>,
    },
    /// What is at this path is no side any more. A descriptor is passed along that the keeper
    /// closes once it has closed the side's file.
    SideRemoved {
        /// The bytes of the path.
        path: Vec<u8>,
    },
    /// The worker ends on purpose, and leaves everything to the program that was prepared.
    HandedOver,
    /// The worker ends on purpose.
    Ended,
    /// The worker cannot go on, for this reason.
    Failed(String),
}

impl Message {
    /// Returns true if a descriptor comes with it.
    const fn has_descriptor(&self) -> bool {
        matches!(
            self,
            Self::Prepare { .. } | Self::SideAdded { .. } | Self::SideRemoved { .. }
        )
    }
}

/// A message from a keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// To a worker that has sent `Prepared`: no other worker serves any more, so start.
    Start(Serving),
    /// To the worker that serves: the next worker is prepared; leave everything to it.
    HandOver,
    /// The processes that serve the pool have changed.
    Serving(Serving),
    /// Stop in order; a second `Stop` means at once.
    Stop,
    /// Reply with `Alive` if the engine works.
    Ping,
}

/// The worker's end.
#[derive(Debug)]
pub struct ToKeeper {
    socket: UnixStream,
}

impl ToKeeper {
    /// Wraps the socket that the keeper left open for this worker.
    #[must_use]
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Reports that the pool is served, and that commands and signals are taken.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn ready(&self) -> io::Result<()> {
        self.say(&Message::Ready, None)
    }

    /// Asks the keeper to prepare the program in `file` for taking over, with these arguments.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn prepare(&self, file: BorrowedFd<'_>, arguments: &[OsString]) -> io::Result<()> {
        let bytes = arguments
            .iter()
            .map(|argument| argument.as_bytes().to_vec());
        let arguments = bytes.collect();
        self.say(&Message::Prepare { arguments }, Some(file))
    }

    /// Reports that this worker could serve the pool, and waits until it may.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn prepared(&self) -> io::Result<()> {
        self.say(&Message::Prepared, None)
    }

    /// Reports that the volumes are served.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn serves_volumes(&self) -> io::Result<()> {
        self.say(&Message::ServesVolumes, None)
    }

    /// Reports that this worker's engine works.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn alive(&self) -> io::Result<()> {
        self.say(&Message::Alive, None)
    }

    /// Passes the file of a side to the keeper, which holds it for later workers; it was opened at
    /// `path`, and is locked.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn side_added(&self, path: &Path, file: BorrowedFd<'_>) -> io::Result<()> {
        let path = path.as_os_str().as_bytes().to_vec();
        self.say(&Message::SideAdded { path }, Some(file))
    }

    /// Reports that all that the side at `path` lacks is about to be copied to it.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn side_joins(&self, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes().to_vec();
        self.say(&Message::SideJoins { path }, None)
    }

    /// Reports that what is at `path` is no side any more, and waits a while until the keeper has
    /// closed its file.
    ///
    /// # Errors
    /// When the keeper is gone, or does not answer.
    pub fn side_removed(&self, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes().to_vec();
        let (closed, open) = io::pipe()?;
        self.say(&Message::SideRemoved { path }, Some(open.as_fd()))?;
        drop(open);
        let timeout = PollTimeout::try_from(CLOSE_TIME).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(closed.as_fd(), PollFlags::empty())];
        match poll(&mut fds, timeout)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Reports that this worker ends on purpose, and leaves everything to the prepared program.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn handed_over(&self) -> io::Result<()> {
        self.say(&Message::HandedOver, None)
    }

    /// Reports that this worker ends on purpose.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn ended(&self) -> io::Result<()> {
        self.say(&Message::Ended, None)
    }

    /// Reports that this worker cannot go on, and why. Neither waits nor fails: a panicking thread
    /// calls it, and the keeper may be gone.
    pub fn failed(&self, why: &str) {
        let why = why.chars().take(REASON_CHARS_MAX).collect();
        if let Ok(mut line) = serde_json::to_vec(&Message::Failed(why)) {
            line.push(b'\n');
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(self.socket.as_raw_fd(), &line, flags);
        }
    }

    fn say(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sent = descriptors::send(&self.socket, &line, descriptor.as_slice())?;
        (&self.socket).write_all(&line[sent..])
    }

    /// Returns true if the keeper is gone.
    #[must_use]
    pub fn is_keeper_gone(&self) -> bool {
        is_ended(&self.socket, Some(Duration::ZERO))
    }

    /// Waits for the keeper's next message; `None` once the keeper is gone. Only one thread at a
    /// time may call this.
    pub(crate) fn hear(&self) -> Option<ToWorker> {
        // Byte by byte, so that no byte of the next line is consumed: lines are few and short.
        let mut reader = BufReader::with_capacity(1, &self.socket);
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(LINE_BYTES_MAX as u64);
            match limited.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            match serde_json::from_slice(&line) {
                Ok(message) => return Some(message),
                Err(error) => tracing::error!(%error, "the keeper sent an invalid message"),
            }
        }
    }
}

/// Waits up to `patience`, or without limit if it is `None`, and returns true if the other end is
/// closed.
fn is_ended(socket: &UnixStream, patience: Option<Duration>) -> bool {
    let timeout = patience.map_or(PollTimeout::NONE, |patience| {
        PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)
    });
    // No events are requested: poll always reports that the other end is closed.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, timeout).is_ok() && fds[0].any().unwrap_or(false)
}

/// The keeper's end.
#[derive(Debug)]
pub(super) struct FromWorker {
    socket: UnixStream,
    line: Vec<u8>,
    received: VecDeque<OwnedFd>,
}

impl FromWorker {
    /// Creates a connection; returns the keeper's end and the worker's.
    pub(super) fn pair() -> io::Result<(Self, UnixStream)> {
        let (socket, theirs) = UnixStream::pair()?;
        Ok((Self::take(socket)?, theirs))
    }

    /// Wraps the keeper's end of a connection that another program had opened.
    pub(super) fn take(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            line: Vec::new(),
            received: VecDeque::new(),
        })
    }

    /// Sends a message to the worker. The caller may ignore an error: a worker that is gone or does
    /// not listen is detected by other means.
    pub(super) fn tell(&self, message: &ToWorker) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // Such a line fits into the socket's buffer, so it is sent whole or not at all.
        let sent = (&self.socket).write(&line)?;
        if sent == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Returns the messages received by now, each with the descriptor that came with it.
    pub(super) fn read(&mut self) -> Vec<(Message, Option<OwnedFd>)> {
        let mut messages = Vec::new();
        let mut bytes = [0; PIECE_BYTES];
        loop {
            match descriptors::receive(&self.socket, &mut bytes) {
                Ok((0, _)) => break,
                Ok((len, received)) => {
                    self.line.extend_from_slice(&bytes[..len]);
                    self.received.extend(received);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            self.take_lines(&mut messages);
            if self.line.len() > LINE_BYTES_MAX {
                tracing::error!("the worker sent an invalid message");
                self.line.clear();
            }
        }
        messages
    }

    fn take_lines(&mut self, messages: &mut Vec<(Message, Option<OwnedFd>)>) {
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(message) => {
                    let has_descriptor = Message::has_descriptor(&message);
                    let file = has_descriptor.then(|| self.received.pop_front());
                    messages.push((message, file.flatten()));
                }
                Err(error) => tracing::error!(%error, "the worker sent an invalid message"),
            }
        }
    }
}

impl AsFd for FromWorker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::ffi::OsStringExt;
    use std::thread;

    #[test]
    fn what_a_worker_says_arrives_with_its_file_and_so_does_its_end() {
        let (mut keeper, worker) = FromWorker::pair().unwrap();
        let worker = ToKeeper::new(worker.into());
        assert!(keeper.read().is_empty());
        worker.ready().unwrap();
        let file = File::open("/dev/null").unwrap();
        let arguments = [OsString::from("serve"), OsString::from_vec(vec![0xff])];
        worker.prepare(file.as_fd(), &arguments).unwrap();
        worker.ended().unwrap();
        let said = keeper.read();
        let messages: Vec<_> = said.iter().map(|(message, _)| message.clone()).collect();
        assert_eq!(
            messages,
            [
                Message::Ready,
                Message::Prepare {
                    arguments: vec![b"serve".to_vec(), vec![0xff]]
                },
                Message::Ended
            ]
        );
        let with_file: Vec<_> = said.iter().map(|(_, file)| file.is_some()).collect();
        assert_eq!(with_file, [false, true, false]);
        assert!(!worker.is_keeper_gone());
        for _ in 0..2 {
            keeper.tell(&ToWorker::HandOver).unwrap();
        }
        assert_eq!(worker.hear(), Some(ToWorker::HandOver));
        drop(keeper);
        assert_eq!(worker.hear(), Some(ToWorker::HandOver));
        assert_eq!(worker.hear(), None);
        assert!(worker.is_keeper_gone() && worker.ready().is_err());
    }

    #[test]
    fn each_side_comes_with_its_own_file_and_one_that_is_removed_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, worker) = FromWorker::pair().unwrap();
        let worker = ToKeeper::new(worker.into());
        let paths = [1, 2, 3].map(|number| folder.path().join(number.to_string()));
        for path in &paths {
            fs::write(path, path.as_os_str().as_bytes()).unwrap();
            let file = File::open(path).unwrap();
            worker.side_joins(path).unwrap();
            worker.side_added(path, file.as_fd()).unwrap();
        }
        let said = keeper.read();
        let added = said.into_iter().filter_map(|(message, file)| {
            let Message::SideAdded { path } = message else {
                return None;
            };
            Some((path, io::read_to_string(File::from(file?)).unwrap()))
        });
        let added: Vec<_> = added.collect();
        let expected = paths.each_ref().map(|path| {
            let text = path.to_str().unwrap().to_owned();
            (text.clone().into_bytes(), text)
        });
        assert_eq!(added, expected);
        thread::scope(|scope| {
            let removed = scope.spawn(|| worker.side_removed(&paths[0]));
            let mut said = Vec::new();
            while said.is_empty() {
                said.extend(keeper.read());
            }
            assert!(matches!(
                &said[..],
                [(Message::SideRemoved { .. }, Some(_))]
            ));
            assert!(!removed.is_finished());
            drop(said);
            removed.join().unwrap().unwrap();
        });
        drop(keeper);
        worker.side_removed(&paths[0]).unwrap_err();
    }

    #[test]
    fn a_failure_arrives_however_long_it_is_and_keeps_nobody_waiting() {
        let (mut keeper, worker) = FromWorker::pair().unwrap();
        let worker = ToKeeper::new(worker.into());
        worker.failed(&"\u{1}".repeat(10_000));
        let said = keeper.read();
        assert!(matches!(&said[..], [(Message::Failed(why), None)] if why.len() == 500));
        // More than a socket's buffer holds, and nobody reads.
        for _ in 0..1000 {
            worker.failed(&"x".repeat(500));
        }
        drop(keeper);
        worker.failed("nobody hears it");
    }

    #[test]
    fn nonsense_is_passed_over() {
        let (mut keeper, worker) = FromWorker::pair().unwrap();
        (&worker).write_all(b"{}\n\xff\n\"Ready\"\n").unwrap();
        let said: Vec<_> = keeper
            .read()
            .into_iter()
            .map(|(message, _)| message)
            .collect();
        assert_eq!(said, [Message::Ready]);
        let writer = thread::spawn(move || {
            (&worker).write_all(&vec![b'x'; 3 * LINE_BYTES_MAX])?;
            (&worker).write_all(b"\n\"Ended\"\n")
        });
        let mut said = Vec::new();
        while said.is_empty() {
            said.extend(keeper.read());
        }
        assert_eq!(said.len(), 1);
        writer.join().unwrap().unwrap();
    }
}
