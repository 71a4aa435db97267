//! The kernel, its devices, and what this process may do.

use super::{Check, fail, is_root, ok, warn};
use cowshed_sys::{fuse_device, fuse_ring, loop_device};
use nix::sys::resource::{Resource, getrlimit};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// FUSE has what is needed.
const KERNEL_MIN: (u32, u32) = (5, 4);
/// Requests of a killed worker are sent again.
const KERNEL_RESENDS: (u32, u32) = (6, 9);
/// The number of open files below which many volumes cannot be served.
const FILES_MIN: u64 = 65_536;
/// `CAP_SYS_ADMIN`, which mounting and attaching need.
const CAN_MOUNT: u64 = 1 << 21;

pub(super) fn checks() -> Vec<Check> {
    vec![
        kernel(),
        rights(),
        fuse(),
        fuse_rings(),
        io_uring(),
        loop_devices(),
        ublk(),
        limits(),
        mounts(),
        control_groups(),
    ]
}

fn text(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

fn kernel() -> Check {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_kernel(&release)
}

fn judge_kernel(release: &str) -> Check {
    let check = "kernel";
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return warn(
            check,
            format!("version unknown ({release})"),
            "use Linux 6.9 or later",
        );
    };
    let version = (major, minor);
    if version < KERNEL_MIN {
        let detail = format!("Linux {release}, and 5.4 is the oldest that works");
        fail(check, detail, "use Linux 6.9 or later")
    } else if version < KERNEL_RESENDS {
        let detail = format!(
            "Linux {release}: when the daemon's worker is killed, what was in flight fails"
        );
        warn(
            check,
            detail,
            "use Linux 6.9 or later, where that is only a pause",
        )
    } else {
        ok(check, format!("Linux {release}"))
    }
}

/// Returns true if this process may mount.
fn may_mount() -> bool {
    let status = text("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & CAN_MOUNT != 0)
}

fn rights() -> Check {
    let check = "rights";
    match (is_root(), may_mount()) {
        (true, true) => ok(check, "root, and may mount"),
        (true, false) => fail(
            check,
            "root, but without CAP_SYS_ADMIN: nothing can be mounted or attached",
            "run it on the host, or in a container with --privileged",
        ),
        _ => warn(
            check,
            "not root: volumes can be read and written, not mounted or attached; some checks see \
             less",
            "run `cowshed doctor` as root",
        ),
    }
}

fn fuse() -> Check {
    let check = "fuse";
    match fuse_device::open() {
        Ok(_) => ok(check, "/dev/fuse opens"),
        Err(error) if is_missing(&error) => {
            fail(check, format!("/dev/fuse: {error}"), "modprobe fuse")
        }
        Err(error) if !is_root() => warn(
            check,
            format!("/dev/fuse: {error}"),
            "run `cowshed doctor` as root",
        ),
        Err(error) => fail(
            check,
            format!("/dev/fuse: {error}"),
            "run it as root on the host, or give the container the device /dev/fuse",
        ),
    }
}

fn is_missing(error: &io::Error) -> bool {
    // ENODEV and ENXIO: there is a node, and no driver behind it.
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

fn fuse_rings() -> Check {
    let check = "fuse-io-uring";
    match fuse_ring::is_enabled() {
        Some(true) => ok(
            check,
            "enabled; used only with `serve --fuse io-uring`, and threads otherwise",
        ),
        Some(false) => ok(
            check,
            "this kernel has it, and it is off (/sys/module/fuse/parameters/enable_uring); threads \
             are used",
        ),
        None => ok(
            check,
            "this kernel has none (Linux 6.14 and later have); threads are used",
        ),
    }
}

fn io_uring() -> Check {
    let check = "io-uring";
    match fuse_ring::probe() {
        Ok(()) => ok(check, "a ring can be made"),
        Err(error) => {
            let disabled = text("/proc/sys/kernel/io_uring_disabled");
            let disabled = disabled
                .filter(|value| value != "0")
                .map(|value| format!(" (kernel.io_uring_disabled is {value})"));
            let why = disabled.unwrap_or_default();
            ok(
                check,
                format!("{error}{why}; needed only for `serve --fuse io-uring`"),
            )
        }
    }
}

fn loop_devices() -> Check {
    let check = "loop-devices";
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control");
    match control {
        Err(error) if is_missing(&error) => {
            return fail(
                check,
                format!("/dev/loop-control: {error}"),
                "modprobe loop",
            );
        }
        Err(error) if is_root() => {
            return fail(
                check,
                format!("/dev/loop-control: {error}"),
                "run it on the host, or give the container the device",
            );
        }
        _ => {}
    }
    let attached = loop_device::attached().map_or(0, |all| all.len());
    let without_node = loops_without_node();
    if !without_node.is_empty() {
        let names = without_node.join(", ");
        return warn(
            check,
            format!("{attached} in use, but {names} of the kernel's are not in this /dev"),
            "run it on the host: in a container new devices do not appear in /dev",
        );
    }
    let detail = format!("{attached} in use; the kernel makes more when they are needed");
    ok(check, detail)
}

/// Returns the loop devices that the kernel has and `/dev` has not.
fn loops_without_node() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("loop") && !Path::new("/dev").join(name).exists())
        .collect();
    names.sort();
    names
}

