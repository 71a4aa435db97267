//! What Docker or containerd has on a host is taken over, without them: the same images, byte by byte,
//! from a store that stays as it was.

use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::fixtures::{output, run};
use crate::images::{Image, shell_root};
use crate::service::Service;
use crate::world::Setting;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const BASE: &str = "base:1";
const APP: &str = "quay.io/acme/app";
const NAMES: [&str; 2] = ["app:1", "quay.io/acme/app:2"];
/// What a container does before it is committed: everything that a layer can do to the one below.
const CHANGES: &str = "rm /etc/one; rm -r /etc/folder; mkdir /etc/folder; echo new >/etc/folder/new; \
                       echo two >/etc/two; mkdir /data; cp /bin/busybox /data/program; chmod 4711 /data/program";

pub(crate) fn from_docker_with_overlay2(setting: &Setting) {
    from_docker(setting, "overlay2");
}

pub(crate) fn from_docker_with_vfs(setting: &Setting) {
    from_docker(setting, "vfs");
}

fn from_docker(setting: &Setting, driver: &str) {
    let folder = &setting.folder;
    let service = Service::open(folder, setting.mounts);
    let containerd = Containerd::start_plain(setting);
    let configuration = json!({
        "features": {"containerd-snapshotter": false},
        "storage-driver": driver,
    });
    let docker = Docker::start_with(setting, &configuration);
    assert_eq!(docker.ok(["info", "--format", "{{.Driver}}"]), driver);
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    fill(&root);
    let archive = folder.join("root.tar");
    let (archive, root) = (archive.to_str().unwrap(), root.to_str().unwrap());
    run(
        "tar",
        ["--create", "--file", archive, "--directory", root, "."],
    );
    docker.ok(["import", archive, BASE]);
    for (from, to, script) in [
        (BASE, NAMES[0], CHANGES),
        (
            NAMES[0],
            NAMES[0],
            "echo three >/etc/three; rm /data/program",
        ),
    ] {
        let mut command = docker.command(["run", "--name", "made", "--network=none", from]);
        output(command.args(["sh", "-euc", script]));
        docker.ok(["commit", "made", to]);
        docker.ok(["rm", "made"]);
    }
    docker.ok(["tag", NAMES[0], NAMES[1]]);
    let id = |name| docker.ok(["image", "inspect", "--format", "{{.Id}}", name]);
    let ids = [id(BASE), id(NAMES[0])];

    let store = folder.join("d-root");
    let store = store.to_str().unwrap();
    let migrate = ["image", "migrate", "--from", store];
    let refused = service.attempt(migrate);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("Docker is using it"), "{said}");
    docker.stop();
    containerd.stop();

    let before = listing(store);
    let migrated = service.json(migrate);
    let find = |id: &String| -> Value {
        let mut images = migrated.as_array().unwrap().iter();
        let found = images.find(|image| image["old_id"] == **id);
        found
            .unwrap_or_else(|| panic!("{id} in {migrated}"))
            .clone()
    };
    for (id, names, layers) in [(&ids[0], &[BASE][..], 1), (&ids[1], &NAMES[..], 3)] {
        let image = find(id);
        // The configuration is the same only if each layer is, byte by byte.
        assert_eq!(image["id"], **id, "{image}");
        assert_eq!(image["names"], json!(names), "{image}");
        let found = image["layers"].as_array().unwrap();
        assert_eq!(found.len(), layers, "{image}");
        assert!(found.iter().all(|layer| layer["exact"] == true), "{image}");
    }
    expect_files(&service, folder);

    let again = service.json(migrate);
    let layers = again
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["layers"].as_array().unwrap());
    assert!(layers.clone().count() >= 4);
    assert!(
        layers.clone().all(|layer| layer["reused"] == true),
        "{again}"
    );
    assert_eq!(listing(store), before, "the store has changed");
    service.close();
}

