//! Keeps the keeper alive and quick when memory is short: it is small, and without it the death of
//! a worker is an error for every user.

use nix::sys::mman::{MlockAllFlags, mlockall};
use std::fs;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The kernel's "never" for the choice of whom to kill for its memory.
const NEVER: i32 = -1000;

/// Shields this process as far as it may; answers the score that a worker is to have instead.
pub(super) fn raise() -> Option<i32> {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::debug!(%error, "the keeper may be swapped out");
    }
    let before = fs::read_to_string(OOM_SCORE).ok()?.trim().parse().ok()?;
    match fs::write(OOM_SCORE, NEVER.to_string()) {
        Ok(()) => Some(before),
        Err(error) => {
            tracing::debug!(%error, "the keeper may be killed for its memory");
            None
        }
    }
}

/// Makes this process, a worker, as likely to be killed as it would be without its keeper.
pub fn restore_oom_score(score: Option<i32>) {
    if let Some(score) = score
        && let Err(error) = fs::write(OOM_SCORE, score.to_string())
    {
        tracing::debug!(%error, "cannot set the worker's score");
    }
}
