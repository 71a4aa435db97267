//! How long calls take: `cargo test --release --test snapshots speed -- --ignored --nocapture`.

use crate::client::{Client, labels};
use crate::place::{Place, Snapshotter, layer};
use std::time::{Duration, Instant};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed<T>(times: &mut Vec<Duration>, call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = call();
    times.push(started.elapsed());
    answer
}

#[test]
#[ignore = "a measurement, for a machine that does nothing else"]
fn speed_of_a_containers_calls() {
    let snapshotter = Snapshotter::start("4G");
    let mut client = snapshotter.client();
    big_image(&snapshotter, &mut client);
    let [
        mut stat,
        mut prepare,
        mut mounts,
        mut usage,
        mut commit,
        mut remove,
    ] = std::array::from_fn(|_| Vec::new());
    for round in 0..40 {
        let key = format!("c-{round}");
        timed(&mut prepare, || client.prepare(&key, "big").unwrap());
        let mount = timed(&mut mounts, || client.mounts(&key).unwrap());
        let place = Place::mount(&snapshotter.bench, &mount, &key);
        place.write("x", "y");
        place.unmount();
        for _ in 0..20 {
            timed(&mut usage, || client.usage(&key).unwrap());
            timed(&mut stat, || client.stat(&key).unwrap());
        }
        if round % 2 == 0 {
            let image = format!("i-{round}");
            timed(&mut commit, || client.commit(&image, &key).unwrap());
            timed(&mut remove, || client.remove(&image).unwrap());
        } else {
            timed(&mut remove, || client.remove(&key).unwrap());
        }
    }
    for (name, times) in [
        ("stat", stat),
        ("prepare", prepare),
        ("mounts", mounts),
        ("usage", usage),
        ("commit", commit),
        ("remove", remove),
    ] {
        println!("{name:8} {:?}", median(times));
    }
    client.cleanup().unwrap();
    snapshotter.end(1);
}

/// 20,000 files.
fn big_image(snapshotter: &Snapshotter, client: &mut Client) {
    let mount = client.prepare("big-key", "").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "big");
    for folder in 0..100 {
        std::fs::create_dir(place.path(&folder.to_string())).unwrap();
        for file in 0..200 {
            let text = vec![b'x'; 3000];
            std::fs::write(place.path(&format!("{folder}/{file}")), text).unwrap();
        }
    }
    place.unmount();
    client.commit("big", "big-key").unwrap();
}

#[test]
#[ignore = "a measurement, for a machine that does nothing else"]
fn speed_of_sixty_small_layers() {
    let snapshotter = Snapshotter::start("2G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "warm", "", "a");
    let [mut prepare, mut commit, mut all] = std::array::from_fn(|_| Vec::new());
    let mut parent = String::new();
    let started = Instant::now();
    for number in 0..60 {
        let (key, name) = (format!("k{number}"), format!("n{number}"));
        let id = labels(&[("containerd.io/snapshot.ref", name.as_str())]);
        let mount = timed(&mut prepare, || {
            client.prepare_with(&key, &parent, id.clone()).unwrap()
        });
        let place = Place::mount(&snapshotter.bench, &mount, &key);
        place.write(&name, &name);
        place.unmount();
        timed(&mut commit, || {
            client.commit_with(&name, &key, id, "").unwrap()
        });
        parent = name;
    }
    all.push(started.elapsed());
    println!(
        "60 layers {:?}, prepare {:?}, commit {:?}",
        median(all),
        median(prepare),
        median(commit)
    );
    snapshotter.end(61);
}
