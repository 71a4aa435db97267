//! `cowshed image …`: images and their layers.

use super::console::{Cancel, Console, output_error};
use super::failure::Usage;
use super::output::{Column, counted, exact, facts, time};
use super::part_file::write_file;
use super::place::FileOrPipe;
use super::removal;
use super::shed::Shed;
use super::size::human;
use crate::base::{self, Name};
use crate::container::{self, ExportedImage, Host, ImportOptions, ImportedImage};
use crate::oci::{self, Compression, Image, SourceInput};
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// Letters of an id that lists show.
const SHORT_ID: usize = 12;

/// `cowshed image …`
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub(super) enum ImageCommand {
    /// Bring an image into the pool; layers that are there already are not stored again
    #[command(
        after_help = "SRC is an OCI layout (folder or tar), a docker-archive tar, or the \
        tar or folder of a root file system;\ntars may be gzip, zstd or plain.\n\nExamples:\n  \
        docker save debian:12 | cowshed image import - --name debian:12\n  \
        cowshed image import ./rootfs --name mine"
    )]
    Import(Import),
    /// List all images
    Ls,
    /// Show one image
    Inspect(One),
    /// Show how an image was made, layer by layer
    History(One),
    /// Write an image as an OCI layout in a tar archive, which `docker load` reads too
    #[command(after_help = "Examples:\n  cowshed image export mine ./mine.tar\n  \
        cowshed image export mine - | docker load")]
    Export(Export),
    /// Remove images, and the layers that nothing else uses
    Rm(Remove),
}

/// `cowshed image import`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Import {
    /// The image, or - for the standard input
    #[arg(value_name = "SRC", value_parser = FileOrPipe::parser())]
    pub source: FileOrPipe,
    /// The image's name; otherwise the one that it brings
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
}

/// `cowshed image export`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Export {
    /// The image, by name or id
    pub image: String,
    /// The file, or - for the standard output
    #[arg(value_parser = FileOrPipe::parser())]
    pub file: FileOrPipe,
    /// How its layers are compressed
    #[arg(long, value_enum, default_value_t = Compressed::None)]
    pub compression: Compressed,
}

/// How the layers of an exported image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Compressed {
    /// Not at all.
    None,
    /// As every reader of images knows it.
    Gzip,
    /// Faster and smaller.
    Zstd,
}

/// One image.
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct One {
    /// The image, by name or id
    pub image: String,
}

/// `cowshed image rm`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Remove {
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// An id as lists show it; a name stays whole.
pub(super) fn short(id: &str) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    let is_id = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        digits[..SHORT_ID].to_owned()
    } else {
        id.to_owned()
    }
}

/// Runs a command on the open pool of `shed`.
///
/// # Errors
/// What the room of containers says.
pub(super) fn run(command: &ImageCommand, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(new) => {
            let what = || format!("import image {}", new.source);
            let imported = import(new, shed, console).with_context(what)?;
            show_imported(&imported, console)
        }
        ImageCommand::Export(export) => export_image(export, shed, console),
        ImageCommand::Ls => list(shed, console),
        ImageCommand::Inspect(one) => inspect(one, shed, console),
        ImageCommand::History(one) => history(one, shed, console),
        ImageCommand::Rm(remove) => {
            let host = shed.containers().context("remove images")?;
            removal::each(&remove.images, "image", |name| {
                host.remove_image(name)?;
                Ok(())
            })
            .show(console)
        }
    }
}

fn import(new: &Import, shed: &Shed, console: &Console) -> anyhow::Result<ImportedImage> {
    let host = shed.containers()?;
    let name = new.name.as_deref().map(Name::new).transpose()?;
    let image = open(new, &host, console)?;
    let options = ImportOptions {
        name,
        file_system_bytes: None,
    };
    let progress = console.progress("layers", Some(0));
    let cancel = console.cancel();
    let imported = host.import_image(&image, &options, &mut |done| {
        progress.set(done.done_layers as u64, done.layers as u64);
        !cancel.is_cancelled()
    });
    // What the input says of being cancelled is told as such.
    imported.map_err(|error| match cancel.check() {
        Ok(()) => explain(error),
        Err(interrupted) => interrupted.into(),
    })
}

