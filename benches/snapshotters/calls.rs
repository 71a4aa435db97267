//! Single calls of the snapshots service, timed without a client program around them.

use crate::wire::{
    Empty, KeyRequest, ListRequest, ListResponse, MountsResponse, PrepareRequest, UsageResponse,
};
use prost::Message;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// A client of one snapshotter: of containerd, or of cowshed itself.
pub(crate) struct Client {
    runtime: Runtime,
    grpc: Grpc<Channel>,
    snapshotter: &'static str,
    namespace: String,
}

impl Client {
    pub(crate) fn connect(socket: &Path, snapshotter: &'static str, namespace: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self {
            runtime,
            grpc: Grpc::new(channel),
            snapshotter,
            namespace: namespace.to_owned(),
        }
    }

    /// Prepares a snapshot and gets its mounts; then its usage; then removes it. Returns how long
    /// each took, or `None` if containerd has removed it in between, as it does with snapshots that
    /// it does not know.
    pub(crate) fn all(&mut self, key: &str, parent: &str) -> Option<[Duration; 3]> {
        let prepare = self.prepare(key, parent)?;
        Some([prepare, self.usage(key)?, self.remove(key)?])
    }

    fn prepare(&mut self, key: &str, parent: &str) -> Option<Duration> {
        let label = ("containerd.io/gc.root".to_owned(), "now".to_owned());
        let request = PrepareRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: [label].into(),
        };
        let started = Instant::now();
        let _: MountsResponse = self.call("Prepare", request)?;
        let mounts: MountsResponse = self.call("Mounts", self.request(key))?;
        assert!(!mounts.mounts.is_empty());
        Some(started.elapsed())
    }

    fn remove(&mut self, key: &str) -> Option<Duration> {
        let request = self.request(key);
        let started = Instant::now();
        let _: Empty = self.call("Remove", request)?;
        Some(started.elapsed())
    }

    fn usage(&mut self, key: &str) -> Option<Duration> {
        let request = self.request(key);
        let started = Instant::now();
        let _: UsageResponse = self.call("Usage", request)?;
        Some(started.elapsed())
    }

    /// Returns the keys and names of all snapshots.
    pub(crate) fn names(&mut self) -> Vec<String> {
        let path: PathAndQuery = format!("{SERVICE}List").parse().unwrap();
        let request = Request::new(ListRequest::default());
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<ListRequest, ListResponse>::default();
            let answer = grpc.server_streaming(request, path, codec).await;
            let (mut pages, mut names) = (answer.unwrap().into_inner(), Vec::new());
            while let Some(page) = pages.message().await.unwrap() {
                names.extend(page.info.into_iter().map(|info| info.name));
            }
            names
        })
    }

    fn request(&self, key: &str) -> KeyRequest {
        KeyRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: key.to_owned(),
        }
    }

    fn call<Q, A>(&mut self, call: &str, message: Q) -> Option<A>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("{SERVICE}{call}").parse().unwrap();
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().unwrap();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default());
            match answer.await {
                Ok(answer) => Some(answer.into_inner()),
                Err(status) if status.code() == Code::NotFound => None,
                Err(status) => panic!("{call}: {status}"),
            }
        })
    }
}
