//! `cowshed image push`: what the registry lacks is sent, several layers at a time, and the manifest
//! last, so that nobody sees an image that is not whole.

use super::{Ended, access, cache, hinted};
use crate::arguments::image::Compressed;
use crate::arguments::registry::Push;
use crate::console::Console;
use crate::failure::{Exit, Usage};
use crate::image::{OtherDigest, short, warn_of_other_digests};
use crate::open::Place;
use crate::output::counted;
use crate::{remote, signals};
use anyhow::Context;
use cowshed_daemon::request::{Command, image as request};
use cowshed_format::base::size::human;
use cowshed_oci::offer::{Offer, OfferedLayer, Taker, WrittenLayer};
use cowshed_oci::{
    Compression, Digest, ImageConfig, KnownBlob, LayerDescriptor, MANIFEST_TYPE, Reference,
    chain_above, manifest_of,
};
use cowshed_registry::{self as registry, Blob, Cache, Repository, Upload};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// Number of layers that are checked, written and sent at the same time.
const AT_A_TIME: usize = 4;
/// The interval at which progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// An image that is in the registry now.
#[derive(Serialize)]
struct PushedImage {
    /// The digest of its configuration in the registry.
    id: Digest,
    /// Its name there.
    name: String,
    /// The digest of its configuration in the pool; differs if a layer could not be reproduced byte
    /// by byte.
    image: Digest,
    /// The digest of its manifest.
    manifest: Digest,
    /// Its layers, lowest first.
    layers: Vec<PushedLayer>,
}

/// One layer of it.
#[derive(Serialize)]
struct PushedLayer {
    /// The identity of the stack up to here.
    chain_id: Digest,
    /// The digest of the uncompressed layer.
    diff_id: Digest,
    /// Bytes that only this layer holds in the pool.
    own_bytes: u64,
    /// True if the registry had it before.
    reused: bool,
    /// The digest of its blob.
    digest: Digest,
    /// The size of its blob.
    size_bytes: u64,
    /// The reason if it is not as it was imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    why_anew: Option<String>,
}

