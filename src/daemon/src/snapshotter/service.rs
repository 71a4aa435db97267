//! The call table of `containerd.services.snapshots.v1.Snapshots`.

use super::rpc::{self, Answer};
use super::wire::{
    CleanupRequest, CommitRequest, Empty, InfoResponse, KeyRequest, ListRequest, ListResponse,
    MountsResponse, PrepareRequest, UpdateRequest, UsageResponse,
};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Service, StdError, http};
use tonic::server::NamedService;
use tonic::{Request, Status};

/// The implementation of the calls.
pub(super) trait Snapshots: Send + Sync + 'static {
    fn prepare(&self, request: Request<PrepareRequest>) -> Result<MountsResponse, Status>;
    fn view(&self, request: Request<PrepareRequest>) -> Result<MountsResponse, Status>;
    fn mounts(&self, request: Request<KeyRequest>) -> Result<MountsResponse, Status>;
    fn commit(&self, request: Request<CommitRequest>) -> Result<Empty, Status>;
    fn remove(&self, request: Request<KeyRequest>) -> Result<Empty, Status>;
    fn stat(&self, request: Request<KeyRequest>) -> Result<InfoResponse, Status>;
    fn update(&self, request: Request<UpdateRequest>) -> Result<InfoResponse, Status>;
    fn list(&self, request: Request<ListRequest>) -> Result<Vec<ListResponse>, Status>;
    fn usage(&self, request: Request<KeyRequest>) -> Result<UsageResponse, Status>;
    fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Empty, Status>;
}

/// The service, on top of the implementation.
pub(super) struct SnapshotsService<S> {
    snapshots: Arc<S>,
}

impl<S> SnapshotsService<S> {
    pub(super) const fn new(snapshots: Arc<S>) -> Self {
        Self { snapshots }
    }
}

impl<S> Clone for SnapshotsService<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.snapshots))
    }
}

impl<S> NamedService for SnapshotsService<S> {
    const NAME: &'static str = "containerd.services.snapshots.v1.Snapshots";
}

impl<S, B> Service<http::Request<B>> for SnapshotsService<S>
where
    S: Snapshots,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answer {
        let to = &self.snapshots;
        let path = request.uri().path();
        match path.rsplit_once('/').map_or("", |(_, call)| call) {
            "Prepare" => rpc::unary(request, to, S::prepare),
            "View" => rpc::unary(request, to, S::view),
            "Mounts" => rpc::unary(request, to, S::mounts),
            "Commit" => rpc::unary(request, to, S::commit),
            "Remove" => rpc::unary(request, to, S::remove),
            "Stat" => rpc::unary(request, to, S::stat),
            "Update" => rpc::unary(request, to, S::update),
            "List" => rpc::streaming(request, to, S::list),
            "Usage" => rpc::unary(request, to, S::usage),
            "Cleanup" => rpc::unary(request, to, S::cleanup),
            _ => rpc::unknown(),
        }
    }
}
