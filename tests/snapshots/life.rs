//! The life of keys through all calls, with the codes of containerd's own snapshotters.

use crate::client::{labels, refused};
use crate::place::{Place, Snapshotter, layer};
use crate::wire::Kind;
use tonic::Code;

#[test]
fn a_key_is_prepared_filled_committed_viewed_and_removed() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    let key = "default/1/extracts sha256:00 with/odd \"names\"\u{e9}";
    let mount = client.prepare(key, "").unwrap();
    assert_eq!((mount.r#type.as_str(), mount.target.as_str()), ("bind", ""));
    assert_eq!(mount.options, ["rw", "rbind"]);
    assert_eq!(client.mounts(key).unwrap(), mount);
    let place = Place::mount(&snapshotter.bench, &mount, "fill");
    assert_eq!(place.names(), [""; 0], "a new root is empty");
    place.write("hello", "world");
    place.unmount();
    let active = client.stat(key).unwrap();
    assert_eq!((active.kind(), active.parent.as_str()), (Kind::Active, ""));
    assert_eq!(active.created_at, active.updated_at);
    refused(client.prepare("above", key), Code::InvalidArgument);

    client
        .commit_with("base", key, labels(&[("l", "1"), ("empty", "")]), "")
        .unwrap();
    refused(client.stat(key), Code::NotFound);
    refused(client.mounts("base"), Code::FailedPrecondition);
    let committed = client.stat("base").unwrap();
    assert_eq!(committed.kind(), Kind::Committed);
    assert_eq!(committed.labels, labels(&[("l", "1")]));

    let view = client.view("look", "base").unwrap();
    assert_eq!(view.options, ["ro", "rbind"]);
    let place = Place::mount(&snapshotter.bench, &view, "view");
    assert_eq!(place.read("hello"), "world");
    assert!(
        std::fs::write(place.path("x"), "x").is_err(),
        "a view was written to"
    );
    place.unmount();
    refused(client.commit("other", "look"), Code::FailedPrecondition);

    let child = client.prepare("child", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &child, "child");
    assert_eq!(place.read("hello"), "world");
    place.write("hello", "again");
    refused(client.remove("base"), Code::FailedPrecondition);
    place.unmount();
    client.remove("child").unwrap();
    refused(client.remove("base"), Code::FailedPrecondition);
    client.remove("look").unwrap();
    client.remove("base").unwrap();
    refused(client.remove("base"), Code::NotFound);
    assert!(client.list(&[]).unwrap().is_empty());
    snapshotter.end(0);
}

#[test]
fn refusals_have_the_codes_of_containerds_own_snapshotters() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    layer(&snapshotter, &mut client, "other", "", "b");
    client.prepare("active", "base").unwrap();
    refused(client.prepare("active", "base"), Code::AlreadyExists);
    refused(client.view("active", "base"), Code::AlreadyExists);
    refused(client.prepare("base", ""), Code::AlreadyExists);
    refused(client.prepare("x", "missing"), Code::NotFound);
    refused(client.view("x", "active"), Code::InvalidArgument);
    for answer in [
        client.mounts("x").map(drop),
        client.commit("y", "x"),
        client.remove("x"),
    ] {
        refused(answer, Code::NotFound);
    }
    refused(client.usage("x"), Code::NotFound);
    refused(client.update("x", labels(&[]), &[]), Code::NotFound);
    refused(client.commit("base", "active"), Code::AlreadyExists);
    refused(client.commit("active", "active"), Code::AlreadyExists);
    refused(client.commit("y", "base"), Code::FailedPrecondition);
    refused(
        client.commit_with("y", "active", labels(&[]), "other"),
        Code::InvalidArgument,
    );
    client.prepare("rootless", "").unwrap();
    refused(
        client.commit_with("y", "rootless", labels(&[]), "base"),
        Code::Unimplemented,
    );
    // Setting the current parent again is not a change.
    client
        .commit_with("y", "active", labels(&[]), "base")
        .unwrap();
    assert_eq!(client.stat("y").unwrap().parent, "base");
    let unknown: Result<crate::wire::Empty, _> =
        client.call("Explode", crate::wire::CleanupRequest::default());
    refused(unknown, Code::Unimplemented);
    snapshotter.end(4);
}

#[test]
fn updates_change_labels_and_nothing_else() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    client
        .prepare_with("a", "", labels(&[("x", "1"), ("y", "2")]))
        .unwrap();
    let before = client.stat("a").unwrap();
    let after = client.update(
        "a",
        labels(&[("x", "9"), ("z", "3")]),
        &["labels.x", "labels.y"],
    );
    let after = after.unwrap();
    assert_eq!(after.labels, labels(&[("x", "9")]));
    assert_eq!(after.created_at, before.created_at);
    assert!(after.updated_at.unwrap().nanos != before.updated_at.unwrap().nanos);
    assert_eq!(
        client
            .update("a", labels(&[("q", "1")]), &[])
            .unwrap()
            .labels
            .len(),
        1
    );
    for path in ["parent", "name", "kind", "created_at"] {
        refused(
            client.update("a", labels(&[]), &[path]),
            Code::InvalidArgument,
        );
    }
    assert_eq!(client.stat("a").unwrap().labels, labels(&[("q", "1")]));
    let snapshotter = snapshotter.restart();
    let mut client = snapshotter.client();
    assert_eq!(client.stat("a").unwrap().labels, labels(&[("q", "1")]));
    assert_eq!(client.stat("a").unwrap().parent, "");
    snapshotter.end(1);
}