/// Says what it means that a file system in the pool has no room.
pub(super) fn explain(error: container::Error) -> anyhow::Error {
    let is_said = matches!(error, container::Error::Pool(base::Error::NoSpace));
    let is_full = error.is_no_space();
    let error = anyhow::Error::new(error);
    if is_full && !is_said {
        error.context(base::Error::NoSpace)
    } else {
        error
    }
}

/// Opens the image; where there are several, the wanted name chooses.
fn open(new: &Import, host: &Host, console: &Console) -> anyhow::Result<Image> {
    let input = || -> anyhow::Result<SourceInput> {
        Ok(match &new.source {
            FileOrPipe::Pipe => SourceInput::Stream(Box::new(console.input()?)),
            FileOrPipe::File(path) => SourceInput::Path(path.as_path().to_owned()),
        })
    };
    match (host.open_image(input()?, None), &new.source) {
        (Err(container::Error::Oci(oci::Error::SeveralImages { .. })), FileOrPipe::File(_))
            if new.name.is_some() =>
        {
            Ok(host.open_image(input()?, new.name.as_deref())?)
        }
        (opened, _) => Ok(opened?),
    }
}

fn export_image(export: &Export, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("export image {} to {}", export.image, export.file);
    let host = shed.containers().with_context(what)?;
    let compression = match export.compression {
        Compressed::None => Compression::None,
        Compressed::Gzip => Compression::Gzip,
        Compressed::Zstd => Compression::Zstd,
    };
    let write = |file: &File| -> anyhow::Result<ExportedImage> {
        let output = BufWriter::new(Cancelled {
            file,
            cancel: console.cancel(),
        });
        let (output, exported) = host.export_image(&export.image, compression, output)?;
        output
            .into_inner()
            .map_err(|error| output_error(error.into_error()))?;
        Ok(exported)
    };
    match &export.file {
        FileOrPipe::Pipe if console.style().json => {
            Err(Usage("--json and - cannot both have the standard output".to_owned()).into())
        }
        FileOrPipe::Pipe => write(console.output()).map(drop).with_context(what),
        FileOrPipe::File(path) => {
            let exported = write_file(path.as_path(), |file, _| write(file)).with_context(what)?;
            console.result(&exported, String::new)
        }
    }
}

/// A file that takes no more once the command is cancelled.
struct Cancelled<'a> {
    file: &'a File,
    cancel: &'a Cancel,
}

impl Write for Cancelled<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Shows an image that an import or a commit made.
pub(super) fn show_imported(image: &ImportedImage, console: &Console) -> anyhow::Result<()> {
    console.result(image, || {
        let reused = image.layers.iter().filter(|layer| layer.reused).count();
        let own_bytes = image.layers.iter().map(|layer| layer.own_bytes).sum();
        let id = image.id.to_string();
        let name = image.name.as_deref().unwrap_or("(no name)");
        let layers = counted(image.layers.len(), "layer", "layers");
        format!(
            "{name} {}: {layers}, {reused} reused, {}",
            short(&id),
            human(own_bytes)
        )
    })
}

fn list(shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = "list the images";
    let images = shed
        .containers()
        .and_then(|host| Ok(host.images()?))
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

fn inspect(one: &One, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("inspect image {}", one.image);
    let host = shed.containers().with_context(what)?;
    let image = host.inspect_image(&one.image).with_context(what)?;
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

fn history(one: &One, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("show the history of image {}", one.image);
    let host = shed.containers().with_context(what)?;
    let steps = host.image_history(&one.image).with_context(what)?;
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
                one_line(step.created_by.as_deref().unwrap_or_default()),
            ]
        });
        console.table(&columns, rows)
    })
}

/// Text of an image, which may hold anything, on one line without control characters.
fn one_line(text: &str) -> String {
    text.split(|letter: char| letter.is_control())
        .collect::<Vec<_>>()
        .join(" ")
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
        assert_eq!(one_line("a\nb\x1b[2J"), "a b [2J");
    }
}
