//! containerd's content service as a client sees it: blobs as readers and writers that block.
//!
//! Each call of containerd gets its own [`Contents`], which passes the call's namespace and lease
//! on, and ends with the call: a thread that waits for containerd stops waiting when its client
//! does. The bytes move in tasks of the runtime, a bounded number of messages ahead, so that
//! unpacking and fetching overlap.
//!
//! # Invariants
//! - A blob that is written is not in the store before `BlobWriter::commit`. A blob that is given
//!   up is aborted or left for the next writer of that ref, as containerd's own differ does.
//! - No message is larger than `MESSAGE_BYTES_MAX`, and no more than `MESSAGES_AHEAD` messages
//!   wait.

mod reader;
mod stored;
mod writer;

use super::cancel::Cancel;
use super::content_wire::{
    AbortRequest, Info, InfoRequest, InfoResponse, LeaseRequest, UpdateRequest,
};
use super::wire::{Empty, FieldMask};
use cowshed_format::base::sync::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// The largest message that is accepted; containerd sends 32 KiB to 1 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Number of messages that may wait between the runtime and a thread that blocks.
const MESSAGES_AHEAD: usize = 16;
/// Number of bytes that containerd may send ahead on one stream, and on all.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The time within which containerd must accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The keys of a request's metadata that are passed on.
const PASSED_ON: [&str; 1] = [LEASE];
/// The metadata key of the namespace on whose behalf a call is made.
pub(super) const NAMESPACE: &str = "containerd-namespace";
/// The metadata key of the lease that protects new blobs from garbage collection.
const LEASE: &str = "containerd-lease";
/// The time for which a lease of our own keeps a blob that nothing refers to yet.
const LEASE_TIME: Duration = Duration::from_secs(60 * 60);

/// A connection to containerd, made when it is first needed and again after it was lost.
#[derive(Clone, Debug)]
pub(super) struct Containerd {
    channel: Channel,
    /// The folder of its blobs, once containerd has been asked; `None` inside if it does not tell.
    store: Arc<OnceLock<Option<PathBuf>>>,
}

impl Containerd {
    /// Returns a connection to containerd at the socket `address`. Must be called inside the
    /// runtime.
    ///
    /// # Errors
    /// When `address` cannot be made into a socket's path.
    pub(super) fn at(address: &Path) -> io::Result<Self> {
        let text = address.to_str();
        let text =
            text.ok_or_else(|| io::Error::other("the path of containerd's socket is not UTF-8"))?;
        let endpoint = Endpoint::from_shared(format!("unix:{text}")).map_err(io::Error::other)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIME)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        let store = Arc::default();
        Ok(Self { channel, store })
    }

    /// Returns the contents for a call with this metadata in `namespace`. Must be called inside the
    /// runtime.
    pub(super) fn contents(
        &self,
        call: &MetadataMap,
        namespace: AsciiMetadataValue,
        cancel: Cancel,
    ) -> Contents {
        let mut metadata = MetadataMap::new();
        metadata.insert(NAMESPACE, namespace);
        for key in PASSED_ON {
            if let Some(value) = call.get(key) {
                metadata.insert(key, value.clone());
            }
        }
        Contents {
            channel: self.channel.clone(),
            store: Arc::clone(&self.store),
            metadata,
            cancel,
            runtime: Handle::current(),
        }
    }
}

/// containerd's blobs for one call.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    channel: Channel,
    store: Arc<OnceLock<Option<PathBuf>>>,
    metadata: MetadataMap,
    cancel: Cancel,
    runtime: Handle,
}

impl Contents {
    /// Returns the information about a blob.
    ///
    /// # Errors
    /// `NotFound`, or any error of containerd.
    pub(super) fn info(&self, digest: &str) -> Result<Info, Status> {
        let digest = digest.to_owned();
        let found: InfoResponse = self.unary(calls::INFO, InfoRequest { digest })?;
        found
            .info
            .ok_or_else(|| Status::internal("containerd's reply is empty"))
    }

