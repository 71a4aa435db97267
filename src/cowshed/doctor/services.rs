//! The programs that cowshed runs, the pool, its daemon, and systemd.

use super::{ANSWER_TIME, Check, fail, in_time, is_root, ok, warn};
use crate::open::Place;
use crate::pool;
use crate::setup::units;
use anyhow::Context;
use cowshed_daemon::protocol::ProtocolError;
use cowshed_daemon::request::{Command, HostPath, Request, Style, pool as request};
use cowshed_daemon::{Client, Connection};
use cowshed_format::base::size::human;
use cowshed_format::base::{Error, printable};
use cowshed_sys::program;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// The programs of e2fsprogs, which images, containers and snapshots need.
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "resize2fs", "debugfs"];

/// The time to wait for a daemon that starts or stops.
const PATIENCE: Duration = Duration::from_secs(3);
/// The interval at which it is asked meanwhile.
const RETRY: Duration = Duration::from_millis(100);

pub(super) fn programs() -> Vec<Check> {
    let missing: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|name| program::find(name).is_none())
        .collect();
    let check = "programs";
    vec![if missing.is_empty() {
        ok(check, format!("{} are installed", PROGRAMS.join(", ")))
    } else {
        let detail = format!("not installed: {}; images need them", missing.join(", "));
        fail(check, detail, "install the package e2fsprogs")
    }]
}

pub(super) fn checks(place: &Place) -> Vec<Check> {
    let found = look_at_pool(place);
    let daemon = daemon(place, &found);
    vec![pool(place, found), daemon, systemd()]
}

/// What has become of looking at the pool.
enum Found {
    /// Nobody has it open; its status.
    Closed(Value),
    /// A daemon has it open, and says its status.
    Served(Value),
    /// Somebody has it open who does not say.
    Silent(anyhow::Error),
    /// It cannot be opened.
    Unopened(Error),
}

/// Looks at the pool; while a daemon starts or stops, waits for that.
fn look_at_pool(place: &Place) -> Found {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look_once(place) {
            Found::Silent(_) if Instant::now() < deadline => thread::sleep(RETRY),
            found => return found,
        }
    }
}

/// Opens the pool for reading only, or asks the daemon that has it open. No daemon is asked that
/// does not run: systemd would start it.
fn look_once(place: &Place) -> Found {
    match place.open_to_read().and_then(|pool| pool.status()) {
        Ok(status) => Found::Closed(pool::document(&status)),
        Err(Error::InUse) => {
            let socket = place.socket.clone();
            match in_time(move || ask_daemon(&socket)) {
                Some(Ok(status)) => Found::Served(status),
                Some(Err(error)) => Found::Silent(error),
                None => Found::Silent(anyhow::anyhow!(
                    "it does not answer within {} seconds",
                    ANSWER_TIME.as_secs()
                )),
            }
        }
        Err(error) => Found::Unopened(error),
    }
}

fn ask_daemon(socket: &HostPath) -> anyhow::Result<Value> {
    let client = match Client::connect(socket.as_path())? {
        Connection::Daemon(client) => client,
        Connection::Nobody => anyhow::bail!("nobody answers, but the pool is in use"),
    };
    // The reply fits into a pipe.
    let (mut reader, writer) = io::pipe()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let request = Request {
        style: Style {
            json: true,
            ..Style::default()
        },
        command: Command::Pool(request::Command::Status { check: false }),
    };
    let answer = client.run(&request, [nothing.as_fd(), writer.as_fd(), nothing.as_fd()])?;
    drop(writer);
    if let Some(refusal) = answer.refusal {
        anyhow::bail!("{refusal}");
    }
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    serde_json::from_str(&text).context("parse its reply")
}

fn pool(place: &Place, found: Found) -> Check {
    match found {
        Found::Closed(status) | Found::Served(status) => judge_pool(place, &status),
        Found::Silent(_) => ok("pool", format!("{}: in use; see the daemon", place.pool)),
        Found::Unopened(error) => judge_unopened(place, error),
    }
}

fn judge_unopened(place: &Place, error: Error) -> Check {
    let check = "pool";
    let kind = match &error {
        Error::Io { source, .. } => Some(source.kind()),
        _ => None,
    };
    let is_damaged = matches!(error, Error::Corrupt(_));
    let detail = format!("{:#}", place.explain(error));
    match kind {
        Some(io::ErrorKind::NotFound) => {
            let detail = format!("there is none at {}", place.pool);
            let remedy = "`cowshed pool create --size 100G`, or name another with --pool";
            warn(check, detail, remedy)
        }
        Some(io::ErrorKind::PermissionDenied) if !is_root() => {
            warn(check, detail, "run `cowshed doctor` as root")
        }
        _ if is_damaged => fail(
            check,
            detail,
            "copy the pool if you can, then `cowshed pool check`",
        ),
        _ => fail(
            check,
            detail,
            "see the table of messages in docs/operations.md",
        ),
    }
}

