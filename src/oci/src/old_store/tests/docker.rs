//! Docker's own store.

use super::*;
use nix::fcntl::{Flock, FlockArg};

/// Adds an image of these layers, and returns its id.
fn add_image(store: &Store, driver: &str, layers: &[Vec<u8>], names: &[&str]) -> Digest {
    let config = config_of(layers);
    let id = Digest::of(&config);
    let root = format!("image/{driver}");
    store.write(
        format!("{root}/imagedb/content/sha256/{}", id.hex()),
        config,
    );
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    for (index, layer) in layers.iter().enumerate() {
        let chain = chain_id(&diff_ids[..=index]).unwrap();
        let record = format!("{root}/layerdb/sha256/{}", chain.hex());
        store.write(format!("{record}/diff"), diff_ids[index].to_string());
        let cache_id = cache_id(chain);
        store.write(format!("{record}/cache-id"), &cache_id);
        let folder = match driver {
            "aufs" => format!("aufs/diff/{cache_id}"),
            "vfs" => format!("vfs/dir/{cache_id}"),
            "btrfs" => format!("btrfs/subvolumes/{cache_id}"),
            "overlay" => format!("overlay/{cache_id}/root"),
            _ => format!("{driver}/{cache_id}/diff"),
        };
        store.layer(layer, &folder, &format!("{record}/tar-split.json.gz"));
    }
    let path = format!("{root}/repositories.json");
    let stored = fs::read(store.path(&path)).unwrap_or(b"{}".to_vec());
    let mut stored: Value = serde_json::from_slice(&stored).unwrap();
    for name in names {
        let (repository, _) = name.rsplit_once([':', '@']).unwrap();
        stored["Repositories"][repository][*name] = json!(id);
    }
    store.write(path, stored.to_string());
    id
}

/// Returns the name of a layer's folder, which Docker chooses at random.
fn cache_id(chain: Digest) -> String {
    Digest::of(chain.hex().as_bytes()).hex()
}

/// Returns a path of the layer record of the stack of these layers.
fn record(layers: &[Vec<u8>], name: &str) -> String {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let chain = chain_id(&diff_ids).unwrap().hex();
    format!("image/overlay2/layerdb/sha256/{chain}/{name}")
}

fn folder_of(layers: &[Vec<u8>]) -> String {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    format!("overlay2/{}/diff", cache_id(chain_id(&diff_ids).unwrap()))
}

#[test]
fn layers_are_byte_by_byte_what_docker_got_with_every_driver_of_folders() {
    for driver in [
        "overlay2",
        "fuse-overlayfs",
        "aufs",
        "vfs",
        "btrfs",
        "overlay",
    ] {
        let (store, layers) = (Store::new(), two_layers());
        let id = add_image(&store, driver, &layers, &["mine:1", "quay.io/acme/db:2"]);
        let opened = store.open().unwrap();
        let [image] = opened.images() else {
            panic!("{driver}: {} images", opened.images().len());
        };
        assert_eq!(image.id(), id.to_string());
        assert_eq!(image.names(), ["mine:1", "quay.io/acme/db:2"]);
        let found = image.image().unwrap();
        assert_eq!(found.config().unwrap().digest(), id);
        for (index, layer) in layers.iter().enumerate() {
            assert_eq!(found.layers()[index].diff_id, Some(Digest::of(layer)));
            assert!(found.is_layer_exact(index));
            assert!(read(image, index).unwrap() == *layer, "{driver} {index}");
        }
    }
}

#[test]
fn steps_of_a_build_are_passed_over_and_images_that_lost_their_name_are_not() {
    let (store, layers) = (Store::new(), two_layers());
    let step = add_image(&store, "overlay2", &layers[..1], &[]);
    let built = add_image(&store, "overlay2", &layers, &["mine:1"]);
    let other = add_image(&store, "overlay2", &[layers[1].clone()], &[]);
    let parent = format!(
        "image/overlay2/imagedb/metadata/sha256/{}/parent",
        built.hex()
    );
    store.write(parent, step.to_string());
    let opened = store.open().unwrap();
    let mut ids: Vec<&str> = opened.images().iter().map(OldImage::id).collect();
    ids.sort_unstable();
    let mut wanted = [built.to_string(), other.to_string()];
    wanted.sort();
    assert_eq!(ids, wanted);
}

