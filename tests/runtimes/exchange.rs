//! Images exchanged between cowshed and Docker with either of its image stores, in both directions:
//! several at once, with their names.

use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::images::shell_root;
use crate::service::Service;
use crate::world::{Setting, World};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const NAMES: [&str; 2] = ["t:1", "quay.io/acme/db:2"];

/// Docker with images in containerd.
pub(crate) fn with_containerds_store(setting: &Setting) {
    let world = World::open(setting);
    let docker = Docker::start(setting);
    there_and_back(&world, &docker, &setting.folder);
    let names = world
        .containerd
        .ok(["--namespace", "moby", "images", "ls", "-q"]);
    // Docker's commands do not find a record under another name.
    assert!(
        names.lines().any(|name| name == "docker.io/library/t:1"),
        "{names}"
    );
    assert!(!names.lines().any(|name| name == "t:1"), "{names}");
    docker.ok(["image", "rm", "--force", NAMES[0], NAMES[1]]);
    docker.stop();
    close(world);
}

/// Docker with its own image store.
pub(crate) fn with_dockers_own_store(setting: &Setting) {
    let world = World::open(setting);
    let configuration = json!({
        "features": {"containerd-snapshotter": false},
        "storage-driver": "vfs",
    });
    let docker = Docker::start_with(setting, &configuration);
    there_and_back(&world, &docker, &setting.folder);
    docker.stop();
    close(world);
}

fn close(world: World) {
    world.containerd.stop();
    if let Some(service) = world.service {
        service.close();
    }
}

fn there_and_back(world: &World, docker: &Docker, folder: &Path) {
    let Some(service) = &world.service else {
        return;
    };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for (name, content) in [(NAMES[0], "first"), (NAMES[1], "second")] {
        let root = path(content);
        fs::create_dir(&root).unwrap();
        shell_root(Path::new(&root));
        fs::write(folder.join(content).join("content"), content).unwrap();
        service.cowshed(["image", "import", &*root, "--name", name]);
    }
    let out = path("out.tar");
    service.cowshed(["image", "export", NAMES[0], NAMES[1], "--output", &*out]);
    docker.ok(["load", "--input", &*out]);
    for (name, content) in [
        (NAMES[0], "first"),
        ("docker.io/library/t:1", "first"),
        (NAMES[1], "second"),
    ] {
        docker.ok(["create", "--name", "made", name, "true"]);
        let copied = path("copied");
        docker.ok(["cp", "made:/content", &*copied]);
        docker.ok(["rm", "made"]);
        assert_eq!(fs::read_to_string(&copied).unwrap(), content, "{name}");
    }
    let back = path("back.tar");
    docker.ok(["save", "--output", &*back, NAMES[0], NAMES[1]]);
    let id = docker.ok(["image", "inspect", "--format", "{{.Id}}", NAMES[0]]);
    let nameless = path("nameless.tar");
    docker.ok(["save", "--output", &*nameless, &*id]);
    // cowshed now has only what comes from Docker.
    service.cowshed(["image", "rm", NAMES[0], NAMES[1]]);
    let imported = service.json(["image", "import", &*back]);
    let name = |image: &Value| {
        image["names"].as_array().unwrap()[0]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let images = imported["images"].as_array().unwrap().iter();
    let mut names: Vec<String> = images.map(name).collect();
    names.sort();
    assert_eq!(names, [NAMES[1], NAMES[0]]);
    expect_content(service, folder, "docker.io/library/t:1", "first");
    expect_content(service, folder, NAMES[1], "second");
    let imported = service.json(["image", "import", &*nameless, "--name", "nameless"]);
    assert_eq!(imported["layers"][0]["reused"], true, "{imported}");
    expect_content(service, folder, "nameless", "first");
    service.cowshed(["image", "rm", NAMES[0], NAMES[1], "nameless"]);
}

/// Asserts that a container of the image has this content.
fn expect_content(service: &Service, folder: &Path, image: &str, content: &str) {
    let copied = folder.join("from-cowshed");
    service.cowshed(["container", "create", image, "--name", "c"]);
    service.cowshed(["container", "cp", "c:/content", copied.to_str().unwrap()]);
    service.cowshed(["container", "rm", "c"]);
    assert_eq!(fs::read_to_string(&copied).unwrap(), content, "{image}");
    fs::remove_file(copied).unwrap();
}

/// `ctr` imports with the full name, under which containerd's other clients find the image.
pub(crate) fn with_ctr(setting: &Setting) {
    let world = World::open(setting);
    let service = world.service.as_ref().expect("cowshed's snapshots");
    let root = setting.folder.join("root");
    fs::create_dir(&root).unwrap();
    shell_root(&root);
    service.cowshed([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        NAMES[0],
    ]);
    let out = setting.folder.join("out.tar");
    let out = out.to_str().unwrap();
    service.cowshed(["image", "export", NAMES[0], out]);
    let ctr: &Containerd = &world.containerd;
    ctr.ok(["images", "import", "--no-unpack", out]);
    let names = ctr.ok(["images", "ls", "-q"]);
    assert_eq!(names.trim(), "docker.io/library/t:1");
    let back = setting.folder.join("back.tar");
    let back = back.to_str().unwrap();
    ctr.ok(["images", "export", back, "docker.io/library/t:1"]);
    service.cowshed(["image", "rm", NAMES[0]]);
    let imported = service.json(["image", "import", back]);
    assert_eq!(imported["name"], NAMES[0]);
    ctr.ok(["images", "rm", "--sync", "docker.io/library/t:1"]);
    close(world);
}
