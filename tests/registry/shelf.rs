//! A registry in memory, which takes images as one should.

use crate::fake::{Answer, Request};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// What a registry has, in all its repositories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    blobs: HashMap<String, Vec<u8>>,
    /// By number.
    uploads: HashMap<usize, Vec<u8>>,
    /// By tag.
    manifests: HashMap<String, Vec<u8>>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Shelf {
    /// Answers as a registry should.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        let mut held = self.held.lock().unwrap();
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let last = path.rsplit('/').next().unwrap();
        match request.method.as_str() {
            "POST" => {
                let number = held.uploads.len();
                held.uploads.insert(number, Vec::new());
                Answer::new(202, "").with("location", format!("{path}{number}"))
            }
            "PATCH" => {
                let Some(bytes) = last.parse().ok().and_then(|it| held.uploads.get_mut(&it)) else {
                    return Answer::new(404, "{}");
                };
                let from = request.header("content-range").map_or(0, |range| {
                    range.split_once('-').unwrap().0.parse::<usize>().unwrap()
                });
                if from != bytes.len() {
                    return Answer::new(416, "{}");
                }
                bytes.extend_from_slice(&request.body);
                let range = format!("0-{}", bytes.len() - 1);
                Answer::new(202, "")
                    .with("location", path)
                    .with("range", range)
            }
            "GET" if path.contains("/uploads/") => {
                let Some(bytes) = last
                    .parse()
                    .ok()
                    .and_then(|it: usize| held.uploads.get(&it))
                else {
                    return Answer::new(404, "{}");
                };
                let len = bytes.len();
                let range = format!("0-{}", len.saturating_sub(1));
                Answer::new(204, "")
                    .with("location", path)
                    .with("range", range)
            }
            "PUT" if path.contains("/manifests/") => {
                let found = digest(&request.body);
                held.manifests.insert(last.to_owned(), request.body.clone());
                Answer::new(201, "").with("docker-content-digest", found)
            }
            "PUT" => {
                let Some(mut bytes) = last.parse().ok().and_then(|it| held.uploads.remove(&it))
                else {
                    return Answer::new(404, "{}");
                };
                bytes.extend_from_slice(&request.body);
                let found = digest(&bytes);
                if !query.replace("%3A", ":").contains(&found) {
                    return Answer::new(400, r#"{"errors": [{"code": "DIGEST_INVALID"}]}"#);
                }
                held.blobs.insert(found.clone(), bytes);
                Answer::new(201, "").with("docker-content-digest", found)
            }
            "HEAD" => match held.blobs.get(last) {
                Some(bytes) => Answer::new(200, bytes.clone()),
                None => Answer::new(404, "{}"),
            },
            _ => Answer::new(405, "{}"),
        }
    }

    /// Adds a blob; returns its digest.
    pub(crate) fn put(&self, blob: &[u8]) -> String {
        let found = digest(blob);
        let mut held = self.held.lock().unwrap();
        held.blobs.insert(found.clone(), blob.to_vec());
        found
    }

    pub(crate) fn blobs(&self) -> HashMap<String, Vec<u8>> {
        self.held.lock().unwrap().blobs.clone()
    }

    pub(crate) fn manifest(&self, tag: &str) -> Option<Vec<u8>> {
        self.held.lock().unwrap().manifests.get(tag).cloned()
    }
}