/// Sends an image to a registry.
///
/// # Errors
/// Errors of the network, the registry and the pool.
pub(super) fn push(push: &Push, place: &Place, console: &Console) -> anyhow::Result<Exit> {
    let what = || format!("push image {}", push.image);
    let target = push.destination.as_deref().unwrap_or(&push.image);
    let target = Reference::parse_given(target).map_err(|error| match push.destination {
        Some(_) => error.into(),
        None => anyhow::Error::new(Usage(format!(
            "{error}; give the name in the registry as DEST"
        ))),
    })?;
    signals::cancel_on_signals(console.cancel())?;
    let (ours, theirs) = UnixStream::pair().with_context(what)?;
    let command = Command::Image(request::Command::Push(request::Push {
        image: push.image.clone(),
    }));
    let (exit, pushed) = thread::scope(|scope| -> anyhow::Result<_> {
        let sender = scope.spawn(|| {
            let _ended = Ended(&ours);
            let cancel = console.cancel();
            cancel.during(|| take(push, &target, &ours, console))
        });
        let given = {
            let console = console.with_input(theirs.into()).with_context(what);
            console.and_then(|console| remote::run_anywhere(command, place, &console))
        };
        // Whatever the other side has left undone, nobody waits for it any longer.
        let _ = ours.shutdown(Shutdown::Both);
        let pushed = match sender.join() {
            Ok(pushed) => pushed,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok((given?, pushed))
    })?;
    if exit != Exit::Done {
        return Ok(exit);
    }
    let (pushed, offer) = pushed.with_context(what)?;
    let layers = pushed.layers.iter().zip(&offer.layers);
    let others = layers.map(|(layer, offered)| OtherDigest {
        original: offered.diff_id,
        found: layer.diff_id,
        why: layer.why_anew.as_deref(),
    });
    warn_of_other_digests(others, console);
    console.result(&pushed, || shown(&pushed))?;
    Ok(Exit::Done)
}

fn shown(pushed: &PushedImage) -> String {
    let reused = pushed.layers.iter().filter(|layer| layer.reused).count();
    let sent = pushed.layers.iter().filter(|layer| !layer.reused);
    let layers = counted(pushed.layers.len(), "layer", "layers");
    format!(
        "{} {}: {layers}, {reused} already there, {} sent",
        pushed.name,
        short(&pushed.id.to_string()),
        human(sent.map(|layer| layer.size_bytes).sum())
    )
}

/// Takes the image from the process that has the pool, and sends it.
fn take(
    push: &Push,
    target: &Reference,
    socket: &UnixStream,
    console: &Console,
) -> anyhow::Result<(PushedImage, Offer)> {
    let (taker, offer) = Taker::new(socket)?;
    if push.destination.is_none() && offer.name.is_none() {
        let fault = "an id names no registry; give the name there as DEST";
        return Err(Usage(fault.to_owned()).into());
    }
    let config = ImageConfig::parse(offer.config.clone().into_bytes())?;
    let access = access(target, &push.connection, console)?;
    let repository = Repository::open_for_push(target, &access).map_err(hinted)?;
    let cache = cache();
    let job = Job {
        repository: &repository,
        taker: &taker,
        target,
        cache: &cache,
        compression: push.compression.map(compression_of),
        layers: offer.layers.iter().map(LayerJob::of).collect(),
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    };
    let pushed = thread::scope(|scope| {
        scope.spawn(|| taker.listen());
        let bars = scope.spawn(|| job.show(console));
        let sent = {
            let _over = Over {
                is_over: &job.is_over,
                shown_by: bars.thread(),
            };
            job.send_all(console)
        };
        let _ = bars.join();
        let sent = sent.and_then(|layers| finish(&job, config, &offer, &layers));
        // The other side remembers what was stored, and ends; then so does the listener.
        let _ = socket.shutdown(Shutdown::Write);
        sent
    })?;
    drop(job);
    Ok((pushed, offer))
}

/// Ends the showing of progress when it is dropped: its thread is waited for, however sending ends.
struct Over<'j> {
    is_over: &'j AtomicBool,
    shown_by: &'j Thread,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.shown_by.unpark();
    }
}

/// Returns the other repository of the target's registry in which the blob was.
fn source_in<'b>(blob: &'b KnownBlob, target: &Reference) -> Option<&'b str> {
    let source = blob.source.as_deref()?;
    let (domain, path) = source.split_once('/')?;
    (domain == target.domain() && path != target.path()).then_some(path)
}

const fn compression_of(compressed: Compressed) -> Compression {
    match compressed {
        Compressed::None => Compression::None,
        Compressed::Gzip => Compression::Gzip,
        Compressed::Zstd => Compression::Zstd,
    }
}

/// Sends the configuration and, last of all, the manifest.
fn finish(
    job: &Job<'_>,
    config: ImageConfig,
    offer: &Offer,
    layers: &[SentLayer],
) -> anyhow::Result<PushedImage> {
    let Job {
        repository,
        target,
        cache,
        ..
    } = job;
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.blob.diff_id).collect();
    let config = config.with_diff_ids(&diff_ids)?;
    let blob = Blob {
        digest: config.digest(),
        size_bytes: config.raw().len() as u64,
    };
    if !repository.has(blob).map_err(hinted)? {
        let folder = || format!("write to the folder {}", cache.folder().display());
        let mut file = cache.temporary_file().with_context(folder)?;
        file.write_all(config.raw()).with_context(folder)?;
        let upload = Upload {
            blob,
            file: Arc::new(file),
            sent: Arc::default(),
        };
        repository.upload(&upload).map_err(hinted)?;
    }
    let descriptors = layers.iter().map(|layer| LayerDescriptor {
        media_type: layer.blob.compression.layer_media_type(),
        digest: layer.blob.digest,
        size_bytes: layer.blob.size_bytes,
    });
    let manifest = manifest_of(&config, &descriptors.collect::<Vec<_>>())?;
    let tag = target
        .tag()
        .context("the name in the registry has no tag")?;
    repository
        .put_manifest(tag, MANIFEST_TYPE, &manifest)
        .map_err(hinted)?;
    let mut below = None;
    let report = layers.iter().zip(&offer.layers).map(|(sent, offered)| {
        let chain_id = chain_above(below, sent.blob.diff_id);
        below = Some(chain_id);
        PushedLayer {
            chain_id,
            diff_id: sent.blob.diff_id,
            own_bytes: offered.own_bytes,
            reused: sent.reused,
            digest: sent.blob.digest,
            size_bytes: sent.blob.size_bytes,
            why_anew: sent.why_anew.clone(),
        }
    });
    Ok(PushedImage {
        id: config.digest(),
        name: target.short(),
        image: offer.id,
        manifest: Digest::of(&manifest),
        layers: report.collect(),
    })
}

