//! A client of the diff service that waits for each reply, or gives up.

use crate::diff_wire::{ApplyRequest, ApplyResponse, Descriptor, DiffRequest, DiffResponse};
use crate::wire::Mount;
use prost::Message;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

pub(crate) struct Differ {
    runtime: Runtime,
    grpc: Grpc<Channel>,
    /// Sent with each call.
    pub(crate) metadata: Vec<(&'static str, &'static str)>,
}

impl Differ {
    pub(crate) fn connect(socket: &Path) -> Self {
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
            metadata: vec![("containerd-namespace", "test")],
        }
    }

    /// Makes a call; returns `None` if it was given up after `patience`.
    fn call<Q, A>(
        &mut self,
        call: &str,
        message: Q,
        patience: Option<Duration>,
    ) -> Option<Result<A, Status>>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/containerd.services.diff.v1.Diff/{call}")
            .parse()
            .unwrap();
        let mut request = Request::new(message);
        for (key, value) in &self.metadata {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            let called = async {
                let ready = grpc.ready().await;
                ready.map_err(|error| Status::unavailable(error.to_string()))?;
                let codec = ProstCodec::<Q, A>::default();
                Ok(grpc.unary(request, path, codec).await?.into_inner())
            };
            match patience {
                None => Some(called.await),
                Some(patience) => tokio::time::timeout(patience, called).await.ok(),
            }
        })
    }

    pub(crate) fn apply(&mut self, layer: Descriptor, mount: &Mount) -> Result<Descriptor, Status> {
        self.apply_to(layer, vec![mount.clone()])
    }

    pub(crate) fn apply_to(
        &mut self,
        layer: Descriptor,
        mounts: Vec<Mount>,
    ) -> Result<Descriptor, Status> {
        let answer = self.call("Apply", apply_request(layer, mounts), None);
        let answer: ApplyResponse = answer.unwrap()?;
        Ok(answer.applied.unwrap())
    }

    /// Applies, and goes away after `patience`; there must be no reply by then.
    pub(crate) fn give_up_applying(
        &mut self,
        layer: Descriptor,
        mount: &Mount,
        patience: Duration,
    ) {
        let request = apply_request(layer, vec![mount.clone()]);
        let answer: Option<Result<ApplyResponse, _>> = self.call("Apply", request, Some(patience));
        assert!(answer.is_none(), "{answer:?}");
    }

    pub(crate) fn compare(&mut self, request: DiffRequest) -> Result<Descriptor, Status> {
        let answer: DiffResponse = self.call("Diff", request, None).unwrap()?;
        Ok(answer.diff.unwrap())
    }

    /// Compares, and goes away after `patience`; there must be no reply by then.
    pub(crate) fn give_up_comparing(&mut self, request: DiffRequest, patience: Duration) {
        let answer: Option<Result<DiffResponse, _>> = self.call("Diff", request, Some(patience));
        assert!(answer.is_none(), "{answer:?}");
    }
}

fn apply_request(layer: Descriptor, mounts: Vec<Mount>) -> ApplyRequest {
    ApplyRequest {
        diff: Some(layer),
        mounts,
        sync_fs: true,
    }
}

pub(crate) fn descriptor(media_type: &str, digest: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_owned(),
        ..Descriptor::default()
    }
}

/// Returns a request for the changes from one mount to another.
pub(crate) fn between(left: &Mount, right: &Mount) -> DiffRequest {
    DiffRequest {
        left: vec![left.clone()],
        right: vec![right.clone()],
        ..DiffRequest::default()
    }
}
