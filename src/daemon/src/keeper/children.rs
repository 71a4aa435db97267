//! The state in which a child process ended, as the kernel reports it.

use super::FAILED;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

fn id(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().map(Pid::from_raw)
}

/// Returns true if a child has ended; the child is not reaped.
pub(super) fn has_ended(pid: u32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let answer = id(pid).map(|pid| waitid(Id::Pid(pid), flags));
    !matches!(answer, Some(Ok(WaitStatus::StillAlive)))
}

/// Returns the status of a child once all of its threads have ended.
pub(super) fn reap(pid: u32) -> Option<WaitStatus> {
    match waitpid(id(pid)?, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(status) => Some(status),
        // Another caller has reaped it; its status is unknown.
        Err(_) => Some(WaitStatus::Exited(id(pid)?, i32::from(FAILED))),
    }
}

/// Returns true if another process killed the child, as opposed to a failure of its own.
pub(super) fn was_killed(status: Option<WaitStatus>) -> bool {
    match status {
        // A process that dies by itself has no threads that linger long enough to get here.
        None => true,
        Some(WaitStatus::Signaled(_, signal, _)) => {
            matches!(signal, Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT)
        }
        Some(_) => false,
    }
}

pub(super) fn exit_status(status: &WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, status) => u8::try_from(*status).ok(),
        _ => None,
    }
}

pub(super) fn describe(status: &WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, status) => format!("exit status {status}"),
        WaitStatus::Signaled(_, signal, _) => format!("ended by {signal}"),
        _ => "killed".to_owned(),
    }
}
