//! Forms of images: each is recognized in a file, in a pipe and in a folder, also below other
//! folders.

use super::*;

type Files = Vec<(String, Vec<u8>)>;

fn bytes_of(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).unwrap()
}

/// Returns the files, moved below a folder.
fn below(folder: &str, files: &Files) -> Files {
    let files = files.iter();
    files
        .map(|(path, bytes)| (format!("{folder}/{path}"), bytes.clone()))
        .collect()
}

/// Opens the files as an archive, from a pipe and as a folder, which is created below `folder`.
fn open_all_ways(folder: &TempDir, files: &Files, select: &Select) -> [Result<Vec<Image>>; 3] {
    let folder = tempfile::tempdir_in(folder).unwrap().keep();
    let tar = files
        .iter()
        .fold(Tarball::new(), |tar, (path, bytes)| tar.file(path, bytes))
        .bytes();
    let archive = folder.join("archive");
    fs::write(&archive, &tar).unwrap();
    let unpacked = folder.join("unpacked");
    for (path, bytes) in files {
        let path = unpacked.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let inputs = [
        SourceInput::Path(archive),
        SourceInput::Stream(Box::new(std::io::Cursor::new(tar))),
        SourceInput::Path(unpacked),
    ];
    inputs.map(|input| Image::open_all(input, &folder, select))
}

/// Asserts that the files hold one image with this tree, in every way, with any folders around it.
fn assert_image(files: &Files, tree: &[&str], tags: &[&str]) {
    let wrapped = below("a/b", files);
    let folder = tempfile::tempdir().unwrap();
    for files in [files, &wrapped] {
        for images in open_all_ways(&folder, files, &select(None)) {
            let images = images.unwrap();
            assert_eq!(images.len(), 1);
            assert!(images[0].config().is_some(), "it is taken for a root");
            assert_eq!(images[0].reference_names(), tags);
            assert_eq!(names(&unpack(&images[0]).unwrap().1), tree);
        }
    }
}

/// Asserts that the files are refused for this reason, in every way.
fn assert_refused(files: &Files, reason: &str) {
    let wrapped = below("a", files);
    let folder = tempfile::tempdir().unwrap();
    for files in [files, &wrapped] {
        for images in open_all_ways(&folder, files, &select(None)) {
            let error = images.map(drop).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
    let root_only = Select {
        root_only: true,
        ..select(None)
    };
    for images in open_all_ways(&folder, files, &root_only) {
        assert!(images.unwrap()[0].config().is_none());
    }
}

fn assert_root(files: &Files) {
    let folder = tempfile::tempdir().unwrap();
    for images in open_all_ways(&folder, files, &select(None)) {
        let images = images.unwrap();
        assert!(images[0].config().is_none(), "it is taken for an image");
        let found = unpack(&images[0]).unwrap().1;
        for (path, _) in files {
            assert!(names(&found).contains(&&**path), "{path} is missing");
        }
    }
}

/// Returns skopeo's folder with the image of a layout; layers with a suffix, as before version 1.1.
fn skopeo_folder(suffix: &str) -> Files {
    let layout = Layout::of(&two_layers());
    let mut files = Files::new();
    let (manifest, rest) = layout.files.split_last().unwrap();
    for (path, bytes) in rest {
        let hex = path.rsplit('/').next().unwrap();
        let is_layer = serde_json::from_slice::<Value>(bytes).is_err();
        let suffix = if is_layer { suffix } else { "" };
        files.push((format!("{hex}{suffix}"), bytes.clone()));
    }
    files.push(("manifest.json".to_owned(), manifest.1.clone()));
    files
}

fn version() -> (String, Vec<u8>) {
    let text = b"Directory Transport Version: 1.1\n";
    ("version".to_owned(), text.to_vec())
}

#[test]
fn a_folder_of_skopeo_is_an_image_of_any_version_and_with_several_platforms() {
    assert_image(&skopeo_folder(".tar"), &["b", "c"], &[]);
    let mut files = skopeo_folder("");
    files.push(version());
    assert_image(&files, &["b", "c"], &[]);
    // An index, whose manifests have names of their own.
    let (_, manifest) = files
        .iter()
        .find(|(path, _)| path == "manifest.json")
        .unwrap()
        .clone();
    files.retain(|(path, _)| path != "manifest.json");
    let entry = |architecture: &str, bytes: &[u8]| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(bytes), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "manifests": [entry("arm64", b"not here"), entry("amd64", &manifest)],
    });
    let name = format!("{}.manifest.json", Digest::of(&manifest).hex());
    files.push((name, manifest));
    files.push(("manifest.json".to_owned(), bytes_of(&index)));
    assert_image(&files, &["b", "c"], &[]);
}

/// Returns an archive as Docker wrote it before 1.10: a layer on another, and a third beside them.
fn old_archive(repositories: Option<&Value>) -> Files {
    let layers = two_layers();
    let mut files = Files::new();
    let mut layer = |id: &str, parent: Option<&str>, content: &[u8]| {
        let mut description = json!({
            "id": id, "created": "2015-01-02T03:04:05Z", "os": "linux", "architecture": "amd64",
            "container_config": {"Cmd": ["/bin/sh", "-c", id]}, "config": {"Env": ["A=b"]},
        });
        if let Some(parent) = parent {
            description["parent"] = json!(parent);
        }
        files.push((format!("{id}/VERSION"), b"1.0".to_vec()));
        files.push((format!("{id}/json"), bytes_of(&description)));
        files.push((format!("{id}/layer.tar"), content.to_vec()));
    };
    layer("lower", None, &layers[0].2);
    layer("upper", Some("lower"), &layers[1].2);
    if let Some(repositories) = repositories {
        files.push(("repositories".to_owned(), bytes_of(repositories)));
    }
    files
}

#[test]
fn an_archive_before_docker_1_10_is_an_image_with_names_or_without() {
    let names = json!({"old": {"1": "upper", "latest": "upper"}});
    assert_image(
        &old_archive(Some(&names)),
        &["b", "c"],
        &["old:1", "old:latest"],
    );
    assert_image(&old_archive(None), &["b", "c"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let [opened, ..] = open_all_ways(&folder, &old_archive(None), &select(None));
    let image = &opened.unwrap()[0];
    let config: Value = serde_json::from_slice(image.config().unwrap().raw()).unwrap();
    assert_eq!(config["config"]["Env"][0], "A=b");
    assert_eq!(config["history"][0]["created_by"], "/bin/sh -c lower");
    assert!(config.get("id").is_none() && config.get("parent").is_none());
    let several = old_archive(Some(
        &json!({"old": {"1": "upper"}, "base": {"1": "lower"}}),
    ));
    let [all, ..] = open_all_ways(&folder, &several, &select(None));
    assert_eq!(all.unwrap().len(), 2);
    let [one, ..] = open_all_ways(&folder, &several, &select(Some("docker.io/library/base:1")));
    assert_eq!(one.unwrap()[0].layers().len(), 1);
}

#[test]
fn an_old_archive_that_is_not_whole_or_leads_in_a_circle_is_refused() {
    let names = json!({"old": {"1": "upper"}});
    for missing in ["lower/layer.tar", "lower/json", "upper/layer.tar"] {
        let mut files = old_archive(Some(&names));
        files.retain(|(path, _)| path != missing);
        assert_refused(&files, "is missing");
    }
    let mut files = old_archive(None);
    files.retain(|(path, _)| path != "lower/layer.tar");
    assert_refused(&files, "is missing");
    let circle = bytes_of(&json!({"id": "lower", "parent": "upper"}));
    for (names, reason) in [(Some(&names), "1024 layers"), (None, "cycle")] {
        let mut files = old_archive(names);
        let place = files.iter().position(|(path, _)| path == "lower/json");
        files[place.unwrap()].1 = circle.clone();
        assert_refused(&files, reason);
    }
}

#[test]
fn a_layout_and_a_docker_archive_are_found_below_folders() {
    let layout = Layout::of(&two_layers()).with_index().files;
    assert_image(&layout, &["b", "c"], &[]);
    let without_file: Files = layout
        .iter()
        .filter(|(path, _)| path != "oci-layout")
        .cloned()
        .collect();
    assert_image(&without_file, &["b", "c"], &[]);
    let layer = two_layers().remove(0).2;
    let config = bytes_of(&json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
    }));
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["x/layer.tar"]}]);
    let archive = vec![
        ("x/layer.tar".to_owned(), layer),
        ("c.json".to_owned(), config),
        ("manifest.json".to_owned(), bytes_of(&manifest)),
    ];
    assert_image(&archive, &["a", "b"], &["app:1"]);
}

