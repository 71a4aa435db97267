//! `cowshed gc`: what is kept and why, and what is removed.

use crate::place::{Place, Snapshotter, layer};
use cowshed_engine::{OpenOptions, Pool};
use cowshed_format::base::Name;
use cowshed_format::device::{FileDevice, FileOptions};
use serde_json::Value;
use std::sync::Arc;

fn explained<'v>(told: &'v Value, start: &str) -> Vec<&'v Value> {
    let volumes = told["volumes"].as_array().unwrap().iter();
    volumes
        .filter(|volume| volume["name"].as_str().unwrap_or("").starts_with(start))
        .collect()
}

#[test]
fn gc_says_who_needs_each_volume_and_removes_what_nobody_does() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    client.view("look", "base").unwrap();
    let mount = client.prepare("runs", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "runs");
    client.cleanup().unwrap();
    let told = snapshotter.bench.json(["gc", "--explain"]);
    let snapshots = explained(&told, "snapshot/");
    assert_eq!(snapshots.len(), 2, "{told}");
    let all = told.to_string();
    for user in [
        "\"snapshot base\"",
        "\"view look\"",
        "\"snapshot runs\"",
        "attached, mounted",
    ] {
        assert!(all.contains(user), "{user} is not in {all}");
    }
    assert!(snapshots.iter().all(|volume| volume["garbage"] == false));
    assert_eq!(
        snapshotter.bench.json(["gc"])["removed"],
        serde_json::json!([])
    );
    place.write("still", "there");
    place.unmount();
    let Snapshotter { daemon, bench, .. } = snapshotter;
    daemon.stop();

    // Leftovers of a killed command, and of a lost record.
    let device = FileDevice::open(bench.pool(), FileOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &OpenOptions::default()).unwrap();
    for name in ["work/killed", "snapshot/lost", "layer/lost", "mine"] {
        pool.create_volume(&Name::new(name).unwrap(), 1 << 20)
            .unwrap();
    }
    pool.close().unwrap();
    drop(pool);
    let told = bench.json(["gc", "--explain"]);
    let garbage: Vec<_> = told["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|volume| volume["garbage"] == true)
        .map(|volume| volume["name"].as_str().unwrap())
        .collect();
    assert_eq!(garbage, ["layer/lost", "snapshot/lost", "work/killed"]);
    let removed = bench.json(["gc"]);
    assert_eq!(removed["removed"].as_array().unwrap().len(), 3, "{removed}");
    let text = bench.ok(["gc", "--explain"]);
    assert!(
        text.contains("it has a name of its own") && !text.contains("lost"),
        "{text}"
    );
    bench.expect_sound();
    let volumes = bench.volumes();
    assert_eq!(
        volumes
            .iter()
            .filter(|name| name.starts_with("snapshot/"))
            .count(),
        2
    );
    assert!(volumes.iter().any(|name| name == "mine"), "{volumes:?}");
}
