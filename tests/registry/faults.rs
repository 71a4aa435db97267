//! Registries that break, lie, and send what is no image: one clear line, and nothing half-made.

use crate::command;
use crate::fake::{Answer, Request, Server};
use cowshed_testkit::fixtures::busybox;
use cowshed_testkit::harness::{Bench, expect_failure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An image as a registry has it.
#[derive(Clone)]
struct Stored {
    /// The blobs and manifests by digest.
    blobs: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    /// The digests of its layers, lowest first.
    layers: Vec<String>,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Stored {
    fn of(layout: &Path) -> Self {
        let mut blobs = HashMap::new();
        for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            blobs.insert(digest(&bytes), bytes);
        }
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let top = index["manifests"][0]["digest"].as_str().unwrap();
        let manifest = blobs[top].clone();
        let value: Value = serde_json::from_slice(&manifest).unwrap();
        let layers = value["layers"].as_array().unwrap();
        let layers = layers
            .iter()
            .map(|layer| layer["digest"].as_str().unwrap().to_owned());
        let layers = layers.collect();
        Self {
            blobs,
            manifest,
            layers,
        }
    }

    fn busy() -> Self {
        Self::of(&busybox::image().oci)
    }

    /// Answers as a registry should.
    fn answer(&self, request: &Request) -> Answer {
        let name = request.path.rsplit('/').next().unwrap();
        if request.path.contains("/manifests/") {
            let bytes = self.blobs.get(name).unwrap_or(&self.manifest);
            return Answer::new(200, bytes.clone()).with("content-type", MANIFEST_TYPE);
        }
        match self.blobs.get(name) {
            Some(bytes) => Answer::part(request, bytes),
            None => Answer::new(404, "{}"),
        }
    }

    /// Returns true if the request is for the layer with this index.
    fn is_layer(&self, request: &Request, index: usize) -> bool {
        request.path.ends_with(&self.layers[index])
    }
}

fn pull(bench: &Bench, server: &str) -> Output {
    let name = format!("{server}/a/b:1");
    let arguments = ["image", "pull", "--plain-http", "--json", &name];
    command(bench, arguments).output().unwrap()
}

fn expect_whole(bench: &Bench, output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.json(["image", "ls"])[0]["layers"], 3);
}

/// Asserts that the pull failed with one line, and left nothing.
fn expect_nothing(bench: &Bench, output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{why}: {output:?}");
    let failure: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let line = failure["error"].as_str().unwrap();
    assert!(
        line.contains(why) && line.lines().count() == 1,
        "{why:?} is not in {line:?}"
    );
    let left = bench.volumes();
    let left = left.iter().filter(|name| !name.starts_with("template/"));
    assert_eq!(left.count(), 0, "{why}");
    assert_eq!(bench.json(["image", "ls"]), json!([]));
}

#[test]
fn broken_connections_and_passing_failures_are_overcome() {
    let stored = Stored::busy();
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let answer = stored.answer(request);
        let body = answer.body.len();
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::new(429, "{}").with("retry-after", "1"),
            1 => Answer::new(500, "<html>"),
            2 => answer.cut_after(10),
            // Each layer comes in pieces; one that is asked for in part is once sent whole.
            _ if stored.is_layer(request, 0) && request.from() == 0 => answer.cut_after(body / 2),
            _ if stored.is_layer(request, 0) => {
                Answer::new(200, stored.blobs[&stored.layers[0]].clone())
            }
            _ if stored.is_layer(request, 1) && body > 1 => answer.cut_after(body.div_ceil(2)),
            _ => answer,
        }
    });
    let bench = Bench::with_pool("2G");
    let output = pull(&bench, &server.name);
    expect_whole(&bench, &output);
    assert!(server.asked().iter().any(|request| request.from() > 0));
    bench.expect_sound();
}

