//! Daemons on hosts that are full or read-only, on each file system on which pools are known to
//! lie.

use crate::fence::on;
use crate::harness::{eventually, noise};
use crate::small_host::{KINDS, REFLINKS, SmallHost};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 4096;

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Writes blocks until there is no space; returns the number written.
fn fill(file: &File) -> u64 {
    for index in 0.. {
        if let Err(error) = file.write_all_at(&noise(4096, index + 1), index * BLOCK) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            return index;
        }
    }
    unreachable!("the host ends before the numbers do")
}

fn verify(file: &File, blocks: u64) {
    let mut found = vec![0; 4096];
    for index in 0..blocks {
        file.read_exact_at(&mut found, index * BLOCK).unwrap();
        assert!(found == noise(4096, index + 1), "block {index}");
    }
}

#[test]
fn a_killed_worker_on_a_full_host_has_a_successor_and_its_pool_empties_the_host() {
    for (kind, copied) in KINDS
        .map(|kind| (kind, false))
        .into_iter()
        .chain(REFLINKS.map(|kind| (kind, true)))
    {
        let small = SmallHost::new(kind);
        let bench = on(&small);
        small.ballast(4 << 20);
        let daemon = bench.serve_with(["--full-policy", "error"]);
        bench.ok(["volume", "create", "v", "--size", "1G"]);
        let file = open(&daemon.mount.join("v"));
        let blocks = fill(&file);
        assert!(blocks > 100, "{kind}: {blocks}");
        if copied {
            // The copy's inode and extents need some space themselves.
            small.free();
            small.copy_pool();
        }
        // A checkpoint may just have released a slice of the pool's reserve: the filler takes it.
        small.fill();
        for _ in 0..2 {
            let before = daemon.worker();
            daemon.kill_worker();
            eventually("another worker", || {
                daemon.worker().is_some_and(|now| Some(now) != before)
            });
            verify(&file, blocks);
        }
        drop(file);
        eventually("the removal of a closed volume", || {
            bench.run(["volume", "rm", "v"]).status.success()
        });
        bench.ok(["pool", "trim"]);
        if copied {
            // The copy keeps the space that the pool gave up.
            small.free();
        } else {
            eventually("room on the host", || {
                small.free_bytes() > blocks * BLOCK / 10 * 8
            });
        }
        bench.ok(["volume", "create", "again", "--size", "1G"]);
        let file = open(&daemon.mount.join("again"));
        file.write_all_at(&noise(4096, 1), 0).unwrap();
        drop(file);
        daemon.stop();
        bench.expect_sound();
    }
}

#[test]
fn a_full_host_is_trouble_in_the_status_until_it_has_space_and_is_logged_once() {
    let small = SmallHost::new("ext4");
    let bench = on(&small);
    small.ballast(8 << 20);
    // A full host does not wait: no command of the pool frees space there.
    let daemon = bench.serve();
    bench.ok(["volume", "create", "v", "--size", "1G"]);
    bench.fails(["pool", "status", "--check"], 4, "may still allocate");
    assert_eq!(bench.json(["pool", "status"])["host_full"], false);
    let file = open(&daemon.mount.join("v"));
    let blocks = fill(&file);
    small.fill();
    for _ in 0..3 {
        let refused = file.write_all_at(&noise(4096, 1), 900 << 20);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        let full = "the host's file system is full, and writes are refused";
        bench.fails(["pool", "status", "--check"], 1, full);
        let status = bench.json(["pool", "status"]);
        assert_eq!(status["host_full"], true, "{status}");
        assert!(
            !status["warnings"]
                .to_string()
                .contains("may still allocate"),
            "{status}"
        );
    }
    small.free();
    eventually("writes that go on", || {
        file.write_all_at(&noise(4096, blocks + 1), blocks * BLOCK)
            .is_ok()
    });
    eventually("the end of trouble", || {
        bench.run(["pool", "status", "--check"]).status.code() == Some(4)
    });
    verify(&file, blocks + 1);
    drop(file);
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert_eq!(
        said.matches("is full, and writes are refused").count(),
        1,
        "{said}"
    );
    assert_eq!(said.matches("and writes go on").count(), 1, "{said}");
    bench.expect_sound();
}

#[test]
fn a_pool_on_a_read_only_host_is_checked_and_its_daemon_says_what_to_do() {
    for kind in KINDS {
        let small = SmallHost::new(kind);
        let bench = on(&small);
        small.remount("ro");
        bench.fails(["serve", "--foreground"], 1, "mounted read-only");
        bench.expect_sound();
        small.remount("rw");
        bench.serve().stop();
    }
}

#[test]
fn a_pool_on_a_read_only_host_is_read_also_after_a_kill() {
    for kind in KINDS {
        let small = SmallHost::new(kind);
        let bench = on(&small);
        let bytes = noise(1 << 20, 7);
        fs::write(bench.path("in"), &bytes).unwrap();
        let input = bench.path("in");
        let daemon = bench.serve();
        bench.ok(["volume", "import", "v", input.to_str().unwrap()]);
        // So that recovery has something to do.
        daemon.kill_all();
        small.remount("ro");
        assert_eq!(bench.volumes(), ["v"], "{kind}");
        let exported = bench.run(["volume", "export", "v", "-"]);
        assert!(exported.stdout == bytes, "{kind}");
        let said = String::from_utf8_lossy(&exported.stderr).into_owned();
        assert!(said.contains("opened for reading only"), "{said}");
        assert_eq!(bench.json(["pool", "status"])["state"], "read-only");
        let check = bench.run(["pool", "status", "--check"]);
        assert_eq!(check.status.code(), Some(1), "{kind}: {check:?}");
        let rm = bench.run(["volume", "rm", "v"]);
        assert_eq!(rm.status.code(), Some(1), "{kind}: {rm:?}");
        assert!(String::from_utf8_lossy(&rm.stderr).contains("the pool is open read-only"));
        small.remount("rw");
        bench.serve().stop();
        bench.expect_sound();
    }
}
