//! Pools that are foreign, truncated or damaged cause one line of error and the right status, and
//! are not made worse.

use crate::harness::{Bench, noise};
use cowshed_format::Superblock;
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

    let export = ["volume", "export", "bad", "/dev/null"];
    bench.fails(export, 3, "wrong checksum; --skip-damaged leaves a hole");
    let saved = bench.path("saved");
    let skip = ["volume", "export", "--skip-damaged", "--json", "bad"];
    let export = bench.command(skip).arg(&saved).output().unwrap();
    assert_eq!(export.status.code(), Some(3), "{export:?}");
    let report: serde_json::Value = serde_json::from_slice(&export.stdout).unwrap();
    let range = serde_json::json!([{ "offset": 40_960, "length": 4096 }]);
    assert_eq!(report["damaged"], range);
    let mut expected = bytes;
    expected[40_960..40_960 + 4096].fill(0);
    assert!(fs::read(&saved).unwrap() == expected);
    let export = bench.run(["volume", "export", "--skip-damaged", "bad", "-"]);
    assert!(export.stdout == expected);
    let said = String::from_utf8_lossy(&export.stderr);
    assert!(
        said.contains("damaged: 4096 bytes at offset 40960"),
        "{said}"
    );
    assert!(said.contains("4096 bytes cannot be read"), "{said}");
    assert!(bench.run(["volume", "export", "good", "-"]).stdout == fs::read(&file).unwrap());
    let scrub = bench.run(["pool", "scrub", "--json"]);
    assert_eq!(scrub.status.code(), Some(3), "{scrub:?}");
    let report: serde_json::Value = serde_json::from_slice(&scrub.stdout).unwrap();
    assert_eq!(report["bad"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["bad"][0]["offset"], 40_960);
    // What was not read is not said to be sound, and what is lost is not promised back.
    for check in [&["pool", "check"][..], &["pool", "check", "--repair"]] {
        let said = bench.ok(check);
        assert!(
            said.contains("data was not read (--deep reads it)"),
            "{said}"
        );
    }
    for check in [
        &["pool", "check", "--deep"][..],
        &["pool", "check", "--deep", "--repair"],
    ] {
        bench.fails(
            check,
            3,
            "1 range of data damaged, which no repair gives back",
        );
        let shown = bench.run(check).stdout;
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("(bad), offset 40960, pool block"), "{shown}");
    }
    let check = bench.run(["pool", "check", "--deep", "--json"]);
    assert_eq!(check.status.code(), Some(3), "{check:?}");
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(
        (&report["clean"], &report["data_read"]),
        (&false.into(), &true.into())
    );
    assert_eq!(report["errors"][0]["volume"], "bad", "{report}");
    assert_eq!(report["errors"][0]["kind"], "data-checksum", "{report}");
    assert!(report["errors"][0]["where"].is_string() && report["errors"][0]["detail"].is_string());
    // The damaged volume can still be removed, and then no damage is left.
    bench.ok(["volume", "rm", "bad"]);
    bench.ok(["pool", "trim"]);
    bench.expect_sound();
}

/// Overwrites one copy of the catalogue's root in the pool's file.
fn damage_catalogue(bench: &Bench) {
    let device = File::options()
        .read(true)
        .write(true)
        .open(bench.pool())
        .unwrap();
    let mut bytes = vec![0; 4096];
    let superblocks = [0, 4096].into_iter().filter_map(|offset| {
        device.read_exact_at(&mut bytes, offset).unwrap();
        Superblock::decode(&bytes).ok()
    });
    let newest = superblocks.max_by_key(|found| found.generation).unwrap();
    let root = newest.catalogue_root.addr().offset_bytes();
    device.write_all_at(&[0x5a; 4096], root).unwrap();
}

#[test]
fn a_damaged_copy_of_metadata_is_a_warning_and_is_written_anew() {
    let bench = Bench::with_pool("256M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    assert_eq!(bench.json(["pool", "status"])["metadata_copies"], 2);
    damage_catalogue(&bench);
    let check = bench.run(["pool", "check"]);
    assert_eq!(check.status.code(), Some(4), "{check:?}");
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(
        said.contains("1 copy is damaged, nothing is lost"),
        "{said}"
    );
    let repaired = bench.ok(["pool", "check", "--repair"]);
    assert!(repaired.contains("from its copy"), "{repaired}");
    bench.expect_sound();
    damage_catalogue(&bench);
    assert_eq!(bench.volumes(), ["disk"]);
    bench.expect_sound();
    damage_catalogue(&bench);
    assert_eq!(bench.json(["pool", "status"])["healed"], 1);
    let daemon = bench.serve();
    damage_catalogue(&bench);
    let scrub = bench.json(["pool", "scrub"]);
    assert_eq!(
        (&scrub["healed"], &scrub["bad"]),
        (&1.into(), &serde_json::json!([]))
    );
    daemon.stop();
    bench.expect_sound();
}

/// Overwrites both superblocks, but not their copies at the end.
fn damage_superblocks(bench: &Bench) {
    let device = File::options().write(true).open(bench.pool()).unwrap();
    device.write_all_at(&noise(8192, 9), 0).unwrap();
}

#[test]
fn superblocks_that_are_made_anew_at_the_opening_are_counted_and_logged_once() {
    let bench = Bench::with_pool("256M");
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    damage_superblocks(&bench);
    bench.fails(["pool", "check"], 3, "2 faults found; --repair repairs");
    assert_eq!(bench.json(["pool", "status"])["healed"], 2);
    bench.expect_sound();
    assert_eq!(bench.json(["pool", "status"])["healed"], 0);
    damage_superblocks(&bench);
    let daemon = bench.serve();
    assert_eq!(bench.json(["pool", "status"])["healed"], 2);
    daemon.signal("TERM");
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    let line = "2 damaged superblocks are written anew; a scrub finds what else is damaged";
    assert_eq!(said.matches(line).count(), 1, "{said}");
    bench.expect_sound();
}

#[test]
fn a_pool_gets_a_second_copy_of_its_metadata_on_request() {
    let bench = Bench::empty();
    bench.ok(["pool", "create", "--size", "256M", "--metadata-copies", "1"]);
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    assert_eq!(bench.json(["pool", "status"])["metadata_copies"], 1);
    let daemon = bench.serve();
    let keeper = &bench.json(["pool", "status"])["daemon"]["keeper"];
    let stop = format!("stop it (kill {keeper}) first");
    bench.fails(["pool", "upgrade"], 1, &stop);
    let elsewhere = ["volume", "ls", "--socket", "/run/no-such.sock"];
    bench.fails(elsewhere, 1, "omit --socket");
    daemon.stop();
    let done = bench.json(["pool", "upgrade"]);
    assert_eq!(
        (&done["from_copies"], &done["to_copies"]),
        (&1.into(), &2.into())
    );
    assert!(done["rewritten_blocks"].as_u64().unwrap() > 0, "{done}");
    bench.expect_sound();
    damage_catalogue(&bench);
    assert_eq!(bench.volumes(), ["disk"]);
    let wrong = bench.run(["pool", "upgrade", "--metadata-copies", "3"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}