    /// Sets one label of a blob.
    ///
    /// # Errors
    /// Any error of containerd.
    pub(super) fn label(&self, digest: &str, key: &str, value: &str) -> Result<(), Status> {
        let info = Info {
            digest: digest.to_owned(),
            labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            ..Info::default()
        };
        let paths = vec![format!("labels.{key}")];
        let request = UpdateRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        self.unary::<_, InfoResponse>(calls::UPDATE, request)
            .map(drop)
    }

    /// Gives up the data written under a ref.
    ///
    /// # Errors
    /// Any error of containerd.
    pub(super) fn abort(&self, reference: &str) -> Result<(), Status> {
        let request = AbortRequest {
            r#ref: reference.to_owned(),
        };
        self.unary::<_, Empty>(calls::ABORT, request).map(drop)
    }

    /// Protects the blobs written from now on from garbage collection until the client can refer to
    /// them: by the client's lease or, because containerd does not pass that lease on to plugins,
    /// by one that expires by itself.
    pub(super) fn lease(&mut self) {
        if self.metadata.contains_key(LEASE) {
            return;
        }
        let id = format!("cowshed-diff-{:032x}", rand::random::<u128>());
        let until = humantime::format_rfc3339_seconds(SystemTime::now() + LEASE_TIME);
        let request = LeaseRequest {
            id: id.clone(),
            labels: BTreeMap::from([("containerd.io/gc.expire".to_owned(), until.to_string())]),
        };
        match self.unary::<_, Empty>(calls::LEASE, request) {
            Ok(_) => {
                if let Ok(value) = AsciiMetadataValue::try_from(id) {
                    self.metadata.insert(LEASE, value);
                }
            }
            // Without the lease, only blobs that are collected at an unlucky moment are lost.
            Err(error) => {
                tracing::warn!(%error, "cannot take a lease: a layer is written without one")
            }
        }
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    async fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        let ready = grpc.ready().await;
        ready.map_err(|error| {
            let why = format!("cannot connect to containerd: {}", causes(&error));
            Status::unavailable(why)
        })?;
        Ok(grpc.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn unary<Q, A>(&self, call: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let called = async {
            let path = PathAndQuery::from_static(call);
            let codec = ProstCodec::<Q, A>::default();
            let mut grpc = self.grpc().await?;
            let answer = grpc.unary(self.request(message), path, codec).await?;
            Ok(answer.into_inner())
        };
        self.runtime.block_on(async {
            tokio::select! {
                answer = called => answer,
                () = self.cancel.cancelled() => Err(Cancel::status()),
            }
        })
    }
}

/// The reason why a reader or writer failed, kept for the function that passed it on: an
/// `io::Error` says less.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Status>>>);

impl Failure {
    /// Returns the first failure, if there was one.
    pub(super) fn take(&self) -> Option<Status> {
        self.0.lock().take()
    }

    fn keep(&self, doing: &'static str, status: Status) -> io::Error {
        let text = format!("{doing}: {}", status.message());
        self.0.lock().get_or_insert(status);
        io::Error::other(text)
    }
}

/// Formats an error with its causes in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Returns true if another writer holds a ref or blob for the moment.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

mod calls {
    pub(super) const INFO: &str = "/containerd.services.content.v1.Content/Info";
    pub(super) const UPDATE: &str = "/containerd.services.content.v1.Content/Update";
    pub(super) const READ: &str = "/containerd.services.content.v1.Content/Read";
    pub(super) const WRITE: &str = "/containerd.services.content.v1.Content/Write";
    pub(super) const ABORT: &str = "/containerd.services.content.v1.Content/Abort";
    pub(super) const PLUGINS: &str = "/containerd.services.introspection.v1.Introspection/Plugins";
    pub(super) const LEASE: &str = "/containerd.services.leases.v1.Leases/Create";
}
