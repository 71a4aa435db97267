//! Layers made from the changes between two snapshots.

use crate::client::refused;
use crate::diff_wire::DiffRequest;
use crate::differ::{GZIP, TAR, ZSTD, between};
use crate::fixtures::{listing, reference};
use crate::stage::{Stage, eventually, place, shell, uncompressed};
use crate::wire::Mount;
use cowshed_format::base::Name;
use cowshed_host::{Comparison, CreateContainer, ImportOptions};
use cowshed_oci::{Digest, SourceInput};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use tonic::Code;

const BASE: &str = "mkdir -p bin etc var/lib/data tmp; echo sh > bin/sh; echo root > etc/passwd
    echo one > etc/one; echo two > etc/two; ln etc/one etc/one-again; chmod 1777 tmp
    for n in $(seq 50); do echo $n > var/lib/data/$n; done
    find . -exec touch -h -d @1500000000 {} +";

const CHANGES: &str = "echo new > etc/new; echo two > etc/passwd; rm -r var/lib/data; rm etc/two
    mkdir -p srv/deep; echo x > srv/deep/x; ln srv/deep/x srv/y; rm bin/sh; mkdir bin/sh
    ln etc/one etc/one-third; chmod 700 tmp; mkfifo tmp/fifo; truncate -s 800K srv/sparse
    ln -s ../etc/one srv/link; setfattr -n user.colour -v red srv/y; chown 70000:5 srv/sparse
    find . -exec touch -h -d @1600000000 {} +";

/// A stage with the base as `base`, a view of it, and a changed snapshot of it.
fn changed() -> (Stage, Mount, Mount) {
    let mut stage = Stage::new();
    stage.commit("base", "", BASE);
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    shell(place(&right), CHANGES);
    (stage, left, right)
}

fn of_type(left: &Mount, right: &Mount, media_type: &str) -> DiffRequest {
    DiffRequest {
        media_type: media_type.to_owned(),
        ..between(left, right)
    }
}

#[test]
fn a_layer_makes_of_the_parent_what_was_compared_with_it() {
    let (mut stage, left, right) = changed();
    for (number, media_type) in ["", TAR, GZIP, ZSTD].into_iter().enumerate() {
        let made = stage
            .differ
            .compare(of_type(&left, &right, media_type))
            .unwrap();
        let wanted_type = if media_type.is_empty() {
            GZIP
        } else {
            media_type
        };
        assert_eq!(made.media_type, wanted_type);
        let blob = stage.store.blob(&made.digest);
        assert_eq!(made.size, i64::try_from(blob.len()).unwrap());
        let tar = uncompressed(wanted_type, &blob);
        let label = stage
            .store
            .labels(&made.digest)
            .remove("containerd.io/uncompressed");
        let wanted = (wanted_type != TAR).then(|| Digest::of(&tar).to_string());
        assert_eq!(label, wanted);
        // Applied by GNU tar, onto a copy of the parent.
        let folder = stage.folder(&format!("tree-{number}"));
        shell(&folder, &format!("cp -a {}/. .", left.source));
        let path = folder.with_extension("tar");
        fs::write(&path, tar).unwrap();
        reference::apply(&[path], &folder);
        let (found, wanted) = (listing::of(&folder), listing::of(place(&right)));
        listing::assert_same(&found, &wanted, wanted_type);
        // Applied by our differ, onto the parent.
        let key = format!("again-{number}");
        let again = stage.client.prepare(&key, "base").unwrap();
        stage.differ.apply(made, &again).unwrap();
        listing::assert_same(&listing::of(place(&again)), &wanted, &key);
    }
}

#[test]
fn a_layer_is_the_one_that_a_container_commit_makes_and_that_walking_both_trees_makes() {
    let (mut stage, left, right) = changed();
    let made = stage.differ.compare(of_type(&left, &right, TAR)).unwrap();
    stage.host().layers().set_comparison(Comparison::Trees);
    let walked = stage.differ.compare(of_type(&left, &right, TAR)).unwrap();
    assert_eq!(walked, made);
    stage.host().layers().set_comparison(Comparison::Blocks);

    let folder = stage.folder("root");
    shell(&folder, BASE);
    let host = stage.host();
    let image = host.images().open(SourceInput::Path(folder), None).unwrap();
    let options = ImportOptions {
        name: Some(Name::new("base:1").unwrap()),
        ..Default::default()
    };
    host.images()
        .import(&image, &options, &mut |_| true)
        .unwrap();
    let options = CreateContainer {
        name: Some(Name::new("one").unwrap()),
        ..Default::default()
    };
    host.containers().create("base:1", &options).unwrap();
    let mounted = host.containers().mount("one", None).unwrap();
    shell(&mounted.path, CHANGES);
    let committed = host
        .containers()
        .commit("one", &Name::new("next:1").unwrap(), None);
    let layers = committed.unwrap().layers;
    assert_eq!(layers.last().unwrap().diff_id.to_string(), made.digest);
}

