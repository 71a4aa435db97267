//! The call table of `containerd.services.diff.v1.Diff`.
//!
//! These take time in proportion to the layer's size: a call whose client goes away is cancelled.

use super::cancel::{self, Cancel};
use super::content::{Containerd, Contents, NAMESPACE};
use super::diff_wire::{ApplyRequest, DiffRequest};
use super::differ::{Differ, Error};
use super::rpc::{Answer, REQUEST_BYTES_MAX, unknown};
use super::wire::Mount;
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError, http};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

/// The service, on top of the differ.
#[derive(Clone)]
pub(super) struct DiffService {
    inner: Arc<Inner>,
    /// Cancels all calls.
    stop: Cancel,
}

struct Inner {
    differ: Differ,
    containerd: Containerd,
}

impl DiffService {
    pub(super) fn new(differ: Differ, containerd: Containerd, stop: Cancel) -> Self {
        let inner = Arc::new(Inner { differ, containerd });
        Self { inner, stop }
    }
}

impl NamedService for DiffService {
    const NAME: &'static str = "containerd.services.diff.v1.Diff";
}

impl<B> Service<http::Request<B>> for DiffService
where
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
        let to = self.clone();
        let path = request.uri().path();
        match path.rsplit_once('/').map_or("", |(_, call)| call) {
            "Apply" => unary(
                request,
                to,
                "Apply",
                |differ, message: ApplyRequest, contents| differ.apply(&message, contents),
            ),
            "Diff" => unary(
                request,
                to,
                "Diff",
                |differ, message: DiffRequest, contents| differ.compare(message, contents),
            ),
            _ => unknown(),
        }
    }
}

/// The function of a call; it runs on a thread that may block.
type Function<Q, A> = fn(&Differ, Q, &mut Contents) -> Result<A, Error>;

struct Call<Q, A> {
    service: DiffService,
    name: &'static str,
    function: Function<Q, A>,
}

/// A request about mounts.
trait OfMounts {
    fn mounts(&self) -> impl Iterator<Item = &Mount>;
}

impl OfMounts for ApplyRequest {
    fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }
}

impl OfMounts for DiffRequest {
    fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.right.iter().chain(&self.left)
    }
}

/// Returns the namespace through which the blobs are accessed. containerd 1.7 does not pass its
/// caller's namespace on to plugins: then it is the namespace of the snapshots. If neither is
/// known, the call is refused, so that containerd asks its next differ.
fn namespace(
    metadata: &MetadataMap,
    message: &impl OfMounts,
    differ: &Differ,
) -> Result<AsciiMetadataValue, Status> {
    if let Some(told) = metadata.get(NAMESPACE) {
        return Ok(told.clone());
    }
    let found = differ.namespace_of(message.mounts());
    found
        .and_then(|name| AsciiMetadataValue::try_from(name).ok())
        .ok_or_else(|| Status::unimplemented("the request names no namespace"))
}

impl<Q, A> UnaryService<Q> for Call<Q, A>
where
    Q: OfMounts + Send + 'static,
    A: Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<Response<A>, Status>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let DiffService { inner, stop } = self.service.clone();
        let (name, function) = (self.name, self.function);
        Box::pin(async move {
            // Dropped with this future, which is dropped when its client goes away.
            let (waiting, cancel) = cancel::pair();
            let (metadata, _, message) = request.into_parts();
            let mut done = tokio::task::spawn_blocking(move || {
                let started = Instant::now();
                let namespace = namespace(&metadata, &message, &inner.differ)?;
                let containerd = &inner.containerd;
                let token = cancel.token().clone();
                let mut contents = containerd.contents(&metadata, namespace, cancel);
                let work = || function(&inner.differ, message, &mut contents);
                told(name, started, token.during(work))
            });
            let done = tokio::select! {
                done = &mut done => done,
                () = stop.cancelled() => {
                    drop(waiting);
                    done.await
                }
            };
            match done {
                Ok(answered) => answered.map(Response::new),
                // The thread has reported the panic.
                Err(_) => Err(Status::internal(
                    "the call failed because of a defect in cowshed; see the daemon's log",
                )),
            }
        })
    }
}

fn told<A>(call: &'static str, started: Instant, answer: Result<A, Error>) -> Result<A, Status> {
    let took = started.elapsed();
    let status = match answer {
        Ok(answer) => {
            tracing::debug!(call, ?took, "a call succeeded");
            return Ok(answer);
        }
        Err(error) => Status::from(error),
    };
    match status.code() {
        Code::Unimplemented | Code::Cancelled | Code::InvalidArgument | Code::NotFound => {
            tracing::debug!(call, ?took, error = status.message(), "a call was refused");
        }
        code => tracing::error!(call, ?took, %code, error = status.message(), "a call failed"),
    }
    Err(status)
}

fn unary<B, Q, A>(
    request: http::Request<B>,
    service: DiffService,
    name: &'static str,
    function: Function<Q, A>,
) -> Answer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    Q: OfMounts + Message + Default + 'static,
    A: Message + 'static,
{
    Box::pin(async move {
        let codec = ProstCodec::<A, Q>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
        let call = Call {
            service,
            name,
            function,
        };
        Ok(grpc.unary(call, request).await)
    })
}
