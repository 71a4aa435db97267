//! The daemon's log: a full disk, links and closed pipes affect only the log; it is rotated and
//! reopened; and the reason for a worker's death is reported.

use crate::harness::{Bench, Daemon, eventually, host, is_over, kill_and_wait};
use crate::load::serving;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A small file system of a test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let point = path.to_str().unwrap();
        host("mount", ["-t", "tmpfs", "-o", "size=64k", "none", point]);
        Self(path)
    }

    /// Leaves no free byte, neither on the disk nor in the last page of `log`.
    fn fill(&self, log: &Path) {
        let zeros = [0; 4096];
        let mut filler = File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&zeros).is_ok() {}
        let mut log = File::options().append(true).create(true).open(log).unwrap();
        while log.write_all(b"\n").is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A daemon in the background, ended on drop in any case.
struct Background<'a> {
    bench: &'a Bench,
    keeper: u32,
    ready: Value,
}

impl<'a> Background<'a> {
    fn start(bench: &'a Bench, log: Option<&Path>) -> Self {
        let mut command = bench.command(["serve", "--json"]);
        if let Some(log) = log {
            command.arg("--log").arg(log);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let ready: Value = serde_json::from_slice(&output.stdout).unwrap();
        let keeper = u32::try_from(ready["pid"].as_u64().unwrap()).unwrap();
        Self {
            bench,
            keeper,
            ready,
        }
    }

    fn log(&self) -> PathBuf {
        PathBuf::from(self.ready["log"].as_str().unwrap())
    }

    fn signal(&self, name: &str) {
        host("kill", [format!("-{name}"), self.keeper.to_string()]);
    }

    /// Ends the worker with a signal and waits until another one serves.
    fn end_worker(&self, signal: &str) {
        let worker = serving(self.bench)["worker"].clone();
        host("kill", [format!("-{signal}"), worker.to_string()]);
        eventually("another worker", || serving(self.bench)["worker"] != worker);
    }

    fn stop(&self) {
        self.signal("TERM");
        eventually("the daemon's end", || is_over(self.keeper));
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        if is_over(self.keeper) {
            return;
        }
        // Only a failed test leads here.
        let workers = crate::harness::children_of(self.keeper);
        kill_and_wait(self.keeper);
        workers.into_iter().for_each(kill_and_wait);
        let mount = PathBuf::from(self.ready["mount"].as_str().unwrap());
        crate::harness::clear_mounts(mount.parent().unwrap());
    }
}

#[test]
fn a_daemon_whose_log_is_on_a_full_disk_starts_follows_its_worker_hands_over_and_stops() {
    let bench = Bench::with_pool("64M");
    let disk = SmallDisk::at(bench.path("small"));
    let log = disk.0.join("x.log");
    disk.fill(&log);
    let daemon = Background::start(&bench, Some(&log));
    disk.fill(&log);
    daemon.end_worker("KILL");
    assert_eq!(serving(&bench)["restarts"], 1);
    disk.fill(&log);
    bench.ok(["serve", "--upgrade"]);
    assert_eq!(serving(&bench)["upgrades"], 1);
    disk.fill(&log);
    // Longer than the time between two checkpoints: the checkpoint thread logs nothing, but lives.
    bench.ok(["pool", "checkpoint"]);
    daemon.stop();
    // Once there is space again, the log reports what it lacks.
    drop(daemon);
    fs::remove_file(disk.0.join("filler")).unwrap();
    fs::remove_file(&log).unwrap();
    let daemon = Background::start(&bench, Some(&log));
    daemon.stop();
    assert!(fs::read_to_string(&log).unwrap().contains("stopped"));
}

#[test]
fn why_a_daemon_does_not_start_is_told_although_its_log_has_no_room() {
    let bench = Bench::empty();
    let disk = SmallDisk::at(bench.path("small"));
    let log = disk.0.join("x.log");
    disk.fill(&log);
    bench.fails(["serve", "--log", log.to_str().unwrap()], 1, "no such pool");
}

#[test]
fn a_log_is_never_written_through_a_link() {
    let bench = Bench::with_pool("64M");
    let victim = bench.path("victim");
    fs::write(&victim, "victim").unwrap();
    // A folder in which a user puts a link, and in which root then serves a pool.
    let folder = bench.path("user");
    fs::create_dir(&folder).unwrap();
    fs::rename(bench.pool(), folder.join("pool")).unwrap();
    chown(&folder, Some(65534), Some(65534)).unwrap();
    let link = folder.join("pool.log");
    symlink(&victim, &link).unwrap();
    symlink(folder.join("pool"), bench.pool()).unwrap();
    let log = link.to_str().unwrap();
    bench.fails(["serve", "--log", log], 1, "symbolic link");
    fs::remove_file(bench.pool()).unwrap();
    fs::rename(folder.join("pool"), bench.pool()).unwrap();
    // A hard link, a FIFO and a file of another user beside root's own pool.
    let log = bench.path("pool.log");
    fs::hard_link(&victim, &log).unwrap();
    bench.fails(["serve"], 1, "hard link");
    fs::remove_file(&log).unwrap();
    fs::write(&log, "").unwrap();
    chown(&log, Some(65534), None).unwrap();
    bench.fails(["serve"], 1, "belongs to another user");
    fs::remove_file(&log).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "victim");
}

