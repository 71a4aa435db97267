//! `cowshed image pull`: the documents are fetched first, then the layers that the pool lacks, while
//! the ones before are stored.

use super::{Ended, access, cache, hinted};
use crate::arguments::registry::Pull;
use crate::console::Console;
use crate::failure::Exit;
use crate::image::{short, tell_oddities};
use crate::open::Place;
use crate::{remote, signals};
use anyhow::Context;
use cowshed_daemon::request::{Command, image as request};
use cowshed_oci::relay::{Requests, Sender};
use cowshed_oci::{self as oci, Image, Reference, Remote, Select};
use cowshed_registry::{self as registry, Blob, Downloads, Repository};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The interval at which progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// Fetches an image into the pool.
///
/// # Errors
/// Errors of the network, the registry and the pool.
pub(super) fn pull(pull: &Pull, place: &Place, console: &Console) -> anyhow::Result<Exit> {
    let what = || format!("pull image {}", pull.reference);
    let reference = Reference::parse(&pull.reference)?;
    signals::cancel_on_signals(console.cancel())?;
    let opened = console.cancel().during(|| open(pull, &reference, console));
    let (repository, image) = opened.with_context(what)?;
    tell_oddities(&image, false, console);

    let (ours, theirs) = UnixStream::pair().with_context(what)?;
    let command = Command::Image(request::Command::Pull(request::Pull {
        name: reference.short(),
        size_bytes: pull.size.map(|size| size.0),
    }));
    let (exit, downloads) = thread::scope(|scope| -> anyhow::Result<_> {
        let feeder = scope.spawn(|| {
            let _ended = Ended(&ours);
            let cancel = console.cancel();
            cancel.during(|| feed(&repository, &image, &ours, console))
        });
        let stored = {
            let console = console.with_input(theirs.into()).with_context(what);
            console.and_then(|console| remote::run_anywhere(command, place, &console))
        };
        // Whatever the other side has left undone, nobody waits for it any longer.
        let _ = ours.shutdown(Shutdown::Both);
        let downloads = feeder.join().ok().flatten();
        Ok((stored?, downloads))
    })?;
    if let (Exit::Done, Some(downloads)) = (exit, downloads) {
        downloads.remove();
    }
    Ok(exit)
}

/// Fetches the documents of the image.
fn open(
    pull: &Pull,
    reference: &Reference,
    console: &Console,
) -> anyhow::Result<(Arc<Repository>, Image)> {
    let access = access(reference, &pull.connection, console)?;
    let repository = Repository::open(reference, &access);
    let repository = Arc::new(repository.map_err(hinted)?);
    let manifest = repository.manifest(reference).map_err(hinted)?;
    let remote: Arc<dyn Remote> = Arc::clone(&repository) as _;
    let select = Select {
        platform: pull.platform.clone(),
        ..Select::default()
    };
    let image = Image::open_remote(&remote, &manifest, vec![reference.short()], &select);
    let image = image.map_err(|error| match &error {
        oci::Error::OtherSystem { .. } => anyhow::anyhow!("{error} (--platform)"),
        _ => error.into(),
    })?;
    Ok((repository, image))
}

/// Passes the image on to the process that has the pool. Returns the layers that were fetched for
/// it, if it came that far.
fn feed(
    repository: &Repository,
    image: &Image,
    socket: &UnixStream,
    console: &Console,
) -> Option<Downloads> {
    // If that fails, the other side has ended, and has said why.
    let mut sender = Sender::new(socket, image).ok()?;
    let mut requests = Requests::new(socket);
    let wanted = requests.wanted().ok()?;
    let layers = Layers::of(image, &wanted);
    let started = layers.and_then(|layers| {
        let downloads = repository.download(&layers.blobs, &cache())?;
        Ok((layers, downloads))
    });
    let (layers, downloads) = match started {
        Ok(started) => started,
        Err(error) => {
            sender.fail(&error.to_string());
            return None;
        }
    };
    let progress = Progress::of(image);
    thread::scope(|scope| {
        scope.spawn(|| {
            let bars = scope.spawn(|| layers.show(&downloads, &progress, console));
            progress.follow(&mut requests, |stored| layers.discard(&downloads, stored));
            // Nobody reads any more: whoever waits for a layer in flight need not.
            downloads.stop();
            let _ = bars.join();
            // The other side shows the result, or why there is none, once the socket has an end.
            let _ = socket.shutdown(Shutdown::Write);
        });
        for (index, place) in wanted.iter().zip(&layers.places) {
            if let Err(error) = sender.layer(*index, downloads.reader(*place)) {
                progress.end();
                sender.fail(&error.to_string());
                return;
            }
        }
        // An error means that the other side has ended, and has said why.
        let _ = sender.finish();
    });
    Some(downloads)
}

