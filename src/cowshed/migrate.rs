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
use cowshed_format::base::{self, printable};
use cowshed_host::{Error, Host, ImportOptions, ImportProgress, ImportedImage, ImportedLayer};
use cowshed_oci::old_store::{OldImage, OldStore};
use cowshed_oci::{Digest, Image, Reference};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Number of images that are imported at once for each processor: an import waits for the disk and for
/// mounts more than it computes.
const AT_ONCE_PER_PROCESSOR: usize = 4;
/// The maximum number of images that are imported at once.
const AT_ONCE_MAX: usize = 16;

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
    if store.images().is_empty() {
        console.message(&format!(
            "no image is in {}; those of Docker with the containerd image store are in containerd's root",
            migrate.from
        ));
    }
    let mut outcome = import_all(&host, store.images(), console).with_context(what)?;
    outcome.imported.sort_by_key(|(index, _)| *index);
    // After an interruption nobody reads the list, and the output takes nothing.
    if !console.cancel().is_cancelled() {
        show(&store, &outcome, console)?;
    }
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

/// An image that waits for its import, by its index in the store.
struct Waiting {
    index: usize,
    /// The identity of the stack up to each of its layers.
    stacks: Vec<Digest>,
}

/// What the threads share.
#[derive(Default)]
struct Plan {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// The stacks that a thread imports now.
    in_work: HashSet<Digest>,
    /// The stacks that the pool has.
    present: HashSet<Digest>,
    done_layers: u64,
    outcome: Outcome,
}

/// An image that a thread imports; others wait for its layers until it is dropped.
struct Claim<'p> {
    plan: &'p Plan,
    image: Waiting,
}

impl State {
    /// Takes an image whose missing layers no other thread imports; `None` if there is none now.
    fn take(&mut self) -> Option<Waiting> {
        let is_free = |image: &Waiting| {
            let mut stacks = image.stacks.iter();
            stacks.all(|one| self.present.contains(one) || !self.in_work.contains(one))
        };
        let index = self.waiting.iter().position(is_free)?;
        let image = self.waiting.remove(index);
        self.in_work.extend(&image.stacks);
        Some(image)
    }
}

impl Plan {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an image to import, and waits for one; `None` once there is nothing left to do.
    fn next(&self) -> Option<Claim<'_>> {
        let mut state = self.lock();
        while !state.waiting.is_empty() {
            if let Some(image) = state.take() {
                return Some(Claim { plan: self, image });
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Claim<'_> {
    /// Keeps the outcome; after an error that is not the image's own, nothing more is imported. `shown` is
    /// the image's name in messages.
    fn end(self, shown: &str, imported: Result<ImportedImage, Error>) {
        let mut state = self.plan.lock();
        let index = self.image.index;
        match imported {
            Ok(imported) => {
                state.present.extend(&self.image.stacks);
                state.outcome.imported.push((index, imported));
            }
            Err(error) if is_of_the_image(&error) => {
                state.outcome.failed.push((index, error.into()));
            }
            Err(error) => {
                state.waiting.clear();
                let is_cancelled = error.is_cancelled();
                let mut error = anyhow::Error::from(error);
                if !is_cancelled {
                    error = error.context(format!("image {shown}"));
                }
                state.outcome.stopped.get_or_insert(error);
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.plan.lock();
        for stack in &self.image.stacks {
            state.in_work.remove(stack);
        }
        self.plan.changed.notify_all();
    }
}

/// Returns true if the error says nothing of the images that follow.
fn is_of_the_image(error: &Error) -> bool {
    match error {
        Error::FileSystemFull { .. } | Error::Config(_) | Error::NotFound { .. } => true,
        Error::Pool(error) => matches!(error, base::Error::TooLarge { .. }),
        Error::Oci(_) => !error.is_cancelled() && !error.is_no_space(),
        _ => false,
    }
}

fn import_all(host: &Host, images: &[OldImage], console: &Console) -> anyhow::Result<Outcome> {
    let mut state = State::default();
    let mut layers = 0;
    let (names, taken) = resolve_names(images);
    for line in taken {
        console.message(&line);
    }
    for (index, image) in images.iter().enumerate() {
        let image = match image.image() {
            Ok(image) => image,
            Err(error) => {
                let error = anyhow::anyhow!("{error}");
                state.outcome.failed.push((index, error));
                continue;
            }
        };
        tell_oddities(image, true, console);
        let stacks = image.stack_ids();
        let missing = host.images().missing_layers(image);
        let missing = missing.with_context(|| format!("image {}", shown(&images[index])))?;
        let present = stacks.iter().enumerate();
        let present = present.filter(|(index, _)| !missing.contains(index));
        state.present.extend(present.map(|(_, stack)| *stack));
        layers += stacks.len() as u64;
        state.waiting.push(Waiting { index, stacks });
    }
    // The lowest stacks first: they are those of most others.
    state.waiting.sort_by_key(|image| image.stacks.len());
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = (AT_ONCE_PER_PROCESSOR * processors)
        .min(AT_ONCE_MAX)
        .min(state.waiting.len());
    let plan = Plan {
        state: Mutex::new(state),
        changed: Condvar::new(),
    };
    let progress = console.progress("layers", Some(layers));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                console.cancel().during(|| {
                    while let Some(claim) = plan.next() {
                        let index = claim.image.index;
                        // Only images that can be read wait.
                        let Ok(image) = images[index].image() else {
                            continue;
                        };
                        let options = ImportOptions {
                            free_names: Some(names[index].clone()),
                            ..ImportOptions::default()
                        };
                        let imported = import_one(host, image, &options, &plan, &progress, console);
                        claim.end(&shown(&images[index]), imported);
                    }
                });
            });
        }
    });
    let state = plan.state.into_inner();
    let outcome = state.unwrap_or_else(PoisonError::into_inner).outcome;
    Ok(outcome)
}

