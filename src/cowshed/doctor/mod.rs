//! `cowshed doctor`: what of this host works, is slow or is missing, and what to do about it.
//!
//! Whatever can be tried is tried: devices are opened, a file without a name is written beside the
//! pool. Nothing is written but that file, and no pool is; opening a device may load its kernel
//! module. Nothing needs root but what only root may look at, which is said then.
//!
//! | module | what |
//! |---|---|
//! | [`kernel`] | the kernel, its devices, this process's rights, limits and mounts |
//! | [`storage`] | the file system beneath the pool |
//! | [`services`] | the pool, its daemon, programs, systemd |
//! | [`runtimes`] | containerd and Docker |
//!
//! # Invariants
//! - Each check gives one line, also where it could not be carried out.
//! - No program that does not answer holds it up for more than [`ANSWER_TIME`].
//! - Each line that is not `ok` says what to do.

mod kernel;
mod runtimes;
mod services;
mod storage;

use super::console::Console;
use super::failure::Exit;
use super::in_time::{ANSWER_TIME, in_time};
use super::open::{DEFAULT_POOL, Place};
use super::output::counted;
use cowshed_daemon::request::HostPath;
use serde::Serialize;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It works.
    Ok,
    /// It is missing, slow or not as it should be, and much works without it.
    Warn,
    /// Something that is needed does not work.
    Fail,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    detail: String,
    /// What to do; only for what is not `Ok`.
    remedy: Option<String>,
}

fn ok(check: &'static str, detail: impl Into<String>) -> Check {
    Check {
        check,
        state: State::Ok,
        detail: detail.into(),
        remedy: None,
    }
}

fn warn(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        check,
        state: State::Warn,
        detail: detail.into(),
        remedy: Some(remedy.into()),
    }
}

fn fail(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        state: State::Fail,
        ..warn(check, detail, remedy)
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Carries out all checks and shows them.
///
/// # Errors
/// When the output failed, or a check did.
pub(super) fn run(
    pool: Option<&HostPath>,
    socket: Option<&HostPath>,
    console: &Console,
) -> anyhow::Result<Exit> {
    // Without rights the usual pool can be looked at, too.
    let usual = HostPath::new(DEFAULT_POOL)?;
    let place = Place::new(Some(pool.unwrap_or(&usual)), socket)?;
    let mut checks = kernel::checks();
    checks.extend(services::programs());
    checks.extend(storage::checks(place.pool.as_path()));
    checks.extend(services::checks(&place));
    checks.extend(runtimes::checks());
    console.result(&checks, || shown(&checks))?;
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.state == State::Fail)
        .map(|check| check.check)
        .collect();
    if failed.is_empty() {
        return Ok(Exit::Done);
    }
    let count = counted(failed.len(), "check", "checks");
    anyhow::bail!("{count} of this host failed: {}", failed.join(", "))
}

/// Returns a line for each check, with what to do below it.
fn shown(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.check.len()).max();
    let width = width.unwrap_or_default();
    let mut lines = Vec::new();
    for check in checks {
        let word = check.state.word();
        lines.push(format!(
            "{word:<4}  {:<width$}  {}",
            check.check, check.detail
        ));
        if let Some(remedy) = &check.remedy {
            lines.push(format!("      {:<width$}  -> {remedy}", ""));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_says_what_to_do_below_it() {
        let checks = [
            ok("kernel", "Linux 6.18"),
            fail("fuse", "none", "modprobe fuse"),
        ];
        assert_eq!(
            shown(&checks),
            "ok    kernel  Linux 6.18\nFAIL  fuse    none\n              -> modprobe fuse"
        );
        let document = serde_json::to_value(&checks).unwrap();
        assert_eq!(document[0]["state"], "ok");
        assert_eq!(document[0]["remedy"], serde_json::Value::Null);
        assert_eq!(document[1]["remedy"], "modprobe fuse");
    }
}