#[test]
fn lists_are_filtered_and_hold_nothing_private() {
    let snapshotter = Snapshotter::start("2G");
    let mut client = snapshotter.client();
    snapshotter
        .bench
        .ok(["volume", "create", "mine", "--size", "1M"]);
    layer(&snapshotter, &mut client, "base", "", "a");
    client
        .prepare_with("a1", "base", labels(&[("l", "1")]))
        .unwrap();
    client
        .make("View", "v1", "base", labels(&[("l", "2")]))
        .unwrap();
    assert_eq!(client.names(&[]), ["a1", "base", "v1"]);
    assert_eq!(client.names(&["kind==committed"]), ["base"]);
    assert_eq!(
        client.names(&["parent==base,labels.l==1", "name~=^v"]),
        ["a1", "v1"]
    );
    refused(client.list(&["name=="]), Code::InvalidArgument);
    for number in 0..250 {
        client
            .update("a1", labels(&[("n", &number.to_string())]), &["labels.n"])
            .unwrap();
        client
            .make("View", &format!("v-{number:03}"), "base", labels(&[]))
            .unwrap();
    }
    assert_eq!(client.names(&["kind==view"]).len(), 251);
    snapshotter
        .bench
        .fails(["volume", "rm", "snapshot/x"], 1, "snapshot/x");
    let list = snapshotter.bench.volumes();
    assert!(list.iter().any(|name| name == "mine"), "{list:?}");
    // The base, the active snapshot, and the user's volume.
    snapshotter.end(3);
}

#[test]
fn a_layer_that_is_there_is_found_by_its_label_and_not_filled_again() {
    const REF: &str = "containerd.io/snapshot.ref";
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    let of = |id: &str| labels(&[(REF, id)]);
    client.prepare_with("k", "", of("sha256:1")).unwrap();
    // While it is only being filled, other clients may fill it too.
    client.prepare_with("k2", "", of("sha256:1")).unwrap();
    client.commit_with("n1", "k", of("sha256:1"), "").unwrap();
    refused(
        client.prepare_with("k3", "", of("sha256:1")),
        Code::AlreadyExists,
    );
    let filter = format!("labels.\"{REF}\"==sha256:1,parent==\"\"");
    assert_eq!(client.names(&[filter.as_str()]), ["k2", "n1"]);
    // With another parent it is another layer.
    client.prepare_with("k3", "n1", of("sha256:1")).unwrap();
    client.remove("k3").unwrap();
    client.remove("n1").unwrap();
    client.prepare_with("k3", "", of("sha256:1")).unwrap();
    snapshotter.end(2);
}

#[test]
fn a_stack_of_layers_shows_all_of_them_and_each_usage_is_its_own() {
    const REF: &str = "containerd.io/snapshot.ref";
    let snapshotter = Snapshotter::start("2G");
    let mut client = snapshotter.client();
    let mut parent = String::new();
    let mut seen = Vec::new();
    for number in 0..30 {
        // Like an unpack: a layer is filled, and the next one follows at once.
        let (key, name) = (format!("key-{number}"), format!("layer-{number}"));
        let id = labels(&[(REF, &name)]);
        let mount = client.prepare_with(&key, &parent, id.clone()).unwrap();
        let place = Place::mount(&snapshotter.bench, &mount, &key);
        let file = format!("file-{number:02}");
        assert_eq!(place.names(), seen, "layer {number}");
        place.write(&file, &name);
        if number % 5 == 4 {
            std::fs::remove_file(place.path(&format!("file-{:02}", number - 1))).unwrap();
            seen.pop();
        }
        seen.push(file);
        place.unmount();
        client.commit_with(&name, &key, id, "").unwrap();
        parent = name;
    }
    let view = client.view("view", &parent).unwrap();
    let place = Place::mount(&snapshotter.bench, &view, "view");
    assert_eq!(place.names(), seen);
    for name in &seen {
        let number: u32 = name["file-".len()..].parse().unwrap();
        assert_eq!(place.read(name), format!("layer-{number}"));
    }
    place.unmount();
    client.cleanup().unwrap();
    let first = client.usage("layer-0").unwrap();
    let later = client.usage("layer-20").unwrap();
    assert!(
        first.size > 0 && later.size > 0 && later.size < 200 << 10,
        "{first:?} {later:?}"
    );
    assert_eq!((first.inodes, later.inodes), (2, 1));
    let none = client.usage("view").unwrap();
    assert_eq!((none.size, none.inodes), (0, 0));
    client.prepare("big", &parent).unwrap();
    let mount = client.mounts("big").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "big");
    std::fs::write(place.path("big"), vec![7; 8 << 20]).unwrap();
    // Data that is only in memory counts like written data.
    for _ in 0..2 {
        let usage = client.usage("big").unwrap();
        assert!((8 << 20..9 << 20).contains(&usage.size), "{usage:?}");
        crate::harness::host("sync", ["-f", place.path("big").to_str().unwrap()]);
    }
    place.unmount();
    snapshotter.end(31);
}
