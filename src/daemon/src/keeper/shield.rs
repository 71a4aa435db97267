//! Keeps the keeper alive and responsive when memory is short: the keeper is small, and without it
//! the death of a worker is an error for every user.

use nix::sys::mman::{MlockAllFlags, mlockall};
use std::fs;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The OOM score adjustment with which the kernel never kills a process for its memory.
const NEVER: i32 = -1000;

/// Shields this process as far as permitted; returns the score that a worker is to have instead.
pub(super) fn raise() -> Option<i32> {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::debug!(%error, "cannot lock the keeper's memory, which may be swapped out");
    }
    let before = fs::read_to_string(OOM_SCORE).ok()?.trim().parse().ok()?;
    match fs::write(OOM_SCORE, NEVER.to_string()) {
        Ok(()) => Some(before),
        Err(error) => {
            tracing::debug!(%error, "cannot protect the keeper from the out-of-memory killer");
            None
        }
    }
}

/// Makes this process, a worker, as likely to be killed for its memory as it would be without its
/// keeper.
pub(crate) fn restore_oom_score(score: Option<i32>) {
    if let Some(score) = score
        && let Err(error) = fs::write(OOM_SCORE, score.to_string())
    {
        tracing::debug!(%error, "cannot set the worker's score for the out-of-memory killer");
    }
}
