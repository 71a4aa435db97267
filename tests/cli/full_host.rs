//! Daemons on hosts that are full or read-only, on each file system that pools are known to lie on.

use crate::fence::on;
use crate::harness::{eventually, noise};
use crate::small_host::{KINDS, REFLINKS, SmallHost};
use std::fs::{File, OpenOptions};
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

/// Writes blocks until there is no room; returns how many were taken.
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
            // The copy's inode and extents need some room themselves.
            small.free();
            small.copy_pool();
        }
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
            // The copy has what the pool gave up.
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
fn a_pool_on_a_read_only_host_is_checked_and_its_daemon_says_what_to_do() {
    for kind in KINDS {
        let small = SmallHost::new(kind);
        let bench = on(&small);
        small.remount("ro");
        bench.fails(["serve", "--foreground"], 1, "mounted read-only");
        bench.fails(["volume", "ls"], 1, "mounted read-only");
        bench.expect_sound();
        small.remount("rw");
        bench.serve().stop();
    }
}
