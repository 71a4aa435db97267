//! Registries and token servers that answer a push in a way that is unusual and allowed, or that have
//! short failures.

use crate::command;
use crate::fake::{Answer, Request, Server};
use crate::shelf::{Shelf, digest};
use cowshed_testkit::harness::{Bench, noise};
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

/// Returns a pool with the image `app:1`, whose layer is larger than what is sent in one request.
fn with_image() -> Bench {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("large"), noise(3 << 20, 1)).unwrap();
    bench.ok_quietly(["image", "import", root.to_str().unwrap(), "--name", "app:1"]);
    bench
}

fn push_to(bench: &Bench, server: &str, repository: &str) -> Output {
    let target = format!("{server}/{repository}:1");
    let arguments = ["image", "push", "--plain-http", "--json", "app:1", &target];
    command(bench, arguments).output().unwrap()
}

/// Asserts that the push succeeded, and that the registry has what the manifest states.
fn expect_whole(output: &Output, shelf: &Shelf) -> Value {
    assert!(output.status.success(), "{output:?}");
    let pushed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let manifest = shelf.manifest("1").unwrap();
    assert_eq!(pushed["manifest"], json!(digest(&manifest)));
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let blobs = shelf.blobs();
    let layers = manifest["layers"].as_array().unwrap();
    for part in layers.iter().chain([&manifest["config"]]) {
        let blob = &blobs[part["digest"].as_str().unwrap()];
        assert_eq!(part["size"], json!(blob.len()));
    }
    pushed
}

#[test]
fn an_empty_answer_may_state_the_type_of_a_page() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request: &Request| {
        let mut answer = serving.answer(request);
        if ["POST", "PATCH", "PUT"].contains(&request.method.as_str()) {
            answer = answer.with("content-type", "text/html; charset=utf-8");
        }
        if request.method == "POST" {
            // As Quay says that it has nothing yet.
            answer = answer.with("range", "bytes=0--1");
        }
        answer
    });
    let bench = with_image();
    expect_whole(&push_to(&bench, &server.name, "a/b"), &shelf);
}
