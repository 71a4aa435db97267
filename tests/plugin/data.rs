//! Data volumes as volumes of the pool: snapshots, clones, sizes.

use crate::caller::Driver;
use crate::harness::{host, is_mounted, loops_below, noise};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Returns the size of the file system at `path`, in bytes, as df reports it.
fn size_of(path: &Path) -> u64 {
    let text = host("df", ["-B1", "--output=size", path.to_str().unwrap()]);
    text.lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn a_snapshot_of_a_volume_in_use_holds_all_that_was_written() {
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "256M"}));
    let place = driver.mount("db", "one");
    // Nothing is synced explicitly.
    let first = noise(3 << 20, 1);
    fs::create_dir(place.join("folder")).unwrap();
    fs::write(place.join("folder/table"), &first).unwrap();
    driver.bench.ok(["volume", "snapshot", "data/db", "monday"]);
    fs::write(place.join("folder/table"), noise(3 << 20, 2)).unwrap();
    fs::write(place.join("later"), "x").unwrap();
    // A snapshot is not one of Docker's volumes, whatever its name.
    driver
        .bench
        .ok(["volume", "snapshot", "data/db", "data/tuesday"]);
    assert_eq!(driver.names(), ["db"]);

    driver.create("old", &json!({"from": "monday"}));
    driver.create("new", &json!({"from": "db"}));
    driver.create("newer", &json!({"from": "data/db", "size": "300M"}));
    let old = driver.mount("old", "two");
    assert!(fs::read(old.join("folder/table")).unwrap() == first);
    assert!(!old.join("later").exists());
    for (name, id) in [("new", "three"), ("newer", "four")] {
        let new = driver.mount(name, id);
        assert!(
            fs::read(new.join("folder/table")).unwrap() == noise(3 << 20, 2),
            "{name}"
        );
        fs::write(new.join("later"), "changed").unwrap();
    }
    assert_eq!(fs::read_to_string(place.join("later")).unwrap(), "x");
    assert!(size_of(&driver.mount("newer", "four")) > size_of(&place));
    for (name, id) in [
        ("db", "one"),
        ("old", "two"),
        ("new", "three"),
        ("newer", "four"),
    ] {
        driver.unmount(name, id);
    }
    for name in ["data/db", "data/old", "data/new", "data/newer", "monday"] {
        let file = driver
            .bench
            .ok(["attach", name, "--as", "file", "--read-only"]);
        host("e2fsck", ["-f", "-n", file.trim()]);
        driver.bench.ok(["detach", name]);
    }
    // The clone shares the blocks that it has not changed, and costs those that it has.
    let status = driver.ok("Get", &json!({"Name": "new"}))["Volume"]["Status"].clone();
    assert!(status["own_bytes"].as_u64().unwrap() < 2 << 20, "{status}");
    assert!(
        status["referenced_bytes"].as_u64().unwrap() > 3 << 20,
        "{status}"
    );
    driver.ok("Remove", &json!({"Name": "db"}));
    let old = driver.mount("old", "five");
    assert!(fs::read(old.join("folder/table")).unwrap() == first);
    driver.unmount("old", "five");
    driver.finish();
}

#[test]
fn a_volume_that_was_resized_has_the_new_size_once_it_is_mounted() {
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "64M"}));
    let place = driver.mount("db", "one");
    fs::write(place.join("file"), "content").unwrap();
    let before = size_of(&place);
    driver.unmount("db", "one");
    driver
        .bench
        .ok(["volume", "resize", "data/db", "--size", "512M"]);
    let place = driver.mount("db", "one");
    assert!(
        size_of(&place) > 6 * before,
        "{} of {before}",
        size_of(&place)
    );
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "content");
    driver.unmount("db", "one");
    driver.finish();
}

#[test]
fn renaming_and_rolling_back_hold_for_docker_too() {
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "64M"}));
    let place = driver.mount("db", "one");
    fs::write(place.join("file"), "first").unwrap();
    driver.bench.ok(["volume", "snapshot", "data/db", "first"]);
    fs::write(place.join("file"), "second").unwrap();
    driver
        .bench
        .fails(["volume", "rollback", "data/db", "first"], 1, "in use");
    driver.unmount("db", "one");
    driver.bench.ok(["volume", "rollback", "data/db", "first"]);
    driver
        .bench
        .ok(["volume", "rename", "data/db", "data/base"]);
    assert_eq!(driver.names(), ["base"]);
    let place = driver.mount("base", "one");
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "first");
    driver.unmount("base", "one");
    // A clone made by hand is Docker's if its name says so.
    driver
        .bench
        .ok(["volume", "clone", "first", "data/by-hand"]);
    assert_eq!(driver.names(), ["base", "by-hand"]);
    let place = driver.mount("by-hand", "one");
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "first");
    driver.unmount("by-hand", "one");
    driver.finish();
}

#[test]
fn a_mount_that_somebody_else_keeps_or_takes_away_is_no_obstacle() {
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "64M"}));
    let place = driver.mount("db", "one");
    fs::write(place.join("file"), "content").unwrap();
    // Like a forgotten mount namespace.
    let kept = driver.bench.path("kept");
    fs::create_dir(&kept).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    host("mount", ["--bind", &path(&place), &path(&kept)]);
    driver.unmount("db", "one");
    assert!(!is_mounted(&place));
    driver.refused("Remove", &json!({"Name": "db"}), "in use");
    let place = driver.mount("db", "two");
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "content");
    fs::write(kept.join("other"), "seen").unwrap();
    assert_eq!(fs::read_to_string(place.join("other")).unwrap(), "seen");
    driver.unmount("db", "two");
    host("umount", [&path(&kept)]);
    let place = driver.mount("db", "three");
    host("umount", [&path(&place)]);
    assert_eq!(driver.mount("db", "four"), place);
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "content");
    driver.unmount("db", "three");
    assert!(is_mounted(&place));
    host("umount", [&path(&place)]);
    driver.unmount("db", "four");
    assert_eq!(loops_below(&driver.daemon().mount), [""; 0]);
    driver.ok("Remove", &json!({"Name": "db"}));
    driver.finish();
}
