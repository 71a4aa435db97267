//! The picture of README.md: the volumes of a pool with an image, containers of it, and an image
//! made from one, drawn from what the program prints.
//!
//! `COWSHED_WRITE_PICTURE=1 cargo test --test documents -- picture` writes docs/pool.svg anew, as
//! root. Sizes differ from host to host, as the image is made of the host's shell, so the stored
//! picture is not compared.

use crate::document;
use crate::tour::{Host, may_mount};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

const COLUMN: usize = 250;
const ROW: usize = 52;
const BOX_WIDTH: usize = 218;
const BOX_HEIGHT: usize = 40;
const MARGIN: usize = 12;

/// A volume at its place in the picture.
struct Node {
    id: u64,
    parent: Option<u64>,
    name: String,
    is_frozen: bool,
    own_bytes: u64,
    referenced_bytes: u64,
    column: usize,
}

/// Returns the volumes, each one behind its parent.
fn nodes(list: &Value) -> Vec<Node> {
    let mut left: Vec<&Value> = list.as_array().unwrap().iter().collect();
    let mut found: Vec<Node> = Vec::new();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|volume| {
            let parent = volume["parent"].as_u64();
            let place = match parent {
                None => Some((found.len(), 0)),
                Some(parent) => found
                    .iter()
                    .position(|node| node.id == parent)
                    .map(|place| {
                        let column = found[place].column;
                        let behind = found[place + 1..].iter();
                        let below = behind.take_while(|node| node.column > column).count();
                        (place + 1 + below, column + 1)
                    }),
            };
            let Some((place, column)) = place else {
                return true;
            };
            let number = |name: &str| volume[name].as_u64().unwrap();
            found.insert(
                place,
                Node {
                    id: number("id"),
                    parent,
                    name: volume["name"].as_str().unwrap().to_owned(),
                    is_frozen: volume["kind"] == "snapshot",
                    own_bytes: number("own_bytes"),
                    referenced_bytes: number("referenced_bytes"),
                    column,
                },
            );
            false
        });
        assert!(left.len() < before, "a parent is missing: {list}");
    }
    found
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20),
    }
}

fn label(name: &str) -> String {
    let mut short: String = name.chars().take(26).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short
}

fn draw(nodes: &[Node]) -> String {
    let columns = nodes.iter().map(|node| node.column).max().unwrap_or(0) + 1;
    let (width, height) = (columns * COLUMN + MARGIN, nodes.len() * ROW + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>The volumes of a pool, each with its own bytes and all that it maps</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let at = |row: usize, node: &Node| (MARGIN + node.column * COLUMN, MARGIN + row * ROW);
    for (row, node) in nodes.iter().enumerate() {
        let (x, y) = at(row, node);
        let above = nodes.iter().position(|other| Some(other.id) == node.parent);
        if let Some(above) = above {
            let (from_x, from_y) = at(above, &nodes[above]);
            let (from_x, from_y) = (from_x + 16, from_y + BOX_HEIGHT);
            let to = y + BOX_HEIGHT / 2;
            writeln!(
                svg,
                "<path d=\"M{from_x} {from_y}V{to}H{x}\" fill=\"none\" stroke=\"#888\"/>"
            )
            .unwrap();
        }
        let fill = if node.is_frozen { "#dbe9f6" } else { "#fdebc8" };
        let (name_y, size_y) = (y + 16, y + 32);
        let sizes = format!(
            "own {}, maps {}",
            size(node.own_bytes),
            size(node.referenced_bytes)
        );
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"4\" \
             fill=\"{fill}\" stroke=\"#555\"/>\n<text x=\"{0}\" y=\"{name_y}\" fill=\"#222\">{1}</text>\n\
             <text x=\"{0}\" y=\"{size_y}\" fill=\"#222\">{sizes}</text>",
            x + 8,
            label(&node.name)
        )
        .unwrap();
    }
    svg + "</svg>\n"
}

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("cowshed {command} --json"))).unwrap()
}

/// Returns what a reader calls the volumes of images and containers.
fn names(host: &Host) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for container in json(host, "container ls").as_array().unwrap() {
        let id = container["id"].as_str().unwrap();
        let name = container["name"].as_str().unwrap();
        names.insert(format!("container/{id}"), format!("container {name}"));
    }
    for image in json(host, "image ls").as_array().unwrap() {
        let name = image["names"][0].as_str().unwrap();
        let image = json(host, &format!("image inspect {name}"));
        let layers = image["layers"].as_array().unwrap();
        for (number, layer) in layers.iter().enumerate() {
            let volume = layer["volume"].as_str().unwrap().to_owned();
            let called = format!("layer {} of {name}", number + 1);
            names.entry(volume).or_insert(called);
        }
    }
    names
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
    let list = json(&host, "volume ls");
    let names = names(&host);
    host.stop();
    let mut nodes = nodes(&list);
    for node in &mut nodes {
        if let Some(name) = names.get(&node.name) {
            node.name.clone_from(name);
        }
    }
    let svg = draw(&nodes);
    assert!(nodes.len() >= 6, "{list}");
    assert_eq!(svg.matches("<rect x").count(), nodes.len());
    if std::env::var_os("COWSHED_WRITE_PICTURE").is_some() {
        std::fs::write(document::root().join("docs/pool.svg"), svg).unwrap();
    }
}
