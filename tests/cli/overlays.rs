//! Containers with overlay roots through the command line, and while daemons die.

use crate::harness::{Bench, loops_below};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

fn create(bench: &Bench, name: &str) -> PathBuf {
    let create = [
        "container",
        "create",
        "mine:1",
        "--root",
        "overlay",
        "--mount",
    ];
    let made = bench.json(create.into_iter().chain(["--name", name]));
    made["path"].as_str().unwrap().into()
}

fn prepared(bench: &Bench) {
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/motd"), "hello\n").unwrap();
    fs::write(root.join("etc/secret"), "x").unwrap();
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
}

#[test]
fn a_container_with_an_overlay_root_lives_as_others_with_a_daemon_and_without() {
    let bench = Bench::with_pool("2G");
    prepared(&bench);
    let wrong = bench.run(["container", "create", "mine:1", "--root", "other"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("write block or overlay"));
    bench.ok(["container", "create", "mine:1", "--name", "block"]);
    let daemon = bench.serve();
    let root = create(&bench, "one");
    let list = bench.json(["container", "ls"]);
    let kinds: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["root"])
        .collect();
    assert_eq!(kinds, ["block", "overlay"]);
    let table = bench.ok(["container", "ls"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].contains(" ROOT ") && lines[2].contains(" overlay "),
        "{table}"
    );
    fs::write(root.join("new"), "new").unwrap();
    fs::remove_file(root.join("etc/secret")).unwrap();
    let changes = "C /etc\nD /etc/secret\nA /new\n";
    assert_eq!(bench.ok(["container", "diff", "one"]), changes);
    bench.ok(["container", "commit", "one", "mine:2"]);
    bench.ok(["container", "unmount", "one"]);
    daemon.stop();
    assert_eq!(bench.ok(["container", "diff", "one"]), changes);
    let copy = bench.path("copy");
    let copy = copy.to_str().unwrap();
    bench.ok(["container", "cp", "one:/new", copy]);
    assert_eq!(fs::read_to_string(copy).unwrap(), "new");
    bench.ok(["container", "cp", copy, "one:/etc/again"]);
    bench.ok(["container", "commit", "one", "mine:3"]);
    let inspected = bench.json(["image", "inspect", "mine:3"]);
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 2);
    bench.ok(["container", "rm", "one", "block"]);
    bench.ok(["image", "rm", "mine:1", "mine:2", "mine:3"]);
    assert_eq!(bench.json(["container", "ls"]), Value::Array(Vec::new()));
    bench.expect_sound();
}

#[test]
fn mounted_overlays_go_on_when_the_worker_dies_and_come_back_when_all_do() {
    let bench = Bench::with_pool("2G");
    prepared(&bench);
    let daemon = bench.serve();
    let one = create(&bench, "one");
    let two = create(&bench, "two");
    for round in 0..3 {
        fs::write(one.join("round"), round.to_string()).unwrap();
        daemon.kill_worker();
        assert_eq!(
            fs::read_to_string(one.join("round")).unwrap(),
            round.to_string()
        );
        assert_eq!(fs::read_to_string(two.join("etc/motd")).unwrap(), "hello\n");
        assert_eq!(bench.ok(["container", "diff", "one"]), "A /round\n");
    }
    bench.ok(["serve", "--upgrade"]);
    fs::write(two.join("after"), "upgrade").unwrap();
    bench.ok(["container", "unmount", "two"]);
    assert_eq!(bench.ok(["container", "diff", "two"]), "A /after\n");
    crate::harness::host("sync", ["-f", one.join("round").to_str().unwrap()]);
    daemon.kill();
    let daemon = bench.serve();
    let list = bench.json(["container", "ls"]);
    assert!(list[0]["mounted"].is_null(), "{list}");
    let again = bench.json(["container", "mount", "one"]);
    let one = PathBuf::from(again["path"].as_str().unwrap());
    assert_eq!(fs::read_to_string(one.join("round")).unwrap(), "2");
    assert_eq!(fs::read_to_string(one.join("etc/motd")).unwrap(), "hello\n");
    bench.ok(["container", "rm", "one", "two"]);
    assert!(loops_below(&daemon.mount).is_empty());
    daemon.stop();
    bench.expect_sound();
}