#[test]
fn the_log_of_a_pool_in_a_users_folder_lies_with_the_systems_logs() {
    let bench = Bench::empty();
    let folder = bench.path("user");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(65534), Some(65534)).unwrap();
    let pool = folder.join("pool");
    let program = crate::harness::program();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .arg("--pool")
            .arg(&pool)
            .args(arguments)
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    assert!(
        command(&["pool", "create", "--size", "64M"])
            .status
            .success()
    );
    let output = command(&["serve", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let ready: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keeper = u32::try_from(ready["pid"].as_u64().unwrap()).unwrap();
    let socket = fs::symlink_metadata(folder.join("pool.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    host("kill", ["-TERM", &keeper.to_string()]);
    eventually("the daemon's end", || is_over(keeper));
    let log = PathBuf::from(ready["log"].as_str().unwrap());
    let text = fs::read_to_string(&log);
    let owner = fs::metadata(&log).map(|found| (found.uid(), found.mode() & 0o777));
    fs::remove_file(&log).unwrap();
    assert!(log.starts_with("/var/log/cowshed"), "{}", log.display());
    assert!(text.unwrap().contains("stopped"));
    assert_eq!(owner.unwrap(), (0, 0o600));
    assert!(!folder.join("pool.log").exists());
}

#[test]
fn sighup_opens_the_log_again_in_both_processes() {
    let bench = Bench::with_pool("64M");
    let daemon = Background::start(&bench, None);
    let log = daemon.log();
    assert_eq!(log, bench.path("pool.log"));
    let moved = bench.path("moved.log");
    fs::rename(&log, &moved).unwrap();
    daemon.signal("HUP");
    let said = |what: &str| fs::read_to_string(&log).is_ok_and(|text| text.contains(what));
    eventually("the log at its name", || said("reopened the log"));
    let before = fs::read_to_string(&moved).unwrap();
    daemon.stop();
    // "stopped" comes from the worker.
    assert!(said("stopped"));
    assert_eq!(fs::read_to_string(&moved).unwrap(), before);
}

#[test]
fn a_large_log_is_rotated() {
    let bench = Bench::with_pool("64M");
    let log = bench.path("pool.log");
    let old = File::create(&log).unwrap();
    old.set_len(64 << 20).unwrap();
    let daemon = Background::start(&bench, None);
    daemon.stop();
    assert!(fs::read_to_string(&log).unwrap().contains("stopped"));
    assert_eq!(
        fs::metadata(bench.path("pool.log.1")).unwrap().len(),
        64 << 20
    );
}

#[test]
fn what_a_worker_died_of_is_in_the_status() {
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["daemon"]["last_failure"], Value::Null, "{status}");
    let worker = daemon.worker().unwrap();
    host("kill", ["-ABRT", &worker.to_string()]);
    eventually("another worker", || serving(&bench)["worker"] != worker);
    let status = bench.json(["pool", "status"]);
    let failure = status["daemon"]["last_failure"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        failure.contains(&format!("process {worker}")) && failure.contains("SIGABRT"),
        "{failure}"
    );
    assert!(bench.ok(["pool", "status"]).contains(&failure));
    daemon.stop();
}

/// Asserts that a daemon whose error stream is `errors` survives a killed worker and stops.
fn expect_served_with(bench: &Bench, errors: std::io::PipeWriter) {
    let mut command = bench.command(["-v", "serve", "--foreground"]);
    command.stderr(errors).stdout(Stdio::null());
    let mut child = crate::harness::Reaped(command.spawn().unwrap());
    drop(command);
    let answers =
        || bench.path("pool.sock").exists() && bench.run(["pool", "status"]).status.success();
    eventually("a daemon", answers);
    let worker = serving(bench)["worker"].clone();
    host("kill", ["-KILL", &worker.to_string()]);
    eventually("another worker", || serving(bench)["worker"] != worker);
    host("kill", ["-TERM", &child.0.id().to_string()]);
    let mut status = None;
    eventually("the daemon's end", || {
        status = child.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

#[test]
fn an_error_stream_that_is_closed_changes_nothing() {
    let bench = Bench::with_pool("64M");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    expect_served_with(&bench, writer);
}

#[test]
fn a_full_error_stream_that_nobody_reads_keeps_nobody_waiting() {
    let bench = Bench::with_pool("64M");
    let (_nobody_reads, writer) = std::io::pipe().unwrap();
    // Another open file of the pipe, so that the daemon's does not return an error instead of
    // blocking.
    let mut filler = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", writer.as_raw_fd()))
        .unwrap();
    while filler.write(&[b'x'; 4096]).is_ok() {}
    expect_served_with(&bench, writer);
}

#[test]
fn lists_of_processes_show_what_a_worker_and_a_keeper_serve() {
    let bench = Bench::with_pool("64M");
    let daemon = Background::start(&bench, None);
    let line = |pid: &Value| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8(line).unwrap().replace('\0', " ")
    };
    let pool = bench.pool();
    let expect_short = |line: &str, role: &str| {
        let start = format!("cowshed {role} --pool {} ", pool.display());
        assert!(
            line.starts_with(&start) && line.len() < start.len() + 20,
            "{line}"
        );
    };
    expect_short(&line(&serving(&bench)["worker"]), "worker");
    daemon.end_worker("KILL");
    expect_short(&line(&serving(&bench)["worker"]), "worker");
    bench.ok(["serve", "--upgrade"]);
    let now = serving(&bench);
    expect_short(&line(&now["worker"]), "worker");
    expect_short(&line(&now["keeper"]), "keeper");
    // Both still have the options that they were started with.
    daemon.end_worker("KILL");
    daemon.stop();
    assert!(
        fs::read_to_string(daemon.log())
            .unwrap()
            .contains("stopped")
    );
}

#[test]
fn lines_for_the_journal_have_their_priority_and_no_time() {
    let bench = Bench::with_pool("64M");
    let errors = bench.path("errors");
    let file = File::create(&errors).unwrap();
    let found = file.metadata().unwrap();
    let mut command = bench.command(["serve", "--foreground", "--json"]);
    let stream = format!("{}:{}", found.dev(), found.ino());
    command.env("JOURNAL_STREAM", stream);
    let mut script = Command::new("sh");
    script.arg("-c").arg("exec \"$0\" \"$@\" 2>\"$ERRORS\"");
    script.arg(command.get_program()).args(command.get_args());
    script.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    script.env("ERRORS", &errors).stdin(Stdio::null());
    let daemon = Daemon::start(script);
    let worker = serving(&bench)["worker"].clone();
    daemon.kill_worker();
    eventually("another worker", || serving(&bench)["worker"] != worker);
    daemon.stop();
    let mut text = String::new();
    File::open(&errors)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(
        text.lines()
            .any(|line| line.starts_with("<3>the worker died")),
        "{text}"
    );
    assert!(text.lines().any(|line| line.starts_with("<6>")), "{text}");
    let is_plain = |line: &str| {
        let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        rest.is_some_and(|(priority, text)| priority.len() == 1 && !text.starts_with("20"))
    };
    assert!(text.lines().all(is_plain), "{text}");
}