#[test]
fn committed_snapshots_are_compared_as_running_ones_are() {
    let (mut stage, left, right) = changed();
    let running = stage.differ.compare(of_type(&left, &right, TAR)).unwrap();
    stage.client.commit("changed", "right").unwrap();
    let view = stage.client.view("right-view", "changed").unwrap();
    let committed = stage.differ.compare(of_type(&left, &view, TAR)).unwrap();
    assert_eq!(committed, running);
    // Against its parent, and against itself.
    let back = stage.differ.compare(of_type(&view, &left, TAR)).unwrap();
    assert_ne!(back.digest, running.digest);
    let nothing = stage.differ.compare(of_type(&left, &left, TAR)).unwrap();
    assert_eq!(stage.store.blob(&nothing.digest), vec![0; 1024]);
    // A lowest layer is compared with an empty snapshot.
    let empty = stage.client.view("empty", "").unwrap();
    let all = stage.differ.compare(of_type(&empty, &left, TAR)).unwrap();
    let folder = stage.folder("all");
    let path = folder.with_extension("tar");
    fs::write(&path, stage.store.blob(&all.digest)).unwrap();
    reference::apply(&[path], &folder);
    listing::assert_same(&listing::of(&folder), &listing::of(place(&left)), "all");
}

#[test]
fn times_after_the_source_date_epoch_do_not_show() {
    let (mut stage, left, right) = changed();
    let mut request = of_type(&left, &right, GZIP);
    request.source_date_epoch = Some(prost_types::Timestamp {
        seconds: 1_550_000_000,
        nanos: 0,
    });
    let first = stage.differ.compare(request.clone()).unwrap();
    shell(
        place(&right),
        "find . -newermt @1550000000 -exec touch -h {} +",
    );
    let second = stage.differ.compare(request.clone()).unwrap();
    assert_eq!(first, second);
    let tar = uncompressed(GZIP, &stage.store.blob(&second.digest));
    let mut archive = tar::Archive::new(&tar[..]);
    for entry in archive.entries().unwrap() {
        let mtime = entry.unwrap().header().mtime().unwrap();
        assert!(mtime <= 1_550_000_000, "{mtime}");
    }
    request.source_date_epoch = Some(prost_types::Timestamp {
        seconds: 0,
        nanos: -1,
    });
    refused(stage.differ.compare(request), Code::InvalidArgument);
}

#[test]
fn refs_labels_and_leases_are_kept_as_containerd_keeps_them() {
    let (mut stage, left, right) = changed();
    let mut request = of_type(&left, &right, ZSTD);
    request.labels = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    request.r#ref = "mine".to_owned();
    // Data that an earlier writer left under the ref.
    let left_over = vec![7; 100_000];
    stage
        .store
        .state()
        .ingests
        .insert("mine".to_owned(), left_over);
    let made = stage.differ.compare(request.clone()).unwrap();
    let labels = stage.store.labels(&made.digest);
    assert_eq!(labels["colour"], "red");
    assert!(labels.contains_key("containerd.io/uncompressed"));
    // The same blob is in the store already; its label is restored if it is missing.
    let leases = {
        let mut state = stage.store.state();
        state.blobs.get_mut(&made.digest).unwrap().1.clear();
        let lease = state.write_leases.last().unwrap().clone();
        let until = &state.leases[&lease.expect("a lease")]["containerd.io/gc.expire"];
        let until = humantime::parse_rfc3339(until).unwrap();
        let left_time = until.duration_since(std::time::SystemTime::now()).unwrap();
        assert!(left_time > Duration::from_secs(60), "{left_time:?}");
        state.leases.len()
    };
    stage.differ.metadata.push(("containerd-lease", "theirs"));
    assert_eq!(stage.differ.compare(request).unwrap(), made);
    let labels = stage.store.labels(&made.digest);
    assert!(
        labels.contains_key("containerd.io/uncompressed"),
        "{labels:?}"
    );
    let state = stage.store.state();
    assert_eq!(
        state.write_leases.last().unwrap().as_deref(),
        Some("theirs")
    );
    assert_eq!(state.leases.len(), leases, "another lease was made");
    assert!(state.ingests.is_empty());
}