/// A layer that is in the registry now.
struct SentLayer {
    blob: KnownBlob,
    /// The reason if it is not as it was imported.
    why_anew: Option<String>,
    /// True if the registry had it before.
    reused: bool,
}

/// The upload of one layer.
struct LayerJob<'o> {
    offered: &'o OfferedLayer,
    step: AtomicU8,
    total_bytes: AtomicU64,
    sent: Arc<AtomicU64>,
    outcome: Mutex<Option<SentLayer>>,
}

/// The states of an upload, as progress shows them.
const STEPS: [&str; 5] = ["waiting", "compressing", "sending", "sent", "there"];
const COMPRESSING: u8 = 1;
const SENDING: u8 = 2;
const SENT: u8 = 3;
const THERE: u8 = 4;

impl<'o> LayerJob<'o> {
    fn of(offered: &'o OfferedLayer) -> Self {
        Self {
            offered,
            step: AtomicU8::new(0),
            total_bytes: AtomicU64::new(offered.size_bytes.unwrap_or(0)),
            sent: Arc::default(),
            outcome: Mutex::default(),
        }
    }

    fn set(&self, step: u8) {
        self.step.store(step, Ordering::Relaxed);
    }
}

/// All that is done for the layers.
struct Job<'a> {
    repository: &'a Repository,
    taker: &'a Taker<'a>,
    target: &'a Reference,
    /// The folder for layers on their way.
    cache: &'a Cache,
    /// The only compression that is wanted.
    compression: Option<Compression>,
    layers: Vec<LayerJob<'a>>,
    next: AtomicUsize,
    is_over: AtomicBool,
}

