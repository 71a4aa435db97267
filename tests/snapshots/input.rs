//! Arbitrary input on the socket.

use crate::client::{Client, Labels, labels, refused};
use crate::place::Snapshotter;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tonic::Code;

#[test]
fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    let long = "k".repeat(1025);
    refused(client.prepare("", ""), Code::InvalidArgument);
    refused(client.prepare(&long, ""), Code::InvalidArgument);
    refused(client.prepare("k", &long), Code::InvalidArgument);
    refused(client.view("", ""), Code::InvalidArgument);
    client.prepare(&long[1..], "").unwrap();
    refused(client.commit("", &long[1..]), Code::InvalidArgument);
    refused(client.commit(&long, &long[1..]), Code::InvalidArgument);
    let label = |len: usize| labels(&[("label", "v".repeat(len).as_str())]);
    refused(
        client.prepare_with("k", "", label(4092)),
        Code::InvalidArgument,
    );
    client.prepare_with("k", "", label(4091)).unwrap();
    let many: Labels = (0..100)
        .map(|n| (format!("l{n}"), "v".repeat(4000)))
        .collect();
    refused(
        client.prepare_with("m", "", many.clone()),
        Code::InvalidArgument,
    );
    refused(client.update("k", many, &["labels"]), Code::InvalidArgument);
    for (key, value) in [
        ("containerd.io/snapshot/max-size", "much"),
        ("containerd.io/snapshot/max-size", "1K"),
        ("containerd.io/snapshot/max-size", "99999T"),
        ("containerd.io/snapshot/cowshed.mounts", "overlayfs"),
    ] {
        refused(
            client.prepare_with("m", "", labels(&[(key, value)])),
            Code::InvalidArgument,
        );
    }
    let filters = vec!["name==x"; 1025];
    refused(client.list(&filters), Code::InvalidArgument);
    assert_eq!(client.names(&[]).len(), 2);
    snapshotter.end(2);
}

#[test]
fn bytes_that_are_no_grpc_end_their_connection_alone() {
    let snapshotter = Snapshotter::start("1G");
    let socket = snapshotter.bench.path("containerd.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(&socket);
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
        &[0; 4096],
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // The daemon may have closed the connection by then, which is fine too.
        let _ = stream.write_all(bytes);
        let _ = stream.read(&mut [0; 64]);
        client.prepare("k", "").unwrap();
        client.remove("k").unwrap();
    }
    // A message larger than the limit.
    let huge = labels(&[("l", "v".repeat(2 << 20).as_str())]);
    assert!(client.prepare_with("k", "", huge).is_err());
    assert!(client.names(&[]).is_empty());
    snapshotter.end(0);
}

/// Returns the processor time of a process, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_daemon_without_descriptors_waits_for_some_and_does_not_spin() {
    let snapshotter = Snapshotter::start("1G");
    let worker = snapshotter.daemon.worker().unwrap();
    let limit = |files: &str| {
        let (pid, files) = (worker.to_string(), format!("--nofile={files}:"));
        crate::harness::host("prlimit", ["--pid", &pid, &files]);
    };
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let usual = files.unwrap().split_whitespace().nth(3).unwrap();
    let before = ticks(worker);
    limit("3");
    let waiting = UnixStream::connect(snapshotter.bench.path("containerd.sock")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(worker) - before;
    assert!(spent < 15, "{spent} hundredths of a second of two seconds");
    limit(usual);
    let mut client = snapshotter.client();
    client.prepare("k", "").unwrap();
    drop(waiting);
    snapshotter.end(1);
}
