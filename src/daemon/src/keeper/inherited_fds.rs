//! What outlives a worker, and how it is told to the next process: one JSON value with the numbers
//! of descriptors that are left open for it.
//!
//! # Invariants
//! - Everything is closed on `exec`, but while a process is started that is to have it.
//! - A process takes what it is told only if it speaks the same `HANDOVER`.

use super::super::Listening;
use cowshed_export::{Connection, ConnectionParts, HandoverState};
use cowshed_sys::descriptors;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Raised when what is handed over changes its meaning, in these values or in the handover state.
pub const HANDOVER: u32 = 3;
/// The oldest hand-over that this program can be the receiver of: it differs in where the arguments
/// are, which does not concern the receiver.
const HANDOVER_OLDEST: u32 = 2;

/// Returns whether this program can take what another one hands over.
#[must_use]
pub const fn is_understood(handover: u32) -> bool {
    HANDOVER_OLDEST <= handover && handover <= HANDOVER
}

/// What the keeper holds for its workers.
pub struct InheritedFds {
    /// The pool's file, locked.
    pub pool: File,
    /// The folder of mounts.
    pub folder: PathBuf,
    /// Its lock.
    pub folder_lock: File,
    /// Where clients connect.
    pub listening: Listening,
    /// Where containerd connects, if it is served.
    pub containerd: Option<Listening>,
    /// Where Docker connects to its volume plugin, if it is served.
    pub plugin: Option<Listening>,
    /// What workers leave to each other.
    pub handover_state: HandoverState,
    /// The mount.
    pub connection: Connection,
}

/// The same as values, for a process that inherits the descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub struct InheritedFdParts {
    pool: RawFd,
    /// Its bytes: a path may be no text.
    folder: Vec<u8>,
    folder_lock: RawFd,
    listening: RawFd,
    keeps_socket_file: bool,
    containerd: Option<RawFd>,
    plugin: Option<RawFd>,
    handover_state: RawFd,
    connection: ConnectionParts,
}

impl InheritedFds {
    /// What another process must be told to take it.
    #[must_use]
    pub fn parts(&self) -> InheritedFdParts {
        InheritedFdParts {
            pool: self.pool.as_raw_fd(),
            folder: self.folder.as_os_str().as_bytes().to_vec(),
            folder_lock: self.folder_lock.as_raw_fd(),
            listening: self.listening.as_fd().as_raw_fd(),
            keeps_socket_file: self.listening.keeps_file(),
            containerd: number_of(self.containerd.as_ref()),
            plugin: number_of(self.plugin.as_ref()),
            handover_state: self.handover_state.descriptor().as_raw_fd(),
            connection: self.connection.parts(),
        }
    }

    /// Takes the inherited descriptors that another process left open for this one. The socket's
    /// file is not this one's to remove.
    ///
    /// # Errors
    /// When a descriptor is not what it should be.
    pub fn take(parts: InheritedFdParts) -> io::Result<Self> {
        Ok(Self {
            pool: descriptors::inherited(parts.pool)?.into(),
            folder: PathBuf::from(OsString::from_vec(parts.folder)),
            folder_lock: descriptors::inherited(parts.folder_lock)?.into(),
            listening: Listening::take(descriptors::inherited(parts.listening)?)?,
            containerd: parts.containerd.map(take_listening).transpose()?,
            plugin: parts.plugin.map(take_listening).transpose()?,
            handover_state: HandoverState::adopt(descriptors::inherited(parts.handover_state)?)?,
            connection: Connection::adopt(parts.connection)?,
        })
    }

    /// All descriptors.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![
            self.pool.as_fd(),
            self.folder_lock.as_fd(),
            self.listening.as_fd(),
            self.handover_state.descriptor(),
        ];
        all.extend(self.containerd.iter().map(AsFd::as_fd));
        all.extend(self.plugin.iter().map(AsFd::as_fd));
        all.extend(self.connection.descriptors());
        all
    }
}

fn number_of(socket: Option<&Listening>) -> Option<RawFd> {
    socket.map(|socket| socket.as_fd().as_raw_fd())
}

fn take_listening(number: RawFd) -> io::Result<Listening> {
    Listening::take(descriptors::inherited(number)?)
}

impl InheritedFdParts {
    /// Whether the keeper removes the socket's file in the end, and not a service manager.
    #[must_use]
    pub const fn keeps_socket_file(&self) -> bool {
        self.keeps_socket_file
    }
}

/// Who serves a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The process that holds what must outlive the other; 0 when it is gone.
    pub keeper: u32,
    /// The process that has the pool open.
    pub worker: u32,
    /// The version of the program that the worker runs.
    pub version: String,
    /// How many workers have died and were followed by another one.
    pub restarts: u64,
    /// How often another program was asked to take over.
    pub upgrades: u64,
    /// Why the last one that was asked does not serve.
    pub upgrade_failure: Option<String>,
    /// When and of what the last worker died that did not end on purpose.
    #[serde(default)]
    pub last_failure: Option<String>,
}

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// `HANDOVER` of the keeper.
    pub handover: u32,
    /// The keeper's part; `worker` and `version` are the worker's to fill in.
    pub serving: Serving,
    /// What it serves.
    pub inherited_fds: InheritedFdParts,
    /// A socket to the keeper.
    pub control: RawFd,
    /// Whose closing tells that this worker was killed.
    pub pulse: RawFd,
    /// Whose closing tells that no thread is left that has this process's descriptors.
    pub life: RawFd,
    /// The other ends of the `life` of workers before, which served the same mount.
    pub predecessors: Vec<RawFd>,
    /// Whether there has been a worker before, however it ended.
    pub is_successor: bool,
    /// How readily the kernel may kill the worker for its memory, where the keeper is spared.
    pub oom_score: Option<i32>,
}

/// What a keeper leaves to the program that it becomes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Succession {
    pub handover: u32,
    pub serving: Serving,
    pub inherited_fds: InheritedFdParts,
    pub worker: WorkerParts,
    pub oom_score: Option<i32>,
    /// How many signals to stop have come.
    pub stops: u32,
    /// How long a worker took to serve the volumes.
    #[serde(default)]
    pub usual_time: Option<Duration>,
}

/// A worker that serves, as values.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerParts {
    pub pid: u32,
    pub control: RawFd,
    pub pulse: RawFd,
    pub life: RawFd,
}

/// Leaves descriptors open for the processes that this one starts or becomes, until it is dropped.
pub(super) struct LeftOpen<'a> {
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> LeftOpen<'a> {
    pub(super) fn new(descriptors: Vec<BorrowedFd<'a>>) -> io::Result<Self> {
        let left = Self { descriptors };
        for descriptor in &left.descriptors {
            descriptors::leave_open(*descriptor, true)?;
        }
        Ok(left)
    }
}

impl Drop for LeftOpen<'_> {
    fn drop(&mut self) {
        for descriptor in &self.descriptors {
            // It is open, and for such a one the call cannot fail.
            let _ = descriptors::leave_open(*descriptor, false);
        }
    }
}

/// Takes a descriptor that the keeper left open for this process.
///
/// # Errors
/// When it was not left open.
pub fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    descriptors::inherited(number)
}