#[test]
fn what_looks_like_an_image_and_is_not_whole_is_refused() {
    let without = |files: &Files, name: &str| -> Files {
        let files = files.iter().filter(|(path, _)| path != name);
        files.cloned().collect()
    };
    let layout = Layout::of(&two_layers()).with_index().files;
    let no_index = without(&layout, "index.json");
    assert_refused(&no_index, "an OCI layout, but index.json");
    assert_refused(
        &without(&no_index, "oci-layout"),
        "an OCI layout, but index.json",
    );
    let documents: Files = layout
        .iter()
        .filter(|(path, _)| !path.starts_with("blobs"))
        .cloned()
        .collect();
    assert_refused(&documents, "the image manifest");
    let mut folder = skopeo_folder("");
    folder.push(version());
    assert_refused(
        &without(&folder, "manifest.json"),
        "a directory of skopeo, but manifest.json",
    );
    let mut damaged = without(&folder, "manifest.json");
    damaged.push((
        "manifest.json".to_owned(),
        b"{\"schemaVersion\": 2,".to_vec(),
    ));
    assert_refused(&damaged, "missing or damaged");
    let blob = folder.remove(0);
    assert_refused(&folder, "is missing");
    let hex = Digest::of(&blob.1).hex();
    let archive = vec![
        (format!("{hex}.json"), b"{}".to_vec()),
        ("x/layer.tar".to_owned(), blob.1.clone()),
    ];
    assert_refused(&archive, "a docker-archive, but manifest.json");
    let podman = vec![
        (format!("{hex}.json"), b"{}".to_vec()),
        (format!("{hex}.tar"), blob.1),
    ];
    assert_refused(&podman, "a docker-archive, but manifest.json");
    let old = vec![(
        "manifest.json".to_owned(),
        bytes_of(&json!({"schemaVersion": 1, "fsLayers": [], "history": []})),
    )];
    assert_refused(&old, "not supported");
    let inside = |name: &str, document: &[u8]| {
        vec![
            (name.to_owned(), document.to_vec()),
            ("rootfs/etc/motd".to_owned(), b"hello".to_vec()),
        ]
    };
    assert_refused(
        &inside("config.json", br#"{"ociVersion": "1.0.2"}"#),
        "directory rootfs",
    );
    assert_refused(
        &inside("metadata.yaml", b"architecture: x86_64"),
        "directory rootfs",
    );
    let two = [below("one", &layout), below("two", &layout)].concat();
    assert_refused(&two, "one, two");
}

#[test]
fn root_file_systems_that_resemble_images_are_still_ones() {
    let file = |path: &str, text: &str| (path.to_owned(), text.as_bytes().to_vec());
    assert_root(&vec![file(
        "usr/share/app/manifest.json",
        r#"{"name": "an app"}"#,
    )]);
    assert_root(&vec![
        file("config.json", r#"{"port": 80}"#),
        file("rootfs/etc/motd", "a folder of that name"),
    ]);
    assert_root(&vec![
        file("bin/sh", "#!"),
        file("repositories", "[]"),
        file("version", "7"),
        file("etc/layer.tar", ""),
    ]);
    assert_root(&vec![
        file("bin/sh", "#!"),
        file("srv/image/oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#),
        file("srv/image/index.json", "{}"),
    ]);
    let hex = Digest::of(b"").hex();
    assert_root(&vec![
        file(&format!("store/{hex}"), "content"),
        file("etc/motd", ""),
    ]);
}
