//! One request: what it asks for or sends, and how long it may wait.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Client, Method, RequestBuilder, Url};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest time in which a registry takes no byte.
const STALLED_TIME: Duration = Duration::from_secs(60);
/// The longest time for its answer once it has all: it may have to hash and copy a large blob.
const ANSWER_TIME: Duration = Duration::from_secs(300);
/// The interval at which that is checked.
const STALLED_POLL: Duration = Duration::from_secs(5);
/// Number of bytes of a file that are sent at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// One request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// What is asked for or sent, as messages name it.
    pub(crate) what: &'a str,
    pub(crate) accept: Option<&'a str>,
    /// The first byte that is wanted, if not all are.
    pub(crate) from: Option<u64>,
    /// What is sent.
    pub(crate) content: Content<'a>,
}

/// What a request sends.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// Nothing.
    Nothing,
    /// A document.
    Document { kind: &'a str, bytes: Bytes },
    /// A part of a blob.
    Part(Part),
}

impl<'a> Call<'a> {
    pub(crate) const fn get(url: Url, what: &'a str) -> Self {
        Self::of(Method::GET, url, what)
    }

    /// Returns a request without content.
    pub(crate) const fn of(method: Method, url: Url, what: &'a str) -> Self {
        Self {
            method,
            url,
            what,
            accept: None,
            from: None,
            content: Content::Nothing,
        }
    }

    /// Returns true if it changes something in the registry.
    pub(crate) fn sends(&self) -> bool {
        self.method != Method::GET && self.method != Method::HEAD
    }

    /// Returns the request, without what proves who asks.
    pub(crate) fn request(&self, client: &Client) -> RequestBuilder {
        let mut request = client.request(self.method.clone(), self.url.clone());
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(from) = self.from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        match &self.content {
            // Some proxies refuse a request that could have content and does not state its length.
            Content::Nothing if self.sends() => request.header(CONTENT_LENGTH, 0),
            Content::Nothing => request,
            Content::Document { kind, bytes } => request
                .header(CONTENT_TYPE, *kind)
                .body(reqwest::Body::from(bytes.clone())),
            Content::Part(part) => {
                if part.from > 0 {
                    let range = format!("{}-{}", part.from, part.end.saturating_sub(1));
                    request = request.header(CONTENT_RANGE, range);
                }
                part.sent.store(part.from, Ordering::Relaxed);
                request
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(CONTENT_LENGTH, part.end - part.from)
                    .body(reqwest::Body::wrap(part.clone()))
            }
        }
    }

    /// Returns once nothing more was taken for too long.
    pub(crate) async fn stalled(&self) {
        let left = || match &self.content {
            Content::Part(part) => part.end - part.sent.load(Ordering::Relaxed).min(part.end),
            _ => 0,
        };
        let (mut before, mut idle) = (left(), Duration::ZERO);
        loop {
            tokio::time::sleep(STALLED_POLL).await;
            let now = left();
            idle = if now == before {
                idle + STALLED_POLL
            } else {
                Duration::ZERO
            };
            before = now;
            if idle >= ANSWER_TIME || now > 0 && idle >= STALLED_TIME {
                return;
            }
        }
    }
}

/// A part of a file, read while it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) file: Arc<File>,
    /// The first byte.
    pub(crate) from: u64,
    /// The end of the part.
    pub(crate) end: u64,
    /// The offset up to which the file was sent.
    pub(crate) sent: Arc<AtomicU64>,
}

impl Body for Part {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        // What lies before it was taken by the connection.
        self.sent.store(self.from, Ordering::Relaxed);
        let left = self.end - self.from;
        if left == 0 {
            return Poll::Ready(None);
        }
        let want = usize::try_from(left.min(PIECE_BYTES)).map_err(io::Error::other)?;
        let mut piece = vec![0; want];
        self.file.read_exact_at(&mut piece, self.from)?;
        self.from += left.min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.from == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.from)
    }
}
