//! The store of Docker 1.9 and earlier.

use super::*;

/// Returns an id, which Docker chose at random.
fn id(name: &str) -> String {
    Digest::of(name.as_bytes()).hex()
}

/// Adds a layer as Docker 1.9 with aufs has it.
fn add_layer(store: &Store, name: &str, parent: Option<&str>, tar: &[u8]) {
    let (id, parent) = (id(name), parent.map(id));
    let mut description = json!({
        "id": id, "created": "2015-06-01T12:00:00Z", "os": "linux", "architecture": "amd64",
        "docker_version": "1.9.1", "config": {"Cmd": ["/bin/sh"]}, "Size": 10,
        "container_config": {"Cmd": ["/bin/sh", "-c", name]},
    });
    if let Some(parent) = parent {
        description["parent"] = json!(parent);
    }
    store.write(format!("graph/{id}/json"), description.to_string());
    store.write(format!("graph/{id}/layersize"), "10");
    let split = format!("graph/{id}/tar-data.json.gz");
    store.layer(tar, &format!("aufs/diff/{id}"), &split);
}

/// Returns a store with an image of two layers.
fn two() -> (Store, [Vec<u8>; 2]) {
    let (store, layers) = (Store::new(), two_layers());
    add_layer(&store, "lower", None, &layers[0]);
    add_layer(&store, "upper", Some("lower"), &layers[1]);
    store.write("graph/_tmp/x", "");
    let names = json!({"Repositories": {
        "mine": {"1": id("upper")}, "quay.io/acme/base": {"latest": id("lower")},
    }});
    store.write("repositories-aufs", names.to_string());
    (store, layers)
}

#[test]
fn an_image_is_its_chain_of_parents_with_their_history() {
    let (store, layers) = two();
    let opened = store.open().unwrap();
    assert_eq!(opened.images().len(), 2);
    let mine = named(&opened, "mine:1");
    assert_eq!(mine.id(), id("upper"));
    let image = mine.image().unwrap();
    let history = image.config().unwrap().history();
    let steps = history
        .iter()
        .map(|step| step.created_by.as_deref().unwrap());
    let steps: Vec<&str> = steps.collect();
    assert_eq!(steps, ["/bin/sh -c lower", "/bin/sh -c upper"]);
    for (index, layer) in layers.iter().enumerate() {
        assert!(image.is_layer_exact(index));
        assert_eq!(image.layers()[index].diff_id, None);
        assert!(read(mine, index).unwrap() == *layer, "{index}");
    }
    let base = named(&opened, "quay.io/acme/base:latest").image().unwrap();
    // Both have the same lower layer, and the importer sees that.
    assert_eq!(base.stack_ids(), image.stack_ids()[..1]);
}

#[test]
fn a_changed_file_is_found_without_a_digest_of_the_layer() {
    let (store, _) = two();
    store.write(format!("aufs/diff/{}/etc/two", id("upper")), "TWO\n");
    let opened = store.open().unwrap();
    let fault = read(named(&opened, "mine:1"), 1).unwrap_err().to_string();
    assert_eq!(
        fault,
        "the file etc/two of the layer has changed in the store: it has another content"
    );
}

#[test]
fn a_missing_parent_or_one_that_leads_back_is_the_images_fault() {
    let (store, _) = two();
    fs::remove_dir_all(store.path(format!("graph/{}", id("lower")))).unwrap();
    let opened = store.open().unwrap();
    for image in opened.images() {
        let fault = fault_of(image);
        let wanted = format!("graph/{}/json is missing from the store", id("lower"));
        assert_eq!(fault, wanted);
    }

    let (store, _) = two();
    store.write(format!("graph/{}/parent", id("lower")), id("upper"));
    for image in store.open().unwrap().images() {
        assert!(fault_of(image).contains("one is its own parent"));
    }

    let (store, _) = two();
    store.write(format!("graph/{}/parent", id("lower")), "../../etc");
    for image in store.open().unwrap().images() {
        assert!(fault_of(image).contains("it is not the place of a layer"));
    }
}

#[test]
fn a_parent_is_found_in_each_form_in_which_docker_stated_it() {
    for by_digest in [true, false] {
        let (store, _) = two();
        let path = format!("graph/{}/json", id("upper"));
        let text = fs::read(store.path(&path)).unwrap();
        let mut description: Value = serde_json::from_slice(&text).unwrap();
        description.as_object_mut().unwrap().remove("parent");
        if by_digest {
            description["parent_id"] = json!(format!("sha256:{}", id("lower")));
        } else {
            store.write(format!("graph/{}/parent", id("upper")), id("lower"));
        }
        store.write(path, description.to_string());
        let opened = store.open().unwrap();
        let mine = named(&opened, "mine:1");
        assert_eq!(mine.image().unwrap().layers().len(), 2);
    }
}