#[test]
fn an_interrupted_pull_goes_on_where_it_was_whatever_was_left() {
    for damaged in [false, true] {
        let stored = Stored::busy();
        let is_down = Arc::new(AtomicUsize::new(1));
        let (down, serving) = (Arc::clone(&is_down), stored.clone());
        let server = Server::start(move |request| {
            let answer = serving.answer(request);
            let body = answer.body.len();
            let breaks = serving.is_layer(request, 0) && down.load(Ordering::Relaxed) == 1;
            match request.from() {
                0 if breaks => answer.cut_after(body / 2),
                _ if breaks => Answer::new(503, "{}"),
                _ => answer,
            }
        });
        let bench = Bench::with_pool("2G");
        expect_nothing(&bench, &pull(&bench, &server.name), "answered 503");
        let hex = stored.layers[0].strip_prefix("sha256:").unwrap();
        let kept = bench.path("cache").join(hex);
        let half = stored.blobs[&stored.layers[0]].len() / 2;
        assert_eq!(fs::metadata(&kept).unwrap().len(), half as u64);
        if damaged {
            fs::write(&kept, vec![7; half]).unwrap();
        }
        is_down.store(0, Ordering::Relaxed);
        let before = server.asked().len();
        let output = pull(&bench, &server.name);
        expect_whole(&bench, &output);
        let asked = server.asked()[before..].to_vec();
        let of_layer = asked.iter().filter(|one| stored.is_layer(one, 0));
        let from: Vec<usize> = of_layer.map(Request::from).collect();
        assert_eq!(from, if damaged { vec![half, 0] } else { vec![half] });
        assert!(!kept.exists());
    }
}

#[test]
fn a_registry_that_lies_about_a_layer_is_told_apart_and_nothing_stays() {
    type Lie = fn(Answer) -> Answer;
    let lies: [(&str, Lie); 5] = [
        ("when asked for", |mut answer| {
            let last = answer.body.len() - 1;
            answer.body[last] ^= 1;
            answer
        }),
        ("which should have", |mut answer| {
            answer.body.pop();
            answer
        }),
        ("which should have", |mut answer| {
            answer.body.push(0);
            answer
        }),
        ("as no registry does", |_| {
            Answer::new(200, "<html>Please log in</html>").with("content-type", "text/html")
        }),
        ("does not have the layer", |_| Answer::new(404, "{}")),
    ];
    for (why, lie) in lies {
        let stored = Stored::busy();
        let server = Server::start(move |request| {
            let answer = stored.answer(request);
            if stored.is_layer(request, 1) {
                lie(answer)
            } else {
                answer
            }
        });
        let bench = Bench::with_pool("2G");
        expect_nothing(&bench, &pull(&bench, &server.name), why);
    }
}

#[test]
fn what_is_no_image_is_refused_before_any_layer_is_fetched() {
    let stored = Stored::busy();
    let manifest: Value = serde_json::from_slice(&stored.manifest).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        serde_json::to_vec(&changed).unwrap()
    };
    let config_type = |kind: &str| with(&|value| value["config"]["mediaType"] = json!(kind));
    let nested = |blobs: &mut HashMap<String, Vec<u8>>| {
        let mut inner = stored.manifest.clone();
        let mut kind = MANIFEST_TYPE;
        for _ in 0..6 {
            let entry = json!({"mediaType": kind, "digest": digest(&inner), "size": inner.len()});
            blobs.insert(digest(&inner), inner);
            let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]});
            inner = serde_json::to_vec(&index).unwrap();
            kind = INDEX_TYPE;
        }
        inner
    };
    let mut blobs = stored.blobs.clone();
    let nested = nested(&mut blobs);
    let sha512 = format!("sha512:{}", "0".repeat(128));
    for (why, top) in [
        (
            "has the media type",
            config_type("application/vnd.cncf.helm.config.v1+json"),
        ),
        (
            "has the media type",
            config_type("application/vnd.oci.empty.v1+json"),
        ),
        (
            "has the media type",
            with(&|value| {
                let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
                value["layers"][0]["mediaType"] = json!(kind);
            }),
        ),
        (
            "is not a sha256 digest",
            with(&|value| value["layers"][0]["digest"] = json!(sha512)),
        ),
        (
            "layers but the configuration",
            with(&|value| value["layers"] = json!([])),
        ),
        ("nested too deeply", nested),
        (
            "lists no image",
            br#"{"schemaVersion": 2, "manifests": []}"#.to_vec(),
        ),
        (
            "has the media type",
            br#"{"schemaVersion": 1, "name": "old"}"#.to_vec(),
        ),
        ("is not valid", b"not JSON".to_vec()),
        (
            "as no registry does",
            b"<html><body>Welcome</body></html>".to_vec(),
        ),
        ("larger than 4194304 bytes", vec![b' '; 100 << 20]),
    ] {
        let serving = Stored {
            blobs: blobs.clone(),
            ..stored.clone()
        };
        let server = Server::start(move |request| {
            if request.path.ends_with("/manifests/1") {
                let is_page = top.starts_with(b"<html>");
                let kind = if is_page {
                    "text/html; charset=utf-8"
                } else {
                    MANIFEST_TYPE
                };
                return Answer::new(200, top.clone()).with("content-type", kind);
            }
            serving.answer(request)
        });
        let bench = Bench::with_pool("2G");
        expect_nothing(&bench, &pull(&bench, &server.name), why);
        assert!(
            stored.layers.iter().all(|layer| server.count(layer) == 0),
            "{why}"
        );
    }
}

