//! Pools that are foreign, truncated or damaged cause one line of error and the right status, and
//! are not made worse.

use crate::harness::{Bench, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

#[test]
fn what_is_no_pool_is_named_so_and_left_alone() {
    let bench = Bench::empty();
    bench.fails(["volume", "ls"], 1, "no such pool");
    fs::write(bench.pool(), b"something else").unwrap();
    bench.fails(["volume", "ls"], 1, "not a cowshed pool");
    bench.fails(["pool", "create", "--size", "64M"], 1, "--force");
    assert_eq!(fs::read(bench.pool()).unwrap(), b"something else");
    fs::write(bench.pool(), noise(1 << 20, 1)).unwrap();
    bench.fails(["pool", "status"], 1, "not a cowshed pool");
    fs::remove_file(bench.pool()).unwrap();
    fs::create_dir(bench.pool()).unwrap();
    bench.fails(
        ["pool", "status"],
        1,
        "neither a regular file nor a block device",
    );
    bench.fails(
        ["pool", "create", "--size", "64M"],
        1,
        "neither a file nor a block device",
    );
}

#[test]
fn a_pool_that_was_cut_short_is_status_3() {
    let bench = Bench::with_pool("256M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    File::options()
        .write(true)
        .open(bench.pool())
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    bench.fails(["volume", "ls"], 3, "truncated");
    bench.fails(["pool", "check"], 3, "truncated");
}

#[test]
fn a_wrong_block_is_found_by_check_scrub_and_export_and_the_rest_is_read() {
    let bench = Bench::with_pool("256M");
    let marker = noise(4096, 77);
    let file = bench.path("in");
    let bytes = [noise(40_960, 2), marker.clone(), noise(40_960, 3)].concat();
    fs::write(&file, &bytes).unwrap();
    bench.ok(["volume", "import", "bad", file.to_str().unwrap()]);
    fs::write(&file, noise(40_960, 4)).unwrap();
    bench.ok(["volume", "import", "good", file.to_str().unwrap()]);
    let pool = fs::read(bench.pool()).unwrap();
    let at = pool.chunks(4096).position(|block| block == marker).unwrap() * 4096;
    let device = File::options().write(true).open(bench.pool()).unwrap();
    device.write_all_at(&[!marker[9]], at as u64 + 9).unwrap();
    drop(device);

    bench.fails(
        ["volume", "export", "bad", "/dev/null"],
        3,
        "wrong checksum",
    );
    assert!(bench.run(["volume", "export", "good", "-"]).stdout == fs::read(&file).unwrap());
    let scrub = bench.run(["pool", "scrub", "--json"]);
    assert_eq!(scrub.status.code(), Some(3), "{scrub:?}");
    let report: serde_json::Value = serde_json::from_slice(&scrub.stdout).unwrap();
    assert_eq!(report["bad"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["bad"][0]["offset"], 40_960);
    bench.ok(["pool", "check"]);
    let check = bench.run(["pool", "check", "--deep", "--json"]);
    assert_eq!(check.status.code(), Some(3), "{check:?}");
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(report["clean"], false);
    assert_eq!(report["errors"][0]["kind"], "data-checksum", "{report}");
    assert!(report["errors"][0]["where"].is_string() && report["errors"][0]["detail"].is_string());
    // The damaged volume can still be removed, and then no damage is left.
    bench.ok(["volume", "rm", "bad"]);
    bench.ok(["pool", "trim"]);
    bench.expect_sound();
}
