//! Commands through the daemon, and the volumes that it mounts.

use crate::harness::{
    Bench, Reaped, clear_mounts, eventually, expect_failure, host, is_mounted, loops_below, noise,
    program,
};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn commands_answer_the_same_with_and_without_the_daemon() {
    let bench = Bench::with_pool("256M");
    let input = bench.path("in");
    fs::write(&input, noise(1 << 20, 1)).unwrap();
    bench.ok(["volume", "import", "disk", input.to_str().unwrap()]);
    bench.ok(["volume", "snapshot", "disk", "disk@1"]);
    let questions: [&[&str]; 6] = [
        &["volume", "ls"],
        &["volume", "show", "disk"],
        &["volume", "show", "nobody"],
        &["volume", "diff", "disk", "disk@1"],
        &["volume", "export", "disk", "-"],
        &["volume", "create", "disk", "--size", "1M"],
    ];
    let ask = || questions.map(|question| bench.run(question));
    let alone = ask();
    let daemon = bench.serve();
    let through = ask();
    for ((question, alone), through) in questions.iter().zip(alone).zip(through) {
        assert_eq!(alone.status, through.status, "{question:?}");
        assert!(
            alone.stdout == through.stdout,
            "{question:?} answers differently"
        );
        assert_eq!(alone.stderr, through.stderr, "{question:?}");
    }
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn pipes_and_the_callers_own_files_reach_the_daemon() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let bytes = noise(3 << 20, 2);
    fs::write(bench.path("in"), &bytes).unwrap();
    // A shell's <(…) is a path of the caller's own descriptors, and `in` one of its working folder.
    let script = format!(
        "exec {0} --pool {1} volume import piped <(cat in)",
        program().display(),
        bench.pool().display()
    );
    let status = Command::new("bash")
        .args(["-c", &script])
        .current_dir(bench.path(""))
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let relative = bench
        .command(["volume", "import", "relative", "in"])
        .stdout(Stdio::null())
        .current_dir(bench.path(""))
        .status();
    assert!(relative.unwrap().success());
    for name in ["piped", "relative"] {
        assert!(
            bench.run(["volume", "export", name, "/dev/stdout"]).stdout == bytes,
            "{name}"
        );
    }
    daemon.stop();
}

#[test]
fn a_client_that_is_killed_leaves_nothing_and_harms_nobody() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let mut import = bench.command(["volume", "import", "disk", "-"]);
    let child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Reaped(child);
    child
        .0
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&noise(2 << 20, 3))
        .unwrap();
    eventually("the import", || bench.volumes().len() == 1);
    // The pipe stays open in this process, so that only the client's death can end the import.
    let input = child.0.stdin.take();
    drop(child);
    eventually("the import's end", || bench.volumes().is_empty());
    drop(input);
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn hostile_bytes_on_the_socket_are_answered_and_survived() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &noise(4096, 4),
        b"COWS\x01\0\0\0\xff\xff\xff\xff",
    ] {
        let mut socket = UnixStream::connect(bench.path("pool.sock")).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // The daemon closes while bytes are unread, which may reset the connection.
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.starts_with(b"COWS"), "{answer:?}");
    }
    bench.ok(["volume", "ls"]);
    daemon.stop();
}

/// Sends a request of version 1 with its streams; returns the version and text of the reply, and
/// the output.
fn ask_as_version_1(bench: &Bench, command: &str) -> (u32, String, String) {
    let body = format!(
        r#"{{"style":{{"json":false,"quiet":false,"verbose":0,"terminal_columns":null}},"command":{command}}}"#
    );
    let len = u32::try_from(body.len()).unwrap();
    let message = [&b"COWS\x01\0\0\0"[..], &len.to_le_bytes(), body.as_bytes()].concat();
    let socket = UnixStream::connect(bench.path("pool.sock")).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let streams = [null.as_fd(), writer.as_fd(), null.as_fd()];
    let sent = cowshed_sys::descriptors::send(&socket, &message, &streams).unwrap();
    assert_eq!(sent, message.len());
    drop(writer);
    let (mut answer, mut output) = (Vec::new(), String::new());
    (&socket).read_to_end(&mut answer).unwrap();
    reader.read_to_string(&mut output).unwrap();
    assert!(answer.starts_with(b"COWS"), "{answer:?}");
    let version = u32::from_le_bytes(answer[4..8].try_into().unwrap());
    let text = String::from_utf8(answer[12..].to_vec()).unwrap();
    (version, text, output)
}

