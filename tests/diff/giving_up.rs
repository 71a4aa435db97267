//! Clients that go away in the middle of a call, while containers run.

use crate::differ::{TAR, between};
use crate::fixtures::reference;
use crate::stage::{Stage, eventually, place, uncompressed};
use crate::store::{Reading, Writing};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(700);

fn noise(len: usize) -> Vec<u8> {
    crate::harness::noise(len, 11)
}

fn tar_of(folder: &Path) -> Vec<u8> {
    let tar = folder.with_extension("tar");
    let (tar_path, folder) = (tar.to_str().unwrap(), folder.to_str().unwrap());
    crate::harness::host("tar", ["-cf", tar_path, "-C", folder, "."]);
    fs::read(tar).unwrap()
}

#[test]
fn a_client_that_goes_away_while_its_layer_is_fetched_leaves_a_root_to_remove() {
    let mut stage = Stage::new();
    let folder = stage.folder("content");
    fs::write(folder.join("large"), noise(20 << 20)).unwrap();
    let blob = stage.blob(TAR, tar_of(&folder));
    stage.store.state().reading = Reading::Stalling(8 << 20);
    for round in 0..3 {
        let key = format!("key-{round}");
        let mount = stage.client.prepare(&key, "").unwrap();
        stage
            .differ
            .give_up_applying(blob.clone(), &mount, PATIENCE);
        let started = Instant::now();
        stage.client.remove(&key).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "it held on");
    }
    // Nothing goes on in the background.
    stage.client.cleanup().unwrap();
    eventually("an end of the work", || {
        stage
            .pool
            .volumes()
            .iter()
            .all(|volume| volume.name.as_str().starts_with("template/"))
    });
    stage.store.state().reading = Reading::Well;
    let mount = stage.client.prepare("well", "").unwrap();
    stage.differ.apply(blob, &mount).unwrap();
    assert!(fs::read(place(&mount).join("large")).unwrap() == noise(20 << 20));
}

#[test]
fn a_client_that_goes_away_while_its_layer_is_written_holds_nothing_still() {
    let mut stage = Stage::new();
    stage.commit("base", "", "echo base > file");
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    fs::write(place(&right).join("large"), noise(20 << 20)).unwrap();
    let mut request = between(&left, &right);
    request.media_type = TAR.to_owned();
    request.r#ref = "mine".to_owned();
    stage.store.state().writing = Writing::Stalling(3 << 20);
    for round in 0..3 {
        stage.differ.give_up_comparing(request.clone(), PATIENCE);
        fs::write(place(&right).join("meanwhile"), round.to_string()).unwrap();
    }
    eventually("an end of the work", || stage.in_work().is_empty());
    stage.store.state().writing = Writing::Well;
    // Data that was written under the ref before is truncated.
    let made = stage.differ.compare(request).unwrap();
    let names = names_in(&stage.store.blob(&made.digest));
    assert_eq!(names, ["./", "large", "meanwhile"]);
}

fn names_in(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| String::from_utf8(entry.unwrap().path_bytes().to_vec()).unwrap())
        .collect()
}

#[test]
fn a_container_that_is_written_to_goes_on_and_its_layer_is_one_moment_of_it() {
    let mut stage = Stage::new();
    stage.commit(
        "base",
        "",
        "mkdir data; echo 0 > data/version; dd if=/dev/zero of=data/a bs=64K count=1",
    );
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    let data = place(&right).join("data");
    let (stop, version) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each version is a pair of files, the first of which is written before the second.
            while !stop.load(Ordering::SeqCst) {
                let next = version.load(Ordering::SeqCst) + 1;
                for name in ["a", "b"] {
                    let new = data.join("new");
                    fs::write(&new, next.to_le_bytes().repeat(8192)).unwrap();
                    fs::rename(&new, data.join(name)).unwrap();
                }
                version.store(next, Ordering::SeqCst);
            }
        });
        for round in 0..6 {
            let before = version.load(Ordering::SeqCst);
            eventually("more versions", || {
                version.load(Ordering::SeqCst) > before + 3
            });
            let at_least = version.load(Ordering::SeqCst);
            let made = stage.differ.compare(between(&left, &right)).unwrap();
            let at_most = version.load(Ordering::SeqCst) + 1;
            let tar = uncompressed(&made.media_type, &stage.store.blob(&made.digest));
            let folder = stage.folder(&format!("round-{round}"));
            let path = folder.with_extension("tar");
            fs::write(&path, tar).unwrap();
            reference::apply(&[path], &folder);
            let read = |name: &str| {
                let bytes = fs::read(folder.join("data").join(name)).unwrap();
                assert_eq!(bytes.len(), 64 << 10, "{name}");
                let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(
                    bytes == first.to_le_bytes().repeat(8192),
                    "{name} is of two versions"
                );
                first
            };
            let (a, b) = (read("a"), read("b"));
            assert!(a == b || a == b + 1, "{a} and {b}");
            assert!(
                (at_least..=at_most).contains(&b),
                "{b} of {at_least}..={at_most}"
            );
        }
        stop.store(true, Ordering::SeqCst);
    });
}
