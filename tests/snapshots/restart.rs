//! The daemon stops, is killed, or loses its worker, while snapshots are in use.

use crate::client::{Client, Labels, is_lost, labels, refused};
use crate::harness::{eventually, loops_below};
use crate::place::{Place, Snapshotter, layer};
use crate::wire::Kind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::{Code, Status};

#[test]
fn snapshots_and_their_times_survive_a_stop_and_a_crash() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    client
        .prepare_with("c", "base", labels(&[("l", "1")]))
        .unwrap();
    client.view("v", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &client.mounts("c").unwrap(), "c");
    place.write("b", "2");
    place.unmount();
    let before = client.list(&[]).unwrap();
    let mut snapshotter = snapshotter.restart();
    for crashes in 0..3 {
        let mut client = snapshotter.client();
        assert_eq!(client.list(&[]).unwrap(), before);
        let place = Place::mount(&snapshotter.bench, &client.mounts("c").unwrap(), "c");
        assert_eq!(place.read("a") + &place.read("b"), "base2");
        place.unmount();
        let place = Place::mount(&snapshotter.bench, &client.mounts("v").unwrap(), "v");
        assert_eq!(place.names(), ["a"]);
        place.unmount();
        if crashes < 2 {
            snapshotter = snapshotter.crash();
        }
    }
    snapshotter.end(2);
}

#[test]
fn what_is_mounted_goes_on_when_the_worker_dies() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    let device = client
        .prepare_with(
            "d",
            "base",
            labels(&[("containerd.io/snapshot/cowshed.mounts", "loop")]),
        )
        .unwrap();
    let on_device = Place::mount(&snapshotter.bench, &device, "d");
    for round in 0..3 {
        place.write("round", &round.to_string());
        on_device.write("round", &round.to_string());
        snapshotter.daemon.kill_worker();
        let again = client.persist(|client| client.mounts("c")).unwrap();
        assert_eq!(again, mount, "it is mounted where it was");
        assert_eq!(client.mounts("d").unwrap(), device);
        assert_eq!(place.read("round"), round.to_string());
        assert_eq!(on_device.read("round"), round.to_string());
    }
    place.unmount();
    on_device.unmount();
    client.commit("image", "c").unwrap();
    client.commit("image2", "d").unwrap();
    for name in ["image", "image2"] {
        let view = client.view("v", name).unwrap();
        let place = Place::mount(&snapshotter.bench, &view, "v");
        assert_eq!(place.read("round"), "2");
        place.unmount();
        client.remove("v").unwrap();
    }
    snapshotter.end(3);
}

#[test]
fn an_upgrade_leaves_mounts_and_the_socket_as_they_are() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    let log = std::fs::File::create(place.path("log")).unwrap();
    for round in 0..2 {
        snapshotter.bench.ok(["serve", "--upgrade"]);
        let again = client.persist(|client| client.mounts("c")).unwrap();
        assert_eq!(again, mount);
        place.write("round", &round.to_string());
    }
    drop(log);
    place.unmount();
    client.commit("image", "c").unwrap();
    let view = client.view("v", "image").unwrap();
    let place = Place::mount(&snapshotter.bench, &view, "v");
    assert_eq!(place.read("round") + &place.read("a"), "1base");
    place.unmount();
    client.remove("v").unwrap();
    snapshotter.end(2);
}

/// A client's knowledge of one key: what was acknowledged.
#[derive(Clone, Debug)]
struct Known {
    kind: Kind,
    files: BTreeSet<String>,
}

/// A client that makes random calls and remembers the replies.
struct Wanderer<'s> {
    snapshotter: &'s Snapshotter,
    client: Client,
    random: StdRng,
    known: BTreeMap<String, Known>,
    next: u32,
}

