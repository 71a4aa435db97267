//! Block devices as sides: used, detached while they are used, read and written past the host's cache,
//! and let go.

use super::refusals::Loop;
use super::{expect, expect_alone, import, ok_at, run_at, said, states, text};
use crate::harness::{Bench, eventually, host, loops_below};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Returns a loop device of 64 MiB over a new file.
fn device(bench: &Bench, name: &str) -> Loop {
    let file = bench.path(name);
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    Loop::over(&file)
}

/// Returns true if nobody has claimed a block device: neither a mount nor a pool.
fn is_free(device: &Path) -> bool {
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_EXCL).open(device);
    opened.is_ok()
}

#[test]
fn a_block_device_is_a_side_as_a_file_is() {
    let bench = Bench::empty();
    let side = device(&bench, "disk");
    let path = text(&side.device);
    bench.ok(["pool", "create", "--size", "64M", "--mirror", path]);
    let bytes = import(&bench, "data", 21);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    let daemon = bench.serve();
    let more = import(&bench, "more", 22);
    assert!(!is_free(&side.device));
    daemon.stop();
    assert!(is_free(&side.device));
    for side in [&bench.pool(), &side.device] {
        expect_alone(&bench, side, "data", &bytes);
        expect_alone(&bench, side, "more", &more);
    }
    // It is the path of the pool, too.
    let volumes = ok_at(&side.device, &["volume", "ls"]);
    assert!(volumes.contains("data") && volumes.contains("more"));
}

/// The kernel keeps a device that is in use until its last user is gone.
#[test]
fn a_device_that_is_detached_while_a_daemon_uses_it_stays_until_the_daemon_ends() {
    let bench = Bench::empty();
    let side = device(&bench, "disk");
    let path = text(&side.device);
    bench.ok(["pool", "create", "--size", "64M", "--mirror", path]);
    let daemon = bench.serve();
    host("losetup", ["--detach", path]);
    let bytes = import(&bench, "data", 23);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    daemon.stop();
    eventually("the device's end", || {
        loops_below(&bench.path("disk")).is_empty()
    });
    // Without it, the pool is used as without any side that is gone.
    let more = import(&bench, "more", 24);
    assert_eq!(states(&bench.pool()), ["good", "missing"]);
    expect_alone(&bench, &bench.path("disk"), "data", &bytes);
    // Under whatever name it comes back.
    let side = Loop::over(&bench.path("disk"));
    bench.ok(["pool", "mirror", "add", text(&side.device)]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    expect_alone(&bench, &side.device, "more", &more);
}

/// It can be read, but not be written any more.
#[test]
fn a_device_that_fails_is_left_out() {
    let bench = Bench::empty();
    let side = device(&bench, "disk");
    let path = text(&side.device);
    bench.ok(["pool", "create", "--size", "64M", "--mirror", path]);
    let daemon = bench.serve();
    let bytes = import(&bench, "data", 25);
    host("blockdev", ["--setro", path]);
    let more = import(&bench, "more", 26);
    assert_eq!(states(&bench.pool()), ["good", "missing"]);
    expect(&bench.pool(), "data", &bytes);
    host("blockdev", ["--setrw", path]);
    bench.ok(["pool", "mirror", "add", path]);
    assert_eq!(states(&bench.pool()), ["good", "good"]);
    daemon.stop();
    expect_alone(&bench, &side.device, "data", &bytes);
    expect_alone(&bench, &side.device, "more", &more);
}

#[test]
fn a_block_device_that_is_taken_out_is_let_go() {
    let bench = Bench::empty();
    let (founder, later) = (device(&bench, "disk"), device(&bench, "disk-2"));
    let path = text(&founder.device);
    bench.ok(["pool", "create", "--size", "64M", "--mirror", path]);
    let bytes = import(&bench, "data", 27);
    let daemon = bench.serve();
    // One that came while the worker ran is free at once.
    bench.ok(["pool", "mirror", "add", text(&later.device)]);
    assert!(!is_free(&later.device));
    bench.ok(["pool", "mirror", "rm", text(&later.device)]);
    assert!(is_free(&later.device));
    // One that was there before is free once another worker serves.
    bench.ok(["pool", "mirror", "rm", path]);
    assert_eq!(states(&bench.pool()), ["good"]);
    bench.json(["serve", "--upgrade"]);
    assert!(is_free(&founder.device));
    for device in [&founder.device, &later.device] {
        let created = run_at(device, &["pool", "create", "--force", "--size", "64M"]);
        assert!(created.status.success(), "{}", said(&created));
    }
    expect(&bench.pool(), "data", &bytes);
    daemon.stop();
}

#[test]
fn a_daemon_that_bypasses_the_cache_takes_files_and_devices_as_new_sides() {
    let bench = Bench::with_pool("64M");
    let bytes = import(&bench, "data", 28);
    let side = device(&bench, "disk");
    let daemon = bench.serve_with(["--direct"]);
    let third = bench.path("third");
    for path in [&side.device, &third] {
        bench.ok(["pool", "mirror", "add", text(path)]);
    }
    let more = import(&bench, "more", 29);
    assert_eq!(states(&bench.pool()), ["good", "good", "good"]);
    expect(&bench.pool(), "more", &more);
    let before = daemon.worker();
    daemon.kill_worker();
    eventually("another worker", || {
        daemon.worker().is_some_and(|now| Some(now) != before)
            && bench.run(["volume", "ls"]).status.success()
    });
    let last = import(&bench, "last", 30);
    assert_eq!(states(&bench.pool()), ["good", "good", "good"]);
    daemon.stop();
    for side in [&bench.pool(), &side.device, &third] {
        expect_alone(&bench, side, "data", &bytes);
        expect_alone(&bench, side, "more", &more);
        expect_alone(&bench, side, "last", &last);
    }
}
