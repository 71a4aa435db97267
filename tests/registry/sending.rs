//! Registries and token servers that answer a push in a way that is unusual and allowed, or that have
//! short failures.

use crate::command;
use crate::fake::{Answer, Request, Server};
use crate::shelf::{Shelf, digest};
use cowshed_testkit::harness::{Bench, Reaped, eventually, host, noise};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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

/// Asserts that the push failed with one line that says why.
pub(crate) fn expect_line(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{why}: {output:?}");
    let failure: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let line = failure["error"].as_str().unwrap();
    assert!(line.contains(why), "{why:?} is not in {line:?}");
    assert_eq!(line.lines().count(), 1, "{line:?}");
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
    expect_line(&output, "broke");
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

#[test]
fn one_who_may_not_push_is_told_so() {
    let shelf = Shelf::default();
    let server = Server::start(move |request| match request.method.as_str() {
        "POST" => Answer::new(403, "{}"),
        _ => shelf.answer(request),
    });
    let bench = with_image();
    let output = push_to(&bench, &server.name, "a/b");
    expect_line(&output, "or ask for the right to push");
}

/// A file system of 64 KiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let point = path.to_str().unwrap();
        host("mount", ["-t", "tmpfs", "-o", "size=64k", "none", point]);
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_folder_for_layers_is_named() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request| serving.answer(request));
    let bench = with_image();
    let _disk = SmallDisk::at(bench.path("cache"));
    let folder = bench.path("cache").display().to_string();
    let daemon = bench.serve();
    for _ in 0..2 {
        let output = push_to(&bench, &server.name, "a/b");
        expect_line(&output, &format!("the folder {folder}: No space left"));
    }
    daemon.stop();
    let output = push_to(&bench, &server.name, "a/b");
    expect_line(&output, &format!("the folder {folder}: No space left"));
    assert!(shelf.manifest("1").is_none());
}

/// Returns a pool with the image `five:1` of five layers, of which only the lowest is small.
fn with_five_layers() -> Bench {
    let bench = Bench::with_pool("2G");
    let root = bench.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("small"), "small").unwrap();
    let import = ["image", "import", root.to_str().unwrap(), "--name", "one:1"];
    bench.ok_quietly(import);
    let names = ["one:1", "two:1", "three:1", "four:1", "five:1"];
    for (number, pair) in (1..).zip(names.windows(2)) {
        let file = bench.path("file");
        fs::write(&file, noise(2 << 20, number)).unwrap();
        let maker = format!("maker{number}");
        bench.ok_quietly(["container", "create", pair[0], "--name", &maker]);
        let target = format!("{maker}:/file{number}");
        bench.ok(["container", "cp", file.to_str().unwrap(), &target]);
        bench.ok_quietly(["container", "commit", &maker, pair[1]]);
    }
    bench
}

#[test]
fn what_an_interrupted_push_has_stored_is_remembered() {
    let shelf = Shelf::default();
    let waits = Arc::new(Mutex::new(()));
    let waiting = Arc::clone(&waits);
    let server = Server::start(move |request| {
        if request.method == "PATCH" {
            // The answer comes once the test is over.
            let _held = waiting.lock();
        }
        shelf.answer(request)
    });
    let bench = with_five_layers();
    let held = waits.lock().unwrap();
    let target = format!("{}/a/b:1", server.name);
    let arguments = ["image", "push", "--plain-http", "five:1", &target];
    let mut command = command(&bench, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = Reaped(command.spawn().unwrap());
    // The thread that stored the small layer has begun the fifth one, after it said so.
    eventually("the large layers", || {
        let asked = server.asked();
        asked.iter().filter(|one| one.method == "PATCH").count() == 4
    });
    host("kill", ["-INT".to_owned(), child.0.id().to_string()]);
    eventually("the push's end", || child.0.try_wait().unwrap().is_some());
    drop(held);
    let labels = bench.ok(["pool", "dump", "--names"]);
    assert_eq!(labels.matches("cowshed.blobs").count(), 1, "{labels}");
}