fn ublk() -> Check {
    let is_there = Path::new("/dev/ublk-control").exists();
    let word = if is_there { "there" } else { "not there" };
    ok("ublk", format!("{word}; cowshed uses loop devices instead"))
}

fn limits() -> Check {
    let check = "open-files";
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return warn(check, "the limit is unknown", "see `ulimit -n`");
    };
    let host = text("/proc/sys/fs/file-max").and_then(|text| text.parse::<u64>().ok());
    let host = host.unwrap_or(u64::MAX);
    let detail = match host {
        u64::MAX => format!("{soft}, at most {hard}, for a process"),
        host if host > 1 << 40 => {
            format!("{soft}, at most {hard}, for a process; the host has no limit")
        }
        host => format!("{soft}, at most {hard}, for a process; {host} for the host"),
    };
    if host < FILES_MIN {
        warn(check, detail, "sysctl fs.file-max=1000000")
    } else if hard < FILES_MIN {
        warn(
            check,
            detail,
            "for very many volumes raise it: `ulimit -n`, or LimitNOFILE= of the unit, which has \
             524288",
        )
    } else {
        ok(check, detail)
    }
}

/// Returns whether mounts made here are those that other processes see.
fn mounts() -> Check {
    let check = "mounts";
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let info = text("/proc/self/mountinfo").unwrap_or_default();
    let shared = is_shared(&info, "/");
    match (namespace("1"), namespace("self")) {
        (Some(first), Some(own)) if first != own => warn(
            check,
            "this mount namespace is not that of the first process: others do not see what is \
             mounted here",
            "start the daemon in the host's mount namespace",
        ),
        _ if !shared => ok(
            check,
            "/ is private: containers that were given directories of the host see no later mounts",
        ),
        _ => ok(
            check,
            "/ is shared: what is mounted appears in other mount namespaces",
        ),
    }
}

/// Returns true if mounts below the topmost mount at this path go to other namespaces.
fn is_shared(mountinfo: &str, mount_point: &str) -> bool {
    let found = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(mount_point));
    found.is_some_and(|line| {
        let optional = line.split(' ').skip(6).take_while(|field| *field != "-");
        { optional }.any(|field| field.starts_with("shared:"))
    })
}

fn control_groups() -> Check {
    let check = "control-groups";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        ok(check, "version 2")
    } else if Path::new("/sys/fs/cgroup/memory").exists() {
        ok(
            check,
            "version 1; containers run, and new runtimes want version 2",
        )
    } else {
        warn(
            check,
            "none at /sys/fs/cgroup: containers do not run, volumes and images do",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn kernels_are_judged_by_what_they_lack() {
        for (release, state) in [
            ("6.18.2-amd64", State::Ok),
            ("6.9.0", State::Ok),
            ("6.8.12+", State::Warn),
            ("5.4.0-rc1", State::Warn),
            ("4.19.0-27-amd64", State::Fail),
            ("new", State::Warn),
        ] {
            let check = judge_kernel(release);
            assert_eq!(check.state, state, "{check:?}");
            assert_eq!(check.remedy.is_some(), state != State::Ok);
        }
    }

    #[test]
    fn a_shared_mount_is_told_from_a_private_one() {
        let shared = "22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw";
        assert!(is_shared(shared, "/") && !is_shared(shared, "/srv"));
        assert!(!is_shared("22 1 8:1 / / rw - ext4 shared:1 rw", "/"));
    }

    #[test]
    fn each_check_says_what_to_do_unless_all_is_well() {
        for check in checks() {
            assert_eq!(
                check.remedy.is_none(),
                check.state == State::Ok,
                "{check:?}"
            );
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }
}
