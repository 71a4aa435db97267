//! The reply to each call.

use crate::caller::{Driver, request};
use crate::harness::{is_mounted, loops_below};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

#[test]
fn a_volume_is_made_mounted_by_two_and_removed() {
    let driver = Driver::start("1G");
    let (status, answer) = driver.call("/Plugin.Activate", &json!(null));
    assert_eq!(
        (status, &answer["Implements"]),
        (200, &json!(["VolumeDriver"]))
    );
    let answer = driver.ok("Capabilities", &json!({}));
    assert_eq!(answer["Capabilities"], json!({"Scope": "local"}));
    assert_eq!(driver.names(), [""; 0]);

    driver.create("db", &json!({"size": "512M"}));
    driver.create("plain", &json!(null));
    assert_eq!(driver.names(), ["db", "plain"]);
    let found = driver.ok("Get", &json!({"Name": "db"}))["Volume"].clone();
    assert_eq!(
        (&found["Name"], &found["Mountpoint"]),
        (&json!("db"), &json!(""))
    );
    assert!(
        found["CreatedAt"].as_str().unwrap().ends_with('Z'),
        "{found}"
    );
    assert_eq!(found["Status"]["size_bytes"], 512 << 20);
    assert_eq!(found["Status"]["volume"], "data/db");
    assert!(driver.bench.volumes().contains(&"data/db".to_owned()));

    let place = driver.mount("db", "one");
    assert_eq!(driver.mount("db", "two"), place);
    assert_eq!(driver.mount("db", "two"), place, "the same user again");
    fs::write(place.join("file"), "content").unwrap();
    let answer = driver.ok("Path", &json!({"Name": "db"}));
    assert_eq!(answer["Mountpoint"], place.to_str().unwrap());
    driver.refused("Remove", &json!({"Name": "db"}), "2 users");
    driver.bench.fails(["volume", "rm", "data/db"], 1, "in use");
    driver.unmount("db", "two");
    driver.unmount("db", "two");
    driver.unmount("db", "stranger");
    assert!(is_mounted(&place), "somebody still uses it");
    driver.unmount("db", "one");
    assert!(!is_mounted(&place));
    assert_eq!(loops_below(&driver.daemon().mount), [""; 0]);

    let place = driver.mount("db", "three");
    assert_eq!(fs::read(place.join("file")).unwrap(), b"content");
    driver.unmount("db", "three");
    driver.ok("Remove", &json!({"Name": "db"}));
    driver.ok("Remove", &json!({"Name": "db"}));
    driver.refused("Get", &json!({"Name": "db"}), "there is no data volume db");
    assert_eq!(driver.names(), ["plain"]);
    driver.finish();
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    let driver = Driver::start("1G");
    let create = |name: &str, options| json!({"Name": name, "Opts": options});
    for (options, why) in [
        (json!({"size": "large"}), "whole number"),
        (json!({"size": "0"}), "more than zero"),
        (json!({"size": "1M"}), "must be"),
        (json!({"size": "16777215T"}), "must be"),
        (json!({"colour": "red"}), "no option colour"),
        (json!({"from": "nothing"}), "there is no volume nothing"),
        (json!({"from": "../x"}), "name"),
    ] {
        driver.refused("Create", &create("x", options), why);
    }
    for name in ["", "..", "a/b", "ä", &"a".repeat(251)] {
        driver.refused("Create", &create(name, json!(null)), "not a valid name");
    }
    driver
        .bench
        .ok(["volume", "create", "blank", "--size", "64M"]);
    driver.refused("Create", &create("x", json!({"from": "blank"})), "no ext4");
    driver.create("db", &json!({"size": "128M"}));
    driver.create("db", &json!({"size": "128M"}));
    driver.refused("Create", &create("db", json!({"size": "64M"})), "already");
    driver.refused(
        "Create",
        &create("y", json!({"from": "db", "size": "64M"})),
        "at least",
    );
    driver.refused(
        "Mount",
        &json!({"Name": "none", "ID": "1"}),
        "there is no data volume",
    );
    driver.refused("Mount", &json!({"Name": "db", "ID": ""}), "ID");
    driver.refused("Mount", &json!({"Name": "db", "ID": "a\nb"}), "ID");
    driver.refused(
        "Unmount",
        &json!({"Name": "none", "ID": "1"}),
        "there is no data volume",
    );
    driver.refused("Path", &json!({"Name": "none"}), "there is no data volume");
    // A plain volume with such a name counts as a data volume, but cannot be mounted.
    driver
        .bench
        .ok(["volume", "create", "data/raw", "--size", "64M"]);
    driver.refused("Mount", &json!({"Name": "raw", "ID": "1"}), "no ext4");
    assert_eq!(loops_below(&driver.daemon().mount), [""; 0]);
    assert_eq!(driver.names(), ["db", "raw"]);
    driver.finish();
}

#[test]
fn hostile_callers_harm_nobody() {
    let driver = Driver::start("256M");
    let socket = driver.socket();
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answered = |method, path, body: &[u8]| request(&socket, method, path, body).unwrap();
    let (status, answer) = answered("POST", "/VolumeDriver.Explode", b"{}");
    assert_eq!(status, 404, "{answer}");
    assert!(answer["Err"].as_str().unwrap().contains("Explode"));
    assert_eq!(answered("GET", "/VolumeDriver.List", b"").0, 405);
    for body in ["", "{", "[]", "{\"Name\": 1}", "\u{0}"] {
        assert_eq!(
            answered("POST", "/VolumeDriver.Create", body.as_bytes()).0,
            400,
            "{body}"
        );
    }
    let long = vec![b' '; 1 << 20];
    assert_eq!(answered("POST", "/VolumeDriver.Create", &long).0, 413);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[0xFF; 4096]).unwrap();
    let mut said = Vec::new();
    // The connection is closed, in whatever way.
    let _ = stream.read_to_end(&mut said);
    // Many clients connect and send nothing; the daemon refuses some, and goes on.
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&socket)).collect();
    drop(silent);
    driver.create("db", &json!({"size": "64M"}));
    assert_eq!(driver.names(), ["db"]);
    driver.finish();
}

#[test]
fn many_callers_at_once_leave_what_one_after_the_other_would() {
    let driver = Driver::start("1G");
    driver.create("shared", &json!({"size": "64M"}));
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let driver = &driver;
            scope.spawn(move || {
                let own = format!("own-{caller}");
                for round in 0..4 {
                    let id = format!("{caller}-{round}");
                    driver.create(&own, &json!({"size": "64M"}));
                    let place = driver.mount("shared", &id);
                    fs::write(place.join(&own), &id).unwrap();
                    assert_eq!(fs::read_to_string(place.join(&own)).unwrap(), id);
                    driver.unmount("shared", &id);
                    driver.ok("Remove", &json!({"Name": own}));
                }
            });
        }
    });
    assert_eq!(driver.names(), ["shared"]);
    assert_eq!(loops_below(&driver.daemon().mount), [""; 0]);
    driver.finish();
}