/// How many layers the other side has stored.
struct Progress {
    layers: usize,
    stored: AtomicUsize,
    is_over: AtomicBool,
    is_shown: AtomicBool,
}

impl Progress {
    fn of(image: &Image) -> Self {
        Self {
            layers: image.layers().len(),
            stored: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            is_shown: AtomicBool::new(true),
        }
    }

    /// Notes what the other side has stored, and tells `stored`, until it has all or gives up.
    fn follow(&self, requests: &mut Requests<&UnixStream>, stored: impl Fn(usize)) {
        while let Some(layers) = requests.stored() {
            self.stored.store(layers, Ordering::Relaxed);
            stored(layers);
            if layers >= self.layers {
                break;
            }
        }
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Ends what is shown, and waits until it is gone from the terminal.
    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        while self.is_shown.load(Ordering::Relaxed) {
            thread::sleep(SHOWN_EVERY / 10);
        }
    }
}

/// The layers that are fetched.
struct Layers {
    /// Each blob once.
    blobs: Vec<Blob>,
    /// The place of each layer's blob in `blobs`.
    places: Vec<usize>,
    /// The indexes of the first and the last layer of each blob.
    spans: Vec<(usize, usize)>,
}

impl Layers {
    fn of(image: &Image, wanted: &[usize]) -> registry::Result<Self> {
        let (mut blobs, mut places, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for index in wanted {
            let layer = image.layers().get(*index);
            let known = layer.and_then(|layer| Some((layer.compressed_digest?, layer.size_bytes?)));
            // The manifest of an image in a registry states both for each layer.
            let (digest, size_bytes) = known.ok_or(registry::Error::NoLayer(*index))?;
            let blob = Blob { digest, size_bytes };
            let place = blobs.iter().position(|known| *known == blob);
            places.push(place.unwrap_or(blobs.len()));
            match place.and_then(|place| spans.get_mut(place)) {
                Some((_, last)) => *last = *index,
                None => {
                    blobs.push(blob);
                    spans.push((*index, *index));
                }
            }
        }
        Ok(Self {
            blobs,
            places,
            spans,
        })
    }

    /// Removes the files of blobs all of whose layers are among the first `stored` ones.
    fn discard(&self, downloads: &Downloads, stored: usize) {
        for (place, (_, last)) in self.spans.iter().enumerate() {
            if *last < stored {
                downloads.remove_file(place);
            }
        }
    }

    /// Shows how far all are, until that is over.
    fn show(&self, downloads: &Downloads, progress: &Progress, console: &Console) {
        let names = self.blobs.iter().map(|blob| {
            let name = short(&blob.digest.to_string());
            (name, blob.size_bytes)
        });
        let bars = console.bars(&names.collect::<Vec<_>>());
        while !progress.is_over.load(Ordering::Relaxed) {
            let stored = progress.stored.load(Ordering::Relaxed);
            let fetched = downloads.fetched().into_iter();
            for (place, (fetched, (first, _))) in fetched.zip(&self.spans).enumerate() {
                let doing = match (fetched.is_whole, fetched.bytes) {
                    _ if *first < stored => "stored",
                    _ if *first == stored && fetched.bytes > 0 => "storing",
                    (true, _) => "fetched",
                    (false, 0) => "waiting",
                    (false, _) => "fetching",
                };
                bars.set(place, fetched.bytes, doing);
            }
            thread::sleep(SHOWN_EVERY);
        }
        drop(bars);
        progress.is_shown.store(false, Ordering::Relaxed);
    }
}
