//! A worker as seen by its keeper: starting it, reading its messages, and detecting its death.

use super::control::FromWorker;
use super::handed_arguments::{self, Handed, Role};
use super::inherited_fds::{HANDOVER, InheritedFds, LeftOpen, Serving, Told, WorkerParts};
use crate::service_manager;
use cowshed_sys::descriptors;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The prefix of the argument that passes a worker its start information.
pub(super) const WORKER_ARGUMENT: &str = "--worker=";
/// The prefix of the argument that passes a keeper the state that it takes over.
pub(super) const KEEPER_ARGUMENT: &str = "--keeper=";

/// The argument of a worker that is to wait until it may serve. An older program does not know the
/// argument, and so ends rather than open a pool that another process has open.
pub(super) const STANDBY_ARGUMENT: &str = "--standby";

/// A program that a worker can be.
pub(super) enum Program {
    /// The keeper's own program, whatever lies at its path by now.
    Own,
    /// The program in this open file, with other arguments.
    Other(OwnedFd, Vec<OsString>),
}

impl Program {
    /// Returns a path that names the program in this process, and in a child of it.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Own => "/proc/self/exe".to_owned(),
            Self::Other(file, _) => format!("/proc/self/fd/{}", file.as_raw_fd()),
        }
    }

    /// Returns the program's arguments.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Own => plain_arguments(),
            Self::Other(_, arguments) => arguments.clone(),
        }
    }
}

/// Returns the arguments that this process was started with, without those that another process
/// passed to it.
#[must_use]
pub fn plain_arguments() -> Vec<OsString> {
    let is_told = |argument: &OsString| {
        let bytes = argument.as_encoded_bytes();
        [WORKER_ARGUMENT, KEEPER_ARGUMENT, STANDBY_ARGUMENT]
            .iter()
            .any(|start| bytes.starts_with(start.as_bytes()))
    };
    // `own` was called when this process began.
    let own = handed_arguments::own().unwrap_or_default().iter().skip(1);
    own.filter(|argument| !is_told(argument)).cloned().collect()
}

/// A worker that was started.
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) control: FromWorker,
    /// Ends when the worker is killed, even if threads of it linger.
    pub(super) pulse: PipeReader,
    /// Ends when no remaining thread has the worker's descriptors.
    pub(super) life: OwnedFd,
    /// The time since which it may serve.
    pub(super) started: Instant,
    /// True if it serves the volumes, even if other services are still to come.
    pub(super) serves_volumes: bool,
    /// The time since which it serves.
    pub(super) ready: Option<Instant>,
    /// True if it has reported that it ends on purpose.
    pub(super) ended: bool,
    /// The failure that it reported before it ended, if any.
    pub(super) failure: Option<String>,
    /// True if it has left everything to the next worker.
    pub(super) handed_over: bool,
    /// True if it was killed because it did not serve in time.
    pub(super) is_late: bool,
}

/// The parameters of a worker's start.
pub(super) struct Start<'a> {
    pub(super) program: &'a Program,
    pub(super) inherited_fds: &'a InheritedFds,
    pub(super) serving: &'a Serving,
    /// The ends of the `life` pipes of earlier workers.
    pub(super) predecessors: Vec<BorrowedFd<'a>>,
    pub(super) oom_score: Option<i32>,
    /// True if the worker is to wait until it may serve.
    pub(super) standby: bool,
}

impl Worker {
    /// Starts a worker. The caller has one thread, so no other child inherits the descriptors left
    /// open for the worker.
    pub(super) fn start(start: Start<'_>) -> io::Result<Self> {
        let Start {
            program,
            inherited_fds,
            serving,
            predecessors,
            oom_score,
            standby,
        } = start;
        let (control, their_control) = FromWorker::pair()?;
        let (pulse, their_pulse) = io::pipe()?;
        let (life, their_life) = io::pipe()?;
        let told = Told {
            handover: HANDOVER,
            serving: serving.clone(),
            inherited_fds: inherited_fds.parts(),
            control: their_control.as_raw_fd(),
            pulse: their_pulse.as_raw_fd(),
            life: their_life.as_raw_fd(),
            predecessors: predecessors.iter().map(AsRawFd::as_raw_fd).collect(),
            is_successor: serving.worker != 0,
            oom_score,
        };
        let mut arguments = program.arguments();
        arguments.extend(standby.then(|| STANDBY_ARGUMENT.into()));
        arguments.push(format!("{WORKER_ARGUMENT}{}", serde_json::to_string(&told)?).into());
        let handed = Handed::new(Role::Worker, inherited_fds.pool(), &arguments)?;
        let mut command = Command::new(program.path());
        command
            .arg0("cowshed")
            .args(handed.shown())
            // The keeper forwards the signals that a terminal sends to its foreground.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for name in service_manager::VARIABLES {
            command.env_remove(name);
        }
        let mut left = inherited_fds.descriptors();
        left.extend([
            their_control.as_fd(),
            their_pulse.as_fd(),
            their_life.as_fd(),
            handed.as_fd(),
        ]);
        left.extend(predecessors);
        let left = LeftOpen::new(left)?;
        let child = command.spawn()?;
        drop(left);
        Ok(Self {
            pid: child.id(),
            control,
            pulse,
            life: life.into(),
            started: Instant::now(),
            serves_volumes: false,
            ready: None,
            ended: false,
            failure: None,
            handed_over: false,
            is_late: false,
        })
    }

    /// Takes over the worker that another program started in this process.
    pub(super) fn take(parts: &WorkerParts) -> io::Result<Self> {
        let control = descriptors::inherited(parts.control)?;
        Ok(Self {
            pid: parts.pid,
            control: FromWorker::take(control.into())?,
            pulse: descriptors::inherited(parts.pulse)?.into(),
            life: descriptors::inherited(parts.life)?,
            started: Instant::now(),
            serves_volumes: true,
            ready: Some(Instant::now()),
            ended: false,
            failure: None,
            handed_over: false,
            is_late: false,
        })
    }

    pub(super) fn parts(&self) -> WorkerParts {
        WorkerParts {
            pid: self.pid,
            control: self.control.as_fd().as_raw_fd(),
            pulse: self.pulse.as_raw_fd(),
            life: self.life.as_raw_fd(),
        }
    }

    /// Sends the worker a signal; has no effect if the worker has ended.
    pub(super) fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.pid) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), signal)
            && error != Errno::ESRCH
        {
            tracing::warn!(%error, pid, %signal, "cannot signal the worker");
        }
    }
}

/// Kills the children of a dead worker, such as a program that grows a file system: they would work
/// on volumes that the successor takes away. All of them are in the worker's process group, whose
/// number no other process can have before the worker is reaped.
pub(super) fn kill_group(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    match killpg(Pid::from_raw(pid), Signal::SIGKILL) {
        // Only zombies are left, or no process.
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
        Err(error) => {
            tracing::warn!(%error, pid, "cannot kill the processes that a dead worker started")
        }
    }
}
