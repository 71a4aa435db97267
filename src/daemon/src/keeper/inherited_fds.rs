//! The descriptors that outlive a worker, and how they are described to the next process: one JSON
//! value with the numbers of the descriptors that are left open for it.
//!
//! # Invariants
//! - Every descriptor is closed on `exec`, except while the process that is to inherit it is
//!   started.
//! - A process takes the descriptors only if it understands the sender's `HANDOVER`.

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

/// Raised when the meaning of what is handed over changes, in these values or in the handover
/// state.
pub(crate) const HANDOVER: u32 = 3;
/// The oldest hand-over that this program can receive: it differs only in where the arguments are,
/// which does not concern the receiver.
const HANDOVER_OLDEST: u32 = 2;

/// Returns true if this program can take over from a program with this `handover`.
#[must_use]
pub(crate) const fn is_understood(handover: u32) -> bool {
    HANDOVER_OLDEST <= handover && handover <= HANDOVER
}

/// The descriptors and paths that the keeper holds for its workers.
pub(crate) struct InheritedFds {
    /// The pool's file, locked.
    pub pool: File,
    /// The folder of mounts.
    pub folder: PathBuf,
    /// The folder's lock.
    pub folder_lock: File,
    /// The socket where clients connect.
    pub listening: Listening,
    /// The socket where containerd connects, if it is served.
    pub containerd: Option<Listening>,
    /// The socket where Docker connects to its volume plugin, if it is served.
    pub plugin: Option<Listening>,
    /// The state that workers pass to each other.
    pub handover_state: HandoverState,
    /// The mount.
    pub connection: Connection,
}

/// `InheritedFds` as plain values, for a process that inherits the descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InheritedFdParts {
    pool: RawFd,
    /// The bytes of the path, which may not be text.
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
    /// Returns the values that another process needs to take the descriptors.
    #[must_use]
    pub(crate) fn parts(&self) -> InheritedFdParts {
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

    /// Takes the descriptors that another process left open for this one. This process does not
    /// remove the socket's file.
    ///
    /// # Errors
    /// When a descriptor is not of the expected kind.
    pub(crate) fn take(parts: InheritedFdParts) -> io::Result<Self> {
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

    /// Returns all descriptors.
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
    /// Returns true if the keeper, not a service manager, removes the socket's file in the end.
    #[must_use]
    pub(crate) const fn keeps_socket_file(&self) -> bool {
        self.keeps_socket_file
    }
}

/// The processes that serve a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The process that holds the descriptors that must outlive the worker; 0 when it is gone.
    pub keeper: u32,
    /// The process that has the pool open.
    pub worker: u32,
    /// The version of the program that the worker runs.
    pub version: String,
    /// Number of workers that died and were followed by another one.
    pub restarts: u64,
    /// Number of times another program was asked to take over.
    pub upgrades: u64,
    /// The reason why the last program that was asked does not serve.
    pub upgrade_failure: Option<String>,
    /// When and why the last worker died that did not end on purpose.
    #[serde(default)]
    pub last_failure: Option<String>,
}

/// The information that a worker is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// `HANDOVER` of the keeper.
    pub handover: u32,
    /// The keeper's part; the worker fills in `worker` and `version`.
    pub serving: Serving,
    /// The descriptors that the worker serves with.
    pub inherited_fds: InheritedFdParts,
    /// A socket to the keeper.
    pub control: RawFd,
    /// A pipe whose closing tells that this worker was killed.
    pub pulse: RawFd,
    /// A pipe whose closing tells that no remaining thread has this process's descriptors.
    pub life: RawFd,
    /// The other ends of the `life` pipes of earlier workers that served the same mount.
    pub predecessors: Vec<RawFd>,
    /// True if there was an earlier worker, however it ended.
    pub is_successor: bool,
    /// The OOM score adjustment for the worker, if the keeper is shielded from the OOM killer.
    pub oom_score: Option<i32>,
}

/// The state that a keeper leaves to the program that it becomes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Succession {
    pub handover: u32,
    pub serving: Serving,
    pub inherited_fds: InheritedFdParts,
    pub worker: WorkerParts,
    pub oom_score: Option<i32>,
    /// Number of stop signals received.
    pub stops: u32,
    /// The time that a worker took to serve the volumes.
    #[serde(default)]
    pub usual_time: Option<Duration>,
}

/// A worker that serves, as plain values.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerParts {
    pub pid: u32,
    pub control: RawFd,
    pub pulse: RawFd,
    pub life: RawFd,
}

/// Leaves descriptors open for the processes that this one starts or becomes, until the value is
/// dropped.
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
            // The descriptor is open, so the call cannot fail.
            let _ = descriptors::leave_open(*descriptor, false);
        }
    }
}

/// Takes a descriptor that the keeper left open for this process.
///
/// # Errors
/// When it was not left open.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    descriptors::inherited(number)
}
