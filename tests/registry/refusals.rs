//! Registries that break, lie and take nothing: what can pass is overcome, and everything else is
//! one clear line, with no manifest in the registry.

use crate::command;
use crate::fake::{Answer, Request, Server};
use crate::sending::{expect_line, expect_whole, push_to, with_image};
use crate::shelf::Shelf;
use cowshed_testkit::harness::{Bench, Reaped, eventually, host};
use serde_json::json;
use std::fs;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn push(bench: &Bench, server: &str) -> Output {
    push_to(bench, server, "a/b")
}

fn is_for_layer(request: &Request) -> bool {
    request.method == "PATCH"
}

/// Asserts that the push failed with one line, and that the registry has no manifest.
fn expect_nothing(output: &Output, shelf: &Shelf, why: &str) {
    expect_line(output, why);
    assert!(shelf.manifest("1").is_none(), "{why}");
}

#[test]
fn nothing_is_sent_that_the_registry_has() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request| serving.answer(request));
    let bench = with_image();
    expect_whole(&push(&bench, &server.name), &shelf);
    let before = server.asked().len();
    let pushed = expect_whole(&push(&bench, &server.name), &shelf);
    assert_eq!(pushed["layers"][0]["reused"], true);
    let asked = server.asked()[before..].to_vec();
    let asked: Vec<&str> = asked.iter().map(|one| one.method.as_str()).collect();
    assert_eq!(
        asked,
        ["HEAD", "HEAD", "PUT"],
        "the layer, the configuration, the manifest"
    );
}

#[test]
fn a_cut_upload_goes_on_where_it_was_and_passing_failures_are_overcome() {
    let shelf = Shelf::default();
    let (serving, tries) = (shelf.clone(), AtomicUsize::new(0));
    let cuts = AtomicUsize::new(0);
    let limit = move |request: &Request| {
        let cut = is_for_layer(request) && cuts.fetch_add(1, Ordering::Relaxed) < 2;
        cut.then_some(1 << 20)
    };
    let server = Server::start_cutting(limit, move |request| {
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::new(429, "{}").with("retry-after", "1"),
            2 => Answer::new(500, "<html>"),
            _ => serving.answer(request),
        }
    });
    let bench = with_image();
    expect_whole(&push(&bench, &server.name), &shelf);
    let asked = server.asked();
    let ranges: Vec<Option<&str>> = asked
        .iter()
        .filter(|one| is_for_layer(one))
        .map(|one| one.header("content-range"))
        .collect();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    assert!(ranges[1].unwrap().starts_with("1048576-"), "{ranges:?}");
    assert!(ranges[2].unwrap().starts_with("2097152-"), "{ranges:?}");
}

#[test]
fn a_blob_whose_last_answer_was_lost_is_not_sent_again() {
    let shelf = Shelf::default();
    let (serving, tries) = (shelf.clone(), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let answer = serving.answer(request);
        let is_last = request.method == "PUT" && request.path.contains("digest=");
        if is_last && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer::new(504, "{}");
        }
        answer
    });
    let bench = with_image();
    expect_whole(&push(&bench, &server.name), &shelf);
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|one| is_for_layer(one)).count(), 1);
}

#[test]
fn an_upload_that_the_registry_forgets_begins_anew() {
    for forgets in ["the place", "the bytes"] {
        let shelf = Shelf::default();
        let (serving, cuts) = (shelf.clone(), AtomicUsize::new(0));
        let limit = move |request: &Request| {
            let cut = is_for_layer(request) && cuts.fetch_add(1, Ordering::Relaxed) == 0;
            cut.then_some(1 << 20)
        };
        let server = Server::start_cutting(limit, move |request| {
            match (request.method.as_str(), forgets) {
                ("GET", "the place") => Answer::new(404, "{}"),
                // It says that it has more than it has.
                ("GET", _) => Answer::new(204, "").with("range", "0-2000000"),
                _ => serving.answer(request),
            }
        });
        let bench = with_image();
        expect_whole(&push(&bench, &server.name), &shelf);
        let begun = server
            .asked()
            .iter()
            .filter(|one| one.method == "POST")
            .count();
        assert_eq!(
            begun, 3,
            "{forgets}: the layer twice, the configuration once"
        );
    }
}

