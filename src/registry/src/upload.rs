//! Sending blobs and manifests to a repository.
//!
//! A blob is sent in one request, or in two if it is large, so that the registry keeps what came
//! over a connection that breaks. If the registry says how much it has, the rest is sent; otherwise
//! the blob is sent once more from its start, unless it is there after all.
//!
//! # Invariants
//! - Nothing is sent that the registry says it has.
//! - A digest that the registry states must be the one of what was sent.

use crate::call::{Call, Content, Part};
use crate::client::{Client, is_page};
use crate::download::Blob;
use crate::error::{Error, Result};
use crate::retry::Attempts;
use bytes::Bytes;
use cowshed_oci::Digest;
use cowshed_oci::error::Printable;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The digest of what was stored, in the registry's own words.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// The size up to which a blob is sent in one request.
const SMALL_BYTES: u64 = 1 << 20;
/// Number of times that a blob is sent from its start again because the registry has lost what it had
/// of it.
const RESTARTS_MAX: u32 = 5;

/// A blob that is to be sent.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The blob.
    pub blob: Blob,
    /// The file that it fills.
    pub file: Arc<File>,
    /// The offset up to which it was sent, for showing it.
    pub sent: Arc<AtomicU64>,
}

/// What a registry has of a blob.
struct Session {
    /// Where the rest goes.
    url: Url,
    /// Number of bytes that it has.
    offset: u64,
}

/// Returns true if the repository has the blob.
pub(crate) async fn has(client: &Client, blob: Blob) -> Result<bool> {
    let Blob { digest, size_bytes } = blob;
    let what = format!("the blob {digest}");
    let mut attempts = Attempts::default();
    loop {
        let url = client.url(&format!("blobs/{digest}"))?;
        let failed = match client.send(Call::of(Method::HEAD, url, &what)).await {
            Ok(answer) if is_page(answer.headers()) => {
                return Err(client.not_a_registry("with a page for browsers"));
            }
            Ok(answer) => {
                check_digest(client, answer.headers(), &what, digest)?;
                let stated = answer.headers().get(CONTENT_LENGTH);
                let stated = stated.and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
                return match stated {
                    Some(found_bytes) if found_bytes != size_bytes => Err(Error::Size {
                        server: client.server().to_owned(),
                        digest,
                        expected_bytes: size_bytes,
                        found_bytes,
                    }),
                    _ => Ok(true),
                };
            }
            Err(Error::NotFound { .. }) => return Ok(false),
            Err(error) => error,
        };
        attempts.wait(failed).await?;
    }
}

/// Asks the registry to take the blob over from its repository `source`; returns true if it has.
/// `client` asks for the right to read that repository. If that fails, the layer is sent, which tells
/// what else is wrong.
pub(crate) async fn mount(client: &Client, blob: Blob, source: &str) -> Result<bool> {
    let what = format!("the blob {}", blob.digest);
    let mut url = client.url("blobs/uploads/")?;
    url.query_pairs_mut()
        .append_pair("mount", &blob.digest.to_string())
        .append_pair("from", source);
    match client.send(Call::of(Method::POST, url, &what)).await {
        Ok(answer) if answer.status() == StatusCode::CREATED => {
            check_digest(client, answer.headers(), &what, blob.digest)?;
            Ok(true)
        }
        Err(error @ (Error::OtherDigest { .. } | Error::Cancelled(_))) => Err(error),
        // It offers to take the bytes instead, which ends by itself if nothing comes.
        Ok(_) | Err(_) => Ok(false),
    }
}

/// Sends a blob.
pub(crate) async fn send(client: &Client, upload: &Upload) -> Result<()> {
    let mut attempts = Attempts::default();
    let mut session = None;
    // The most that the registry had, in whichever place.
    let (mut best, mut restarts) = (0, 0);
    loop {
        let is_resumed = session.is_some();
        let failed = match send_once(client, upload, &mut session).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let earlier: Option<Session> = session.take();
        let had_place = is_resumed || earlier.is_some();
        if !(is_resumed && is_lost(&failed) && restarts < RESTARTS_MAX) {
            attempts.wait(failed).await?;
            if let Some(earlier) = earlier {
                session = found_again(client, &earlier, upload, &mut attempts).await?;
            }
        }
        match &session {
            Some(found) if found.offset > best => {
                best = found.offset;
                attempts.progress();
            }
            Some(_) => {}
            // Perhaps only the last answer was lost.
            None if matches!(has(client, upload.blob).await, Ok(true)) => return Ok(()),
            None if had_place && restarts == RESTARTS_MAX => {
                return Err(Error::Cut {
                    server: client.server().to_owned(),
                    cause: format!("it keeps nothing of the blob {}", upload.blob.digest),
                });
            }
            None => restarts += u32::from(had_place),
        }
    }
}

/// Returns what the registry has of a blob, if it says so, after as many attempts as that takes.
async fn found_again(
    client: &Client,
    earlier: &Session,
    upload: &Upload,
    attempts: &mut Attempts,
) -> Result<Option<Session>> {
    loop {
        match continued(client, &earlier.url, upload).await {
            Ok(session) => return Ok(session),
            Err(error) => attempts.wait(error).await?,
        }
    }
}