#[test]
fn what_docker_has_converted_is_not_read_again() {
    let (store, layers) = two();
    let config = config_of(&layers[..1]);
    let new = Digest::of(&config);
    store.write(
        format!("image/aufs/imagedb/content/sha256/{}", new.hex()),
        config,
    );
    let diff_id = Digest::of(&layers[0]);
    let record = format!("image/aufs/layerdb/sha256/{}", diff_id.hex());
    store.write(format!("{record}/diff"), diff_id.to_string());
    store.write(format!("{record}/cache-id"), id("lower"));
    store.write(
        format!("{record}/tar-split.json.gz"),
        gzip(split_of(&layers[0]).as_bytes()),
    );
    let converted = json!({id("lower"): new});
    store.write(".migration-v1-images.json", converted.to_string());
    // It was interrupted before it gave the names.
    let opened = store.open().unwrap();
    let mut found: Vec<(&str, &[String])> = Vec::new();
    for image in opened.images() {
        image.image().unwrap();
        found.push((image.id(), image.names()));
    }
    let (new, upper) = (new.to_string(), id("upper"));
    assert_eq!(found.len(), 2);
    assert!(found.contains(&(&*new, &["quay.io/acme/base:latest".to_owned()])));
    assert!(found.contains(&(&*upper, &["mine:1".to_owned()])));

    store.write(".migration-v1-tags", "");
    let opened = store.open().unwrap();
    let ids: Vec<&str> = opened.images().iter().map(OldImage::id).collect();
    assert_eq!(ids, [&*new]);
}

#[test]
fn the_origin_of_a_layer_is_its_place_in_this_store_and_what_the_store_keeps_of_it() {
    let (store, layers) = two();
    let origins = |store: &Store| {
        let opened = store.open().unwrap();
        let layers = named(&opened, "mine:1").image().unwrap().layers().to_vec();
        let origins = layers.iter().map(|layer| layer.origin.unwrap());
        origins.collect::<Vec<_>>()
    };
    let first = origins(&store);
    assert_eq!(origins(&store), first);
    assert_ne!(first[0], first[1]);

    let copy = Store::new();
    host_copy(&store, &copy);
    let there = origins(&copy);
    assert!(there[0] != first[0] && there[1] != first[1]);

    // The split file of the upper layer is another one.
    let split = format!("graph/{}/tar-data.json.gz", id("upper"));
    store.write(&split, gzip(split_of(&layers[0]).as_bytes()));
    let changed = origins(&store);
    assert!(changed[0] == first[0] && changed[1] != first[1]);

    // The folder of the lower layer has another file.
    store.write(format!("aufs/diff/{}/more", id("lower")), "more");
    let mended = origins(&store);
    assert!(mended[0] != changed[0] && mended[1] == changed[1]);
}

#[test]
fn what_tar_split_kept_is_refused_where_it_is_cut() {
    let fault = |cut: fn(&str) -> Vec<u8>| {
        let (store, layers) = two();
        let split = format!("graph/{}/tar-data.json.gz", id("upper"));
        store.write(&split, cut(&split_of(&layers[1])));
        let opened = store.open().unwrap();
        let fault = read(named(&opened, "mine:1"), 1).unwrap_err().to_string();
        let start = format!("{split} in the store is damaged: ");
        fault.strip_prefix(&start).expect(&fault).to_owned()
    };
    assert_eq!(fault(|_| Vec::new()), "it is not compressed with gzip");
    let plain = fault(|text| text.as_bytes().to_vec());
    assert_eq!(plain, "it is not compressed with gzip");
    assert_eq!(fault(|_| gzip(b"")), "it is empty");
    let cut = fault(|text| {
        let whole = gzip(text.as_bytes());
        whole[..whole.len() - 20].to_vec()
    });
    assert_eq!(cut, "it cannot be decompressed");
    // At the end of each line, in the bytes before the end marker and in a file.
    for lines in 1..4 {
        let (store, layers) = two();
        let split = format!("graph/{}/tar-data.json.gz", id("upper"));
        let text = split_of(&layers[1]);
        assert!(text.lines().count() > lines);
        let kept: Vec<&str> = text.lines().take(lines).collect();
        store.write(&split, gzip((kept.join("\n") + "\n").as_bytes()));
        let opened = store.open().unwrap();
        let fault = read(named(&opened, "mine:1"), 1).unwrap_err().to_string();
        assert!(
            fault.ends_with("it ends before the end of the layer's tar"),
            "{lines}: {fault}"
        );
    }
}

#[test]
fn a_layer_without_files_has_an_end_marker_alone() {
    let (store, _) = two();
    add_layer(&store, "empty", Some("upper"), &[0; 1024]);
    let names = json!({"Repositories": {"mine": {"1": id("empty")}}});
    store.write("repositories-aufs", names.to_string());
    let opened = store.open().unwrap();
    assert!(read(named(&opened, "mine:1"), 2).unwrap() == [0; 1024]);
}

#[test]
fn a_description_that_cannot_be_read_is_told_as_it_is() {
    let (store, _) = two();
    let path = format!("graph/{}/json", id("upper"));
    let text = fs::File::options().write(true).open(store.path(&path));
    text.unwrap().set_len(9 << 20).unwrap();
    let opened = store.open().unwrap();
    let fault = fault_of(named(&opened, "mine:1"));
    assert_eq!(
        fault,
        format!("{path} in the store is damaged: it is too large")
    );
    read(named(&opened, "quay.io/acme/base:latest"), 0).unwrap();
}
