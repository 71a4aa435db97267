//! Converts HTTP requests to function calls and the results to responses: the code that a code
//! generator would write for each call of a service, written once for all calls.
//!
//! The functions block (they mount, and wait for the pool), so each runs on a thread of the
//! runtime's pool for blocking calls, whose size bounds the number of calls that run at once. A
//! client that goes away does not stop its call: the call is finished, and undone if a later call
//! asks for that.

use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, StdError, http};
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The longest request: labels, a key and a parent need less.
pub(super) const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The future that a service returns.
pub(super) type Answer = BoxFuture<http::Response<Body>, Infallible>;

/// A function from one message to one message.
pub(super) type Unary<S, Q, A> = fn(&S, Request<Q>) -> Result<A, Status>;
/// A function from one message to several.
pub(super) type Streaming<S, Q, A> = fn(&S, Request<Q>) -> Result<Vec<A>, Status>;

/// A call that is to run on a thread that may block.
struct Call<S, F> {
    service: Arc<S>,
    function: F,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer.map(Response::new),
        // The thread has reported the panic.
        Err(_) => Err(Status::internal(
            "the call failed because of a defect in cowshed; see the daemon's log",
        )),
    }
}

impl<S, Q, A> UnaryService<Q> for Call<S, Unary<S, Q, A>>
where
    S: Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<Response<A>, Status>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (service, function) = (Arc::clone(&self.service), self.function);
        Box::pin(blocking(move || function(&service, request)))
    }
}

impl<S, Q, A> ServerStreamingService<Q> for Call<S, Streaming<S, Q, A>>
where
    S: Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
{
    type Response = A;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<A, Status>>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (service, function) = (Arc::clone(&self.service), self.function);
        Box::pin(blocking(move || {
            let messages = function(&service, request)?;
            let messages: Vec<_> = messages.into_iter().map(Ok).collect();
            Ok(tokio_stream::iter(messages))
        }))
    }
}

/// Replies to a request with the result of `function`.
pub(super) fn unary<B, S, Q, A>(
    request: http::Request<B>,
    service: &Arc<S>,
    function: Unary<S, Q, A>,
) -> Answer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let service = Arc::clone(service);
    Box::pin(async move {
        let codec = ProstCodec::<A, Q>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
        Ok(grpc.unary(Call { service, function }, request).await)
    })
}

/// Replies to a request with all messages that `function` returns.
pub(super) fn streaming<B, S, Q, A>(
    request: http::Request<B>,
    service: &Arc<S>,
    function: Streaming<S, Q, A>,
) -> Answer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let service = Arc::clone(service);
    Box::pin(async move {
        let codec = ProstCodec::<A, Q>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
        let call = Call { service, function };
        Ok(grpc.server_streaming(call, request).await)
    })
}

/// Replies that there is no such call.
pub(super) fn unknown() -> Answer {
    Box::pin(async { Ok(Status::unimplemented("no such call").into_http()) })
}
