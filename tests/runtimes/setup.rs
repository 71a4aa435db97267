//! A host with Docker goes to cowshed with `cowshed setup docker`, and back with `--undo`: its
//! images and containers are there again, and so are its files.

use crate::containerd::{Containerd, setup};
use crate::docker::{CONFIGURATION, Docker};
use crate::images::shell_root;
use crate::service::Service;
use crate::world::{Setting, Snapshotter};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the files of configuration with their texts.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for name in ["etc/docker", "etc/containerd"] {
        for entry in fs::read_dir(folder.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            files.insert(path, text);
        }
    }
    files
}

/// Imports a root file system under this name.
fn import(docker: &Docker, folder: &Path, name: &str) {
    let root = folder.join(name);
    fs::create_dir(&root).unwrap();
    shell_root(&root);
    fs::write(root.join("content"), name).unwrap();
    let archive = folder.join(format!("{name}.tar"));
    crate::fixtures::run(
        "tar",
        [
            "--create",
            "--file",
            archive.to_str().unwrap(),
            "--directory",
            root.to_str().unwrap(),
            ".",
        ],
    );
    docker.ok(["import", archive.to_str().unwrap(), name]);
}

fn images(docker: &Docker) -> String {
    docker.ok(["images", "--format", "{{.Repository}}"])
}

pub(crate) fn there_and_back(setting: &Setting) {
    if setting.snapshotter != Snapshotter::Cowshed {
        return;
    }
    let folder = &setting.folder;
    let service = Service::open(folder, setting.mounts);
    let mut containerd = Containerd::start_plain(setting);
    // What Docker takes where there is no overlayfs below it.
    let own = json!({
        "debug": false,
        "features": {"containerd-snapshotter": false},
        "storage-driver": "vfs",
    });
    let mut docker = Docker::start_with(setting, &own);
    import(&docker, folder, "before");
    let before = files(folder);

    docker.halt();
    containerd.halt();
    setup("docker", setting, None);
    containerd.restart();
    docker.restart();
    assert_eq!(docker.ok(["info", "--format", "{{.Driver}}"]), "cowshed");
    assert_eq!(images(&docker), "");
    import(&docker, folder, "on-cowshed");
    let said = docker.run(&[], "on-cowshed", "cat /content; echo more >>/content");
    assert_eq!(said, "on-cowshed");
    let made = fs::read_to_string(folder.join(CONFIGURATION)).unwrap();
    setup("docker", setting, None);
    assert_eq!(
        fs::read_to_string(folder.join(CONFIGURATION)).unwrap(),
        made
    );
    docker.ok(["image", "rm", "on-cowshed"]);

    docker.halt();
    containerd.halt();
    setup("docker", setting, Some("--undo"));
    assert_eq!(files(folder), before);
    containerd.restart();
    docker.restart();
    assert_eq!(docker.ok(["info", "--format", "{{.Driver}}"]), "vfs");
    assert_eq!(images(&docker), "before");
    assert_eq!(docker.run(&[], "before", "cat /content"), "before");
    docker.stop();
    containerd.stop();
    service.close();
}