impl Wanderer<'_> {
    fn of_kind(&mut self, kind: Kind) -> Option<String> {
        let of_it: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.kind == kind)
            .collect();
        let index = self.random.random_range(0..of_it.len().max(1));
        of_it.get(index).map(|(key, _)| (*key).clone())
    }

    /// Returns true if a call was done; if the reply is missing, looks that up.
    fn was_done(&mut self, answer: Result<(), Status>, is_there: &str, wanted: bool) -> bool {
        match answer {
            Ok(()) => true,
            Err(status) if is_lost(&status) => {
                let found = self.client.persist(|client| client.stat(is_there));
                match found {
                    Ok(_) => wanted,
                    Err(status) => {
                        assert_eq!(status.code(), Code::NotFound, "{status:?}");
                        !wanted
                    }
                }
            }
            Err(status) => panic!("{status:?}"),
        }
    }

    fn prepare(&mut self) {
        self.next += 1;
        let key = format!("key-{}", self.next);
        let parent = self.of_kind(Kind::Committed).unwrap_or_default();
        let mut files = self
            .known
            .get(&parent)
            .map_or_else(BTreeSet::new, |known| known.files.clone());
        let fill: Labels = if self.random.random_bool(0.5) {
            labels(&[("containerd.io/snapshot.ref", key.as_str())])
        } else {
            Labels::new()
        };
        let answer = self.client.prepare_with(&key, &parent, fill).map(drop);
        if !self.was_done(answer, &key, true) {
            return;
        }
        let mount = self.client.persist(|client| client.mounts(&key)).unwrap();
        let place = Place::mount(&self.snapshotter.bench, &mount, "wander");
        let file = format!("file-{}", self.next);
        place.write(&file, &key);
        files.insert(file);
        place.unmount();
        let kind = Kind::Active;
        self.known.insert(key, Known { kind, files });
    }

    fn commit(&mut self) {
        let Some(key) = self.of_kind(Kind::Active) else {
            return;
        };
        let name = key.replace("key", "layer");
        let answer = self.client.commit(&name, &key);
        if self.was_done(answer, &name, true) {
            let mut known = self.known.remove(&key).unwrap();
            known.kind = Kind::Committed;
            self.known.insert(name, known);
            refused(
                self.client.persist(|client| client.stat(&key)),
                Code::NotFound,
            );
        } else {
            self.client.persist(|client| client.stat(&key)).unwrap();
        }
    }

    fn remove(&mut self) {
        let kind = if self.random.random_bool(0.5) {
            Kind::Active
        } else {
            Kind::Committed
        };
        let Some(key) = self.of_kind(kind) else {
            return;
        };
        match self.client.remove(&key) {
            // It has children.
            Err(status) if status.code() == Code::FailedPrecondition => {}
            answer => {
                if self.was_done(answer, &key, false) {
                    self.known.remove(&key);
                }
            }
        }
    }

    /// Asserts that everything acknowledged is there, and nothing else.
    fn check(&mut self) {
        let found = self.client.persist(|client| client.list(&[])).unwrap();
        let found: BTreeMap<_, _> = found
            .iter()
            .map(|info| (info.name.clone(), info.kind()))
            .collect();
        let known: BTreeMap<_, _> = self
            .known
            .iter()
            .map(|(key, known)| (key.clone(), known.kind))
            .collect();
        assert_eq!(found, known);
        for (name, known) in &self.known {
            if known.kind != Kind::Committed {
                continue;
            }
            let view = self
                .client
                .persist(|client| match client.view("check", name) {
                    Err(status) if status.code() == Code::AlreadyExists => client.mounts("check"),
                    answer => answer,
                });
            let place = Place::mount(&self.snapshotter.bench, &view.unwrap(), "check");
            let names: BTreeSet<_> = place.names().into_iter().collect();
            assert_eq!(names, known.files, "{name}");
            place.unmount();
            self.client.remove("check").unwrap();
        }
    }
}

#[test]
fn a_worker_that_is_killed_at_any_moment_leaves_what_was_acknowledged_and_nothing_else() {
    let seed = std::env::var("COWSHED_TEST_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("COWSHED_TEST_SEED={seed}");
    let kills: u64 = std::env::var("COWSHED_TEST_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let snapshotter = Snapshotter::start("2G");
    let stop = AtomicBool::new(false);
    let known = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(seed ^ 1);
            for _ in 0..kills {
                std::thread::sleep(Duration::from_millis(random.random_range(50..1200)));
                if snapshotter.daemon.worker().is_some() {
                    snapshotter.daemon.kill_worker();
                }
                // A worker that fails eight times before it serves gets no successor.
                let mut client = snapshotter.client();
                client.persist(|client| client.list(&[])).unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        let mut wanderer = Wanderer {
            snapshotter: &snapshotter,
            client: snapshotter.client(),
            random: StdRng::seed_from_u64(seed),
            known: BTreeMap::new(),
            next: 0,
        };
        while !stop.load(Ordering::SeqCst) {
            match wanderer.random.random_range(0..10) {
                0..5 => wanderer.prepare(),
                5..8 => wanderer.commit(),
                _ => wanderer.remove(),
            }
        }
        killer.join().unwrap();
        println!(
            "{} snapshots after {} steps",
            wanderer.known.len(),
            wanderer.next
        );
        wanderer.check();
        wanderer.known
    });
    let folder = snapshotter.daemon.mount.clone();
    let mut client = snapshotter.client();
    // The leaves first.
    let mut left: BTreeSet<String> = known.into_keys().collect();
    while !left.is_empty() {
        let count = left.len();
        left.retain(|key| client.remove(key).is_err());
        assert!(left.len() < count, "these stay: {left:?}");
    }
    eventually("the last device's end", || {
        client.cleanup().unwrap();
        loops_below(&folder).is_empty()
    });
    snapshotter.end(0);
}

#[test]
fn what_was_in_use_when_all_of_the_daemon_died_is_committed_only_by_one_who_mounted_it_again() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let layer = labels(&[("containerd.io/snapshot.ref", "sha256:1")]);
    let device = labels(&[("containerd.io/snapshot/cowshed.mounts", "loop")]);
    let mounts = [
        ("run", client.prepare("run", "base").unwrap()),
        ("fill", client.prepare_with("fill", "base", layer).unwrap()),
        ("loop", client.prepare_with("loop", "base", device).unwrap()),
    ];
    client.prepare("idle", "base").unwrap();
    let places = mounts.map(|(name, mount)| {
        let place = Place::mount(&snapshotter.bench, &mount, name);
        place.write("b", "2");
        crate::harness::host("sync", ["-f", place.path("b").to_str().unwrap()]);
        place.write("c", "3");
        place
    });
    let snapshotter = snapshotter.crash();
    drop(places);
    let mut client = snapshotter.client();
    for key in ["run", "fill", "loop"] {
        refused(client.commit("image", key), Code::FailedPrecondition);
    }
    refused(client.mounts("fill"), Code::FailedPrecondition);
    refused(client.commit("image", "fill"), Code::FailedPrecondition);
    for (key, name) in [("run", "image"), ("loop", "image2")] {
        let mount = client.mounts(key).unwrap();
        let place = Place::mount(&snapshotter.bench, &mount, key);
        assert_eq!(place.read("b"), "2");
        place.unmount();
        client.commit(name, key).unwrap();
    }
    client.remove("fill").unwrap();
    client.remove("idle").unwrap();
    snapshotter.end(3);
}
