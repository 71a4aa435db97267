//! Full pools through the daemon: its options, its status, and its log.

use crate::harness::{Bench, Daemon, PATIENCE, eventually, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Writes to the file of a volume until there is no space; returns the number of blocks written.
fn fill(file: &File) -> u64 {
    for index in 0.. {
        if let Err(error) = file.write_all_at(&noise(4096, index + 1), index * BLOCK) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            return index;
        }
    }
    unreachable!("the pool ends before the numbers do")
}

/// A daemon in the background, ended on drop.
struct Detached<'a> {
    bench: &'a Bench,
    pid: String,
    mount: PathBuf,
}

impl<'a> Detached<'a> {
    fn start(bench: &'a Bench) -> Self {
        let ready = bench.json(["serve", "--full-policy", "error"]);
        Self {
            bench,
            pid: ready["pid"].to_string(),
            mount: PathBuf::from(ready["mount"].as_str().unwrap()),
        }
    }

    /// Returns how often the text occurs in its log.
    fn said(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.bench.path("pool.log")).unwrap();
        log.matches(what).count()
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.pid]).status();
        let deadline = Instant::now() + PATIENCE;
        while self.bench.path("pool.sock").exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_full_pool_says_so_in_its_status_and_once_in_the_log() {
    let bench = Bench::with_pool("64M");
    let daemon = Detached::start(&bench);
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["low_water"], "ample", "{status}");
    bench.ok(["pool", "status", "--check"]);
    assert_eq!(status["limit_bytes"], 64 << 20, "{status}");
    assert!(status["host_free_bytes"].as_u64().unwrap() > 0, "{status}");
    bench.ok(["volume", "create", "v", "--size", "1G"]);
    let file = open(&daemon.mount.join("v"));
    assert!(fill(&file) > 10_000);
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["low_water"], "full", "{status}");
    assert_eq!(status["state"], "full", "{status}");
    let text = bench.ok(["pool", "status"]);
    assert!(text.contains("the pool is full: grow the pool"), "{text}");
    bench.fails(["pool", "status", "--check"], 1, "the pool is full");
    eventually("a warning", || daemon.said("the pool is full") > 0);
    // All other operations still work.
    bench.ok(["volume", "snapshot", "v", "s"]);
    bench.ok(["volume", "rename", "s", "t"]);
    bench.ok(["pool", "checkpoint"]);
    bench.ok(["volume", "rm", "t"]);
    drop(file);
    eventually("the removal of a closed volume", || {
        bench.run(["volume", "rm", "v"]).status.success()
    });
    bench.ok(["pool", "trim"]);
    assert_eq!(bench.json(["pool", "status"])["low_water"], "ample");
    eventually("relief", || daemon.said("ample free space again") > 0);
    assert_eq!(daemon.said("the pool is full"), 1);
    assert_eq!(daemon.said("ample free space again"), 1);
    drop(daemon);
    bench.expect_sound();
}

/// Writes more to the volume `v` than the pool can hold, calls `meanwhile` once a write is held,
/// and asserts that all data is there.
fn write_and_be_held(bench: &Bench, daemon: &Daemon, meanwhile: impl FnOnce()) {
    const BLOCKS: u64 = 10_000;
    bench.ok(["volume", "create", "v", "--size", "1G"]);
    let file = open(&daemon.mount.join("v"));
    thread::scope(|scope| {
        let held = scope.spawn(|| {
            for index in 0..BLOCKS {
                file.write_all_at(&noise(4096, index), index * BLOCK)
                    .unwrap();
            }
        });
        expect_held(bench);
        meanwhile();
        held.join().unwrap();
    });
    let mut found = vec![0; 4096];
    for index in 0..BLOCKS {
        file.read_exact_at(&mut found, index * BLOCK).unwrap();
        assert!(found == noise(4096, index), "block {index}");
    }
}

fn expect_held(bench: &Bench) {
    eventually("a held write", || {
        bench.json(["pool", "status"])["holds_writes"] == true
    });
}

#[test]
fn a_held_write_goes_on_once_an_operator_grows_the_pool() {
    let bench = Bench::with_pool("32M");
    let daemon = bench.serve_with(["--full-policy", "wait=600"]);
    bench.ok(["volume", "create", "w", "--size", "1G"]);
    write_and_be_held(&bench, &daemon, || {
        bench.ok(["volume", "rename", "w", "x"]);
        bench.ok(["pool", "grow", "--size", "64M"]);
    });
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert_eq!(
        said.matches("writes wait for up to 600 s").count(),
        1,
        "{said}"
    );
    bench.expect_sound();
}