/// containerd's own store, with its content and without.
pub(crate) fn from_containerd(setting: &Setting) {
    let folder = &setting.folder;
    let service = Service::open(folder, setting.mounts);
    let containerd = Containerd::start_plain(setting);
    let archive = Image::new(folder.join("app"))
        .filled(fill)
        .filled(|root| {
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::write(root.join("etc/.wh.one"), "").unwrap();
            fs::write(root.join("etc/three"), "three\n").unwrap();
        })
        .write();
    let mut import = containerd.ctr(["images", "import", "--snapshotter", "overlayfs"]);
    output(import.args(["--base-name", APP]).arg(&archive));
    let store = folder.join("c-root");
    let store = store.to_str().unwrap();
    let migrate = ["image", "migrate", "--from", store];
    let refused = service.attempt(migrate);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("containerd is using it"), "{said}");
    let listed = containerd.ok(["images", "ls"]);
    containerd.stop();

    let before = listing(store);
    let migrated = service.json(migrate);
    let [image] = &migrated.as_array().unwrap()[..] else {
        panic!("{migrated}");
    };
    assert!(
        listed.contains(image["old_id"].as_str().unwrap()),
        "{listed}"
    );
    assert_eq!(image["names"], json!(["quay.io/acme/app:latest"]));
    assert_eq!(image["layers"].as_array().unwrap().len(), 2);
    let expect_changes = || {
        let read = |path| read(&service, folder, APP, path);
        assert_eq!(read("/etc/three").as_deref(), Some("three\n"));
        assert_eq!(read("/etc/one"), None);
        assert_eq!(read("/etc/folder/old").as_deref(), Some("old\n"));
    };
    expect_changes();
    assert_eq!(listing(store), before, "the store has changed");

    // As a host for Kubernetes has it, which keeps no layers once they are unpacked.
    service.cowshed(["image", "rm", APP]);
    let content = folder.join("c-root/io.containerd.content.v1.content/blobs/sha256");
    for entry in fs::read_dir(content).unwrap() {
        let path = entry.unwrap().path();
        if !fs::read(&path).unwrap().starts_with(b"{") {
            fs::remove_file(path).unwrap();
        }
    }
    let anew = service.json(migrate);
    assert_ne!(anew[0]["id"], image["id"], "{anew}");
    assert_eq!(anew[0]["old_id"], image["old_id"], "{anew}");
    for layer in anew[0]["layers"].as_array().unwrap() {
        assert_eq!(layer["exact"], false, "{anew}");
    }
    expect_changes();
    service.close();
}

/// Makes a root file system.
fn fill(root: &Path) {
    shell_root(root);
    fs::create_dir(root.join("etc/folder")).unwrap();
    for name in ["etc/one", "etc/folder/old"] {
        fs::write(root.join(name), "old\n").unwrap();
    }
    fs::write(root.join("large"), crate::harness::noise(8 << 20, 1)).unwrap();
}

/// Asserts that containers of the images have the files that Docker's had.
fn expect_files(service: &Service, folder: &Path) {
    for (image, path, wanted) in [
        (BASE, "/etc/one", Some("old\n")),
        (NAMES[0], "/etc/one", None),
        (NAMES[1], "/etc/folder/old", None),
        (NAMES[1], "/etc/folder/new", Some("new\n")),
        (NAMES[1], "/etc/three", Some("three\n")),
        (NAMES[1], "/data/program", None),
    ] {
        let found = read(service, folder, image, path);
        assert_eq!(found.as_deref(), wanted, "{path} in {image}");
    }
}

/// Returns the content of a file of an image; `None` if it has none.
fn read(service: &Service, folder: &Path, image: &str, path: &str) -> Option<String> {
    let copied = folder.join("copied");
    service.cowshed(["container", "create", image, "--name", "c"]);
    let from = format!("c:{path}");
    let answer = service.attempt(["container", "cp", &*from, copied.to_str().unwrap()]);
    service.cowshed(["container", "rm", "c"]);
    let text = answer
        .status
        .success()
        .then(|| fs::read_to_string(&copied).unwrap());
    if text.is_some() {
        fs::remove_file(copied).unwrap();
    }
    text
}

/// Returns everything in a folder with its size, owner, mode and times; reading is not among them.
fn listing(folder: &str) -> Vec<String> {
    let found = run("find", [folder, "-printf", "%p %y %m %u %s %T@ %C@\n"]);
    let mut lines: Vec<String> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
