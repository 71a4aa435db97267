//! `cowshed image …`: images and their layers.

use super::console::{Console, output_error};
use super::failure::Usage;
use super::migrate::migrate;
use super::offer;
use super::output::{Column, counted, exact, facts, time};
use super::part_file::write_file;
use super::removal;
use super::streams::{Input, Output};
use super::transfer;
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::FileOrPipe;
use cowshed_daemon::request::image::{self as request, Command, Export, Import, Pull};
use cowshed_format::base::size::human;
use cowshed_format::base::{Name, printable};
use cowshed_host::transfer::Chosen;
use cowshed_host::{self as container, ExportedImage, Host, ImportOptions, ImportedImage};
use cowshed_oci::{
    self as oci, Compression, Digest, Image, Platform, Reference, Select, SourceInput, relay,
};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Number of characters of an id that lists show.
const SHORT_ID: usize = 12;

/// Returns an id as lists show it; a name is not shortened.
pub(super) fn short(id: &str) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    let is_id = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        digits[..SHORT_ID].to_owned()
    } else {
        id.to_owned()
    }
}

/// Runs a command on `open_pool`.
///
/// # Errors
/// Any error of `cowshed-host`.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    match command {
        Command::Import(new) => {
            let what = || format!("import image {}", new.source);
            let imported = import(new, open_pool, console).with_context(what)?;
            for image in &imported {
                tell_notes(image, console);
            }
            let text = || shown_lines(&imported);
            console.result(&Several::new(&imported), text)
        }
        Command::Migrate(new) => migrate(new, open_pool, console),
        Command::Pull(pull) => {
            let what = || format!("pull image {}", pull.name);
            let pulled = store_pulled(pull, open_pool, console).with_context(what)?;
            tell_notes(&pulled, console);
            let images = [pulled];
            console.result(&Several::new(&images), || shown_lines(&images))
        }
        Command::Push(push) => offer::give(push, open_pool, console),
        Command::Export(export) => export_images(export, open_pool, console),
        Command::Send { images, options } => {
            transfer::send_set(Chosen::Images(images), options, open_pool, console)
        }
        Command::Receive(receive) => transfer::receive(receive, open_pool, console),
        Command::List => list(open_pool, console),
        Command::Inspect { image } => inspect(image, open_pool, console),
        Command::History { image } => history(image, open_pool, console),
        Command::Tag { image, name } => tag(image, name, open_pool, console),
        Command::Remove { images } => {
            let host = open_pool.containers().context("remove images")?;
            removal::each(images, "image", |name| {
                host.images().remove(name)?;
                Ok(())
            })
            .show(console)
        }
    }
}

/// Several images as one document: the fields of the first image, and a list of all of them.
#[derive(Serialize)]
struct Several<'a, T> {
    #[serde(flatten)]
    first: Option<&'a T>,
    images: &'a [T],
}

impl<'a, T> Several<'a, T> {
    fn new(images: &'a [T]) -> Self {
        Self {
            first: images.first(),
            images,
        }
    }
}

