//! The server: accepts connections on a unix socket and runs the services on them.
//!
//! # Invariants
//! - When `stop` has returned, no call runs that it does not count.

use super::Options;
use super::cancel::{self, Waiting};
use super::content::Containerd;
use super::diff_service::DiffService;
use super::differ::Differ;
use super::incoming::Incoming;
use super::service::SnapshotsService;
use super::store::Store;
use cowshed_host::Host;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::server::Router;

/// Threads that only move messages.
const MESSAGE_THREADS: usize = 2;
/// Number of calls that run at once; further ones wait.
const CALLS_MAX: usize = 128;
/// Number of calls of one client that are taken at once.
const CLIENT_CALLS_MAX: u32 = 256;

/// The minimum time given to the reaper for its tasks.
const REAPER_TIME: Duration = Duration::from_secs(2);

/// Serves containerd until it is stopped.
pub struct Server {
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    /// Dropping it cancels the long-running calls.
    calls: Option<Waiting>,
    serving: Option<JoinHandle<()>>,
    store: Arc<Store>,
}

impl Server {
    /// Serves on the listening `socket`, with snapshots in `host`'s pool.
    ///
    /// # Errors
    /// When the snapshots' records cannot be read or threads cannot be started.
    pub fn start(socket: StdListener, host: Arc<Host>, options: Options) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let containerd = options.containerd_address.clone();
        let usual_bytes = options.size_bytes;
        let store = Store::open(Arc::clone(&host), options).map_err(io::Error::other)?;
        let store = Arc::new(store);
        let differ = Differ::new(host, Arc::clone(store.index()), usual_bytes);
        let runtime = Builder::new_multi_thread()
            .worker_threads(MESSAGE_THREADS)
            .max_blocking_threads(CALLS_MAX)
            .thread_name("services")
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let (calls, cancel) = cancel::pair();
        let (router, incoming) = {
            let _inside = runtime.enter();
            let containerd = containerd.as_deref().map(Containerd::at).transpose()?;
            let diffs = containerd.map(|containerd| DiffService::new(differ, containerd, cancel));
            let incoming = Incoming::on(UnixListener::from_std(socket)?);
            (services(&store, diffs), incoming)
        };
        let serving = runtime.spawn(async move {
            let until = async {
                // A server that was dropped stops, too.
                let _ = stopped.await;
            };
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, until).await {
                tracing::error!(%error, "the service for containerd stopped");
            }
        });
        Ok(Self {
            runtime: Some(runtime),
            stop: Some(stop),
            calls: Some(calls),
            serving: Some(serving),
            store,
        })
    }

    /// Takes no further calls, cancels long-running ones, and waits for all that run, but not
    /// longer than `patience`. Returns true if all have ended.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.calls = None;
        self.store.cancel_commits();
        self.drain(patience)
    }

    /// Like `stop`, but lets all calls end by themselves.
    pub fn drain(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only if serving has ended by itself.
            let _ = stop.send(());
        }
        let Some(runtime) = self.runtime.take() else {
            return true;
        };
        let ended = self.serving.take().is_none_or(|serving| {
            runtime
                .block_on(async { tokio::time::timeout(patience, serving).await })
                .is_ok()
        });
        let left = || deadline.saturating_duration_since(Instant::now());
        runtime.shutdown_timeout(left());
        let cleared = self.store.stop(left().max(REAPER_TIME));
        ended && cleared
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Returns all services on this socket; a further one needs one more `add_service`.
fn services(store: &Arc<Store>, diffs: Option<DiffService>) -> Router {
    tonic::transport::Server::builder()
        .max_concurrent_streams(CLIENT_CALLS_MAX)
        .add_service(SnapshotsService::new(Arc::clone(store)))
        .add_optional_service(diffs)
}
