//! `cowshed image migrate`: the images of another program's store, several at once. Images that share
//! a layer are imported one after the other, so that none is read twice.

use super::console::Console;
use super::failure::{self, Exit};
use super::image::{short, tell_notes, tell_oddities};
use super::output::{Column, counted};
use super::progress::Progress;
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::image::Migrate;
use cowshed_format::base::size::human;
use cowshed_host::{Error, Host, ImportOptions, ImportedImage, ImportedLayer};
use cowshed_oci::old_store::{OldImage, OldStore};
use cowshed_oci::{Digest, Image};
use serde::Serialize;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The maximum number of images that are imported at once.
const AT_ONCE_MAX: usize = 8;

/// An image that was taken over.
#[derive(Serialize)]
struct Migrated<'a> {
    /// Its id in the old store.
    old_id: &'a str,
    /// Its id now.
    id: Digest,
    names: &'a [String],
    layers: Vec<MigratedLayer<'a>>,
}

/// One of its layers.
#[derive(Serialize)]
struct MigratedLayer<'a> {
    #[serde(flatten)]
    layer: &'a ImportedLayer,
    /// True if it is byte by byte what it was when the old store got it.
    exact: bool,
}

/// Imports all images of a store.
///
/// # Errors
/// When the store cannot be read, the pool fails, or at least one image cannot be taken over.
pub(super) fn migrate(
    migrate: &Migrate,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let what = || format!("migrate the images in {}", migrate.from);
    let host = open_pool.containers().with_context(what)?;
    let store = OldStore::open(migrate.from.as_path()).with_context(what)?;
    let mut outcome = import_all(&host, store.images(), console).with_context(what)?;
    outcome.imported.sort_by_key(|(index, _)| *index);
    show(&store, &outcome, console)?;
    tell_failures(&store, &outcome, console);
    let all = counted(store.images().len(), "image", "images");
    if let Some(stopped) = outcome.stopped {
        let done = outcome.imported.len();
        let context = format!("{done} of {all} were taken over; repeat the command to go on");
        return Err(stopped.context(context)).with_context(what);
    }
    match outcome.failed.len() {
        0 => Ok(()),
        failed => {
            Err(anyhow::anyhow!("{failed} of {all} could not be taken over")).with_context(what)
        }
    }
}

/// What became of the images, each by its index in the store.
#[derive(Default)]
struct Outcome {
    imported: Vec<(usize, ImportedImage)>,
    failed: Vec<(usize, anyhow::Error)>,
    /// The reason why not all were tried.
    stopped: Option<anyhow::Error>,
}

/// An image that waits for its import.
struct Waiting<'s> {
    index: usize,
    image: &'s Image,
    /// The identity of the stack up to each of its layers.
    stacks: Vec<Digest>,
}

/// What the threads share.
struct Plan<'s> {
    state: Mutex<State<'s>>,
    changed: Condvar,
}

struct State<'s> {
    waiting: Vec<Waiting<'s>>,
    /// The stacks that a thread imports now.
    in_work: HashSet<Digest>,
    /// The stacks that the pool has.
    present: HashSet<Digest>,
    done_layers: u64,
    outcome: Outcome,
}

impl<'s> Plan<'s> {
    fn lock(&self) -> MutexGuard<'_, State<'s>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an image whose missing layers no other thread imports; waits for one. Returns `None`
    /// once there is nothing left to do.
    fn next(&self) -> Option<Waiting<'s>> {
        let mut state = self.lock();
        loop {
            if state.waiting.is_empty() {
                return None;
            }
            let is_free = |image: &Waiting<'_>| {
                let mut stacks = image.stacks.iter();
                stacks.all(|one| state.present.contains(one) || !state.in_work.contains(one))
            };
            if let Some(index) = state.waiting.iter().position(is_free) {
                let image = state.waiting.remove(index);
                state.in_work.extend(&image.stacks);
                return Some(image);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, image: &Waiting<'s>, imported: Result<ImportedImage, Error>) {
        let mut state = self.lock();
        for stack in &image.stacks {
            state.in_work.remove(stack);
        }
        match imported {
            Ok(imported) => {
                state.present.extend(&image.stacks);
                state.outcome.imported.push((image.index, imported));
            }
            Err(error) if is_of_the_image(&error) => {
                state.outcome.failed.push((image.index, error.into()));
            }
            Err(error) => {
                state.waiting.clear();
                state.outcome.stopped.get_or_insert(error.into());
            }
        }
        self.changed.notify_all();
    }
}

/// Returns true if the error says nothing of the images that follow.
fn is_of_the_image(error: &Error) -> bool {
    let of_an_image = matches!(error, Error::Oci(_) | Error::Config(_));
    of_an_image && !error.is_cancelled() && !error.is_no_space()
}