/// Imports all images of the source, or only the named one.
fn import(
    new: &Import,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<Vec<ImportedImage>> {
    let host = open_pool.containers()?;
    let name = new.name.as_deref().map(Name::new).transpose()?;
    // An invalid name is refused before anything is read.
    new.name
        .as_deref()
        .map(Reference::parse_given)
        .transpose()?;
    let images = open(new, &host, console)?;
    let mut imported: Vec<ImportedImage> = Vec::with_capacity(images.len());
    for image in &images {
        tell_oddities(image, name.is_none(), console);
        let options = ImportOptions {
            name: name.clone(),
            file_system_bytes: new.size_bytes,
            ..ImportOptions::default()
        };
        let one = import_one(&host, image, &options, console);
        imported.push(one.with_context(|| {
            let names = imported.iter().map(shown_name);
            let names: Vec<String> = names.collect();
            match &*names {
                [] => "nothing was imported".to_owned(),
                names => format!("only {} of it was imported", names.join(", ")),
            }
        })?);
    }
    Ok(imported)
}

/// Stores an image that another process, or another thread of this one, fetches.
fn store_pulled(
    pull: &Pull,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<ImportedImage> {
    let host = open_pool.containers()?;
    let input = console.input()?;
    let output = Output::new(input.file(), console.cancel())?;
    let received = relay::receive(input, output)?;
    let missing = host.images().missing_layers(received.image())?;
    let (image, mut reports) = received.request(&missing)?;
    let options = ImportOptions {
        file_system_bytes: pull.size_bytes,
        source: Some(Reference::parse(&pull.name)?),
        ..ImportOptions::default()
    };
    let cancel = console.cancel();
    let imported = host.images().import(&image, &options, &mut |done| {
        reports.stored(done.done_layers);
        !cancel.is_cancelled()
    });
    if imported.is_err() {
        reports.give_up();
    }
    // Whoever fetched it has its progress on the terminal, and removes that before the result.
    reports.wait_for_end();
    Ok(imported?)
}

fn import_one(
    host: &Host,
    image: &Image,
    options: &ImportOptions,
    console: &Console,
) -> anyhow::Result<ImportedImage> {
    let progress = console.progress("layers", Some(0));
    let cancel = console.cancel();
    let imported = host.images().import(image, options, &mut |done| {
        progress.set(done.done_layers as u64, done.layers as u64);
        !cancel.is_cancelled()
    });
    // An error of the input that is due to cancellation is reported as cancellation.
    imported.map_err(|error| match cancel.check() {
        Ok(()) => error.into(),
        Err(interrupted) => interrupted.into(),
    })
}

/// Reports properties of an image that are handled in an unexpected way.
pub(super) fn tell_oddities(image: &Image, takes_names: bool, console: &Console) {
    let shown = match image.described() {
        name if name.is_empty() => "the image".to_owned(),
        name => format!("the image {}", printable(&name)),
    };
    if let Some(platform) = image.other_platform() {
        console.message(&format!(
            "warning: {shown} is for {platform} and this host is {}; its programs do not run \
             here without an emulator",
            Platform::host()
        ));
    }
    let names = image.reference_names().iter().filter(|_| takes_names);
    for fault in names.filter_map(|name| Reference::parse(name).err()) {
        console.message(&format!("warning: a name of {shown} was left out: {fault}"));
    }
}

/// Opens the images; if there are several, a wanted name selects one.
fn open(new: &Import, host: &Host, console: &Console) -> anyhow::Result<Vec<Image>> {
    let input = match &new.source {
        FileOrPipe::Pipe => SourceInput::Stream(Box::new(console.input()?)),
        FileOrPipe::File(path) if is_stream(path.as_path()) => {
            SourceInput::Stream(Box::new(Input::open(path.as_path(), console.cancel())?))
        }
        FileOrPipe::File(path) => SourceInput::Path(path.as_path().to_owned()),
    };
    let select = Select {
        platform: new.platform.clone(),
        root_only: new.rootfs,
        ..Select::named(new.name.as_deref())
    };
    let opened = host.images().open_all(input, &select);
    opened.map_err(|error| match &error {
        container::Error::Oci(oci::Error::NotWhole { .. }) => {
            anyhow::anyhow!("{error} (--rootfs)")
        }
        container::Error::Oci(oci::Error::OtherSystem { .. }) => {
            anyhow::anyhow!("{error} (--platform)")
        }
        _ => error.into(),
    })
}

/// Returns true if the path is a named pipe or a device, on which reading may wait.
fn is_stream(path: &Path) -> bool {
    let found = path.metadata().map(|found| found.file_type());
    found.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
}

/// Returns the images as messages name them.
fn described(images: &[String]) -> String {
    let noun = if images.len() == 1 { "image" } else { "images" };
    format!("{noun} {}", images.join(", "))
}

fn export_images(export: &Export, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("export {} to {}", described(&export.images), export.file);
    let host = open_pool.containers().with_context(what)?;
    let compression = match export.compression {
        request::Compression::None => Compression::None,
        request::Compression::Gzip => Compression::Gzip,
        request::Compression::Zstd => Compression::Zstd,
    };
    let images: Vec<&str> = export.images.iter().map(String::as_str).collect();
    let write = |file: &File| -> anyhow::Result<Vec<ExportedImage>> {
        let output = Output::new(file, console.cancel()).map_err(output_error)?;
        let output = BufWriter::new(output);
        let (output, exported) = host.images().export_all(&images, compression, output)?;
        output
            .into_inner()
            .map_err(|error| output_error(error.into_error()))?;
        let layers = exported.iter().flat_map(|image| &image.layers);
        let others = layers.map(|layer| OtherDigest {
            original: layer.original_diff_id,
            found: layer.diff_id,
            why: layer.why_anew.as_deref(),
        });
        warn_of_other_digests(others, console);
        for name in exported.iter().flat_map(|image| &image.left_out) {
            console.message(&format!(
                "warning: the name {name} was left out, because an archive holds names with a tag \
                 and without a digest"
            ));
        }
        Ok(exported)
    };
    match &export.file {
        FileOrPipe::Pipe if console.style().json => {
            Err(Usage("--json and - cannot both use the standard output".to_owned()).into())
        }
        FileOrPipe::Pipe => write(console.output()).map(drop).with_context(what),
        FileOrPipe::File(path) => {
            let exported = write_file(path.as_path(), console.cancel(), |file, _| write(file))
                .with_context(what)?;
            console.result(&Several::new(&exported), String::new)
        }
    }
}

/// The digest with which a layer was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OtherDigest<'w> {
    /// That of the layer as it was imported.
    pub original: Digest,
    /// That of the layer as it was written.
    pub found: Digest,
    /// The reason if they differ.
    pub why: Option<&'w str>,
}

/// Warns of the layers that have another digest now, of each once.
pub(super) fn warn_of_other_digests<'w>(
    layers: impl Iterator<Item = OtherDigest<'w>>,
    console: &Console,
) {
    let short = |digest: Digest| short(&digest.to_string());
    let mut seen = BTreeSet::new();
    for layer in layers.filter(|layer| layer.original != layer.found) {
        if seen.insert(layer) {
            console.message(&format!(
                "warning: the layer {} could not be written as it was imported{}: it is {} now, and \
                 the image has another id",
                short(layer.original),
                layer.why.map(|why| format!(" ({why})")).unwrap_or_default(),
                short(layer.found)
            ));
        }
    }
}

