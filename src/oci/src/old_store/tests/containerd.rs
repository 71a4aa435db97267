//! containerd's store.

use super::bolt::{Item, file_of, header, leaf, meta};
use super::*;
use nix::fcntl::{Flock, FlockArg};

const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// Adds a blob, and returns its digest.
fn add_blob(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let path = format!(
        "io.containerd.content.v1.content/blobs/sha256/{}",
        digest.hex()
    );
    store.write(path, bytes);
    digest
}

/// Adds the blobs of an image with these layers, and returns its manifest.
fn add_image(store: &Store, layers: &[Vec<u8>]) -> Vec<u8> {
    let describe = |digest: Digest, bytes: &[u8], media: &str| {
        let media = format!("application/vnd.oci.image.{media}");
        json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    };
    let config = config_of(layers);
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let packed = gzip(layer);
            describe(add_blob(store, &packed), &packed, "layer.v1.tar+gzip")
        })
        .collect();
    let config = describe(add_blob(store, &config), &config, "config.v1+json");
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media, "config": config, "layers": described,
    });
    let manifest = manifest.to_string().into_bytes();
    add_blob(store, &manifest);
    manifest
}

/// Writes the database with a namespace that has these names for manifests.
fn write_names(store: &Store, names: &[(&str, &[u8])]) {
    write_database(store, names, &[]);
}

/// Writes a database of these pages, whose root is the third.
fn write_pages(store: &Store, path: &str, root: Vec<u8>) {
    let pages = [meta(0, 2, 1), meta(1, 2, 2), root, header(3, 16, 0)];
    store.write(path, file_of(&pages));
}

