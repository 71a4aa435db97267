//! Failures to open, create or reach something are reported with fitting advice.

use crate::harness::{Bench, expect_failure, host, program};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

/// A loop device of 64 MiB, detached on drop.
struct Device(String);

impl Device {
    fn new(bench: &Bench) -> Self {
        let file = bench.path("device");
        File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let device = host("losetup", ["--find", "--show", file.to_str().unwrap()]);
        Self(device.trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_pool_beyond_its_device_is_refused_with_what_the_device_has() {
    let bench = Bench::empty();
    let device = Device::new(&bench);
    std::os::unix::fs::symlink(&device.0, bench.pool()).unwrap();
    let larger = "the block device has 64 MiB";
    bench.fails(["pool", "create", "--size", "1G"], 1, larger);
    bench.ok(["pool", "create", "--size", "32M"]);
    bench.fails(["pool", "grow", "--size", "1G"], 1, larger);
    bench.ok(["pool", "grow", "--size", "64M"]);
    // A size smaller than the current one is reported in units, too.
    bench.fails(["pool", "grow", "--size", "32M"], 1, "must be 64 MiB to");
    bench.expect_sound();
}

#[test]
fn sizes_that_nothing_can_have_are_told_in_units() {
    let bench = Bench::empty();
    bench.fails(["pool", "create", "--size", "1M"], 1, "must be 2 MiB to");
}

#[test]
fn a_socket_of_another_program_is_told_apart() {
    let bench = Bench::with_pool("64M");
    let listener = UnixListener::bind(bench.path("pool.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut bytes = [0; 64];
        let _ = client.read(&mut bytes);
        let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    bench.fails(["volume", "ls"], 1, "is not a cowshed daemon");
    server.join().unwrap();
}

#[test]
fn a_daemon_of_another_protocol_is_told_apart() {
    let bench = Bench::with_pool("64M");
    let listener = UnixListener::bind(bench.path("pool.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut bytes = [0; 64];
        let _ = client.read(&mut bytes);
        let _ = client.write_all(b"COWS\x09\0\0\0\x02\0\0\0{}");
    });
    bench.fails(["volume", "ls"], 1, "use the daemon's version of cowshed");
    server.join().unwrap();
}

#[test]
fn an_older_daemon_is_told_apart_and_can_be_upgraded() {
    let bench = Bench::with_pool("64M");
    let listener = UnixListener::bind(bench.path("pool.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut header = [0; 12];
        client.read_exact(&mut header).unwrap();
        let [.., l0, l1, l2, l3] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let mut body = vec![0; len.try_into().unwrap()];
        client.read_exact(&mut body).unwrap();
        // As a daemon of version 1 refuses every other version.
        let refusal = br#"{"status":1,"refusal":"another version"}"#;
        let len = u32::try_from(refusal.len()).unwrap();
        let answer = [&b"COWS\x01\0\0\0"[..], &len.to_le_bytes(), refusal].concat();
        client.write_all(&answer).unwrap();
        header
    });
    let output = bench.run(["volume", "ls"]);
    expect_failure(&output, 1, "use the daemon's version of cowshed");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("uses version 1 of the protocol"), "{said}");
    assert!(said.contains("cowshed serve --upgrade"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert_eq!(server.join().unwrap()[..8], *b"COWS\x03\0\0\0");
}

#[test]
fn a_pool_is_made_beside_a_socket_on_which_a_service_manager_waits_for_it() {
    let bench = Bench::empty();
    let _listener = UnixListener::bind(bench.path("pool.sock")).unwrap();
    bench.ok(["pool", "create", "--size", "64M"]);
}

#[test]
fn a_service_managers_socket_where_no_command_looks_is_refused() {
    let bench = Bench::with_pool("64M");
    let listener = UnixListener::bind(bench.path("elsewhere.sock")).unwrap();
    let output = Command::new("sh")
        .arg("-c")
        .arg("exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" </dev/null")
        .arg("sh")
        .arg(program())
        .arg("--pool")
        .arg(bench.pool())
        .args(["--quiet", "serve", "--foreground"])
        .stdin(OwnedFd::from(listener))
        .output()
        .unwrap();
    expect_failure(&output, 1, "ListenStream=");
}

/// Like a container without the right to mount.
#[test]
fn root_who_may_not_mount_is_told_why() {
    let bench = Bench::with_pool("64M");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin"])
        .arg(program())
        .arg("--pool")
        .arg(bench.pool())
        .args(["--quiet", "serve", "--foreground"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    expect_failure(&output, 1, "does not let root use FUSE");
    assert!(fs::exists(bench.pool()).unwrap());
}