#[test]
fn an_older_command_line_is_told_apart_and_can_take_over() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    // A program of version 1 reads nothing but the version, and says what to do.
    let (version, text, output) = ask_as_version_1(&bench, r#"{"Volume":"Ls"}"#);
    assert_eq!((version, output.as_str()), (3, ""));
    let wanted = "uses version 1 of the protocol, not 3; use the daemon's version of cowshed";
    assert!(text.contains(wanted), "{text}");
    for question in [r#""Serving""#, r#""Running""#] {
        let (version, text, output) = ask_as_version_1(&bench, question);
        assert_eq!(version, 1, "{text}");
        assert_eq!(text, r#"{"status":0,"refusal":null}"#);
        assert!(output.starts_with('{'), "{output}");
    }
    // Without a program as the input nothing is handed over.
    let (version, text, _) = ask_as_version_1(&bench, r#""Upgrade""#);
    assert_eq!(
        (version, text.as_str()),
        (1, r#"{"status":1,"refusal":null}"#)
    );
    daemon.stop();
}

#[test]
fn a_detached_daemon_is_ready_when_the_command_returns() {
    let bench = Bench::with_pool("64M");
    let ready = bench.json(["serve"]);
    let pid = ready["pid"].as_u64().unwrap().to_string();
    let mount = PathBuf::from(ready["mount"].as_str().unwrap());
    assert!(is_mounted(&mount));
    assert_eq!(
        fs::metadata(bench.path("pool.sock")).unwrap().mode() & 0o777,
        0o600
    );
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    assert_eq!(fs::metadata(mount.join("disk")).unwrap().len(), 1 << 20);
    // The second daemon gets an error, and from the running one.
    bench.fails(["serve"], 1, "a daemon has it open");
    bench.fails(["pool", "check"], 1, "a daemon has it open");
    bench.fails(
        ["pool", "create", "--size", "64M", "--force"],
        1,
        "a daemon has it open",
    );
    host("kill", ["-TERM", &pid]);
    eventually("the end", || !Path::new("/proc").join(&pid).exists());
    assert!(!is_mounted(&mount) && !bench.path("pool.sock").exists());
    bench.expect_sound();
}

#[test]
fn a_detached_daemon_that_cannot_start_says_why() {
    let bench = Bench::empty();
    bench.fails(["serve"], 1, "no such pool");
    fs::write(bench.pool(), b"something else").unwrap();
    bench.fails(["serve"], 1, "not a cowshed pool");
}

#[test]
fn what_needs_the_daemon_says_so_without_one() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    bench.fails(["attach", "disk"], 1, "serve");
    bench.fails(["detach", "disk"], 1, "serve");
    bench.fails(["attach", "--ls"], 1, "serve");
    bench.fails(["container", "mount", "c"], 1, "serve");
}

#[test]
fn an_attached_volume_is_a_file_or_a_device_and_shows_its_new_size() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    bench.ok(["volume", "create", "disk", "--size", "16M"]);
    let attached = bench.json(["attach", "disk"]);
    let device = attached["path"].as_str().unwrap().to_owned();
    assert!(device.starts_with("/dev/loop"), "{attached}");
    assert_eq!(attached["as"], "loop");
    let bytes = noise(1 << 20, 5);
    let file = File::options().write(true).open(&device).unwrap();
    file.write_all_at(&bytes, 4 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    bench.fails(["volume", "rm", "disk"], 1, "in use");
    bench.ok(["volume", "resize", "disk", "--size", "32M"]);
    assert_eq!(
        host("blockdev", ["--getsize64", &device]).trim(),
        (32 << 20).to_string()
    );
    assert_eq!(bench.json(["attach", "--ls"])[0]["path"], device.as_str());
    bench.ok(["detach", "disk"]);
    bench.fails(["detach", "disk"], 1, "not attached");
    let path = bench.ok(["attach", "disk", "--as", "file", "--read-only"]);
    let shown = File::open(path.trim()).unwrap();
    let mut back = vec![0; bytes.len()];
    shown.read_exact_at(&mut back, 4 << 20).unwrap();
    assert!(
        back == bytes,
        "the file shows other bytes than the device took"
    );
    drop(shown);
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn without_fuse_the_daemon_says_what_is_missing() {
    let bench = Bench::with_pool("64M");
    let hidden = |command: &str| {
        let script = format!(
            "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && \
             exec {} --pool {} {command}",
            program().display(),
            bench.pool().display()
        );
        Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .output()
            .unwrap()
    };
    expect_failure(&hidden("serve --foreground -q"), 1, "/dev/fuse");
    expect_failure(&hidden("serve"), 1, "/dev/fuse");
    expect_failure(&hidden("quickstart"), 1, "/dev/fuse");
    bench.ok(["volume", "ls"]);
    assert!(!bench.path("pool.sock").exists());
}

/// Writes a block with a unique number to each place in turn until the device is gone, and counts
/// the acknowledged writes.
fn write_until_gone(device: &str, durable: bool) -> (u64, Vec<u64>) {
    let mut versions = vec![0; 2048];
    // Past the cache, so that an acknowledged write has passed through the daemon.
    let flags = libc::O_DIRECT | if durable { libc::O_DSYNC } else { 0 };
    let file = File::options()
        .write(true)
        .custom_flags(flags)
        .open(device)
        .unwrap();
    let mut buffer = vec![0_u8; 8192];
    let start = buffer.as_ptr().align_offset(4096);
    for version in 1_u64.. {
        let place = version * 7919 % 2048;
        let block = &mut buffer[start..start + 4096];
        for chunk in block.chunks_mut(16) {
            chunk[..8].copy_from_slice(&version.to_le_bytes());
            chunk[8..].copy_from_slice(&place.to_le_bytes());
        }
        if file.write_all_at(block, place * 4096).is_err() {
            return (version, versions);
        }
        versions[usize::try_from(place).unwrap()] = version;
    }
    unreachable!("the daemon was never killed");
}

#[test]
fn after_a_kill_every_write_that_a_loop_device_acknowledged_is_found() {
    let bench = Bench::with_pool("256M");
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    for round in 0..3_u64 {
        let daemon = bench.serve();
        let mount = daemon.mount.clone();
        let device = bench.ok(["attach", "disk"]).trim().to_owned();
        let writer = std::thread::spawn(move || write_until_gone(&device, round == 1));
        std::thread::sleep(std::time::Duration::from_millis(300 + 200 * round));
        daemon.kill();
        let (unanswered, versions) = writer.join().unwrap();
        assert!(unanswered > 50, "only {unanswered} writes were made");
        // The next daemon removes what the killed one left.
        let next = bench.serve();
        assert_eq!(next.mount, mount);
        let found = bench.run(["volume", "export", "disk", "-"]).stdout;
        for (place, version) in versions.iter().enumerate() {
            let block = &found[place * 4096..][..4096];
            let stored = u64::from_le_bytes(block[..8].try_into().unwrap());
            let newest = stored == *version || stored == unanswered;
            let older_round = *version == 0;
            assert!(
                newest || older_round,
                "block {place}: {stored} instead of {version}"
            );
            assert!(
                block.chunks(16).all(|chunk| chunk == &block[..16]),
                "block {place} is torn"
            );
        }
        next.stop();
        assert!(loops_below(&mount).is_empty(), "a loop device was left");
        bench.expect_sound();
        clear_mounts(&mount);
    }
}

#[test]
fn two_copies_of_one_pool_are_served_side_by_side() {
    let bench = Bench::with_pool("64M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    let copy = Bench::empty();
    fs::copy(bench.pool(), copy.pool()).unwrap();
    let (first, second) = (bench.serve(), copy.serve());
    assert_ne!(first.mount, second.mount);
    copy.ok(["volume", "rm", "disk"]);
    assert_eq!(bench.volumes(), ["disk"]);
    first.stop();
    second.stop();
}

#[test]
fn a_list_of_volumes_through_the_daemon_is_complete_while_many_clients_ask() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("v{client}-{number}");
                    bench.ok(["volume", "create", &name, "--size", "1M"]);
                }
            });
        }
    });
    let list: Value = bench.json(["volume", "ls"]);
    assert_eq!(list.as_array().unwrap().len(), 40);
    daemon.stop();
    bench.expect_sound();
}
