//! Threads of a dead worker that are still writing to the pool prevent a successor from starting,
//! whatever the name of the pool's file by then.

use crate::harness::{Bench, Daemon, eventually, host, noise};
use crate::small_host::SmallHost;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const BLOCK: u64 = 4096;

/// A pool on a small host; sockets and mounts are elsewhere.
pub(crate) fn on(small: &SmallHost) -> Bench {
    let bench = Bench::empty();
    let program = crate::harness::program();
    let pool = small.pool();
    let pool = pool.to_str().unwrap();
    let size = [
        "--pool",
        pool,
        "pool",
        "create",
        "--size",
        "512M",
        "--log-size",
        "4M",
    ];
    host(program.to_str().unwrap(), size);
    symlink(pool, bench.pool()).unwrap();
    bench
}

/// A frozen file system, accessed through an open folder; it is thawed on drop.
struct Frozen<'a>(&'a File);

impl<'a> Frozen<'a> {
    fn new(folder: &'a File) -> Self {
        let frozen = Self(folder);
        host("fsfreeze", ["-f", &frozen.path()]);
        frozen
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").args(["-u", &self.path()]).status();
    }
}

/// Returns true if a thread of `pid` sleeps in the kernel, in a call that writes.
fn is_in_a_write(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        let state = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        let number = call.split(' ').next().and_then(|text| text.parse().ok());
        let writes = [libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2];
        let sleeps = state
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" D"));
        sleeps && number.is_some_and(|number: libc::c_long| writes.contains(&number))
    })
}

/// Kills the worker while it writes to a frozen host on which `rename` has changed names.
fn waits_for_the_dead(small: &SmallHost, bench: &Bench, daemon: &Daemon, rename: impl FnOnce()) {
    bench.ok(["volume", "create", "v", "--size", "8M"]);
    let path = daemon.mount.join("v");
    let folder = File::open(small.root()).unwrap();
    rename();
    let worker = daemon.worker().unwrap();
    let over = AtomicBool::new(false);
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = open();
            for round in 0.. {
                for index in 0..8 {
                    file.write_all_at(&noise(4096, round), index * BLOCK)
                        .unwrap();
                }
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let frozen = Frozen::new(&folder);
        eventually("a thread in a write", || is_in_a_write(worker));
        daemon.kill_worker();
        for _ in 0..50 {
            let now = daemon.worker();
            assert!(
                now.is_none() || now == Some(worker),
                "a successor runs beside a write of its predecessor"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(
            is_in_a_write(worker),
            "the write is over though nothing thawed"
        );
        drop(frozen);
        eventually("another worker", || {
            daemon.worker().is_some_and(|now| now != worker)
        });
        over.store(true, Ordering::Relaxed);
    });
    let mut found = vec![0; 4096];
    open().read_exact_at(&mut found, 0).unwrap();
}

#[test]
fn a_renamed_pool_has_no_successor_beside_a_write_of_the_dead_worker() {
    let small = SmallHost::new("ext4");
    let bench = on(&small);
    let daemon = bench.serve();
    let renamed = small.root().join("renamed");
    waits_for_the_dead(&small, &bench, &daemon, || {
        fs::rename(small.pool(), &renamed).unwrap();
    });
    daemon.stop();
    fs::rename(&renamed, small.pool()).unwrap();
    bench.expect_sound();
}

#[test]
fn a_pool_whose_host_is_unmounted_lazily_has_no_successor_beside_a_write_of_the_dead_worker() {
    let small = SmallHost::new("ext4");
    let bench = on(&small);
    let daemon = bench.serve();
    waits_for_the_dead(&small, &bench, &daemon, || {
        host("umount", ["--lazy", small.root().to_str().unwrap()]);
    });
    daemon.stop();
}