#[test]
fn a_write_to_a_volumes_file_is_held_by_default_and_a_commands_is_not() {
    let bench = Bench::with_pool("32M");
    let daemon = bench.serve();
    write_and_be_held(&bench, &daemon, || {
        bench.fails(
            ["pool", "status", "--check"],
            1,
            "writes wait for free space",
        );
        let source = bench.path("source");
        fs::write(&source, noise(8 << 20, 1)).unwrap();
        let import = ["volume", "import", "w", source.to_str().unwrap()];
        bench.fails(import, 1, "no space left");
        assert_eq!(bench.json(["pool", "status"])["holds_writes"], true);
        bench.ok(["pool", "grow", "--size", "64M"]);
    });
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert_eq!(
        said.matches("writes wait for up to 60 s").count(),
        1,
        "{said}"
    );
    bench.expect_sound();
}

#[test]
fn a_pool_with_little_room_ends_its_check_with_a_status_of_its_own() {
    let bench = Bench::with_pool("64M");
    bench.ok(["pool", "status", "--check"]);
    let source = bench.path("source");
    fs::write(&source, noise(53 << 20, 1)).unwrap();
    bench.ok(["volume", "import", "v", source.to_str().unwrap()]);
    let status = bench.json(["pool", "status"]);
    assert_eq!(status["state"], "open", "{status}");
    bench.fails(["pool", "status", "--check"], 4, "of the pool is free");
    bench.ok(["pool", "status"]);
}

#[test]
fn a_held_write_goes_on_with_another_program() {
    let bench = Bench::with_pool("32M");
    let daemon = bench.serve_with(["--full-policy", "wait=600"]);
    let worker = daemon.worker().unwrap();
    write_and_be_held(&bench, &daemon, || {
        bench.ok(["serve", "--upgrade"]);
        assert_ne!(daemon.worker().unwrap(), worker);
        // A later user sees it, too.
        drop(open(&daemon.mount.join("v")));
        expect_held(&bench);
        bench.ok(["pool", "grow", "--size", "64M"]);
    });
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_stopping_daemon_lets_no_write_wait() {
    let bench = Bench::with_pool("16M");
    let daemon = bench.serve_with(["--full-policy", "wait=600"]);
    bench.ok(["volume", "create", "v", "--size", "1G"]);
    let file = open(&daemon.mount.join("v"));
    let refused = thread::scope(|scope| {
        let held = scope.spawn(|| {
            let write = |index| file.write_all_at(&noise(4096, index), index * BLOCK);
            (0..).find_map(|index| write(index).err()).unwrap()
        });
        expect_held(&bench);
        daemon.signal("TERM");
        held.join().unwrap()
    });
    drop(file);
    let (status, said) = daemon.wait();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{said}");
    assert!(status.success(), "{said}");
    bench.expect_sound();
}

#[test]
fn options_that_do_nothing_or_hide_files_are_told_in_the_log() {
    let bench = Bench::with_pool("64M");
    let folder = bench.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine"), "text").unwrap();
    let mount = folder.to_str().unwrap();
    let daemon = bench.serve_with(["--max-size", "32M", "--mount", mount]);
    assert_eq!(bench.json(["pool", "status"])["limit_bytes"], 64 << 20);
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert!(said.contains("and does not grow"), "{said}");
    assert!(
        said.contains("the folder of the volumes holds files"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(folder.join("mine")).unwrap(), "text");
}

#[test]
fn a_daemon_lets_its_pool_grow_up_to_the_limit() {
    let bench = Bench::with_pool("32M");
    let refused = bench.run(["serve", "--full-policy", "maybe"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let daemon = bench.serve_with(["--max-size", "64M", "--full-policy", "error"]);
    let limit = &bench.json(["pool", "status"])["limit_bytes"];
    assert_eq!(*limit, 64 << 20);
    bench.ok(["volume", "create", "v", "--size", "1G"]);
    let took = fill(&open(&daemon.mount.join("v")));
    assert!(took > 11_000, "{took}");
    assert_eq!(bench.json(["pool", "status"])["size_bytes"], 64 << 20);
    assert_eq!(fs::metadata(bench.pool()).unwrap().len(), 64 << 20);
    daemon.stop();
    bench.expect_sound();
}