/// Returns true if a registry says that it does not know what it had of a blob, or has another part.
const fn is_lost(error: &Error) -> bool {
    matches!(
        error,
        Error::NotTaken {
            status: 400 | 404 | 416,
            ..
        }
    )
}

/// Sends what the registry does not have yet. If that fails, `session` is what may be continued.
async fn send_once(client: &Client, upload: &Upload, session: &mut Option<Session>) -> Result<()> {
    let Blob { digest, size_bytes } = upload.blob;
    let what = format!("the blob {digest}");
    let begun = match session.take() {
        Some(begun) => begun,
        None => begin(client, &what).await?,
    };
    let part = Part {
        file: Arc::clone(&upload.file),
        from: begun.offset,
        end: size_bytes,
        sent: Arc::clone(&upload.sent),
    };
    let mut url = begun.url.clone();
    let mut last = Content::Nothing;
    if begun.offset == 0 && size_bytes <= SMALL_BYTES {
        last = Content::Part(part);
    } else if begun.offset < size_bytes {
        *session = Some(begun);
        let mut call = Call::of(Method::PATCH, url.clone(), &what);
        call.content = Content::Part(part);
        let answer = client.send(call).await?;
        let taken = taken_bytes(answer.headers());
        if answer.headers().contains_key(LOCATION) {
            url = client.resolve(&url, answer.headers(), &what)?;
        }
        if taken.is_some_and(|taken| taken < size_bytes) {
            return Err(Error::Cut {
                server: client.server().to_owned(),
                cause: format!("it took only a part of {what}"),
            });
        }
        *session = Some(Session {
            url: url.clone(),
            offset: size_bytes,
        });
    }
    url.query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    let mut call = Call::of(Method::PUT, url, &what);
    call.content = last;
    let answer = client.send(call).await?;
    upload.sent.store(size_bytes, Ordering::Relaxed);
    check_digest(client, answer.headers(), &what, digest)
}

/// Asks the registry for a place for a blob.
async fn begin(client: &Client, what: &str) -> Result<Session> {
    let url = client.url("blobs/uploads/")?;
    let answer = client.send(Call::of(Method::POST, url.clone(), what)).await;
    let answer = answer.map_err(|error| match error {
        Error::NotTaken {
            server,
            status: 404,
            detail,
            ..
        } => Error::NoRepository {
            server,
            repository: client.repository().to_owned(),
            detail,
        },
        error => error,
    })?;
    Ok(Session {
        url: client.resolve(&url, answer.headers(), what)?,
        offset: 0,
    })
}

/// Returns what the registry has of a blob, if it says so. An error is one that may pass.
async fn continued(client: &Client, url: &Url, upload: &Upload) -> Result<Option<Session>> {
    let answer = match client.send(Call::get(url.clone(), "an upload")).await {
        Ok(answer) => answer,
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => return Ok(None),
    };
    let taken = taken_bytes(answer.headers());
    let Some(offset) = taken.filter(|offset| *offset <= upload.blob.size_bytes) else {
        return Ok(None);
    };
    let url = if answer.headers().contains_key(LOCATION) {
        client.resolve(url, answer.headers(), "an upload").ok()
    } else {
        Some(url.clone())
    };
    upload.sent.store(offset, Ordering::Relaxed);
    Ok(url.map(|url| Session { url, offset }))
}

/// Returns the number of bytes that a registry says it has. `0-0` is none: no registry keeps one byte
/// and breaks off.
fn taken_bytes(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let (start, end) = text.trim_start_matches("bytes=").split_once('-')?;
    let end: u64 = end.trim().parse().ok()?;
    if start.trim() != "0" {
        return None;
    }
    if end == 0 {
        return Some(0);
    }
    end.checked_add(1)
}

/// Stores a manifest under a tag.
pub(crate) async fn put_manifest(
    client: &Client,
    tag: &str,
    kind: &str,
    manifest: &[u8],
) -> Result<()> {
    let what = format!("the manifest {tag}");
    let bytes = Bytes::copy_from_slice(manifest);
    let mut attempts = Attempts::default();
    loop {
        let url = client.url(&format!("manifests/{tag}"))?;
        let mut call = Call::of(Method::PUT, url, &what);
        call.content = Content::Document {
            kind,
            bytes: bytes.clone(),
        };
        let failed = match client.send(call).await {
            Ok(answer) => {
                return check_digest(client, answer.headers(), &what, Digest::of(manifest));
            }
            Err(error) => error,
        };
        attempts.wait(failed).await?;
    }
}

/// Checks the digest that the registry states, if it states one.
fn check_digest(client: &Client, headers: &HeaderMap, what: &str, expected: Digest) -> Result<()> {
    let Some(stated) = headers.get(CONTENT_DIGEST) else {
        return Ok(());
    };
    if stated.as_bytes() == expected.to_string().as_bytes() {
        return Ok(());
    }
    Err(Error::OtherDigest {
        server: client.server().to_owned(),
        what: what.to_owned(),
        expected,
        found: Printable::from(stated.as_bytes()),
    })
}