/// Returns an image's names and old id, for messages.
fn shown(old: &OldImage) -> String {
    match old.names() {
        [] => short(old.id()),
        names => format!("{} ({})", names.join(", "), short(old.id())),
    }
}

/// Returns the names that each image of the store gets: the first one in the store's list with a name
/// gets it. Returns also a line for each image that does not.
fn resolve_names(images: &[OldImage]) -> (Vec<Vec<Reference>>, Vec<String>) {
    let mut first: HashMap<String, usize> = HashMap::new();
    let (mut all, mut taken) = (Vec::new(), Vec::new());
    for (index, old) in images.iter().enumerate() {
        let mut names: Vec<Reference> = Vec::new();
        // One that cannot be read gets none.
        let found = old.names().iter().filter(|_| old.image().is_ok());
        for name in found.filter_map(|name| Reference::parse(name).ok()) {
            match *first.entry(name.short()).or_insert(index) {
                other if other == index && names.contains(&name) => {}
                other if other == index => names.push(name),
                other => taken.push(format!(
                    "warning: {} is the name of two images in the store: {} gets it, and {} does not",
                    name.short(),
                    short(images[other].id()),
                    short(old.id())
                )),
            }
        }
        all.push(names);
    }
    (all, taken)
}

fn import_one(
    host: &Host,
    image: &Image,
    options: &ImportOptions,
    plan: &Plan,
    progress: &Progress,
    console: &Console,
) -> Result<ImportedImage, Error> {
    let cancel = console.cancel();
    let mut seen = 0;
    let mut report = |done: ImportProgress| {
        let mut state = plan.lock();
        state.done_layers += done.done_layers.saturating_sub(seen) as u64;
        seen = done.done_layers;
        progress.advance_to(state.done_layers);
        !cancel.is_cancelled()
    };
    let imported = host.images().import(image, options, &mut report);
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
        let name = printable(name);
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
        let shown = shown(&store.images()[*index]);
        let line = failure::OneLine(&format!("cowshed: image {shown}: {error}")).to_string();
        console.complain(&failure::shown(&line, Exit::Failed, json));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(index: usize, stacks: &[&str]) -> Waiting {
        let stacks = stacks.iter().map(|stack| Digest::of(stack.as_bytes()));
        Waiting {
            index,
            stacks: stacks.collect(),
        }
    }

    #[test]
    fn a_layer_that_several_images_have_is_imported_once() {
        let mut state = State {
            waiting: vec![
                waiting(0, &["a", "b"]),
                waiting(1, &["a", "c"]),
                waiting(2, &["d"]),
                waiting(3, &["a", "c", "e"]),
            ],
            ..State::default()
        };
        assert_eq!(state.take().unwrap().index, 0);
        assert_eq!(state.take().unwrap().index, 2);
        assert!(state.take().is_none());
        // The pool has the first image now, whose thread has gone on to the next.
        state.present.extend(waiting(0, &["a", "b"]).stacks);
        assert_eq!(state.take().unwrap().index, 1);
        assert!(state.take().is_none());
    }

    #[test]
    fn an_image_that_is_given_up_stops_no_other() {
        let plan = Plan::default();
        plan.lock().waiting = vec![waiting(0, &["a"]), waiting(1, &["a", "b"])];
        let claim = plan.next().unwrap();
        drop(claim);
        let claim = plan.next().unwrap();
        assert_eq!(claim.image.index, 1);
        claim.end("b:1", Err(Error::Cancelled));
        assert!(plan.next().is_none());
        let state = plan.lock();
        assert!(state.outcome.stopped.is_some() && state.in_work.is_empty());
    }

    #[test]
    fn an_error_that_stops_the_run_names_the_image_and_the_images_own_do_not_stop_it() {
        let plan = Plan::default();
        plan.lock().waiting = vec![waiting(0, &["a"]), waiting(1, &["b"]), waiting(2, &["c"])];
        let too_large = base::Error::TooLarge {
            what: "a transaction",
            max_bytes: 1 << 20,
        };
        plan.next().unwrap().end("a:1", Err(too_large.into()));
        let claim = plan.next().unwrap();
        claim.end("b:1", Err(base::Error::ReadOnly.into()));
        assert!(plan.next().is_none());
        let outcome = &plan.lock().outcome;
        assert_eq!(outcome.failed[0].0, 0);
        let stopped = outcome.stopped.as_ref().unwrap();
        assert_eq!(
            format!("{stopped:#}"),
            "image b:1: the pool is open read-only"
        );
    }
}
