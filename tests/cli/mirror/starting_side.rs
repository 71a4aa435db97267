//! The side that a daemon was started with is taken out or replaced while the daemon serves: users of
//! the volumes notice nothing, later workers do without it, and the command says what the next start
//! needs.

use super::{expect, expect_alone, import, mirrored, ok_at, run_at, said, states, text};
use crate::harness::{Bench, Daemon, eventually, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The volume of a daemon that somebody has open all the time.
struct Used {
    file: File,
    content: Vec<u8>,
}

impl Used {
    fn new(bench: &Bench, daemon: &Daemon) -> Self {
        bench.ok(["volume", "create", "used", "--size", "1M"]);
        let path = daemon.mount.join("used");
        Self {
            file: File::options().read(true).write(true).open(path).unwrap(),
            content: vec![0; 1 << 20],
        }
    }

    /// Reads everything, and then writes everything.
    fn work(&mut self, seed: u64) {
        let mut found = vec![0; self.content.len()];
        self.file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == self.content);
        self.content = noise(self.content.len(), seed);
        self.file.write_all_at(&self.content, 0).unwrap();
        self.file.sync_data().unwrap();
    }

    /// Ends the use, and returns what was written last.
    fn end(self) -> Vec<u8> {
        self.content
    }
}

fn another_worker(bench: &Bench, daemon: &Daemon) {
    let before = daemon.worker();
    daemon.kill_worker();
    eventually("another worker", || {
        daemon.worker().is_some_and(|now| Some(now) != before)
            && bench.run(["volume", "ls"]).status.success()
    });
}

/// Asserts that the file can be locked, as no process does that has it as a side.
fn expect_free(path: &Path) {
    let file = File::open(path).unwrap();
    file.try_lock().unwrap();
}

#[test]
fn the_side_that_a_daemon_was_started_with_is_taken_out_while_it_serves() {
    let bench = Bench::empty();
    let (first, second) = (bench.pool(), mirrored(&bench));
    let daemon = bench.serve();
    let mut used = Used::new(&bench, &daemon);
    let bytes = import(&bench, "data", 40);
    used.work(41);
    let removed = bench.run(["pool", "mirror", "rm", text(&first)]);
    assert!(removed.status.success(), "{removed:?}");
    let told = said(&removed);
    assert!(
        told.contains(&format!("started with {}, which is no side", text(&first)))
            && told.contains(&format!("start it with {} the next time", text(&second))),
        "{told}"
    );
    expect_free(&first);
    // Its path still leads to the daemon, and nothing else is made of it meanwhile.
    assert_eq!(states(&first), ["good"]);
    bench.fails(["pool", "create", "--force", "--size", "64M"], 1, "daemon");
    bench.fails(["pool", "mirror", "rm", text(&second)], 1, "the last side");
    // The other side's path does not, and the error says what does.
    let other = said(&run_at(&second, &["volume", "ls"]));
    assert!(other.contains("--socket"), "{other}");
    used.work(42);
    another_worker(&bench, &daemon);
    used.work(43);
    bench.json(["serve", "--upgrade"]);
    used.work(44);
    expect(&first, "data", &bytes);
    let more = import(&bench, "more", 45);
    let last = used.end();
    daemon.stop();

    bench.fails(["serve"], 1, "give the path of another side");
    expect(&second, "data", &bytes);
    expect(&second, "more", &more);
    expect(&second, "used", &last);
    ok_at(&second, &["pool", "check", "--deep"]);
}

#[test]
fn the_side_that_a_daemon_was_started_with_is_replaced_and_comes_back() {
    let bench = Bench::empty();
    let (first, second) = (bench.pool(), mirrored(&bench));
    let daemon = bench.serve();
    let mut used = Used::new(&bench, &daemon);
    used.work(50);
    let third = bench.path("third");
    let replaced = bench.run(["pool", "mirror", "replace", text(&first), text(&third)]);
    assert!(replaced.status.success(), "{replaced:?}");
    assert!(said(&replaced).contains("is no side any more"));
    expect_free(&first);
    used.work(51);
    another_worker(&bench, &daemon);
    used.work(52);
    assert_eq!(states(&first), ["good", "good"]);
    // A file at its path is a side like any other.
    fs::remove_file(&first).unwrap();
    bench.ok(["pool", "mirror", "replace", text(&second), text(&first)]);
    assert!(File::open(&first).unwrap().try_lock().is_err());
    expect_free(&second);
    used.work(53);
    another_worker(&bench, &daemon);
    used.work(54);
    // Again, before any other worker.
    bench.ok(["pool", "mirror", "add", "--force", text(&second)]);
    bench.ok_quietly(["pool", "mirror", "rm", text(&first)]);
    used.work(55);
    another_worker(&bench, &daemon);
    used.work(56);
    let last = used.end();
    daemon.stop();
    assert_eq!(states(&third), ["good", "good"]);
    for side in [&second, &third] {
        expect_alone(&bench, side, "used", &last);
    }
}
