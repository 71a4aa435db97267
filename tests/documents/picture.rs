//! The picture of README.md: a pool with an image, containers of it, and an image made from one, as
//! `cowshed tree` draws it.
//!
//! `COWSHED_WRITE_PICTURE=1 cargo test --test documents -- picture` writes docs/pool.svg anew, as
//! root. Sizes differ from host to host, as the image is made of the host's shell, so the stored
//! picture is not compared.

use crate::document;
use crate::tour::{Host, may_mount};
use serde_json::Value;

/// Returns each volume's kind and name, those on it behind it.
fn nodes(list: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for volume in list.as_array().unwrap() {
        let text = |name: &str| volume[name].as_str().unwrap().to_owned();
        found.push((text("kind"), text("name")));
        found.extend(nodes(&volume["children"]));
    }
    found
}

#[test]
fn the_picture_shows_every_volume_of_a_pool() {
    if !may_mount() {
        return;
    }
    let host = Host::new();
    host.run(
        "cowshed pool create --size 4G\ncowshed serve\n\
         docker save debian:12 | cowshed image import - --name debian:12\n\
         for name in web worker cache; do\n\
         cowshed container create debian:12 --name $name --mount; done\n\
         cowshed container cp ./site web:/srv/site\n\
         head -c 3M /dev/urandom >data\ncowshed container cp data cache:/srv/data\n\
         cowshed container commit web web:1\n\
         cowshed container create web:1 --name web-2\n\
         for name in web worker cache; do cowshed container unmount $name; done",
    );
    let list = host.run("cowshed tree --json");
    let svg = host.run("cowshed tree --format svg");
    host.stop();
    let nodes = nodes(&serde_json::from_str(&list).unwrap());
    let of_kind = |kind: &str| -> Vec<&str> {
        let found = nodes.iter().filter(|(found, _)| found == kind);
        found.map(|(_, name)| name.as_str()).collect()
    };
    assert_eq!(of_kind("image"), ["debian:12", "web:1"], "{list}");
    let mut containers = of_kind("container");
    containers.sort_unstable();
    assert_eq!(containers, ["cache", "web", "web-2", "worker"]);
    assert_eq!(svg.matches("<rect x").count(), nodes.len());
    if std::env::var_os("COWSHED_WRITE_PICTURE").is_some() {
        std::fs::write(document::root().join("docs/pool.svg"), svg).unwrap();
    }
}
