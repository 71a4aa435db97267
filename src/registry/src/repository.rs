//! One repository of a registry: its manifests and blobs, for callers without a runtime.

use crate::access::Access;
use crate::cache::Cache;
use crate::call::Call;
use crate::client::{Client, is_page};
use crate::download::{Blob, Downloads};
use crate::error::{Error, Result};
use crate::retry::Attempts;
use crate::upload::{self, Upload};
use cowshed_format::base::Cancel;
use cowshed_oci::limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use cowshed_oci::{self as oci, Digest, Document, LayerInfo, Reference, Remote};
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// What is asked for: all forms of a manifest or an index.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1";
/// The digest of what is sent, in the registry's own words.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// The interval at which work checks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// Threads that move bytes between connections and files.
const THREADS: usize = 2;

/// One repository of a registry.
pub struct Repository {
    runtime: Runtime,
    pub(crate) client: Arc<Client>,
    /// Clients that may read one other repository too, by its path. Some token servers refuse one who
    /// asks for more than he may have.
    mounting: Mutex<HashMap<String, Arc<Client>>>,
    cancel: Cancel,
}

impl Repository {
    /// Returns the repository of `reference`, as work of the caller's token. Nothing is sent yet.
    ///
    /// # Errors
    /// `Certificate` or `Name`, or `Io` if the host fails.
    pub fn open(reference: &Reference, access: &Access) -> Result<Self> {
        Self::over(Client::new(reference, access)?)
    }

    /// As `open`, to send to it too.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_for_push(reference: &Reference, access: &Access) -> Result<Self> {
        Self::over(Client::for_push(reference, access)?)
    }

    pub(crate) fn over(client: Client) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(Error::io("start threads"))?;
        Ok(Self {
            runtime,
            client: Arc::new(client),
            mounting: Mutex::default(),
            cancel: Cancel::current(),
        })
    }

    /// Runs `act` until it ends or the work is cancelled.
    pub(crate) fn run<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
        self.cancel.check()?;
        self.runtime.block_on(async {
            tokio::select! {
                outcome = act => outcome,
                () = until_cancelled(&self.cancel) => Err(self.cancel.check().err().map_or_else(
                    || Error::io("wait")(io::ErrorKind::Interrupted.into()),
                    Error::Cancelled,
                )),
            }
        })
    }

    /// Returns the manifest, or the index, that `reference` names: by its digest if it states one,
    /// else by its tag. It is verified.
    ///
    /// # Errors
    /// What the registry or the way to it fails with.
    pub fn manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let wanted = reference.digest().or(reference.tag()).unwrap_or("latest");
        let digest: Option<Digest> = reference.digest().map(str::parse).transpose()?;
        self.run(fetch_manifest(&self.client, wanted, digest))
    }

    /// Returns true if the repository has the blob.
    ///
    /// # Errors
    /// What the registry or the way to it fails with; `OtherDigest` or `Size` if it has something
    /// else in its place.
    pub fn has(&self, blob: Blob) -> Result<bool> {
        self.run(upload::has(&self.client, blob))
    }

    /// Asks the registry to take the blob over from its repository `source`; returns true if it has.
    ///
    /// # Errors
    /// `OtherDigest` if it took over something else, and `Cancelled`. That it takes nothing over is
    /// none, whatever the cause.
    pub fn mount(&self, blob: Blob, source: &str) -> Result<bool> {
        let client = {
            let mounting = self.mounting.lock();
            let mut mounting = mounting.unwrap_or_else(PoisonError::into_inner);
            let client = mounting.entry(source.to_owned());
            Arc::clone(client.or_insert_with(|| Arc::new(self.client.reading(source))))
        };
        self.run(upload::mount(&client, blob, source))
    }

    /// Sends a blob. Several threads may send at the same time.
    ///
    /// # Errors
    /// What the registry or the way to it fails with; `OtherDigest` if it stored something else.
    pub fn upload(&self, upload: &Upload) -> Result<()> {
        self.run(upload::send(&self.client, upload))
    }

    /// Stores a manifest of the media type `kind` under a tag.
    ///
    /// # Errors
    /// As `upload`.
    pub fn put_manifest(&self, tag: &str, kind: &str, manifest: &[u8]) -> Result<()> {
        self.run(upload::put_manifest(&self.client, tag, kind, manifest))
    }

    /// Starts to fetch `blobs` into files of `cache`, the first ones first.
    ///
    /// # Errors
    /// `Io` if a file cannot be made.
    pub fn download(&self, blobs: &[Blob], cache: &Cache) -> Result<Downloads> {
        let _entered = self.runtime.enter();
        Downloads::start(&self.client, blobs, cache)
    }
}

