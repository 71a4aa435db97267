//! containers/storage.

use super::*;
use nix::fcntl::{FcntlArg, fcntl};

/// Returns a store as Podman has it, with an image of two layers.
fn two() -> (Store, [Vec<u8>; 2], Digest) {
    let (store, layers) = (Store::new(), two_layers());
    let config = config_of(&layers);
    let id = Digest::of(&config);
    let mut stored = Vec::new();
    for (name, parent, tar) in [("lower", "", &layers[0]), ("upper", "lower", &layers[1])] {
        let split = format!("overlay-layers/{name}.tar-split.gz");
        store.layer(tar, &format!("overlay/{name}/diff"), &split);
        stored.push(json!({"id": name, "parent": parent, "diff-digest": Digest::of(tar)}));
    }
    store.write("overlay-layers/layers.json", json!(stored).to_string());
    store.write("overlay-layers/layers.lock", "");
    let images = json!([{"id": id.hex(), "names": ["localhost/mine:1"], "layer": "upper"}]);
    store.write("overlay-images/images.json", images.to_string());
    store.write("overlay-images/images.lock", "");
    let folder = format!("overlay-images/{}", id.hex());
    let manifest = json!({"config": {"digest": id}});
    store.write(format!("{folder}/manifest"), manifest.to_string());
    let key = STANDARD.encode(id.to_string());
    store.write(format!("{folder}/={key}"), config);
    (store, layers, id)
}

/// Changes the record of the upper layer.
fn change(store: &Store, key: &str, value: Value) {
    let path = "overlay-layers/layers.json";
    let text = fs::read(store.path(path)).unwrap();
    let mut layers: Value = serde_json::from_slice(&text).unwrap();
    layers[1][key] = value;
    store.write(path, layers.to_string());
}

#[test]
fn layers_are_byte_by_byte_what_podman_got() {
    let (store, layers, id) = two();
    let opened = store.open().unwrap();
    let image = &opened.images()[0];
    assert_eq!(image.id(), id.hex());
    assert_eq!(image.names(), ["localhost/mine:1"]);
    assert_eq!(image.image().unwrap().config().unwrap().digest(), id);
    for (index, layer) in layers.iter().enumerate() {
        assert!(read(image, index).unwrap() == *layer, "{index}");
    }
}

#[test]
fn an_image_with_a_wrong_record_is_named() {
    for (key, value, wanted) in [
        ("parent", json!("nothing"), "the layer nothing is missing"),
        ("parent", json!("upper"), "one is its own parent"),
        (
            "parent",
            json!(""),
            "has 1 layers but the configuration has 2",
        ),
        ("id", json!("other"), "the layer upper is missing"),
        (
            "flags",
            json!({"incomplete": true}),
            "the layer is not whole",
        ),
        (
            "diff-digest",
            json!(Digest::of(b"x")),
            "is not the one that the image states",
        ),
    ] {
        let (store, ..) = two();
        change(&store, key, value);
        let fault = fault_of(&store.open().unwrap().images()[0]);
        assert!(fault.contains(wanted), "{fault} and not {wanted}");
    }
    let (store, _, id) = two();
    fs::remove_file(store.path(format!("overlay-images/{}/manifest", id.hex()))).unwrap();
    let fault = fault_of(&store.open().unwrap().images()[0]);
    assert!(fault.contains("manifest is missing"), "{fault}");
}

#[test]
fn owners_that_were_mapped_are_not_guessed() {
    let (store, ..) = two();
    let map = json!([{"container_id": 0, "host_id": 100_000, "size": 65536}]);
    change(&store, "uidmap", map);
    // The tar has the owners.
    assert!(store.open().unwrap().images()[0].image().is_ok());
    fs::remove_file(store.path("overlay-layers/upper.tar-split.gz")).unwrap();
    let fault = fault_of(&store.open().unwrap().images()[0]);
    assert!(
        fault.contains("the owners of a layer's files are mapped"),
        "{fault}"
    );
}

#[test]
fn a_store_that_podman_changes_is_refused() {
    let (store, ..) = two();
    let lock_of = |path| {
        fs::File::options()
            .write(true)
            .open(store.path(path))
            .unwrap()
    };
    let lock = lock_of("overlay-layers/layers.lock");
    let whole = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    let error = store.open().err().unwrap().to_string();
    let wanted = "overlay-layers/layers.lock is locked";
    assert!(error.contains(wanted), "{error}");
    drop(lock);
    let opened = store.open().unwrap();
    let lock = lock_of("overlay-images/images.lock");
    assert!(fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole)).is_err());
    drop(opened);
    fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
}
