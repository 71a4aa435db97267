//! The plugin's socket: HTTP/1.1 with a bounded body, each call on a thread that may block.

use super::driver::{self, Refusal};
use super::wire::{Answer, CONTENT_TYPE};
use cowshed_host::Host;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE as CONTENT_TYPE_HEADER;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time;

/// The longest request.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The time within which a request must be received.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The most callers at once; Docker is one caller with a few connections.
const CONNECTIONS_MAX: usize = 128;
/// The most calls that run at once; further ones wait.
const CALLS_MAX: usize = 16;
/// The pause after an accept that failed, for example for lack of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running plugin.
#[derive(Debug)]
pub struct Server {
    /// `None` once it is stopped.
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the data volumes of `host` on `listener`.
    ///
    /// # Errors
    /// The host's error when threads cannot be started or the socket cannot be watched.
    pub fn start(listener: StdListener, host: Arc<Host>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(CALLS_MAX)
            .thread_name("docker")
            .enable_io()
            .enable_time()
            .build()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let (stop, stopping) = watch::channel(false);
        let accepting = runtime.spawn(accept(listener, host, stopping));
        Ok(Self {
            runtime: Some(runtime),
            stop,
            accepting: Some(accepting),
        })
    }

    /// Takes no more calls, and waits for those that run; returns true if all ended in time.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.stop.send_replace(true);
        let Some(runtime) = self.runtime.take() else {
            return true;
        };
        let ended = self.accepting.take().is_none_or(|accepting| {
            runtime.block_on(async { time::timeout(patience, accepting).await.is_ok() })
        });
        runtime.shutdown_background();
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Serves all callers until it is to stop, and then until each has its reply.
async fn accept(listener: UnixListener, host: Arc<Host>, mut stopping: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut callers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
            Some(_) = callers.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the volume plugin");
                time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Beyond the limit, a caller finds the connection closed.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!("the volume plugin refused a connection: {CONNECTIONS_MAX} are open");
            continue;
        };
        if may_call(&stream) {
            let (host, stopping) = (Arc::clone(&host), stopping.clone());
            callers.spawn(async move {
                serve(stream, host, stopping).await;
                drop(place);
            });
        }
    }
    drop(listener);
    while callers.join_next().await.is_some() {}
}

/// Waits until the server is to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A server that is dropped has stopped, too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn may_call(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(
                user = peer.uid(),
                "the volume plugin refused a client of another user"
            );
            false
        }
        Err(_) => false,
    }
}

/// Serves one connection until either side ends it.
async fn serve(stream: UnixStream, host: Arc<Host>, mut stopping: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let host = Arc::clone(&host);
        async move { Ok::<_, Infallible>(respond(request, host).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the volume plugin ended");
    }
}

async fn respond(request: Request<Incoming>, host: Arc<Host>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "calls are POST requests");
    }
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the request is longer than {BODY_BYTES_MAX} bytes");
            return failure(StatusCode::PAYLOAD_TOO_LARGE, &why);
        }
        Ok(Err(_)) => return failure(StatusCode::BAD_REQUEST, "the request is incomplete"),
        Err(_) => {
            return failure(
                StatusCode::REQUEST_TIMEOUT,
                "the request did not end in time",
            );
        }
    };
    // The call runs to its end even if the caller does not wait for it.
    let called = task::spawn_blocking(move || {
        let answered = driver::call(&host, &path, &body);
        if let Err(error) = &answered {
            tracing::warn!(%error, call = %path, "the volume plugin refused a call");
        }
        answered
    });
    match called.await {
        Ok(Ok(answer)) => reply(StatusCode::OK, &answer),
        Ok(Err(refusal)) => failure(status_of(&refusal), &refusal.to_string()),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the call failed because of a defect in cowshed; see the daemon's log",
        ),
    }
}

/// Returns the status for a refusal. Docker takes 404 as "the plugin does not know this call", and
/// nothing else.
const fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::UnknownCall(_) => StatusCode::NOT_FOUND,
        Refusal::Json(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn failure(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let answer = Answer {
        err: format!("cowshed: {why}"),
        ..Answer::default()
    };
    reply(status, &answer)
}

fn reply(status: StatusCode, answer: &Answer) -> Response<Full<Bytes>> {
    // Strings and numbers can always be written as JSON.
    let text = serde_json::to_vec(answer).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE_HEADER, kind);
    response
}