impl Job<'_> {
    /// Brings all layers into the registry.
    fn send_all(&self, console: &Console) -> anyhow::Result<Vec<SentLayer>> {
        let fault: Mutex<Option<anyhow::Error>> = Mutex::default();
        thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(self.layers.len()) {
                scope.spawn(|| {
                    console.cancel().during(|| {
                        while let Some(index) = self.take_next() {
                            if let Err(error) = self.send(index) {
                                let mut first =
                                    fault.lock().unwrap_or_else(PoisonError::into_inner);
                                first.get_or_insert(error);
                                // The others end after the layer that they have begun.
                                self.next.store(self.layers.len(), Ordering::Relaxed);
                            }
                        }
                    });
                });
            }
        });
        if let Some(error) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let outcomes = self.layers.iter().map(|layer| {
            let outcome = layer.outcome.lock();
            outcome.unwrap_or_else(PoisonError::into_inner).take()
        });
        let outcomes: Option<Vec<SentLayer>> = outcomes.collect();
        outcomes.context("a layer was not sent")
    }

    fn take_next(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.layers.len()).then_some(index)
    }

    /// Brings one layer into the registry.
    fn send(&self, index: usize) -> anyhow::Result<()> {
        let layer = &self.layers[index];
        let sent = match self.find(layer.offered)? {
            Some(blob) => {
                layer.set(THERE);
                SentLayer {
                    blob,
                    why_anew: None,
                    reused: true,
                }
            }
            None => self.write_and_upload(index)?,
        };
        layer
            .total_bytes
            .store(sent.blob.size_bytes, Ordering::Relaxed);
        layer.sent.store(sent.blob.size_bytes, Ordering::Relaxed);
        let target = format!("{}/{}", self.target.domain(), self.target.path());
        let mut blob = sent.blob.clone();
        blob.source = Some(target);
        if blob.diff_id == layer.offered.diff_id && !layer.offered.blobs.contains(&blob) {
            self.taker.stored(index, blob)?;
        }
        let mut outcome = layer.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        *outcome = Some(sent);
        Ok(())
    }

    /// Returns a blob that holds the layer and that the repository has, or now has from another one.
    fn find(&self, layer: &OfferedLayer) -> anyhow::Result<Option<KnownBlob>> {
        let wanted = self.compression;
        // One with another content was written anew; now a recipe may fit.
        let is_wanted = |known: &&KnownBlob| {
            known.diff_id == layer.diff_id && wanted.is_none_or(|it| it == known.compression)
        };
        let blobs = layer.blobs.iter().filter(is_wanted);
        let mut lacked: Vec<&KnownBlob> = Vec::new();
        let mut asked = BTreeSet::new();
        for known in blobs {
            if asked.insert(known.digest) {
                match self.repository.has(blob_of(known)) {
                    Ok(true) => return Ok(Some(known.clone())),
                    Ok(false) => lacked.push(known),
                    // What is remembered is not so; the layer tells.
                    Err(registry::Error::Size { .. } | registry::Error::OtherDigest { .. }) => {}
                    Err(error) => return Err(hinted(error)),
                }
            } else if lacked.iter().any(|lacked| lacked.digest == known.digest) {
                lacked.push(known);
            }
        }
        for known in lacked {
            if let Some(source) = source_in(known, self.target)
                && self
                    .repository
                    .mount(blob_of(known), source)
                    .map_err(hinted)?
            {
                return Ok(Some(known.clone()));
            }
        }
        Ok(None)
    }

    fn write_and_upload(&self, index: usize) -> anyhow::Result<SentLayer> {
        let layer = &self.layers[index];
        layer.set(COMPRESSING);
        let folder = self.cache.folder();
        let file = self.cache.temporary_file();
        let file = file.with_context(|| format!("write to the folder {}", folder.display()))?;
        let compression = self.compression.unwrap_or(Compression::Gzip);
        let WrittenLayer { blob, why_anew } =
            self.taker.write(index, compression, &file, &folder)?;
        layer.total_bytes.store(blob.size_bytes, Ordering::Relaxed);
        // The same layer may be there, from a pool that remembers nothing.
        if self.repository.has(blob_of(&blob)).map_err(hinted)? {
            layer.set(THERE);
            return Ok(SentLayer {
                blob,
                why_anew,
                reused: true,
            });
        }
        layer.set(SENDING);
        let upload = Upload {
            blob: blob_of(&blob),
            file: Arc::new(file),
            sent: Arc::clone(&layer.sent),
        };
        self.repository.upload(&upload).map_err(hinted)?;
        layer.set(SENT);
        Ok(SentLayer {
            blob,
            why_anew,
            reused: false,
        })
    }

    /// Shows how far all are, until that is over.
    fn show(&self, console: &Console) {
        let names = self.layers.iter().map(|layer| {
            let name = short(&layer.offered.diff_id.to_string());
            (name, layer.total_bytes.load(Ordering::Relaxed))
        });
        let bars = console.bars(&names.collect::<Vec<_>>());
        while !self.is_over.load(Ordering::Relaxed) {
            for (place, layer) in self.layers.iter().enumerate() {
                let step = usize::from(layer.step.load(Ordering::Relaxed));
                bars.set_total(place, layer.total_bytes.load(Ordering::Relaxed));
                bars.set(place, layer.sent.load(Ordering::Relaxed), STEPS[step]);
            }
            thread::park_timeout(SHOWN_EVERY);
        }
    }
}

const fn blob_of(known: &KnownBlob) -> Blob {
    Blob {
        digest: known.digest,
        size_bytes: known.size_bytes,
    }
}
