//! The worker or the daemon dies, at any moment.

use crate::caller::Driver;
use crate::harness::{clear_mounts, eventually, is_mounted, loops_below};
use crate::load::{check_files, goes_on, in_folder, serving};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::time::Duration;

fn kill_worker(driver: &Driver) {
    let before = serving(&driver.bench)["worker"].clone();
    driver.daemon().kill_worker();
    eventually("another worker", || {
        serving(&driver.bench)["worker"] != before
    });
}

#[test]
fn a_mounted_volume_goes_on_when_the_worker_dies_and_its_users_stay_known() {
    const KILLS: u64 = 5;
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "256M"}));
    let place = driver.mount("db", "one");
    let load = in_folder(&place);
    for _ in 0..KILLS {
        goes_on(&load, 5);
        kill_worker(&driver);
        // A user is added and removed between the deaths.
        assert_eq!(driver.mount("db", "two"), place);
        driver.unmount("db", "two");
        goes_on(&load, 1);
    }
    check_files(&load.end().unwrap());
    driver.mount("db", "two");
    kill_worker(&driver);
    driver.refused("Remove", &json!({"Name": "db"}), "2 users");
    driver.unmount("db", "one");
    assert!(is_mounted(&place), "the second user is forgotten");
    driver.unmount("db", "two");
    assert!(!is_mounted(&place));
    assert_eq!(loops_below(&driver.daemon().mount), [""; 0]);
    driver.finish();
}

#[test]
fn a_call_in_the_middle_of_which_the_worker_dies_can_be_repeated() {
    let driver = Driver::start("1G");
    driver.create("source", &json!({"size": "64M"}));
    let place = driver.mount("source", "keeps-it-mounted");
    fs::write(place.join("file"), "content").unwrap();
    let steps: [(&str, Value); 5] = [
        (
            "Create",
            json!({"Name": "db", "Opts": {"from": "source", "size": "96M"}}),
        ),
        ("Mount", json!({"Name": "db", "ID": "one"})),
        ("Get", json!({"Name": "db"})),
        ("Unmount", json!({"Name": "db", "ID": "one"})),
        ("Remove", json!({"Name": "db"})),
    ];
    for round in 0..6_u64 {
        for (index, (call, body)) in (0..).zip(&steps) {
            // Only the first attempt is interrupted; whatever its result, the call then works.
            let delay = Duration::from_millis((round * 37 + index * 11) % 90);
            std::thread::scope(|scope| {
                let first = scope.spawn(|| driver.attempt(&format!("/VolumeDriver.{call}"), body));
                std::thread::sleep(delay);
                kill_worker(&driver);
                if let Ok((status, answer)) = first.join().unwrap() {
                    assert_eq!(status, 200, "{call}: {answer}");
                }
            });
            let answer = driver.ok(call, body);
            if *call == "Mount" {
                let place = answer["Mountpoint"].as_str().unwrap();
                let text = fs::read_to_string(format!("{place}/file")).unwrap();
                assert_eq!(text, "content");
            }
        }
        assert_eq!(driver.names(), ["source"]);
        let names = driver.bench.volumes();
        assert!(
            names.iter().all(|name| !name.starts_with("work/")),
            "{names:?}"
        );
    }
    assert_eq!(loops_below(&driver.daemon().mount).len(), 1);
    // No file system is left frozen.
    fs::write(place.join("file"), "goes on").unwrap();
    driver.unmount("source", "keeps-it-mounted");
    driver.finish();
}

#[test]
fn what_was_synced_is_there_after_the_host_has_gone_down() {
    let mut driver = Driver::start("1G");
    for round in 0..3 {
        driver.create("db", &json!({"size": "128M"}));
        let place = driver.mount("db", &format!("boot-{round}"));
        for before in 0..round {
            let text = fs::read_to_string(place.join(format!("file-{before}"))).unwrap();
            assert_eq!(text, format!("content {before}"));
        }
        let path = place.join(format!("file-{round}"));
        fs::write(&path, format!("content {round}")).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        File::open(&place).unwrap().sync_all().unwrap();
        // What is not unmounted is lost as in a reboot.
        let daemon = driver.daemon.take().unwrap();
        let volumes = daemon.mount.clone();
        daemon.kill();
        clear_mounts(volumes.parent().unwrap());
        fs::remove_dir_all(volumes.parent().unwrap()).unwrap();
        driver.serve();
        assert_eq!(driver.names(), ["db"]);
        // Docker may still refer to an earlier mount.
        driver.unmount("db", &format!("boot-{round}"));
    }
    driver.ok("Remove", &json!({"Name": "db"}));
    driver.finish();
}

#[test]
fn a_daemon_that_hands_over_leaves_volumes_mounted_and_answers_again() {
    let driver = Driver::start("1G");
    driver.create("db", &json!({"size": "128M"}));
    let place = driver.mount("db", "one");
    let load = in_folder(&place);
    goes_on(&load, 5);
    driver.bench.ok(["serve", "--upgrade"]);
    goes_on(&load, 5);
    check_files(&load.end().unwrap());
    assert_eq!(driver.mount("db", "two"), place);
    driver.unmount("db", "one");
    assert!(is_mounted(&place));
    driver.unmount("db", "two");
    assert!(!is_mounted(&place));
    driver.finish();
}

#[test]
fn a_daemon_that_stops_unmounts_what_docker_still_has_mounted() {
    let mut driver = Driver::start("1G");
    driver.create("db", &json!({"size": "128M"}));
    let place = driver.mount("db", "one");
    fs::write(place.join("file"), "content").unwrap();
    driver.daemon.take().unwrap().stop();
    assert!(!is_mounted(&place));
    driver.serve();
    driver.unmount("db", "one");
    let place = driver.mount("db", "two");
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "content");
    driver.unmount("db", "two");
    driver.finish();
}
