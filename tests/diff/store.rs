//! An in-memory content store with the interface of containerd's content service, which misbehaves
//! on request.

use crate::content_wire::{
    AbortRequest, Info, InfoRequest, InfoResponse, ReadRequest, ReadResponse, UpdateRequest,
    WriteAction, WriteRequest, WriteResponse,
};
use crate::services::{Introspection, Leases};
use crate::wire::Empty;
use cowshed_oci::Digest;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Number of bytes that containerd sends in one message.
const PIECE_BYTES: usize = 32 << 10;

type Labels = BTreeMap<String, String>;

/// A fault of reading, with the byte at which it occurs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Reading {
    #[default]
    Well,
    /// This byte is changed.
    Flipped(usize),
    /// The stream ends there.
    Cut(usize),
    /// The stream fails there.
    Failing(usize),
    /// No more data is sent.
    Stalling(usize),
    /// A message has a wrong offset.
    Misplaced(usize),
}

/// A fault of writing, with the byte at which it occurs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Writing {
    #[default]
    Well,
    Failing(usize),
    Stalling(usize),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: BTreeMap<String, (Vec<u8>, Labels)>,
    /// The data that was written but not committed.
    pub(crate) ingests: BTreeMap<String, Vec<u8>>,
    /// Refs that a writer holds.
    pub(crate) locked: BTreeSet<String>,
    pub(crate) reading: Reading,
    pub(crate) writing: Writing,
    pub(crate) aborted: Vec<String>,
    /// The namespace of each call.
    pub(crate) namespaces: BTreeSet<Option<String>>,
    /// The lease of each write.
    pub(crate) write_leases: Vec<Option<String>>,
    /// The folder in which it says that its blobs are files.
    pub(crate) root: Option<PathBuf>,
    /// The blobs that were read through the service.
    pub(crate) reads: Vec<String>,
    /// The leases that were created.
    pub(crate) leases: BTreeMap<String, Labels>,
}

pub(crate) type Shared = Arc<Mutex<State>>;

/// The store, served until this value is dropped.
pub(crate) struct Store {
    pub(crate) socket: PathBuf,
    state: Shared,
    _runtime: Runtime,
}

impl Store {
    pub(crate) fn start(folder: &Path) -> Self {
        let socket = folder.join("content.sock");
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Shared::default();
        let served = Arc::clone(&state);
        let listener = runtime.block_on(async { UnixListener::bind(&socket) });
        let incoming = Incoming(listener.unwrap());
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(Content(Arc::clone(&served)))
                .add_service(Leases(Arc::clone(&served)))
                .add_service(Introspection(served))
                .serve_with_incoming(incoming)
                .await
        });
        Self {
            socket,
            state,
            _runtime: runtime,
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Puts a blob in, and returns its digest.
    pub(crate) fn put(&self, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        let blob = (bytes, Labels::new());
        self.state().blobs.insert(digest.clone(), blob);
        digest
    }

    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        self.state().blobs[digest].0.clone()
    }

    pub(crate) fn labels(&self, digest: &str) -> Labels {
        self.state().blobs[digest].1.clone()
    }
}

struct Incoming(UnixListener);

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0
            .poll_accept(context)
            .map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

/// A function as a call with one reply.
struct Do<F>(F);

impl<Q, A, F> UnaryService<Q> for Do<F>
where
    A: Send + 'static,
    F: Fn(Request<Q>) -> Result<A, Status>,
{
    type Response = A;
    type Future = std::future::Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        std::future::ready((self.0)(request).map(Response::new))
    }
}

pub(crate) fn unary<Q, A>(
    request: http::Request<Body>,
    function: impl Fn(Request<Q>) -> Result<A, Status> + Send + 'static,
) -> Answer<http::Response<Body>>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<A, Q>::default());
        Ok(grpc.unary(Do(function), request).await)
    })
}

#[derive(Clone)]
struct Content(Shared);