fn import_all(host: &Host, images: &[OldImage], console: &Console) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut waiting = Vec::new();
    let mut present = HashSet::new();
    let mut layers = 0;
    for (index, image) in images.iter().enumerate() {
        let image = match image.image() {
            Ok(image) => image,
            Err(error) => {
                outcome.failed.push((index, anyhow::anyhow!("{error}")));
                continue;
            }
        };
        tell_oddities(image, true, console);
        let stacks = image.stack_ids();
        let missing = host.images().missing_layers(image)?;
        let has = |(index, _): &(usize, &Digest)| !missing.contains(index);
        present.extend(
            stacks
                .iter()
                .enumerate()
                .filter(has)
                .map(|(_, stack)| *stack),
        );
        layers += stacks.len() as u64;
        waiting.push(Waiting {
            index,
            image,
            stacks,
        });
    }
    // The lowest stacks first: they are those of most others.
    waiting.sort_by_key(|image| image.stacks.len());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(AT_ONCE_MAX).min(waiting.len());
    let plan = Plan {
        state: Mutex::new(State {
            waiting,
            in_work: HashSet::new(),
            present,
            done_layers: 0,
            outcome,
        }),
        changed: Condvar::new(),
    };
    let progress = console.progress("layers", Some(layers));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                console.cancel().during(|| {
                    while let Some(image) = plan.next() {
                        let imported = import_one(host, &image, &plan, &progress, console);
                        plan.done(&image, imported);
                    }
                });
            });
        }
    });
    let state = plan.state.into_inner();
    let outcome = state.unwrap_or_else(PoisonError::into_inner).outcome;
    Ok(outcome)
}

fn import_one(
    host: &Host,
    waiting: &Waiting<'_>,
    plan: &Plan<'_>,
    progress: &Progress,
    console: &Console,
) -> Result<ImportedImage, Error> {
    let cancel = console.cancel();
    let mut seen = 0;
    let imported = host
        .images()
        .import(waiting.image, &ImportOptions::default(), &mut |done| {
            let mut state = plan.lock();
            state.done_layers += (done.done_layers - seen) as u64;
            seen = done.done_layers;
            progress.advance_to(state.done_layers);
            !cancel.is_cancelled()
        });
    // An error of the store that is due to cancellation is reported as cancellation.
    imported.map_err(|error| match cancel.check() {
        Ok(()) => error,
        Err(interrupted) => interrupted.into(),
    })
}

/// Lists the images that were taken over, with their old and new ids.
fn show(store: &OldStore, outcome: &Outcome, console: &Console) -> anyhow::Result<()> {
    let images = store.images();
    let migrated = outcome.imported.iter().map(|(index, imported)| {
        let old = &images[*index];
        let layers = imported.layers.iter().enumerate().map(|(index, layer)| {
            let exact = old.image().is_ok_and(|image| image.is_layer_exact(index));
            MigratedLayer { layer, exact }
        });
        Migrated {
            old_id: old.id(),
            id: imported.id,
            names: &imported.names,
            layers: layers.collect(),
        }
    });
    let migrated: Vec<Migrated<'_>> = migrated.collect();
    for image in &migrated {
        tell_inexact(image, console);
    }
    for (_, imported) in &outcome.imported {
        tell_notes(imported, console);
    }
    console.result(&migrated, || {
        let columns = [
            Column::Text("NAME"),
            Column::Text("OLD ID"),
            Column::Text("ID"),
            Column::Number("LAYERS"),
            Column::Number("REUSED"),
            Column::Number("OWN"),
        ];
        let rows = migrated.iter().map(|image| {
            let layers = image.layers.iter().map(|layer| layer.layer);
            let own_bytes = layers.clone().map(|layer| layer.own_bytes).sum();
            vec![
                image.names.join(", "),
                short(image.old_id),
                short(&image.id.to_string()),
                image.layers.len().to_string(),
                layers.filter(|layer| layer.reused).count().to_string(),
                human(own_bytes),
            ]
        });
        console.table(&columns, rows)
    })
}

/// Says which images have layers that are not byte by byte what they were.
fn tell_inexact(image: &Migrated<'_>, console: &Console) {
    let inexact = image.layers.iter().filter(|layer| !layer.exact).count();
    if inexact > 0 {
        let name = image.names.first().map_or(image.old_id, |name| name);
        let layers = counted(image.layers.len(), "layer", "layers");
        console.message(&format!(
            "warning: {inexact} of {layers} of {name} were made anew of their files, because the store \
             did not keep their tars: they have other digests, and the image another id"
        ));
    }
}

/// Says for each image that was not taken over what is wrong with it.
fn tell_failures(store: &OldStore, outcome: &Outcome, console: &Console) {
    let json = console.style().json;
    for (index, error) in &outcome.failed {
        let old = &store.images()[*index];
        let names = match old.names() {
            [] => short(old.id()),
            names => format!("{} ({})", names.join(", "), short(old.id())),
        };
        let line = failure::OneLine(&format!("cowshed: image {names}: {error}")).to_string();
        console.complain(&failure::shown(&line, Exit::Failed, json));
    }
}
