//! The stop of a daemon: in order if possible; if something is in use, it is named and the wait is
//! bounded.

use crate::harness::{
    Bench, Reaped, clear_mounts, eventually, expect_failure, host, is_mounted, loops_below, noise,
};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A mounted file system on a volume's loop device, unmounted on drop.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn ext4(bench: &Bench, volume: &str) -> Self {
        let device = bench.ok(["attach", volume]).trim().to_owned();
        host("mkfs.ext4", ["-q", &device]);
        let point = bench.path("mnt");
        fs::create_dir_all(&point).unwrap();
        host("mount", [device.as_str(), point.to_str().unwrap()]);
        Self(point)
    }

    fn unmount(&self) {
        host("umount", [self.0.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        clear_mounts(&self.0);
    }
}

#[test]
fn what_is_in_use_is_named_and_waited_for() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "disk", "--size", "64M"]);
    let mounted = Mounted::ext4(&bench, "disk");
    fs::write(mounted.0.join("file"), b"kept").unwrap();
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(700));
    assert!(
        is_mounted(&mounted.0) && is_mounted(&volumes),
        "it did not wait"
    );
    mounted.unmount();
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert!(said.contains(mounted.0.to_str().unwrap()), "{said}");
    assert!(!is_mounted(&volumes) && loops_below(&volumes).is_empty());
    bench.expect_sound();
}

/// A service manager does this: if it counted as two signals, it would cut off what is in use, with
/// status 1.
#[test]
fn a_signal_to_all_processes_of_the_daemon_is_one_signal() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "64M"]);
    let mounted = Mounted::ext4(&bench, "disk");
    let worker = daemon.worker().unwrap().to_string();
    host("kill", ["-TERM", &worker, &daemon.pid().to_string()]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(is_mounted(&mounted.0), "it did not wait");
    mounted.unmount();
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    bench.expect_sound();
}

#[test]
fn a_second_signal_cuts_off_what_is_in_use_and_loses_nothing_written_before() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "disk", "--size", "64M"]);
    let mounted = Mounted::ext4(&bench, "disk");
    let bytes = noise(1 << 20, 1);
    fs::write(mounted.0.join("file"), &bytes).unwrap();
    host("sync", ["-f", mounted.0.to_str().unwrap()]);
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(700));
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.lines()
            .any(|line| line.starts_with("cowshed: ") && line.contains("in use")),
        "{said}"
    );
    clear_mounts(&mounted.0);
    eventually("the devices' end", || loops_below(&volumes).is_empty());

    let next = bench.serve();
    let again = bench.ok(["attach", "disk"]).trim().to_owned();
    host("mount", [again.as_str(), mounted.0.to_str().unwrap()]);
    assert!(
        fs::read(mounted.0.join("file")).unwrap() == bytes,
        "the file was lost"
    );
    mounted.unmount();
    next.stop();
    bench.expect_sound();
}

#[test]
fn a_running_command_is_cancelled_and_the_daemon_stops() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let mut import = bench.command(["volume", "import", "disk", "-"]);
    let import = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = Reaped(import.spawn().unwrap());
    eventually("the import", || bench.volumes().len() == 1);
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() < Duration::from_secs(10));
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut errors).unwrap();
    let status = child.0.wait().unwrap();
    let output = std::process::Output {
        status,
        stdout: Vec::new(),
        stderr: errors.into_bytes(),
    };
    expect_failure(&output, 1, "interrupted");
    assert!(bench.volumes().is_empty());
}

#[test]
fn a_process_that_works_in_the_mount_is_named() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let mut sleeper = Command::new("sleep");
    let sleeper = Reaped(
        sleeper
            .arg("60")
            .current_dir(&daemon.mount)
            .spawn()
            .unwrap(),
    );
    let pid = sleeper.0.id().to_string();
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_secs(4));
    drop(sleeper);
    let (status, said) = daemon.wait();
    assert!(status.success() && said.contains(&pid), "{said}");
}
