//! containerd and Docker: which versions there are, and whether they use cowshed and can.

use super::{Check, fail, in_time, is_root, ok, warn};
use crate::setup::{self, DOCKER_MIN};
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The oldest version of containerd that was tried.
const CONTAINERD_MIN: (u32, u32) = (1, 6);
const DOCKER_SOCKET: &str = "/run/docker.sock";

pub(super) fn checks() -> Vec<Check> {
    match read(setup::containerd::FILE) {
        Ok(config) => {
            let socket = setup::containerd::socket(&config).map_err(|fault| fault.to_string());
            let is_set = matches!(socket, Ok(Some(_)));
            vec![containerd(socket), docker(Some(is_set))]
        }
        Err(error) => {
            let detail = format!("{}: {error}", setup::containerd::FILE);
            let unread = warn("containerd", detail, "run `cowshed doctor` as root");
            vec![unread, docker(None)]
        }
    }
}

/// Returns the text of a configuration file, which may be missing.
fn read(file: &str) -> io::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// Returns whether somebody listens on a socket.
fn listens(path: &str) -> io::Result<()> {
    let owned = path.to_owned();
    let silent = || Err(io::ErrorKind::TimedOut.into());
    in_time(move || UnixStream::connect(owned).map(drop)).unwrap_or_else(silent)
}

fn containerd(socket: Result<Option<String>, String>) -> Check {
    let check = "containerd";
    let file = setup::containerd::FILE;
    let version = setup::installed_containerd();
    let Some(version) = version else {
        return match socket {
            Ok(Some(_)) => warn(
                check,
                format!("not installed, but {file} has cowshed"),
                "`cowshed setup containerd --undo`, or install it",
            ),
            _ => ok(check, "not installed"),
        };
    };
    let installed = format!("version {version}");
    if setup::numbers(&version).is_some_and(|numbers| numbers < CONTAINERD_MIN) {
        return warn(check, installed, "use containerd 1.6 or later");
    }
    let socket = match socket {
        Err(fault) => {
            return fail(check, format!("{installed}; {file}: {fault}"), "correct it");
        }
        Ok(None) => {
            return ok(
                check,
                format!("{installed}; does not use cowshed (`cowshed setup containerd`)"),
            );
        }
        Ok(Some(socket)) => socket,
    };
    match listens(&socket) {
        Ok(()) => ok(check, format!("{installed}; uses cowshed on {socket}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() => warn(
            check,
            format!("{installed}; uses cowshed on {socket}, where only root may look"),
            "run `cowshed doctor` as root",
        ),
        Err(error) => fail(
            check,
            format!("{installed}; uses cowshed on {socket}, where nobody answers ({error})"),
            "start the daemon with --containerd-socket: `cowshed setup containerd`, then \
             `systemctl restart cowshed`",
        ),
    }
}

fn docker(containerd_is_set: Option<bool>) -> Check {
    let check = "docker";
    let file = setup::docker::FILE;
    let version = setup::installed_version("dockerd", 2);
    let Some(version) = version else {
        return ok(check, "not installed");
    };
    let mut installed = format!("version {version}");
    if Path::new(DOCKER_SOCKET).exists() && is_root() && listens(DOCKER_SOCKET).is_err() {
        installed += ", not running";
    }
    let text = match read(file) {
        Err(error) => {
            return warn(
                check,
                format!("{installed}; {file}: {error}"),
                "run `cowshed doctor` as root",
            );
        }
        Ok(text) => text,
    };
    if let Err(fault) = setup::docker::set(&text) {
        return fail(check, format!("{installed}; {file}: {fault}"), "correct it");
    }
    let is_old = setup::numbers(&version).is_some_and(|(major, _)| major < DOCKER_MIN);
    if !setup::docker::is_set(&text) {
        let how = match is_old {
            true => format!("cannot use cowshed: Docker {DOCKER_MIN} or later can"),
            false => "does not use cowshed (`cowshed setup docker`)".to_owned(),
        };
        return ok(check, format!("{installed}; {how}"));
    }
    if is_old {
        let remedy = format!("use Docker {DOCKER_MIN} or later");
        return fail(
            check,
            format!("{installed}; configured for cowshed"),
            remedy,
        );
    }
    if containerd_is_set == Some(false) {
        return fail(
            check,
            format!("{installed}; configured for cowshed, and containerd is not"),
            "`cowshed setup docker`, then `systemctl restart containerd docker`",
        );
    }
    ok(check, format!("{installed}; uses cowshed"))
}
