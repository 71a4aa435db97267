//! A daemon whose worker dies in the middle of calls.

use crate::client::{Client, is_lost};
use crate::diff_wire::Descriptor;
use crate::differ::{Differ, TAR, between, descriptor};
use crate::harness::{Bench, Daemon, eventually, noise};
use crate::stage::{place, shell};
use crate::store::Store;
use crate::wire::Mount;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tonic::Status;

fn serving(bench: &Bench) -> Value {
    bench.json(["pool", "status"])["daemon"].clone()
}

fn kill_worker(bench: &Bench, daemon: &Daemon) {
    let before = serving(bench)["worker"].clone();
    daemon.kill_worker();
    eventually("another worker", || serving(bench)["worker"] != before);
}

/// Makes a call while the worker is killed after `delay`, and repeats it until it gets a reply.
fn interrupted<T: std::fmt::Debug + Send>(
    bench: &Bench,
    daemon: &Daemon,
    delay: Duration,
    mut call: impl FnMut() -> Result<T, Status> + Send,
) -> T {
    std::thread::scope(|scope| {
        let calling = scope.spawn(move || {
            loop {
                match call() {
                    Ok(answer) => return answer,
                    Err(status) if is_lost(&status) => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(status) => panic!("{status:?}"),
                }
            }
        });
        std::thread::sleep(delay);
        kill_worker(bench, daemon);
        calling.join().unwrap()
    })
}

#[test]
fn layers_are_applied_and_made_by_whoever_follows_a_killed_worker() {
    let bench = Bench::with_pool("2G");
    let store = Store::start(&bench.path(""));
    let socket = bench.path("snapshots.sock");
    let daemon = bench.serve_with([
        "--containerd-socket",
        socket.to_str().unwrap(),
        "--containerd-address",
        store.socket.to_str().unwrap(),
    ]);
    let mut client = Client::connect(&socket);
    let mut differ = Differ::connect(&socket);
    let blob = layer(&bench, &store);
    let mut parent = String::new();
    for round in 0..4_u32 {
        let key = format!("key-{round}");
        let delay = Duration::from_millis(40 + 90 * u64::from(round));
        let mount = client
            .persist(|client| client.prepare(&key, &parent))
            .unwrap();
        let applied = interrupted(&bench, &daemon, delay, || {
            differ.apply(blob.clone(), &mount)
        });
        assert!(applied.size > 24 << 20, "{applied:?}");
        check(&mount);
        let file = place(&mount).join(format!("round-{round}"));
        fs::write(&file, noise(6 << 20, round.into())).unwrap();
        let name = format!("layer-{round}");
        let left = client.persist(|client| client.view(&format!("left-{round}"), &parent));
        let mut request = between(&left.unwrap(), &mount);
        request.media_type = TAR.to_owned();
        request.r#ref = "the-same-each-time".to_owned();
        let made = interrupted(&bench, &daemon, delay, || differ.compare(request.clone()));
        let bytes = store.blob(&made.digest);
        assert!(bytes.len() > 6 << 20 && store.state().ingests.is_empty());
        // No file system is left frozen.
        fs::write(place(&mount).join("later"), "x").unwrap();
        client.persist(|client| client.commit(&name, &key)).unwrap();
        client.remove(&format!("left-{round}")).unwrap();
        parent = name;
    }
    client.cleanup().unwrap();
    let view = client.view("view", &parent).unwrap();
    check(&view);
    for round in 0..4_u64 {
        let found = fs::read(place(&view).join(format!("round-{round}"))).unwrap();
        assert!(found == noise(6 << 20, round), "round {round}");
    }
    client.remove("view").unwrap();
    client.cleanup().unwrap();
    let names = bench.volumes();
    assert!(
        names.iter().all(|name| !name.starts_with("work/")),
        "{names:?}"
    );
    daemon.stop();
    bench.expect_sound();
}

/// Returns a blob of some files.
fn layer(bench: &Bench, store: &Store) -> Descriptor {
    let folder = bench.path("content");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..24 {
        fs::write(
            folder.join(number.to_string()),
            noise(1 << 20, 100 + number),
        )
        .unwrap();
    }
    let tar = bench.path("content.tar");
    shell(&folder, &format!("tar -cf {} .", tar.display()));
    descriptor(TAR, &store.put(fs::read(tar).unwrap()))
}

fn check(mount: &Mount) {
    for number in 0..24 {
        let found = fs::read(Path::new(&mount.source).join(number.to_string())).unwrap();
        assert!(found == noise(1 << 20, 100 + number), "file {number}");
    }
}