#[test]
fn a_registry_that_takes_nothing_or_lies_is_one_line() {
    type Lie = fn(&Request, Answer) -> Answer;
    let lies: [(&str, Lie); 10] = [
        ("it answered 413: too big for us", |request, answer| {
            let detail = r#"{"errors": [{"code": "SIZE", "message": "too big for us"}]}"#;
            match request.method.as_str() {
                "PATCH" => Answer::new(413, detail),
                _ => answer,
            }
        }),
        ("log in", |request, answer| match request.method.as_str() {
            "POST" => Answer::new(403, "{}"),
            _ => answer,
        }),
        (
            "has no repository a/b: no such project",
            |request, answer| {
                let detail =
                    r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no such project"}]}"#;
                match request.method.as_str() {
                    "POST" => Answer::new(404, detail),
                    _ => answer,
                }
            },
        ),
        ("as no registry does", |request, answer| {
            match request.method.as_str() {
                "POST" => Answer::new(200, "<html>").with("content-type", "text/html"),
                _ => answer,
            }
        }),
        ("as no registry does", |request, answer| {
            match request.method.as_str() {
                "HEAD" => Answer::new(200, "<html>").with("content-type", "text/html"),
                _ => answer,
            }
        }),
        ("names no place", |request, answer| {
            match request.method.as_str() {
                "POST" => Answer::new(202, ""),
                _ => answer,
            }
        }),
        (
            "would be lost on the way",
            |request, answer| match request.method.as_str() {
                "PATCH" => Answer::new(302, "").with("location", "/v2/elsewhere"),
                _ => answer,
            },
        ),
        ("do not trust it", |request, mut answer| {
            if request.method == "PUT" && answer.status == 201 {
                let other = format!("sha256:{}", "0".repeat(64));
                answer.headers = vec![("docker-content-digest", other)];
            }
            answer
        }),
        ("DIGEST_INVALID", |request, answer| {
            match request.path.contains("digest=") {
                true => Answer::new(400, r#"{"errors": [{"code": "DIGEST_INVALID"}]}"#),
                false => answer,
            }
        }),
        ("unknown to \\u{1b}[31mus", |request, answer| {
            let detail = r#"{"errors": [{"message": "unknown to \u001b[31mus"}]}"#;
            match request.path.contains("/manifests/") {
                true => Answer::new(400, detail),
                false => answer,
            }
        }),
    ];
    for (why, lie) in lies {
        let shelf = Shelf::default();
        let serving = shelf.clone();
        let server = Server::start(move |request| {
            // The manifest is not kept if its answer is another one.
            if request.path.contains("/manifests/") {
                return lie(request, Answer::new(201, ""));
            }
            lie(request, serving.answer(request))
        });
        let bench = with_image();
        expect_nothing(&push(&bench, &server.name), &shelf, why);
        let is_manifest =
            |asked: &&Request| asked.method == "PUT" && asked.path.contains("/manifests/");
        let sent = server.asked().iter().filter(is_manifest).count();
        assert_eq!(sent, usize::from(why.starts_with("unknown to")), "{why}");
    }
}

#[test]
fn a_registry_that_is_always_busy_is_given_up() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request| match request.method.as_str() {
        "POST" => Answer::new(429, "{}").with("retry-after", "3600"),
        _ => serving.answer(request),
    });
    let bench = with_image();
    expect_nothing(&push(&bench, &server.name), &shelf, "answered 429");
    assert_eq!(
        server
            .asked()
            .iter()
            .filter(|one| one.method == "POST")
            .count(),
        1
    );
}

#[test]
fn credentials_stay_with_the_registry_when_it_wants_the_bytes_elsewhere() {
    let shelf = Shelf::default();
    let behind = shelf.clone();
    let storage = Arc::new(Server::start(move |request| behind.answer(request)));
    let (serving, elsewhere) = (shelf.clone(), storage.name.clone());
    let server = Server::start(move |request| {
        // "me:secret"
        if request.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            return Answer::new(401, "{}").with("www-authenticate", "Basic realm=x");
        }
        if request.method == "POST" {
            let mut answer = serving.answer(request);
            for (_, value) in &mut answer.headers {
                *value = format!("http://{elsewhere}{value}");
            }
            return answer;
        }
        serving.answer(request)
    });
    let bench = with_image();
    let login = bench.path("auth.json");
    let entry = json!({"auths": {&server.name: {"username": "me", "password": "secret"}}});
    fs::write(&login, entry.to_string()).unwrap();
    let target = format!("{}/a/b:1", server.name);
    let arguments = ["image", "push", "--plain-http", "--json", "app:1", &target];
    let output = command(&bench, arguments)
        .env("REGISTRY_AUTH_FILE", login)
        .output()
        .unwrap();
    expect_whole(&output, &shelf);
    let asked = storage.asked();
    assert!(asked.len() >= 3, "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|one| one.header("authorization").is_none())
    );
}

#[test]
fn a_push_that_is_interrupted_or_killed_ends_and_leaves_nothing() {
    let shelf = Shelf::default();
    let (serving, waits) = (shelf.clone(), Arc::new(Mutex::new(())));
    let waiting = Arc::clone(&waits);
    let server = Server::start(move |request| {
        if is_for_layer(request) {
            // The answer comes once the test is over.
            let _held = waiting.lock();
        }
        serving.answer(request)
    });
    let bench = with_image();
    let target = format!("{}/a/b:1", server.name);
    let held = waits.lock().unwrap();
    let mut daemon = None;
    for (number, signal) in ["INT", "KILL", "INT", "KILL"].into_iter().enumerate() {
        if number == 2 {
            daemon = Some(bench.serve());
        }
        let arguments = ["image", "push", "--plain-http", "app:1", &target];
        let mut command = command(&bench, arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Reaped(command.spawn().unwrap());
        eventually("the upload", || {
            let asked = server.asked();
            asked.iter().filter(|one| is_for_layer(one)).count() == number + 1
        });
        host("kill", [format!("-{signal}"), child.0.id().to_string()]);
        eventually("the push's end", || child.0.try_wait().unwrap().is_some());
        if signal == "INT" {
            let mut said = String::new();
            let mut error = child.0.stderr.take().unwrap();
            std::io::Read::read_to_string(&mut error, &mut said).unwrap();
            assert!(said.contains("interrupted"), "{said}");
        }
        assert!(shelf.manifest("1").is_none());
    }
    if let Some(daemon) = daemon {
        daemon.stop();
    }
    drop(held);
    let left = bench.volumes();
    assert!(
        !left.iter().any(|name| name.starts_with("work/")),
        "{left:?}"
    );
    bench.expect_sound();
}