/// Writes the database with a namespace that has these names for manifests, and the snapshots of the
/// stacks with these chain ids.
fn write_database(store: &Store, names: &[(&str, &[u8])], stacks: &[Digest]) {
    let images = names.iter().map(|(name, manifest)| {
        let mut size = Vec::new();
        let mut left = manifest.len() << 1;
        while left >= 0x80 {
            size.push(u8::try_from(left & 0x7f | 0x80).unwrap());
            left >>= 7;
        }
        size.push(u8::try_from(left).unwrap());
        let target = leaf(
            0,
            &[
                (
                    "digest",
                    Item::Bytes(Digest::of(manifest).to_string().as_bytes()),
                ),
                (
                    "mediatype",
                    Item::Bytes(b"application/vnd.oci.image.manifest.v1+json"),
                ),
                ("size", Item::Bytes(&size)),
            ],
        );
        (
            *name,
            Item::Inline(leaf(0, &[("target", Item::Inline(target))])),
        )
    });
    let images: Vec<(&str, Item<'_>)> = images.collect();
    let named = |number: usize| format!("moby/{number}/x");
    let stacks: Vec<String> = stacks.iter().map(Digest::to_string).collect();
    let (mut snapshots, mut folders) = (Vec::new(), Vec::new());
    let known: Vec<String> = (0..stacks.len()).map(named).collect();
    for (index, (stack, name)) in stacks.iter().zip(&known).enumerate() {
        let record = leaf(0, &[("name", Item::Bytes(name.as_bytes()))]);
        snapshots.push((&**stack, Item::Inline(record)));
        let number = [u8::try_from(index + 1).unwrap()];
        folders.push((
            &**name,
            Item::Inline(leaf(0, &[("id", Item::Bytes(&number))])),
        ));
    }
    let snapshots = leaf(0, &[("overlayfs", Item::Inline(leaf(0, &snapshots)))]);
    let namespace = leaf(
        0,
        &[
            ("images", Item::Inline(leaf(0, &images))),
            ("snapshots", Item::Inline(snapshots)),
        ],
    );
    let form = leaf(
        0,
        &[
            ("moby", Item::Inline(namespace)),
            ("version", Item::Bytes(b"\x06")),
        ],
    );
    write_pages(store, DATABASE, leaf(2, &[("v1", Item::Inline(form))]));
    let folders = leaf(0, &[("snapshots", Item::Inline(leaf(0, &folders)))]);
    let database = "io.containerd.snapshotter.v1.overlayfs/metadata.db";
    write_pages(store, database, leaf(2, &[("v1", Item::Inline(folders))]));
}

#[test]
fn the_content_is_taken_as_it_is_and_names_that_are_none_are_not() {
    let (store, layers) = (Store::new(), two_layers());
    let manifest = add_image(&store, &layers);
    let step = add_image(&store, &layers[..1]);
    let id = Digest::of(&config_of(&layers)).to_string();
    let dangling = format!("moby-dangling@{}", Digest::of(&step));
    let names = [
        ("docker.io/library/mine:1", &*manifest),
        (&*dangling, &*step),
        ("quay.io/acme/db:2", &*manifest),
        (&*id, &*manifest),
    ];
    write_names(&store, &names);
    let opened = store.open().unwrap();
    let [image] = opened.images() else {
        panic!("{} images", opened.images().len());
    };
    assert_eq!(image.id(), Digest::of(&manifest).to_string());
    assert_eq!(
        image.names(),
        ["docker.io/library/mine:1", "quay.io/acme/db:2"]
    );
    assert_eq!(image.image().unwrap().manifest(), Some(&*manifest));
    for (index, layer) in layers.iter().enumerate() {
        assert!(read(image, index).unwrap() == *layer, "{index}");
    }
}

#[test]
fn an_image_that_lost_a_blob_is_named_and_the_others_are_read() {
    let (store, layers) = (Store::new(), two_layers());
    let (bad, good) = (add_image(&store, &layers), add_image(&store, &layers[..1]));
    write_names(&store, &[("bad:1", &*bad), ("good:1", &*good)]);
    let blob = Digest::of(&gzip(&layers[1])).hex();
    let blob = store.path(format!(
        "io.containerd.content.v1.content/blobs/sha256/{blob}"
    ));
    fs::remove_file(blob).unwrap();
    let opened = store.open().unwrap();
    let fault = fault_of(named(&opened, "bad:1"));
    assert!(fault.starts_with("layer 2 (sha256:"), "{fault}");
    assert!(fault.ends_with(") is missing from the store"), "{fault}");
    assert!(read(named(&opened, "good:1"), 0).unwrap() == layers[0]);
}

#[test]
fn layers_that_were_discarded_are_made_of_their_snapshots() {
    let (store, layers) = (Store::new(), two_layers());
    let manifest = add_image(&store, &layers);
    let diff_ids = layers.each_ref().map(|layer| Digest::of(layer));
    let stacks = [diff_ids[0], chain_id(&diff_ids).unwrap()];
    write_database(&store, &[("mine:1", &*manifest)], &stacks);
    let folder = "io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs";
    store.write(format!("{folder}/etc/two"), "two\n");
    let blob = Digest::of(&gzip(&layers[1])).hex();
    let blob = store.path(format!(
        "io.containerd.content.v1.content/blobs/sha256/{blob}"
    ));
    fs::remove_file(blob).unwrap();
    let opened = store.open().unwrap();
    let image = &opened.images()[0];
    assert!(read(image, 0).unwrap() == layers[0]);
    let found = image.image().unwrap();
    assert!(found.is_layer_exact(0) && !found.is_layer_exact(1));
    let layer = &found.layers()[1];
    assert_eq!(layer.diff_id, None);
    let origin = layer.origin.unwrap();
    let again = store.open().unwrap();
    assert_eq!(
        again.images()[0].image().unwrap().layers()[1].origin,
        Some(origin)
    );
    // The same stack in the store of another host.
    let copy = Store::new();
    host_copy(&store, &copy);
    let other = copy.open().unwrap();
    let found_there = other.images()[0].image().unwrap().layers()[1].origin;
    assert_ne!(found_there.unwrap(), origin);
    let tar = read(image, 1).unwrap();
    let mut reader = TarReader::new(&*tar);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(names, ["./", "etc/", "etc/two"]);
}

#[test]
fn a_record_that_is_not_whole_is_that_images_fault() {
    let (store, layers) = (Store::new(), two_layers());
    let manifest = add_image(&store, &layers);
    write_names(&store, &[("bad:1", &*manifest), ("good:1", &*manifest)]);
    let mut bytes = fs::read(store.path(DATABASE)).unwrap();
    // The digest of the first record.
    let at = bytes.windows(7).position(|text| text == b"sha256:");
    bytes[at.unwrap()] = b'?';
    fs::write(store.path(DATABASE), bytes).unwrap();
    let opened = store.open().unwrap();
    let fault = fault_of(named(&opened, "bad:1"));
    assert!(fault.ends_with("is not a sha256 digest, the only kind that is supported"));
    assert!(read(named(&opened, "good:1"), 0).unwrap() == layers[0]);
}

#[test]
fn the_containerd_that_docker_starts_is_found_below_its_root() {
    let (inner, layers) = (Store::new(), two_layers());
    let manifest = add_image(&inner, &layers);
    write_names(&inner, &[("mine:1", &*manifest)]);
    let store = Store::new();
    fs::create_dir(store.path("containerd")).unwrap();
    fs::rename(inner.0.path(), store.path("containerd/daemon")).unwrap();
    assert_eq!(store.open().unwrap().images().len(), 1);
}

#[test]
fn a_database_that_is_none_and_one_in_use_are_refused() {
    let store = Store::new();
    write_names(&store, &[]);
    assert!(store.open().unwrap().images().is_empty());
    let database = fs::File::open(store.path(DATABASE)).unwrap();
    let lock = Flock::lock(database, FlockArg::LockExclusiveNonblock).unwrap();
    let error = store.open().err().unwrap().to_string();
    assert!(error.starts_with("containerd is using it"), "{error}");
    drop(lock);
    store.write(DATABASE, "text");
    let error = store.open().err().unwrap().to_string();
    assert!(error.ends_with("it is no database of bbolt"), "{error}");
}