/// Shows an image that a commit created.
pub(super) fn show_imported(image: &ImportedImage, console: &Console) -> anyhow::Result<()> {
    tell_notes(image, console);
    console.result(image, || shown_lines(std::slice::from_ref(image)))
}

/// Reports what was left out of an image.
pub(super) fn tell_notes(image: &ImportedImage, console: &Console) {
    let name = image.name.clone();
    let name = name.unwrap_or_else(|| short(&image.id.to_string()));
    for note in &image.notes {
        console.message(&format!("warning: {}: {note}", printable(&name)));
    }
}

/// Formats a line for each image.
fn shown_lines(images: &[ImportedImage]) -> String {
    let line = |image: &ImportedImage| {
        let reused = image.layers.iter().filter(|layer| layer.reused).count();
        let own_bytes = image.layers.iter().map(|layer| layer.own_bytes).sum();
        let id = image.id.to_string();
        let name = shown_name(image);
        let layers = counted(image.layers.len(), "layer", "layers");
        format!(
            "{name} {}: {layers}, {reused} reused, {}",
            short(&id),
            human(own_bytes)
        )
    };
    images.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn shown_name(image: &ImportedImage) -> String {
    if image.names.is_empty() {
        "(no name)".to_owned()
    } else {
        image.names.join(", ")
    }
}

fn list(open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = "list the images";
    let images = open_pool
        .containers()
        .and_then(|host| Ok(host.images().list()?))
        .context(what)?;
    console.result(&images, || {
        let columns = [
            Column::Text("NAME"),
            Column::Text("ID"),
            Column::Number("LAYERS"),
            Column::Number("SIZE"),
            Column::Number("OWN"),
            Column::Text("CREATED"),
        ];
        let rows = images.iter().map(|image| {
            vec![
                image.names.join(", "),
                short(&image.id.to_string()),
                image.layers.to_string(),
                human(image.size_bytes),
                human(image.own_bytes),
                time(image.created),
            ]
        });
        console.table(&columns, rows)
    })
}

fn inspect(name: &str, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("inspect image {name}");
    let host = open_pool.containers().with_context(what)?;
    let image = host.images().inspect(name).with_context(what)?;
    console.result(&image, || {
        let mut text = facts([
            ("id", image.id.to_string()),
            ("names", image.names.join(", ")),
            ("size", exact(image.size_bytes)),
            ("own", exact(image.own_bytes)),
            ("created", time(image.created)),
        ]);
        let columns = [
            Column::Text("LAYER"),
            Column::Number("TAR"),
            Column::Number("OWN"),
            Column::Text("VOLUME"),
        ];
        let rows = image.layers.iter().map(|layer| {
            vec![
                short(&layer.diff_id.to_string()),
                layer.size_bytes.map(human).unwrap_or_default(),
                human(layer.own_bytes),
                layer.volume.clone(),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&console.table(&columns, rows));
        text
    })
}

fn tag(image: &str, name: &str, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("name image {image} {name}");
    let host = open_pool.containers().with_context(what)?;
    let tagged = host.images().tag(image, name).with_context(what)?;
    console.result(&tagged, || tagged.name.clone())
}

fn history(name: &str, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("show the history of image {name}");
    let host = open_pool.containers().with_context(what)?;
    let steps = host.images().history(name).with_context(what)?;
    console.result(&steps, || {
        let columns = [
            Column::Text("CREATED"),
            Column::Text("LAYER"),
            Column::Number("TAR"),
            Column::Text("BY"),
        ];
        let rows = steps.iter().map(|step| {
            vec![
                step.created.clone().unwrap_or_default(),
                step.diff_id
                    .map(|id| short(&id.to_string()))
                    .unwrap_or_default(),
                step.size_bytes.map(human).unwrap_or_default(),
                step.created_by.clone().unwrap_or_default(),
            ]
        });
        console.table(&columns, rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shortened_and_names_are_not() {
        let digits = "0123456789abcdef".repeat(4);
        assert_eq!(short(&format!("sha256:{digits}")), "0123456789ab");
        assert_eq!(short(&digits), "0123456789ab");
        assert_eq!(short("debian:12"), "debian:12");
    }
}
