//! `cowshed tree`: the forest of a pool as text, graph, picture and JSON, with and without a daemon.

use crate::harness::{Bench, eventually, noise};
use cowshed_engine::{OpenOptions, Pool};
use cowshed_format::base::Name;
use cowshed_format::device::{FileDevice, FileOptions};
use serde_json::Value;
use std::fs;
use std::sync::Arc;

/// A pool with a volume on its snapshot, a clone, and a removed snapshot that two volumes share.
fn bench() -> Bench {
    let bench = Bench::with_pool("256M");
    let input = bench.path("in");
    fs::write(&input, noise(1 << 20, 1)).unwrap();
    bench.ok(["volume", "import", "disk", input.to_str().unwrap()]);
    bench.ok(["volume", "snapshot", "disk", "disk@1"]);
    bench.ok(["volume", "clone", "disk@1", "copy"]);
    bench.ok(["volume", "import", "other", input.to_str().unwrap()]);
    bench.ok(["volume", "snapshot", "other", "other@1"]);
    bench.ok(["volume", "clone", "other@1", "another"]);
    bench.ok(["volume", "rm", "other@1"]);
    bench
}

fn drawn(bench: &Bench, arguments: &[&str], locale: &str) -> String {
    let output = bench
        .command([&["tree"], arguments].concat())
        .env("LC_ALL", locale)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the names in the first column, with the lines that lead to them.
fn names(text: &str) -> Vec<&str> {
    let kinds = [" volume", " snapshot", " removed"];
    let name = |line: &'_ str| kinds.iter().find_map(|kind| line.find(kind));
    text.lines()
        .filter_map(|line| name(line).map(|end| line[..end].trim_end()))
        .collect()
}

#[test]
fn the_forest_is_drawn_with_lines_that_the_terminal_has() {
    let bench = bench();
    let text = drawn(&bench, &[], "C.UTF-8");
    assert!(text.starts_with("NAME  "), "{text}");
    assert_eq!(
        names(&text),
        ["disk@1", "├─ disk", "└─ copy", "other", "another"]
    );
    let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    let ascii = drawn(&bench, &[], "C");
    assert_eq!(names(&ascii)[1..3], ["|- disk", "`- copy"]);
    assert_eq!(drawn(&bench, &["--ascii"], "C.UTF-8"), ascii);
}

#[test]
fn what_only_cowshed_uses_is_shown_when_it_is_asked_for() {
    let bench = bench();
    let all = drawn(&bench, &["--all"], "C.UTF-8");
    let shown = names(&all);
    assert_eq!(shown[4..], ["├─ other", "└─ another"]);
    assert!(shown[3].starts_with("(removed "), "{all}");
    let document = bench.json(["tree", "--all"]);
    let removed = &document[1];
    assert_eq!(removed["kind"], "removed");
    assert_eq!(removed["volume"], Value::Null);
    assert!(removed["own_bytes"].as_u64().unwrap() >= 1 << 20);
    assert_eq!(removed["children"].as_array().unwrap().len(), 2);
}

#[test]
fn the_document_nests_what_stands_on_what() {
    let bench = bench();
    let document = bench.json(["tree"]);
    let snapshot = &document[0];
    assert_eq!(snapshot["name"], "disk@1");
    assert_eq!(snapshot["kind"], "snapshot");
    let children = snapshot["children"].as_array().unwrap();
    let names: Vec<_> = children
        .iter()
        .map(|child| child["name"].as_str())
        .collect();
    assert_eq!(names, [Some("disk"), Some("copy")]);
    assert!(children[1]["shared_bytes"].as_u64().unwrap() > 0);
    // The sum of what each owns is what all of them cost.
    assert_eq!(document.as_array().unwrap().len(), 3);
    assert_eq!(
        Bench::with_pool("64M").json(["tree"]),
        serde_json::json!([])
    );
}

#[test]
fn graphs_and_pictures_are_whole_and_go_with_no_other_form() {
    let bench = bench();
    let graph = drawn(&bench, &["--format", "dot"], "C");
    assert!(graph.starts_with("digraph pool {") && graph.ends_with("}\n"));
    assert_eq!(graph.matches(" -> ").count(), 2);
    let picture = drawn(&bench, &["--format", "svg"], "C");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("<rect x").count(), 5);
    let both = bench
        .command(["tree", "--format", "svg", "--json"])
        .output();
    let both = both.unwrap();
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

#[test]
fn a_chain_of_thousands_of_volumes_is_drawn_in_every_form() {
    const LINKS: usize = 1500;
    let bench = Bench::with_pool("256M");
    let device = FileDevice::open(bench.pool(), FileOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &OpenOptions::default()).unwrap();
    let name = |kind: &str, link: usize| Name::new(&format!("{kind}{link}")).unwrap();
    let mut volume = pool.create_volume(&name("v", 0), 1 << 20).unwrap();
    for link in 1..=LINKS {
        let snapshot = pool.snapshot(&volume, &name("s", link)).unwrap();
        volume = pool.clone_volume(&snapshot, &name("v", link)).unwrap();
    }
    pool.close().unwrap();
    drop((volume, pool));
    // A process that another test has just started may still hold the lock with its descriptors.
    eventually("an end of the lock", || {
        bench.run(["pool", "status"]).status.success()
    });
    let text = drawn(&bench, &[], "C.UTF-8");
    // A snapshot and a volume for each link, and the first volume below a heading.
    assert_eq!(text.lines().count(), 2 * LINKS + 2);
    assert!(text.lines().all(|line| line.chars().count() < 100));
    let json = drawn(&bench, &["--json"], "C");
    assert_eq!(json.matches("\"children\":[").count(), 2 * LINKS + 1);
    let picture = drawn(&bench, &["--format", "svg"], "C");
    assert_eq!(picture.matches("<rect x").count(), 2 * LINKS + 1);
}

#[test]
fn a_daemon_draws_the_same() {
    let bench = bench();
    let ask = || {
        let forms: [&[&str]; 4] = [&[], &["--all"], &["--format", "dot"], &["--format", "svg"]];
        forms.map(|form| drawn(&bench, form, "C.UTF-8"))
    };
    let alone = ask();
    let document = bench.json(["tree"]);
    let daemon = bench.serve();
    assert_eq!(ask(), alone);
    assert_eq!(bench.json(["tree"]), document);
    daemon.stop();
}