/// Writes a login for the server; returns the file.
fn login(bench: &Bench, server: &str) -> std::path::PathBuf {
    let path = bench.path("auth.json");
    let entry = json!({"auths": {server: {"username": "me", "password": "secret"}}});
    fs::write(&path, entry.to_string()).unwrap();
    path
}

#[test]
fn credentials_follow_no_redirect_and_go_to_the_token_server_that_is_named() {
    let stored = Stored::busy();
    let behind = stored.clone();
    let storage = Server::start(move |request| behind.answer(request));
    let tokens = Server::start(|request| match request.header("authorization") {
        // "me:secret"
        Some("Basic bWU6c2VjcmV0") => Answer::new(200, r#"{"token": "t0ken"}"#),
        _ => Answer::new(401, "{}"),
    });
    let (elsewhere, realm) = (storage.name.clone(), tokens.name.clone());
    let server = Server::start(move |request| {
        if request.header("authorization") != Some("Bearer t0ken") {
            let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"s\"");
            return Answer::new(401, "{}").with("www-authenticate", challenge);
        }
        if request.path.contains("/blobs/") {
            let place = format!("http://{elsewhere}{}", request.path);
            return Answer::new(307, "").with("location", place);
        }
        stored.answer(request)
    });
    let bench = Bench::with_pool("2G");
    let name = format!("{}/a/b:1", server.name);
    let output = command(&bench, ["image", "pull", "--plain-http", &name])
        .env("REGISTRY_AUTH_FILE", login(&bench, &server.name))
        .output()
        .unwrap();
    expect_whole(&bench, &output);
    let asked = storage.asked();
    assert!(asked.len() >= 4, "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|one| one.header("authorization").is_none())
    );
    let of_tokens = tokens.asked();
    assert_eq!(of_tokens.len(), 1, "one token serves all requests");
    assert!(
        of_tokens[0]
            .path
            .contains("scope=repository%3Aa%2Fb%3Apull"),
        "{of_tokens:?}"
    );
}

#[test]
fn redirects_that_lead_nowhere_good_are_not_followed() {
    for (place, why) in [
        ("/v2/a/b/manifests/1", "too many in a row"),
        ("file:///etc/passwd", "not on HTTP"),
        ("", "names no place"),
    ] {
        let server = Server::start(move |_| {
            let answer = Answer::new(302, "");
            if place.is_empty() {
                answer
            } else {
                answer.with("location", place)
            }
        });
        let bench = Bench::with_pool("2G");
        expect_nothing(&bench, &pull(&bench, &server.name), why);
    }
}

