//! A worker as its keeper sees it: started, heard, and known to be dead.

use super::arguments::{self, Handed, Role};
use super::control::FromWorker;
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

/// How an argument begins that tells a worker what it needs.
pub const WORKER_ARGUMENT: &str = "--worker=";
/// How an argument begins that tells a keeper what it takes over.
pub const KEEPER_ARGUMENT: &str = "--keeper=";

/// The argument of a worker that is to wait until it may serve. An older program does not know it,
/// and ends, rather than open a pool that another process has open.
pub const STANDBY_ARGUMENT: &str = "--standby";

/// A program that a worker can be.
pub(super) enum Program {
    /// The keeper's own, whatever lies at its path by now.
    Own,
    /// The one in this open file, with other arguments.
    Other(OwnedFd, Vec<OsString>),
}

impl Program {
    /// A path that names it in this process, and in one that it starts.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Own => "/proc/self/exe".to_owned(),
            Self::Other(file, _) => format!("/proc/self/fd/{}", file.as_raw_fd()),
        }
    }

    /// Its arguments.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Own => plain_arguments(),
            Self::Other(_, arguments) => arguments.clone(),
        }
    }
}

/// The arguments that this process was started with, without what it was told by another one.
#[must_use]
pub fn plain_arguments() -> Vec<OsString> {
    let is_told = |argument: &OsString| {
        let bytes = argument.as_encoded_bytes();
        [WORKER_ARGUMENT, KEEPER_ARGUMENT, STANDBY_ARGUMENT]
            .iter()
            .any(|start| bytes.starts_with(start.as_bytes()))
    };
    // They were read when this process began.
    let own = arguments::own().unwrap_or_default().iter().skip(1);
    own.filter(|argument| !is_told(argument)).cloned().collect()
}

/// A worker that was started.
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) control: FromWorker,
    /// Ends when the worker is killed, though threads of it linger.
    pub(super) pulse: PipeReader,
    /// Ends when no thread is left that has the worker's descriptors.
    pub(super) life: OwnedFd,
    /// Since when it may serve.
    pub(super) started: Instant,
    /// Whether it serves the volumes, whatever else is still to come.
    pub(super) serves_volumes: bool,
    /// Since when it serves.
    pub(super) ready: Option<Instant>,
    /// Whether it has said that it ends on purpose.
    pub(super) ended: bool,
    /// What it said of a failure that it cannot go on after.
    pub(super) failure: Option<String>,
    /// Whether it has left everything to the next one.
    pub(super) handed_over: bool,
    /// Whether it was killed because it did not serve in time.
    pub(super) is_late: bool,
}

/// What a worker is started with.
pub(super) struct Start<'a> {
    pub(super) program: &'a Program,
    pub(super) inherited_fds: &'a InheritedFds,
    pub(super) serving: &'a Serving,
    /// The ends of `life` of the workers before.
    pub(super) predecessors: Vec<BorrowedFd<'a>>,
    pub(super) oom_score: Option<i32>,
    /// Whether it is to wait until it may serve.
    pub(super) standby: bool,
}

impl Worker {
    /// Starts one. The caller has one thread, so nothing else inherits what is left open for it.
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
        let handed = Handed::new(Role::Worker, &inherited_fds.pool, &arguments)?;
        let mut command = Command::new(program.path());
        command
            .arg0("cowshed")
            .args(handed.shown())
            // What a terminal sends to its foreground is the keeper's to pass on.
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

    /// The worker that another program started in this process.
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

    /// Sends it a signal; one that has ended does not mind.
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

/// Kills what a dead worker had started, such as a program that grows a file system: it would
/// work on what the successor takes away. All of it is in the worker's group of processes, whose
/// number nobody else can have before the worker is waited for.
pub(super) fn kill_group(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    match killpg(Pid::from_raw(pid), Signal::SIGKILL) {
        // Only zombies are left, or nothing.
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
        Err(error) => tracing::warn!(%error, pid, "cannot end what a dead worker had started"),
    }
}
