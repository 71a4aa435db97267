//! A daemon on a mirror with a side whose host fails: calls of each kind, once and for ever, reads that
//! do not return, no space, and a server that dies. Nothing that was acknowledged is lost, a side that
//! fails is left out and told, and once its host works it gets what it lacks.

use super::{expect, expect_alone, import, ok_at, said, states, text};
use crate::faulty_host::FaultyHost;
use crate::harness::{Bench, Daemon, eventually, noise};
use cowshed_format::device::{Lasting, Operation};
use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

const POOL_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;
/// Number of blocks of the volume: several of the regions that sides take turns in.
const BLOCKS: u64 = 1536;
/// A side is left out.
const LEFT_OUT: &str = "a side of the mirror has failed, and is left out";

/// A mirror of an ordinary file and of one whose host fails, served by a daemon. What is mounted last
/// goes first.
struct Subject {
    daemon: Option<Daemon>,
    bench: Bench,
    host: FaultyHost,
    /// The path by which the pool knows the side that fails.
    faulty: PathBuf,
    sound: PathBuf,
    /// The seed of each block's content.
    content: Vec<u64>,
    next: u64,
}

/// Makes a mirror; returns the path of the side that does not fail, and of the one that does, which is
/// that of the pool if `is_first`.
fn create(bench: &Bench, host: &FaultyHost, is_first: bool) -> [PathBuf; 2] {
    let [sound, faulty] = if is_first {
        symlink(host.path(), bench.pool()).unwrap();
        [bench.path("second"), bench.pool()]
    } else {
        [bench.pool(), host.path()]
    };
    ok_at(&sound, &["pool", "create", "--size", "64M"]);
    ok_at(&sound, &["pool", "mirror", "add", text(&faulty)]);
    [sound, faulty]
}