#[test]
fn a_registry_that_refuses_or_is_not_there_is_one_line() {
    let bench = Bench::with_pool("2G");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = closed.local_addr().unwrap().to_string();
    drop(closed);
    expect_nothing(&bench, &pull(&bench, &name), "cannot be reached");
    let detail = r#"{"errors": [{"code": "DENIED", "message": "not\u001b[31m for you"}]}"#;
    let denied = Server::start(move |_| Answer::new(403, detail));
    expect_nothing(
        &bench,
        &pull(&bench, &denied.name),
        "not\\u{1b}[31m for you",
    );
    let asks = Server::start(|_| Answer::new(401, "{}").with("www-authenticate", "Basic realm=x"));
    expect_nothing(&bench, &pull(&bench, &asks.name), "log in");
    let busy = Server::start(|_| Answer::new(429, "{}").with("retry-after", "3600"));
    expect_nothing(&bench, &pull(&bench, &busy.name), "answered 429");
    assert_eq!(busy.asked().len(), 1, "an hour is not waited for");
    let wrong = command(&bench, ["image", "pull", "Not/A Name"])
        .output()
        .unwrap();
    expect_failure(&wrong, 1, "is not valid");
}

#[test]
fn a_pull_that_has_no_place_for_layers_ends() {
    let stored = Stored::busy();
    let server = Server::start(move |request| stored.answer(request));
    let bench = Bench::with_pool("2G");
    let name = format!("{}/a/b:1", server.name);
    let mut command = command(&bench, ["image", "pull", "--plain-http", "--json", &name]);
    // No folder can be made below the first one.
    command
        .env("COWSHED_CACHE", "/proc/none")
        .env("TMPDIR", "/proc/none");
    expect_nothing(&bench, &command.output().unwrap(), "temporary file");
}

#[test]
fn a_helper_is_not_looked_for_in_the_current_folder() {
    let stored = Stored::busy();
    let server = Server::start(move |request| stored.answer(request));
    let bench = Bench::with_pool("2G");
    let here = bench.path("here");
    fs::create_dir_all(here.join(".docker")).unwrap();
    let program = here.join("docker-credential-near");
    fs::write(&program, "#!/bin/sh\ntouch was-run\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({ "credsStore": "near" });
    fs::write(here.join(".docker/config.json"), config.to_string()).unwrap();
    let name = format!("{}/a/b:1", server.name);
    let mut command = command(&bench, ["image", "pull", "--plain-http", "--json", &name]);
    let search_path = format!(".:{}", std::env::var("PATH").unwrap());
    command
        .current_dir(&here)
        .env("HOME", &here)
        .env("PATH", search_path);
    // A public image needs no credentials.
    let output = command.output().unwrap();
    expect_whole(&bench, &output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("docker-credential-near"), "{said}");
    assert!(!here.join("was-run").exists());
}

#[test]
fn layers_for_which_there_is_no_space_are_not_fetched() {
    let mut stored = Stored::busy();
    let mut manifest: Value = serde_json::from_slice(&stored.manifest).unwrap();
    manifest["layers"][2]["size"] = json!(i64::MAX);
    stored.manifest = serde_json::to_vec(&manifest).unwrap();
    let server = Server::start(move |request| stored.answer(request));
    let bench = Bench::with_pool("2G");
    expect_nothing(&bench, &pull(&bench, &server.name), "of free space");
    assert!(!server.asked().iter().any(|request| request.from() > 0));
}

#[test]
fn a_document_that_is_an_index_and_a_manifest_is_refused() {
    let mut stored = Stored::busy();
    let mut manifest: Value = serde_json::from_slice(&stored.manifest).unwrap();
    manifest["manifests"] = json!([]);
    stored.manifest = serde_json::to_vec(&manifest).unwrap();
    let server = Server::start(move |request| stored.answer(request));
    let bench = Bench::with_pool("2G");
    expect_nothing(&bench, &pull(&bench, &server.name), "at once");
}

#[test]
fn a_registry_without_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/a/b:1", listener.local_addr().unwrap());
    // Answers whatever comes as a server does that expects HTTP.
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut greeting = [0; 16];
            let _ = connection.read(&mut greeting);
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let bench = Bench::with_pool("64M");
    let mut command = command(&bench, ["image", "pull", "--json", &name]);
    let output = command.output().unwrap();
    expect_nothing(&bench, &output, "does not speak TLS");
    expect_nothing(&bench, &output, "(--plain-http)");
}
