//! Registries and token servers that answer a push in a way that is unusual and allowed, or that have
//! short failures.

use crate::command;
use crate::fake::{Answer, Request, Server};
use crate::shelf::{Shelf, digest};
use cowshed_testkit::harness::{Bench, noise};
use serde_json::{Value, json};
use std::fs;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Returns a pool with the image `app:1`, whose layer is larger than what is sent in one request.
pub(crate) fn with_image() -> Bench {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("large"), noise(3 << 20, 1)).unwrap();
    bench.ok_quietly(["image", "import", root.to_str().unwrap(), "--name", "app:1"]);
    bench
}

pub(crate) fn push_to(bench: &Bench, server: &str, repository: &str) -> Output {
    let target = format!("{server}/{repository}:1");
    let arguments = ["image", "push", "--plain-http", "--json", "app:1", &target];
    command(bench, arguments).output().unwrap()
}

/// Asserts that the push succeeded, and that the registry has what the manifest states.
pub(crate) fn expect_whole(output: &Output, shelf: &Shelf) -> Value {
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

/// Returns a limit that cuts the connection of the first `count` parts of a layer after a MiB.
fn cut_first(count: usize) -> impl Fn(&Request) -> Option<usize> + Send + Sync {
    let cuts = AtomicUsize::new(0);
    move |request| {
        let is_cut = request.method == "PATCH" && cuts.fetch_add(1, Ordering::Relaxed) < count;
        is_cut.then_some(1 << 20)
    }
}

#[test]
fn a_failure_to_say_how_much_came_loses_nothing_of_it() {
    let shelf = Shelf::default();
    let (serving, asked) = (shelf.clone(), AtomicUsize::new(0));
    let server = Server::start_cutting(cut_first(1), move |request| {
        if request.method == "GET" && asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer::new(503, "{}");
        }
        serving.answer(request)
    });
    let bench = with_image();
    expect_whole(&push_to(&bench, &server.name, "a/b"), &shelf);
    let parts = server.asked();
    let parts: Vec<Option<&str>> = parts
        .iter()
        .filter(|one| one.method == "PATCH")
        .map(|one| one.header("content-range"))
        .collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert!(parts[1].unwrap().starts_with("1048576-"), "{parts:?}");
}

#[test]
fn a_registry_that_loses_what_it_had_again_and_again_is_given_up() {
    let shelf = Shelf::default();
    let (serving, asked) = (shelf.clone(), AtomicUsize::new(0));
    // Each part is cut. It says that it has a part of it, and then that it knows of none.
    let server = Server::start_cutting(cut_first(usize::MAX), move |request| {
        match request.method.as_str() {
            "GET" if asked.fetch_add(1, Ordering::Relaxed) % 2 == 1 => Answer::new(404, "{}"),
            _ => serving.answer(request),
        }
    });
    let bench = with_image();
    let output = push_to(&bench, &server.name, "a/b");
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap();
    let line = failure["error"].as_str().unwrap();
    assert!(line.contains("keeps nothing"), "{line}");
    assert!(shelf.manifest("1").is_none());
    let all = server.asked();
    let begun = all.iter().filter(|one| one.method == "POST").count();
    assert!((2..=6).contains(&begun), "{begun}");
}

#[test]
fn a_token_server_that_refuses_to_let_layers_be_taken_over_does_not_stop_the_push() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            let asked = request.path.matches("scope=").count();
            return match asked {
                1 => Answer::new(200, r#"{"token": "own"}"#),
                _ => Answer::new(400, r#"{"details": "too many scopes"}"#),
            };
        }
        if request.header("authorization").is_none() {
            let host = request.header("host").unwrap();
            let wants = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
            return Answer::new(401, "{}").with("www-authenticate", wants);
        }
        // The second repository has nothing of the first one.
        if request.method == "HEAD" && request.path.starts_with("/v2/c/d/") {
            return Answer::new(404, "{}");
        }
        serving.answer(request)
    });
    let bench = with_image();
    expect_whole(&push_to(&bench, &server.name, "a/b"), &shelf);
    let pushed = expect_whole(&push_to(&bench, &server.name, "c/d"), &shelf);
    assert_eq!(pushed["layers"][0]["reused"], false);
    let asked = server.asked();
    let is_refused = |path: &str| path.matches("scope=").count() == 2;
    assert!(asked.iter().any(|one| is_refused(&one.path)), "{asked:?}");
}