#[test]
fn a_ref_that_another_writer_holds_is_waited_for() {
    let (mut stage, left, right) = changed();
    let mut request = of_type(&left, &right, TAR);
    request.r#ref = "mine".to_owned();
    stage.store.state().locked.insert("mine".to_owned());
    stage
        .differ
        .give_up_comparing(request.clone(), Duration::from_millis(500));
    std::thread::scope(|scope| {
        let store = &stage.store;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            store.state().locked.remove("mine");
        });
        stage.differ.compare(request.clone()).unwrap();
    });
    eventually("the lock's end", || stage.store.state().locked.is_empty());
}

#[test]
fn a_call_without_a_namespace_is_one_of_its_snapshots_or_left_to_the_next_differ() {
    let mut stage = Stage::new();
    stage.differ.metadata.clear();
    stage.commit("one/1/base", "", "echo 1 > a");
    let left = stage.client.view("one/2/left", "one/1/base").unwrap();
    let right = stage.client.prepare("one/3/right", "one/1/base").unwrap();
    fs::write(place(&right).join("b"), "2").unwrap();
    let made = stage.differ.compare(between(&left, &right)).unwrap();
    let mount = stage.client.prepare("one/4/again", "one/1/base").unwrap();
    stage.differ.apply(made.clone(), &mount).unwrap();
    assert_eq!(fs::read(place(&mount).join("b")).unwrap(), b"2");
    let state = stage.store.state();
    assert_eq!(state.namespaces, [Some("one".to_owned())].into());
    drop(state);
    let other = stage.client.prepare("two/5/other", "").unwrap();
    refused(
        stage.differ.compare(between(&left, &other)),
        Code::Unimplemented,
    );
    for key in ["plain", "one/x/y", "/6/key"] {
        let mount = stage.client.prepare(key, "").unwrap();
        refused(
            stage.differ.apply(made.clone(), &mount),
            Code::Unimplemented,
        );
    }
}

#[test]
fn nothing_is_made_of_a_root_that_had_a_write_refused() {
    let mut stage = Stage::of_size(192 << 20);
    stage.commit("base", "", "echo 1 > a");
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    stage.differ.compare(between(&left, &right)).unwrap();
    // Whether its file system still works depends on which of its writes was refused.
    let full = "head -c 300M /dev/urandom > big; sync -f a; rm -f big; sync -f a; true";
    shell(place(&right), &format!("set +e; {full}"));
    for _ in 0..2 {
        refused(
            stage.differ.compare(between(&left, &right)),
            Code::FailedPrecondition,
        );
    }
    assert_eq!(stage.in_work(), [""; 0]);
    stage.client.remove("right").unwrap();
}

#[test]
fn what_is_not_ours_is_left_to_the_next_differ() {
    let (mut stage, left, right) = changed();
    let foreign = Mount {
        source: stage.folder("elsewhere").to_str().unwrap().to_owned(),
        ..left.clone()
    };
    for request in [
        between(&foreign, &right),
        between(&left, &foreign),
        DiffRequest {
            left: Vec::new(),
            ..between(&left, &right)
        },
        of_type(
            &left,
            &right,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        of_type(
            &left,
            &right,
            "application/vnd.oci.image.layer.v1.tar+bzip2",
        ),
    ] {
        refused(stage.differ.compare(request), Code::Unimplemented);
    }
    assert!(stage.store.state().blobs.is_empty() && stage.store.state().ingests.is_empty());
}

/// Returns the number of reads of the pool's device that a comparison takes after one of `files`
/// files was changed, once the parent is known: by blocks, and by walking every object.
fn reads_of_one_change(files: u32) -> (u64, u64) {
    let mut stage = Stage::new();
    let fill = format!(
        "for folder in $(seq {}); do mkdir $folder
           for n in $(seq 100); do head -c 8192 /dev/urandom > $folder/$n; done
         done",
        files / 100
    );
    stage.commit("base", "", &fill);
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    let change = |stage: &mut Stage, text: &str| {
        fs::write(place(&right).join("1/50"), text).unwrap();
        let before = stage.device.reads();
        let made = stage.differ.compare(of_type(&left, &right, TAR)).unwrap();
        assert!(made.size < 20_000, "{made:?}");
        stage.device.reads() - before
    };
    change(&mut stage, "first");
    let by_blocks = change(&mut stage, "second");
    stage.host().layers().set_comparison(Comparison::Trees);
    (by_blocks, change(&mut stage, "third"))
}

#[test]
fn the_work_grows_with_the_change_and_not_with_what_is_below() {
    let ((few, few_walked), (many, walked)) =
        (reads_of_one_change(200), reads_of_one_change(6_000));
    println!("reads for one changed file of 200: {few}, walking {few_walked}");
    println!("reads for one changed file of 6,000: {many}, walking {walked}");
    assert!(many < few + few / 2 + 10, "{few} and then {many}");
    // A walk over every file shows in the count.
    assert!(
        walked > few_walked + 3 * many,
        "{few_walked} and then {walked}"
    );
}