fn judge_pool(place: &Place, status: &Value) -> Check {
    let check = "pool";
    let number = |name: &str| status[name].as_u64().unwrap_or_default();
    let state = status["state"].as_str().unwrap_or("unknown");
    let detail = format!(
        "{}: {state}, {} of {} used",
        place.pool,
        human(number("used_bytes")),
        human(number("size_bytes"))
    );
    let warnings = status["warnings"].as_array().into_iter().flatten();
    let warnings: Vec<&str> = warnings.filter_map(Value::as_str).collect();
    match state {
        "stopped" => fail(
            check,
            format!("{detail}; its device failed"),
            "look at `dmesg`, mend the device, then start the daemon again",
        ),
        "full" => fail(
            check,
            detail,
            "`cowshed pool grow`, `cowshed gc`, or remove something",
        ),
        _ if status["host_full"] == true => fail(
            check,
            format!("{detail}; {}", warnings.join("; ")),
            HOST_REMEDY,
        ),
        _ if !warnings.is_empty() => warn(
            check,
            format!("{detail}; {}", warnings.join("; ")),
            remedy(status, warnings.len()),
        ),
        _ => ok(check, detail),
    }
}

/// The advice where the host has too little free space. Growing the pool would need still more of it.
const HOST_REMEDY: &str = "free some space on the file system that the pool is on; `cowshed pool \
    trim` gives back there what the pool does not use";

/// Returns what to do about the warnings of a pool that works.
fn remedy(status: &Value, warnings: usize) -> &'static str {
    let is_degraded = status["degraded"] == true;
    match warnings {
        1 if is_degraded => {
            "bring the side back (`cowshed pool mirror add`), or take it out (`cowshed pool mirror \
             rm`)"
        }
        _ if is_degraded => "see the table of messages in docs/operations.md",
        1 if is_host_short(status) => HOST_REMEDY,
        _ => "grow the pool or free some space: docs/operations.md, \"When the pool is full\"",
    }
}

/// Returns true if the host has less free space than the pool may still take.
fn is_host_short(status: &Value) -> bool {
    let number = |name: &str| status[name].as_u64();
    let wanted = number("limit_bytes").zip(number("host_bytes"));
    let wanted = wanted.map(|(limit, taken)| limit.saturating_sub(taken));
    wanted > number("host_free_bytes") && number("host_free_bytes").is_some()
}

fn daemon(place: &Place, found: &Found) -> Check {
    let check = "daemon";
    match found {
        Found::Served(status) => judge_daemon(&status["daemon"]),
        Found::Silent(error) => judge_silent(place, error),
        Found::Unopened(Error::Io { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied && !is_root() =>
        {
            warn(check, "only root may look", "run `cowshed doctor` as root")
        }
        Found::Closed(_) | Found::Unopened(_) => warn(
            check,
            format!("none serves {}", place.pool),
            "`cowshed serve`, or with systemd `cowshed setup systemd`",
        ),
    }
}

fn judge_daemon(daemon: &Value) -> Check {
    let check = "daemon";
    let version = daemon["version"].as_str().unwrap_or("unknown");
    let restarts = daemon["restarts"].as_u64().unwrap_or_default();
    let detail = format!("version {version}, process {}", daemon["worker"]);
    if version != env!("CARGO_PKG_VERSION") {
        let own = env!("CARGO_PKG_VERSION");
        return warn(
            check,
            format!("{detail}; this is version {own}"),
            "`systemctl reload cowshed`, or `cowshed serve --upgrade`",
        );
    }
    match daemon["last_failure"].as_str() {
        Some(failure) => {
            let failure = printable(failure);
            let detail = format!("{detail}; {restarts} restarts, the last: {failure}");
            warn(check, detail, "look into the daemon's log, and report it")
        }
        None => ok(check, detail),
    }
}

fn judge_silent(place: &Place, error: &anyhow::Error) -> Check {
    let check = "daemon";
    let detail = format!("on {}: {error}", place.socket);
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    if matches!(error.downcast_ref(), Some(ProtocolError::Version { .. })) {
        warn(
            check,
            detail,
            "`systemctl reload cowshed`, or `cowshed serve --upgrade`",
        )
    } else if kind == Some(io::ErrorKind::PermissionDenied) && !is_root() {
        warn(check, detail, "run `cowshed doctor` as root")
    } else {
        fail(check, detail, "look into the daemon's log")
    }
}

fn systemd() -> Check {
    let check = "systemd";
    if !Path::new("/run/systemd/system").exists() {
        return ok(check, "not the service manager here");
    }
    let is_there = |name: &str| {
        std::iter::once(units::OWN)
            .chain(units::OF_PACKAGES)
            .any(|folder| Path::new(folder).join(name).exists())
    };
    let wants = Path::new(units::OWN).join("multi-user.target.wants");
    let wanted = std::fs::read_dir(wants).into_iter().flatten().flatten();
    let wanted = wanted.filter_map(|entry| entry.file_name().into_string().ok());
    let enabled: Vec<String> = wanted.filter(|name| name.starts_with("cowshed")).collect();
    let remedy = "`cowshed setup systemd`";
    if !is_there("cowshed.service") && !is_there("cowshed@.service") {
        warn(check, "the units of cowshed are not installed", remedy)
    } else if enabled.is_empty() {
        warn(check, "the daemon is not started at boot", remedy)
    } else {
        ok(check, format!("starts {} at boot", enabled.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_with_too_little_space_is_not_helped_by_a_larger_pool() {
        let status = |free: u64| json!({ "limit_bytes": 100, "host_bytes": 10, "host_free_bytes": free, "degraded": false });
        assert_eq!(remedy(&status(50), 1), HOST_REMEDY);
        assert!(remedy(&status(90), 1).starts_with("grow the pool"));
        assert!(remedy(&json!({ "limit_bytes": 100, "host_bytes": 10 }), 1).starts_with("grow"));
    }
}
