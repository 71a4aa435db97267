//! A daemon on a mirror one side of which is on a small memory file system: once that is full, nothing
//! more is written to any side, whoever writes is told or waits, and all goes on once there is room.

use super::{expect_alone, ok_at, states, text};
use crate::harness::{Bench, Daemon, eventually, noise};
use crate::small_host::SmallHost;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::thread;

const BLOCK: u64 = 4096;
/// Number of blocks of the volume, more than the small host has room for.
const BLOCKS: u64 = 12 << 10;

/// A mirror with a side on a host that is full sooner than the pool. What is mounted last goes first.
struct Subject {
    daemon: Option<Daemon>,
    bench: Bench,
    small: SmallHost,
    sides: [PathBuf; 2],
}

impl Subject {
    /// The daemon is started with the side on the small host if `is_first`, with the other one
    /// otherwise.
    fn new(is_first: bool, policy: &str) -> Self {
        let (bench, small) = (Bench::empty(), SmallHost::new("tmpfs"));
        let sides = if is_first {
            File::create(small.pool()).unwrap();
            symlink(small.pool(), bench.pool()).unwrap();
            [bench.path("second"), bench.pool()]
        } else {
            [bench.pool(), small.pool()]
        };
        ok_at(&sides[0], &["pool", "create", "--size", "128M"]);
        ok_at(&sides[0], &["pool", "mirror", "add", text(&sides[1])]);
        let daemon = bench.serve_with(["--full-policy", policy]);
        let size = (BLOCKS * BLOCK).to_string();
        bench.ok(["volume", "create", "v", "--size", &size]);
        Self {
            daemon: Some(daemon),
            bench,
            small,
            sides,
        }
    }

    fn file(&self) -> File {
        let path = self.daemon.as_ref().unwrap().mount.join("v");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn expect_good(&self) {
        assert_eq!(states(&self.bench.pool()), ["good", "good"]);
    }

    /// Stops the daemon; each side must be sound and have everything by itself.
    fn end(mut self, blocks: u64) {
        expect_blocks(&self.file(), blocks);
        self.expect_good();
        self.daemon.take().unwrap().stop();
        self.bench.expect_sound();
        let content: Vec<u8> = (0..BLOCKS)
            .flat_map(|block| match block < blocks {
                true => noise(4096, block + 1),
                false => vec![0; 4096],
            })
            .collect();
        for side in &self.sides {
            expect_alone(&self.bench, side, "v", &content);
        }
    }
}

fn write(file: &File, block: u64) -> std::io::Result<()> {
    file.write_all_at(&noise(4096, block + 1), block * BLOCK)
}

/// Writes blocks from `start` on until there is no space; returns the first that was refused.
fn fill(file: &File, start: u64) -> u64 {
    for block in start..BLOCKS {
        if let Err(error) = write(file, block) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            return block;
        }
    }
    panic!("the small host has room for everything")
}

fn expect_blocks(file: &File, blocks: u64) {
    let mut found = vec![0; 4096];
    for block in 0..blocks {
        file.read_exact_at(&mut found, block * BLOCK).unwrap();
        assert!(found == noise(4096, block + 1), "block {block}");
    }
}

#[test]
fn a_side_whose_host_is_full_refuses_writes_until_that_is_enlarged() {
    for is_first in [false, true] {
        let subject = Subject::new(is_first, "error");
        let file = subject.file();
        let blocks = fill(&file, 0);
        assert!(blocks > 1000, "{blocks}");
        expect_blocks(&file, blocks);
        file.sync_data().unwrap();
        subject.expect_good();
        let told = subject.bench.run(["pool", "status", "--check"]);
        assert_ne!(told.status.code(), Some(0), "{told:?}");
        // The same for the next worker, which has the log to replay on a full host.
        let before = subject.daemon.as_ref().unwrap().worker();
        subject.daemon.as_ref().unwrap().kill_worker();
        eventually("another worker", || {
            let now = subject.daemon.as_ref().unwrap().worker();
            now.is_some() && now != before
        });
        expect_blocks(&file, blocks);
        subject.expect_good();
        subject.small.remount("size=256m");
        eventually("room", || write(&file, blocks).is_ok());
        (blocks..BLOCKS).for_each(|block| write(&file, block).unwrap());
        file.sync_data().unwrap();
        drop(file);
        subject.end(BLOCKS);
    }
}

#[test]
fn a_side_whose_host_is_full_goes_on_once_something_is_removed() {
    for is_first in [false, true] {
        let subject = Subject::new(is_first, "error");
        subject.small.ballast(12 << 20);
        let file = subject.file();
        let blocks = fill(&file, 0);
        // By what the pool itself gives up.
        let len = blocks / 2 * BLOCK;
        let start = (blocks - blocks / 2) * BLOCK;
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, mode, start.cast_signed(), len.cast_signed()).unwrap();
        subject.bench.ok(["pool", "trim"]);
        let first = blocks - blocks / 2;
        eventually("room", || write(&file, first).is_ok());
        let again = fill(&file, first);
        assert!(again > blocks / 4 * 3, "{again} after {blocks}");
        // By what somebody else does.
        subject.small.free();
        eventually("room", || write(&file, again).is_ok());
        let last = fill(&file, again);
        assert!(last > again + 1000, "{last} after {again}");
        file.sync_data().unwrap();
        drop(file);
        subject.end(last);
    }
}

#[test]
fn a_write_waits_for_room_on_the_host_of_one_side() {
    let subject = Subject::new(false, "wait=600");
    let file = subject.file();
    thread::scope(|scope| {
        let writer = scope.spawn(|| (0..BLOCKS).for_each(|block| write(&file, block).unwrap()));
        eventually("a write that waits", || {
            let status = subject.bench.json(["pool", "status"]);
            status["holds_writes"] == true
        });
        subject.expect_good();
        subject.small.remount("size=256m");
        writer.join().unwrap();
    });
    drop(file);
    subject.end(BLOCKS);
}