impl NamedService for Content {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

impl Service<http::Request<Body>> for Content {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (namespace, lease) = (header("containerd-namespace"), header("containerd-lease"));
        let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
        {
            let mut state = shared.lock().unwrap();
            state.namespaces.insert(namespace);
            if call == "Write" {
                state.write_leases.push(lease);
            }
        }
        match call.as_str() {
            "Info" => unary(request, move |request: Request<InfoRequest>| {
                info(&shared, &request.into_inner().digest)
            }),
            "Update" => unary(request, move |request: Request<UpdateRequest>| {
                update(&shared, request.into_inner())
            }),
            "Abort" => unary(request, move |request: Request<AbortRequest>| {
                let reference = request.into_inner().r#ref;
                let mut state = shared.lock().unwrap();
                state.ingests.remove(&reference);
                state.aborted.push(reference);
                Ok(Empty {})
            }),
            "Read" => Box::pin(async move {
                let mut grpc = Grpc::new(ProstCodec::<ReadResponse, ReadRequest>::default());
                Ok(grpc.server_streaming(Reads(shared), request).await)
            }),
            "Write" => Box::pin(async move {
                let mut grpc = Grpc::new(ProstCodec::<WriteResponse, WriteRequest>::default())
                    .max_decoding_message_size(16 << 20);
                Ok(grpc.streaming(Writes(shared), request).await)
            }),
            other => panic!("the store has no {other}"),
        }
    }
}

fn info(shared: &Shared, digest: &str) -> Result<InfoResponse, Status> {
    let state = shared.lock().unwrap();
    let found = state.blobs.get(digest);
    let (bytes, labels) =
        found.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
    Ok(InfoResponse {
        info: Some(Info {
            digest: digest.to_owned(),
            size: i64::try_from(bytes.len()).unwrap(),
            labels: labels.clone(),
        }),
    })
}

fn update(shared: &Shared, request: UpdateRequest) -> Result<InfoResponse, Status> {
    let wanted = request.info.unwrap();
    let paths = request.update_mask.unwrap().paths;
    {
        let mut state = shared.lock().unwrap();
        let (_, labels) = state.blobs.get_mut(&wanted.digest).unwrap();
        for path in paths {
            let key = path.strip_prefix("labels.").unwrap();
            labels.insert(key.to_owned(), wanted.labels[key].clone());
        }
    }
    info(shared, &wanted.digest)
}

type Replies<T> = ReceiverStream<Result<T, Status>>;
type Replying<T> = Pin<Box<dyn Future<Output = Result<Response<Replies<T>>, Status>> + Send>>;

struct Reads(Shared);

impl ServerStreamingService<ReadRequest> for Reads {
    type Response = ReadResponse;
    type ResponseStream = Replies<ReadResponse>;
    type Future = Replying<ReadResponse>;

    fn call(&mut self, request: Request<ReadRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let ReadRequest { digest, offset, .. } = request.into_inner();
            assert_eq!(offset, 0);
            let (bytes, reading) = {
                let mut state = shared.lock().unwrap();
                state.reads.push(digest.clone());
                let found = state.blobs.get(&digest);
                let (bytes, _) = found.ok_or_else(|| Status::not_found("not found"))?;
                (bytes.clone(), state.reading)
            };
            let (sender, replies) = mpsc::channel(4);
            tokio::spawn(send(bytes, reading, sender));
            Ok(Response::new(ReceiverStream::new(replies)))
        })
    }
}

async fn send(
    mut bytes: Vec<u8>,
    reading: Reading,
    sender: mpsc::Sender<Result<ReadResponse, Status>>,
) {
    let mut misplaced = usize::MAX;
    let mut ends = bytes.len();
    match reading {
        Reading::Well => {}
        Reading::Flipped(at) => bytes[at] ^= 0x10,
        Reading::Misplaced(at) => misplaced = at,
        Reading::Cut(at) | Reading::Failing(at) | Reading::Stalling(at) => ends = at,
    }
    let mut offset = 0;
    for piece in bytes[..ends].chunks(PIECE_BYTES) {
        let shift = usize::from(offset + piece.len() > misplaced);
        let reply = ReadResponse {
            offset: i64::try_from(offset + shift).unwrap(),
            data: piece.to_vec().into(),
        };
        offset += piece.len();
        if sender.send(Ok(reply)).await.is_err() {
            return;
        }
    }
    match reading {
        Reading::Failing(_) => {
            let _ = sender.send(Err(Status::internal("the disk is gone"))).await;
        }
        // Until the reader goes away.
        Reading::Stalling(_) => sender.closed().await,
        _ => {}
    }
}

