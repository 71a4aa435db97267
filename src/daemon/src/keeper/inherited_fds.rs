//! The descriptors that outlive a worker, and how they are described to the next process: one JSON
//! value with the numbers of the descriptors that are left open for it.
//!
//! # Invariants
//! - Every descriptor is closed on `exec`, except while the process that is to inherit it is
//!   started.
//! - A process takes the descriptors only if it understands the sender's `HANDOVER`.

use super::super::Listening;
use cowshed_export::{Connection, ConnectionParts, HandoverState};
use cowshed_format::base::{Error, Result};
use cowshed_format::device::mirror::{Found, is_gone, newest_label, open_handed_over};
use cowshed_format::device::{Device, FileDevice, FileOptions, MirrorDevice};
use cowshed_sys::descriptors;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Raised when the meaning of what is handed over changes, in these values or in the handover
/// state.
pub(crate) const HANDOVER: u32 = 4;
/// The oldest hand-over that this program can receive: 2 differs from 3 only in where the arguments
/// are, which does not concern the receiver; before 4, a pool had one file.
const HANDOVER_OLDEST: u32 = 2;

/// Returns true if this program can take over from a program with this `handover`.
#[must_use]
pub(crate) const fn is_understood(handover: u32) -> bool {
    HANDOVER_OLDEST <= handover && handover <= HANDOVER
}

/// The descriptors and paths that the keeper holds for its workers.
pub(crate) struct InheritedFds {
    /// The pool's file, and those of the other sides if it is mirrored. Never empty.
    pub sides: Vec<SideFile>,
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
    /// The only file of the pool, as a program hands it over that knows no mirrors.
    #[serde(default, skip_serializing)]
    pool: Option<RawFd>,
    #[serde(default)]
    sides: Vec<SideFileParts>,
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

/// The file of a pool, or of a side of one that is mirrored.
pub(crate) struct SideFile {
    /// Its path; empty if the program that handed it over did not tell.
    pub path: PathBuf,
    /// The open file, locked.
    pub file: File,
    /// True if the host may have failed to write it while no worker saw that.
    pub is_doubted: bool,
}

/// `SideFile` as plain values.
#[derive(Debug, Serialize, Deserialize)]
struct SideFileParts {
    path: Vec<u8>,
    file: RawFd,
    is_doubted: bool,
}

impl SideFile {
    /// Returns the file that is open at `path`.
    pub(crate) const fn new(path: PathBuf, file: File) -> Self {
        Self {
            path,
            file,
            is_doubted: false,
        }
    }

    fn parts(&self) -> SideFileParts {
        SideFileParts {
            path: self.path.as_os_str().as_bytes().to_vec(),
            file: self.file.as_raw_fd(),
            is_doubted: self.is_doubted,
        }
    }

    fn take(parts: SideFileParts) -> io::Result<Self> {
        Ok(Self {
            path: PathBuf::from(OsString::from_vec(parts.path)),
            file: descriptors::inherited(parts.file)?.into(),
            is_doubted: parts.is_doubted,
        })
    }

    fn device(&self, options: FileOptions) -> Result<FileDevice> {
        let file = self.file.try_clone();
        let file = file.map_err(|source| Error::io("open the pool", source))?;
        FileDevice::on_locked(file, options)
    }
}

impl InheritedFds {
    /// Returns the file that stands for the pool.
    pub(crate) fn pool(&self) -> &File {
        &self.sides[0].file
    }

    /// Returns the pool's device, with all its sides if it is mirrored. `pool` is the path by which
    /// the pool is served. Only a side that the keeper does not have is looked for at its path; such
    /// a side is passed to `opened`.
    ///
    /// # Errors
    /// As `mirror::open_handed_over`.
    pub(crate) fn device(
        &self,
        pool: &Path,
        options: FileOptions,
        opened: impl Fn(&Path, BorrowedFd<'_>),
    ) -> Result<Arc<dyn Device>> {
        let (mut files, mut doubted, mut gone) = (Vec::new(), Vec::new(), None);
        for side in &self.sides {
            let path = match side.path.as_os_str().is_empty() {
                true => pool.to_owned(),
                false => side.path.clone(),
            };
            let device = match side.device(options) {
                Ok(device) => Arc::new(device),
                Err(error) if is_gone(&error) => {
                    tracing::warn!(path = %path.display(), %error, "a side of the mirror is gone");
                    gone = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if side.is_doubted {
                doubted.extend(newest_label(&*device).map(|(label, _)| label.side));
            }
            files.push(Found { path, device });
        }
        if files.is_empty() {
            return Err(gone.unwrap_or(Error::NotAPool));
        }
        let mut own = Vec::new();
        let device = open_handed_over(files, |path| {
            let device = FileDevice::open(path, options)?;
            own.push(path.to_owned());
            Ok(device)
        })?;
        let sides = device.mirror().map(MirrorDevice::open_sides);
        for side in sides.into_iter().flatten() {
            if doubted.contains(&side.id()) {
                side.doubt();
            }
            // Of a device's descriptors, the one that is locked comes last.
            if own.iter().any(|path| path == side.path())
                && let Some(file) = side.device().descriptors().pop()
            {
                opened(side.path(), file);
            }
        }
        Ok(device)
    }

    /// Returns the values that another process needs to take the descriptors.
    #[must_use]
    pub(crate) fn parts(&self) -> InheritedFdParts {
        InheritedFdParts {
            pool: None,
            sides: self.sides.iter().map(SideFile::parts).collect(),
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
        let only = parts.pool.map(|file| SideFileParts {
            path: Vec::new(),
            file,
            is_doubted: false,
        });
        let sides = parts.sides.into_iter().chain(only).map(SideFile::take);
        let sides = sides.collect::<io::Result<Vec<_>>>()?;
        if sides.is_empty() {
            let what = "no file of the pool was handed over";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Self {
            sides,
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
            self.folder_lock.as_fd(),
            self.listening.as_fd(),
            self.handover_state.descriptor(),
        ];
        all.extend(self.sides.iter().map(|side| side.file.as_fd()));
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