#[test]
fn a_damaged_image_is_named_and_the_others_are_read() {
    type Damage = fn(&Store, &[Vec<u8>]);
    let damages: [(Damage, &str); 12] = [
        (
            |store, layers| fs::remove_dir_all(store.path(folder_of(layers))).unwrap(),
            "/diff is missing from the store",
        ),
        (
            |store, layers| fs::remove_file(store.path(record(layers, "cache-id"))).unwrap(),
            "/cache-id is missing from the store",
        ),
        (
            |store, layers| store.write(record(layers, "cache-id"), "../../other"),
            "cache-id in the store is damaged: it is not the name of a folder",
        ),
        (
            |store, layers| store.write(record(layers, "diff"), Digest::of(b"x").to_string()),
            "diff in the store is damaged: it is not the digest that the image states",
        ),
        (
            |store, layers| store.write(format!("{}/etc/two", folder_of(layers)), "TWO\n"),
            "the uncompressed layer 2 should be sha256:",
        ),
        (
            |store, layers| store.write(format!("{}/etc/two", folder_of(layers)), "longer\n"),
            "the file etc/two of the layer has changed in the store: it has another size",
        ),
        (
            |store, layers| {
                fs::remove_file(store.path(format!("{}/etc/two", folder_of(layers)))).unwrap();
            },
            "the file etc/two of the layer has changed in the store: it is missing",
        ),
        (
            |store, layers| store.write(record(layers, "tar-split.json.gz"), "{\"type\":2}\n[]\n"),
            "tar-split.json.gz in the store is damaged: it is not compressed with gzip",
        ),
        (
            |store, layers| {
                let path = store.path(record(layers, "tar-split.json.gz"));
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            },
            "tar-split.json.gz in the store is damaged: it cannot be decompressed",
        ),
        (
            |store, layers| {
                let id = Digest::of(&config_of(layers)).hex();
                store.write(format!("image/overlay2/imagedb/content/sha256/{id}"), "{}");
            },
            "the image configuration is not valid",
        ),
        (
            |store, layers| {
                let id = Digest::of(&config_of(layers)).hex();
                let other = config_of(&layers[..1]);
                store.write(format!("image/overlay2/imagedb/content/sha256/{id}"), other);
            },
            "the image configuration should be sha256:",
        ),
        (
            |store, layers| {
                let id = Digest::of(&config_of(layers)).hex();
                let path = format!("image/overlay2/imagedb/content/sha256/{id}");
                fs::remove_file(store.path(path)).unwrap();
            },
            "is missing from the store",
        ),
    ];
    for (damage, wanted) in damages {
        let (store, layers) = (Store::new(), two_layers());
        add_image(&store, "overlay2", &layers, &["bad:1"]);
        add_image(&store, "overlay2", &layers[..1], &["good:1"]);
        damage(&store, &layers);
        let opened = store.open().unwrap();
        let fault = fault_of(named(&opened, "bad:1"));
        assert!(fault.contains(wanted), "{fault} and not {wanted}");
        assert!(
            read(named(&opened, "good:1"), 0).unwrap() == layers[0],
            "{wanted}"
        );
    }
}

#[test]
fn a_list_of_names_that_cannot_be_read_is_an_error() {
    let (store, layers) = (Store::new(), two_layers());
    add_image(&store, "overlay2", &layers, &["mine:1"]);
    store.write("image/overlay2/repositories.json", "{");
    let error = store.open().err().unwrap().to_string();
    assert!(
        error.starts_with("image/overlay2/repositories.json in the store"),
        "{error}"
    );
}

#[test]
fn a_driver_without_folders_is_named() {
    let (store, layers) = (Store::new(), two_layers());
    add_image(&store, "devicemapper", &layers, &["mine:1"]);
    let fault = fault_of(&store.open().unwrap().images()[0]);
    assert!(fault.contains("the storage driver devicemapper"), "{fault}");
}

#[test]
fn a_layer_whose_tar_is_not_kept_has_no_digest_before_it_is_read() {
    let (store, layers) = (Store::new(), two_layers());
    add_image(&store, "overlay2", &layers[..1], &["mine:1"]);
    fs::remove_file(store.path(record(&layers[..1], "tar-split.json.gz"))).unwrap();
    let opened = store.open().unwrap();
    let image = opened.images()[0].image().unwrap();
    assert!(!image.is_layer_exact(0));
    let layer = &image.layers()[0];
    assert_eq!(layer.diff_id, None);
    assert!(layer.origin.is_some());
}

#[test]
fn a_store_in_use_is_refused_and_stays_unused_while_it_is_open() {
    let (store, layers) = (Store::new(), two_layers());
    add_image(&store, "overlay2", &layers, &["mine:1"]);
    store.write("volumes/metadata.db", "");
    let database = || fs::File::open(store.path("volumes/metadata.db")).unwrap();
    let lock = Flock::lock(database(), FlockArg::LockExclusiveNonblock).unwrap();
    let error = store.open().err().unwrap();
    assert_eq!(
        error.to_string(),
        "Docker is using it (volumes/metadata.db is locked); stop Docker first"
    );
    drop(lock);
    let opened = store.open().unwrap();
    assert!(Flock::lock(database(), FlockArg::LockExclusiveNonblock).is_err());
    drop(opened);
    assert!(Flock::lock(database(), FlockArg::LockExclusiveNonblock).is_ok());
}

#[test]
fn a_parent_that_cannot_be_read_is_that_images_fault() {
    let (store, layers) = (Store::new(), two_layers());
    let bad = add_image(&store, "overlay2", &layers, &["bad:1"]);
    add_image(&store, "overlay2", &layers[..1], &["good:1"]);
    let path = format!(
        "image/overlay2/imagedb/metadata/sha256/{}/parent",
        bad.hex()
    );
    store.write(&path, [0xff]);
    let opened = store.open().unwrap();
    let fault = fault_of(named(&opened, "bad:1"));
    assert_eq!(
        fault,
        format!("{path} in the store is damaged: it is not text")
    );
    assert!(read(named(&opened, "good:1"), 0).unwrap() == layers[0]);
}

#[test]
fn volumes_that_are_a_symbolic_link_do_not_refuse_the_store() {
    let (store, layers) = (Store::new(), two_layers());
    add_image(&store, "overlay2", &layers, &["mine:1"]);
    let elsewhere = Store::new();
    elsewhere.write("metadata.db", "");
    std::os::unix::fs::symlink(elsewhere.0.path(), store.path("volumes")).unwrap();
    // Nothing tells whether Docker runs.
    let fault = store.open().err().unwrap().to_string();
    let start = "a symbolic link leads to volumes/metadata.db in the store";
    assert!(fault.starts_with(start), "{fault}");
    store.write("network/files/local-kv.db", "");
    assert_eq!(store.open().unwrap().images().len(), 1);
    let database = fs::File::open(store.path("network/files/local-kv.db")).unwrap();
    let lock = Flock::lock(database, FlockArg::LockExclusiveNonblock).unwrap();
    let in_use = store.open().err().unwrap();
    assert!(matches!(in_use, Error::StoreInUse { .. }), "{in_use}");
    drop(lock);
}