struct Writes(Shared);

impl StreamingService<WriteRequest> for Writes {
    type Response = WriteResponse;
    type ResponseStream = Replies<WriteResponse>;
    type Future = Replying<WriteResponse>;

    fn call(&mut self, request: Request<Streaming<WriteRequest>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let (sender, replies) = mpsc::channel(4);
            tokio::spawn(async move {
                if let Err(status) = receive(&shared, request.into_inner(), &sender).await {
                    let _ = sender.send(Err(status)).await;
                }
            });
            Ok(Response::new(ReceiverStream::new(replies)))
        })
    }
}

/// Held while a ref is written.
struct Lock(Shared, String);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.lock().unwrap().locked.remove(&self.1);
    }
}

async fn receive(
    shared: &Shared,
    mut requests: Streaming<WriteRequest>,
    replies: &mpsc::Sender<Result<WriteResponse, Status>>,
) -> Result<(), Status> {
    let Some(mut request) = requests.message().await? else {
        return Ok(());
    };
    let reference = request.r#ref.clone();
    if reference.is_empty() {
        return Err(Status::invalid_argument(
            "first message must have a reference",
        ));
    }
    let _lock = {
        let mut state = shared.lock().unwrap();
        if !state.locked.insert(reference.clone()) {
            let why = format!("ref {reference} locked for 1s: unavailable");
            return Err(Status::unavailable(why));
        }
        state.ingests.entry(reference.clone()).or_default();
        Lock(Arc::clone(shared), reference.clone())
    };
    loop {
        loop {
            let (writing, written) = {
                let state = shared.lock().unwrap();
                (state.writing, state.ingests[&reference].len())
            };
            match writing {
                Writing::Failing(at) if written >= at => {
                    let why = "no space left on containerd's disk";
                    return Err(Status::resource_exhausted(why));
                }
                Writing::Stalling(at) if written >= at => {}
                _ => break,
            }
            if replies.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let reply = write(shared, &reference, &request)?;
        let is_last = request.action == i32::from(WriteAction::Commit);
        if replies.send(Ok(reply)).await.is_err() || is_last {
            return Ok(());
        }
        match requests.message().await? {
            Some(next) => request = next,
            None => return Ok(()),
        }
    }
}

fn write(
    shared: &Shared,
    reference: &str,
    request: &WriteRequest,
) -> Result<WriteResponse, Status> {
    let mut state = shared.lock().unwrap();
    if !request.expected.is_empty() && state.blobs.contains_key(&request.expected) {
        state.ingests.remove(reference);
        let why = format!("blob with expected digest {} exists", request.expected);
        return Err(Status::already_exists(why));
    }
    let ingest = state.ingests.get_mut(reference).unwrap();
    let len = i64::try_from(ingest.len()).unwrap();
    if request.action != i32::from(WriteAction::Stat) {
        if request.offset > 0 && request.offset != len {
            let why = format!(
                "write @{} must occur at current offset {len}",
                request.offset
            );
            return Err(Status::out_of_range(why));
        }
        if request.offset == 0 && len > 0 {
            ingest.clear();
        }
        ingest.extend_from_slice(&request.data);
    }
    let digest = Digest::of(ingest).to_string();
    let offset = i64::try_from(ingest.len()).unwrap();
    if request.action == i32::from(WriteAction::Commit) {
        let fits = [0, offset].contains(&request.total);
        if !fits || (!request.expected.is_empty() && request.expected != digest) {
            return Err(Status::new(
                Code::FailedPrecondition,
                "unexpected commit size or digest",
            ));
        }
        let bytes = state.ingests.remove(reference).unwrap();
        let blob = (bytes, request.labels.clone());
        state.blobs.insert(digest.clone(), blob);
    }
    Ok(WriteResponse {
        action: request.action,
        offset,
        total: request.total,
        digest,
    })
}