impl Remote for Repository {
    fn document(
        &self,
        document: Document,
        digest: Digest,
        size_bytes: u64,
    ) -> oci::Result<Vec<u8>> {
        let client = &self.client;
        let bytes = match document {
            Document::Manifest => {
                self.run(fetch_manifest(client, &digest.to_string(), Some(digest)))
            }
            Document::Config => self.run(fetch_config(client, digest, size_bytes)),
        };
        Ok(bytes?)
    }

    fn layer(&self, index: usize, info: &LayerInfo) -> oci::Result<Box<dyn Read + Send>> {
        let known = info.compressed_digest.zip(info.size_bytes);
        let (digest, size_bytes) = known.ok_or(Error::NoLayer(index))?;
        let blob = Blob { digest, size_bytes };
        let cache = Cache::nowhere();
        let downloads = self.download(&[blob], &cache)?;
        Ok(Box::new(Owned {
            reader: downloads.reader(0),
            _downloads: downloads,
        }))
    }
}

/// A reader that keeps its download going.
struct Owned {
    reader: crate::download::BlobReader,
    _downloads: Downloads,
}

impl Read for Owned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

async fn until_cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(CANCEL_POLL).await;
    }
}

async fn fetch_manifest(
    client: &Client,
    wanted: &str,
    expected: Option<Digest>,
) -> Result<Vec<u8>> {
    let repository = client.repository();
    let what = match wanted.contains(':') {
        true => format!("the image {repository}@{wanted}"),
        false => format!("the image {repository}:{wanted}"),
    };
    let mut attempts = Attempts::default();
    loop {
        let mut call = Call::get(client.url(&format!("manifests/{wanted}"))?, &what);
        call.accept = Some(MANIFEST_TYPES);
        let failed = match fetch_document(client, call, MANIFEST_BYTES_MAX, expected).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        attempts.wait(failed).await?;
    }
}

async fn fetch_config(client: &Client, digest: Digest, size_bytes: u64) -> Result<Vec<u8>> {
    let what = format!("the configuration {digest}");
    let max_bytes = size_bytes.min(CONFIG_BYTES_MAX);
    let mut attempts = Attempts::default();
    loop {
        let call = Call::get(client.url(&format!("blobs/{digest}"))?, &what);
        let failed = match fetch_document(client, call, max_bytes, Some(digest)).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        attempts.wait(failed).await?;
    }
}

async fn fetch_document(
    client: &Client,
    call: Call<'_>,
    max_bytes: u64,
    expected: Option<Digest>,
) -> Result<Vec<u8>> {
    let what = call.what.to_owned();
    let answer = client.send(call).await?;
    let is_page = is_page(answer.headers());
    let stated = answer.headers().get(CONTENT_DIGEST);
    let stated: Option<Digest> = stated.and_then(|text| text.to_str().ok()?.parse().ok());
    let bytes = client.body(answer, &what, max_bytes).await?;
    if is_page && !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(client.not_a_registry("with a page for browsers"));
    }
    let found = Digest::of(&bytes);
    match expected.or(stated) {
        Some(expected) if expected != found => Err(Error::Digest {
            server: client.server().to_owned(),
            expected,
            found,
        }),
        _ => Ok(bytes),
    }
}