impl Subject {
    /// The daemon is started with the side that fails if `is_first`, with the other one otherwise.
    fn new(is_first: bool) -> Self {
        let (bench, host) = (Bench::empty(), FaultyHost::new(POOL_BYTES));
        let [sound, faulty] = create(&bench, &host, is_first);
        let daemon = bench.serve_with(["--full-policy", "error"]);
        let size = (BLOCKS * BLOCK).to_string();
        bench.ok(["volume", "create", "data", "--size", &size]);
        let mut subject = Self {
            daemon: Some(daemon),
            bench,
            host,
            faulty,
            sound,
            content: vec![0; usize::try_from(BLOCKS).unwrap()],
            next: 0,
        };
        let file = subject.file();
        (0..BLOCKS).for_each(|block| subject.write(&file, block));
        file.sync_data().unwrap();
        subject
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn file(&self) -> File {
        let path = self.daemon().mount.join("data");
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Writes a block, which must succeed.
    fn write(&mut self, file: &File, block: u64) {
        self.next += 1;
        let written = file.write_all_at(&noise(4096, self.next), block * BLOCK);
        written.unwrap_or_else(|error| panic!("block {block}: {error}"));
        self.content[usize::try_from(block).unwrap()] = self.next;
    }

    /// Writes blocks all over the volume, and flushes again and again.
    fn work(&mut self) {
        let file = self.file();
        for _ in 0..6 {
            for step in 0..24 {
                self.write(&file, (self.next * 37 + step * 61) % BLOCKS);
            }
            file.sync_data().unwrap();
        }
    }

    /// Reads the whole volume.
    fn expect_content(&self) {
        let (file, mut found) = (self.file(), vec![0; 4096]);
        for (block, seed) in (0..).zip(&self.content) {
            let read = file.read_exact_at(&mut found, block * BLOCK);
            read.unwrap_or_else(|error| panic!("block {block}: {error}"));
            assert!(found == noise(4096, *seed), "block {block}");
        }
    }

    /// Returns the state of the side that fails; the other one must be good.
    fn state(&self) -> String {
        let [sound, faulty] = states(&self.bench.pool()).try_into().unwrap();
        assert_eq!(sound, "good");
        faulty
    }

    fn expect_left_out(&self) {
        assert_eq!(self.state(), "missing");
        let status = self.bench.run(["pool", "status", "--check"]);
        assert_eq!(status.status.code(), Some(4), "{status:?}");
        assert!(
            said(&status).contains("a side of the mirror is missing or behind"),
            "{status:?}"
        );
    }

    fn expect_good(&self) {
        assert_eq!(self.state(), "good");
        // For a moment, a host that was full is taken to be so still.
        eventually("a status without warnings", || {
            self.bench
                .run(["pool", "status", "--check"])
                .status
                .success()
        });
    }

    /// As `expect_good`, when the side that the daemon was started with is no side any more.
    fn expect_good_elsewhere(&self) {
        assert_eq!(self.state(), "good");
        let start = "which is no side any more";
        self.bench.fails(["pool", "status", "--check"], 4, start);
    }

    /// Kills the worker and waits for the next one.
    fn kill_worker(&self) {
        let before = self.daemon().worker();
        self.daemon().kill_worker();
        eventually("another worker", || {
            let now = self.daemon().worker();
            now.is_some() && now != before && self.bench.run(["volume", "ls"]).status.success()
        });
    }

    /// Stops the daemon, and asserts that both sides are good and each has everything by itself.
    /// Returns what the daemon has said.
    fn end(mut self) -> String {
        self.work();
        self.expect_content();
        self.expect_good();
        let daemon = self.daemon.take().unwrap();
        daemon.signal("TERM");
        let (status, told) = daemon.wait();
        assert!(status.success(), "{told}");
        self.bench.expect_sound();
        let seeds = self.content.iter();
        let all: Vec<u8> = seeds.flat_map(|seed| noise(4096, *seed)).collect();
        for side in [&self.faulty, &self.sound] {
            expect_alone(&self.bench, side, "data", &all);
        }
        told
    }

    fn bring_back(&self) {
        let faulty = text(&self.faulty);
        self.bench.ok(["pool", "mirror", "add", faulty]);
    }
}

/// Calls of one kind fail: the side is left out, also by the next worker while they fail still.
fn is_left_out(is_first: bool, operation: Operation, errno: i32) {
    for lasting in [Lasting::Once, Lasting::Forever] {
        println!("{operation:?} {lasting:?}");
        let mut subject = Subject::new(is_first);
        subject.host.fail(operation, errno, lasting);
        subject.work();
        assert!(subject.host.failures() > 0);
        subject.expect_left_out();
        subject.expect_content();
        if lasting == Lasting::Forever {
            subject.kill_worker();
            subject.work();
            eventually("the side is left out", || subject.state() == "missing");
            subject.expect_left_out();
            subject.expect_content();
            subject.host.heal();
        }
        subject.bring_back();
        assert!(subject.end().contains(LEFT_OUT));
    }
}

#[test]
fn a_side_that_cannot_be_written_is_left_out_and_comes_back() {
    is_left_out(false, Operation::Write, libc::EIO);
}

#[test]
fn a_first_side_that_cannot_be_written_is_left_out_and_comes_back() {
    is_left_out(true, Operation::Write, libc::EIO);
}

#[test]
fn a_side_that_cannot_be_flushed_is_left_out_and_comes_back() {
    is_left_out(false, Operation::Flush, libc::EIO);
}

#[test]
fn a_first_side_that_cannot_be_flushed_is_left_out_and_comes_back() {
    is_left_out(true, Operation::Flush, libc::EIO);
}

/// The same without a daemon: each command opens the pool, and goes on with the side that works.
#[test]
fn a_command_goes_on_without_a_side_that_fails() {
    for (is_first, operation) in [
        (false, Operation::Write),
        (false, Operation::Flush),
        (true, Operation::Write),
        (true, Operation::Flush),
    ] {
        let (bench, host) = (Bench::empty(), FaultyHost::new(POOL_BYTES));
        let sides = create(&bench, &host, is_first);
        host.fail(operation, libc::EIO, Lasting::Forever);
        let bytes = import(&bench, "data", 31);
        assert!(host.failures() > 0);
        // Whoever opens the pool tries to bring it up to date first.
        let [sound, faulty] = states(&bench.pool()).try_into().unwrap();
        assert!(sound == "good" && faulty != "good", "{sound}, {faulty}");
        expect(&bench.pool(), "data", &bytes);
        host.heal();
        bench.ok(["pool", "mirror", "add", text(&sides[1])]);
        assert_eq!(states(&bench.pool()), ["good", "good"]);
        bench.expect_sound();
        for side in &sides {
            expect_alone(&bench, side, "data", &bytes);
        }
    }
}

/// A side that failed once is brought back by the next worker, too.
#[test]
fn a_side_whose_host_works_again_gets_what_it_lacks_from_the_next_worker() {
    for operation in [Operation::Write, Operation::Flush] {
        let mut subject = Subject::new(false);
        subject.host.fail(operation, libc::EIO, Lasting::Once);
        subject.work();
        subject.expect_left_out();
        subject.kill_worker();
        eventually("the copying's end", || subject.state() == "good");
        subject.end();
    }
}

#[test]
fn what_one_side_cannot_read_another_one_has() {
    for is_first in [false, true] {
        for lasting in [Lasting::Once, Lasting::Forever] {
            let mut subject = Subject::new(is_first);
            subject.host.fail(Operation::Read, libc::EIO, lasting);
            subject.expect_content();
            assert!(subject.host.failures() > 0);
            subject.work();
            subject.expect_content();
            subject.host.heal();
            assert!(!subject.end().contains(LEFT_OUT));
        }
    }
}

/// Without space on the host of one side, nothing is written to any of them, and the writer is told.
#[test]
fn a_side_without_space_refuses_writes_until_it_has_some() {
    for is_first in [false, true] {
        for lasting in [Lasting::Once, Lasting::Forever] {
            let mut subject = Subject::new(is_first);
            subject.host.fail(Operation::Write, libc::ENOSPC, lasting);
            let refused = subject.file().write_all_at(&noise(4096, 0), 0);
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            subject.expect_content();
            assert_eq!(subject.state(), "good");
            if lasting == Lasting::Forever {
                subject.kill_worker();
                subject.expect_content();
                assert_eq!(subject.state(), "good");
            }
            subject.host.heal();
            eventually("a write", || {
                let written = subject.file().write_all_at(&noise(4096, 0), 0);
                written.is_ok()
            });
            subject.content[0] = 0;
            assert!(!subject.end().contains(LEFT_OUT));
        }
    }
}

#[test]
fn a_side_whose_reads_hang_stops_nothing_that_another_one_can_answer() {
    for is_first in [false, true] {
        let mut subject = Subject::new(is_first);
        subject.host.hang();
        subject.work();
        subject.expect_content();
        assert!(subject.host.waiting() > 0);
        assert_eq!(subject.state(), "good");
        subject.host.heal();
        assert!(!subject.end().contains(LEFT_OUT));
    }
}

/// The server of a side dies, also while reads of it wait, and a worker after it.
#[test]
fn a_side_whose_server_has_died_is_left_out_and_comes_back() {
    for (is_first, hangs) in [(false, false), (false, true), (true, false), (true, true)] {
        println!("first: {is_first}, reads hang: {hangs}");
        let mut subject = Subject::new(is_first);
        if hangs {
            subject.host.hang();
            subject.expect_content();
            assert!(subject.host.waiting() > 0);
        }
        subject.host.die();
        subject.bench.ok_quietly(["pool", "status"]);
        subject.expect_content();
        subject.work();
        subject.expect_left_out();
        subject.kill_worker();
        subject.expect_left_out();
        subject.work();
        subject.expect_content();
        subject.host.come_back();
        subject.bring_back();
        assert!(subject.end().contains(LEFT_OUT));
    }
}

/// A daemon that is started while the server of a side is dead does without it.
#[test]
fn a_daemon_starts_without_a_side_whose_server_has_died() {
    let mut subject = Subject::new(false);
    subject.daemon.take().unwrap().stop();
    subject.host.die();
    subject.daemon = Some(subject.bench.serve());
    subject.expect_left_out();
    subject.work();
    subject.expect_content();
    subject.host.come_back();
    subject.kill_worker();
    eventually("the copying's end", || subject.state() == "good");
    subject.end();
}

/// The side with which a daemon was started is replaced for good after its server has died.
#[test]
fn a_first_side_whose_server_has_died_is_replaced_while_the_daemon_serves() {
    let mut subject = Subject::new(true);
    subject.host.die();
    subject.work();
    subject.expect_left_out();
    let third = subject.bench.path("third");
    let request = [
        "pool",
        "mirror",
        "replace",
        text(&subject.faulty),
        text(&third),
    ];
    subject.bench.ok_quietly(request);
    subject.faulty = third;
    subject.work();
    subject.expect_good_elsewhere();
    subject.kill_worker();
    subject.work();
    subject.expect_content();
    subject.expect_good_elsewhere();
    let daemon = subject.daemon.take().unwrap();
    daemon.signal("TERM");
    let (status, told) = daemon.wait();
    assert!(status.success(), "{told}");
    let seeds = subject.content.iter();
    let all: Vec<u8> = seeds.flat_map(|seed| noise(4096, *seed)).collect();
    for side in [&subject.faulty, &subject.sound] {
        expect_alone(&subject.bench, side, "data", &all);
    }
}
