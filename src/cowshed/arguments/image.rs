//! The arguments of `cowshed image`.

use super::place;
use super::registry::RegistryCommand;
use super::size::Size;
use super::stream::{ReceiveSet, SendOptions};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand, ValueEnum};
use cowshed_daemon::request::image as request;
use cowshed_daemon::request::{FileOrPipe, HostPath};
use cowshed_oci::Platform;
use std::ffi::OsString;

/// `cowshed image …`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Commands that use only the pool.
    #[command(flatten)]
    Local(LocalCommand),
    /// Commands that use a registry.
    #[command(flatten)]
    Registry(RegistryCommand),
}

/// The commands that use only the pool.
#[derive(Debug, Subcommand)]
pub(crate) enum LocalCommand {
    /// Import an image; layers that the pool has already are not stored again
    #[command(
        after_help = "SRC is an OCI layout, a docker-archive or what skopeo's dir: writes, as a \
        folder or tar, or a root file system;\ntars may be gzip, zstd, xz, bzip2 or plain. All images of an \
        archive are imported, with --name the one of that name.\n\nExamples:\n  \
        docker save debian:12 | cowshed image import - --name debian:12\n  \
        docker save app db | cowshed image import -\n  \
        cowshed image import ./rootfs --name mine"
    )]
    Import(Import),
    /// Take over the images of Docker, containerd or Podman while that program is stopped
    #[command(
        after_help = "DIR is Docker's Root Dir (of any version), containerd's root, or the graph root of Podman, Buildah\n\
        or CRI-O. It is only read. Names stay; layers that the pool has are not read again, so that a second\n\
        run goes on where the first ended. An image that is damaged is named, and the others are taken.\n\n\
        Examples:\n  \
        cowshed image migrate --from /var/lib/docker\n  \
        cowshed image migrate --from /var/lib/containers/storage"
    )]
    Migrate(Migrate),
    /// List all images
    Ls,
    /// Show one image
    Inspect(One),
    /// Show how an image was made, layer by layer
    History(One),
    /// Give an image one more name
    #[command(
        after_help = "An image that has the name loses it. `cowshed image rm NAME` takes a name away \
        again, and removes\nthe image with its last one.\n\nExamples:\n  \
        cowshed image tag app:1 app:latest\n  \
        cowshed image tag 2c8884ff597a registry.example.com/team/app:1"
    )]
    Tag(Tag),
    /// Write images as an OCI layout in a tar archive, which `docker load` reads too
    #[command(after_help = "Examples:\n  cowshed image export mine ./mine.tar\n  \
        cowshed image export mine - | docker load\n  \
        cowshed image export app db --output both.tar")]
    Export(Export),
    /// Write images with their layers as a stream to the standard output, block by block
    #[command(after_help = "Examples:\n  \
        cowshed image send app:1 | ssh host cowshed image receive\n  \
        cowshed image send app:2 --from app:1 | ssh host cowshed image receive")]
    Send(Send),
    /// Receive images, or another set, from a stream on the standard input
    Receive(ReceiveSet),
    /// Remove images, and the layers that nothing else uses
    Rm(Remove),
}

/// `cowshed image import`
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The image, or - for the standard input
    #[arg(value_name = "SRC", value_parser = place::file())]
    pub source: FileOrPipe,
    /// The image's name; otherwise the one that it brings
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    /// Take the image for this platform [default: what suits this host best]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// SRC is a root file system, whatever it looks like
    #[arg(long, conflicts_with = "platform")]
    pub rootfs: bool,
    /// The size of its file system: 64M, 40G. Unless given, it follows the image and leaves 10 GiB
    /// or more
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
}

/// `cowshed image migrate`
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// The folder with the store of images
    #[arg(long, value_name = "DIR", value_parser = place::path())]
    pub from: HostPath,
}

/// `cowshed image export`, as written on the command line.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The images, by name or id; then the file, or - for the standard output
    #[arg(required = true, value_name = "IMAGE... FILE")]
    images: Vec<OsString>,
    /// The file, or - for the standard output; then no file stands after the images
    #[arg(short, long, value_name = "FILE", value_parser = place::file())]
    output: Option<FileOrPipe>,
    /// The compression of the layers
    #[arg(long, value_enum, default_value_t = Compressed::None)]
    compression: Compressed,
}

/// `cowshed image export`, with the images separated from the file.
#[derive(Debug)]
pub(crate) struct Export {
    /// The images, by name or id
    pub images: Vec<String>,
    /// The file, or the standard output
    pub file: FileOrPipe,
    /// The compression of the layers
    pub compression: Compressed,
}

impl Export {
    /// Separates the images from the file.
    fn new(arguments: ExportArguments) -> Result<Self, String> {
        let mut images = arguments.images;
        let file = match arguments.output {
            Some(file) => Some(file),
            None if images.len() > 1 => images
                .pop()
                .map(|file| place::parse_file(&file))
                .transpose()?,
            None => None,
        };
        let file = file.ok_or("the file is missing; give it after the images, or - for a pipe")?;
        let images = images.into_iter().map(OsString::into_string);
        let images: Result<Vec<String>, OsString> = images.collect();
        Ok(Self {
            images: images.map_err(|name| format!("there is no image {}", name.display()))?,
            file,
            compression: arguments.compression,
        })
    }
}

impl FromArgMatches for Export {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let arguments = ExportArguments::from_arg_matches(matches)?;
        Self::new(arguments)
            .map_err(|fault| clap::Error::raw(ErrorKind::MissingRequiredArgument, fault))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Export {
    fn augment_args(command: clap::Command) -> clap::Command {
        ExportArguments::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        ExportArguments::augment_args_for_update(command)
    }
}

/// The compression of the layers of exported images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compressed {
    /// Not at all.
    None,
    /// As every reader of images knows it.
    Gzip,
    /// Faster and smaller.
    Zstd,
}

/// One image.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The image, by name or id
    pub image: String,
}

/// `cowshed image send`
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Send no layers of this image, which the receiver has from an earlier stream
    #[arg(long, value_name = "IMAGE")]
    pub from: Option<String>,
    /// The options of the stream.
    #[command(flatten)]
    pub options: SendOptions,
}

/// `cowshed image tag`
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image, by name or id
    pub image: String,
    /// The name that it gets
    #[arg(value_name = "REF")]
    pub name: String,
}

/// `cowshed image rm`
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

impl From<LocalCommand> for request::Command {
    fn from(arguments: LocalCommand) -> Self {
        match arguments {
            LocalCommand::Import(new) => Self::Import(request::Import {
                source: new.source,
                name: new.name,
                platform: new.platform,
                rootfs: new.rootfs,
                size_bytes: new.size.map(|size| size.0),
            }),
            LocalCommand::Migrate(Migrate { from }) => Self::Migrate(request::Migrate { from }),
            LocalCommand::Ls => Self::List,
            LocalCommand::Inspect(One { image }) => Self::Inspect { image },
            LocalCommand::History(One { image }) => Self::History { image },
            LocalCommand::Tag(Tag { image, name }) => Self::Tag { image, name },
            LocalCommand::Export(export) => Self::Export(request::Export {
                images: export.images,
                file: export.file,
                compression: export.compression.into(),
            }),
            LocalCommand::Send(Send {
                images,
                from,
                options,
            }) => Self::Send {
                images,
                options: options.with_base(from),
            },
            LocalCommand::Receive(ReceiveSet { prefix, step }) => Self::Receive(step.of(prefix)),
            LocalCommand::Rm(Remove { images }) => Self::Remove { images },
        }
    }
}

impl From<Compressed> for request::Compression {
    fn from(compressed: Compressed) -> Self {
        match compressed {
            Compressed::None => Self::None,
            Compressed::Gzip => Self::Gzip,
            Compressed::Zstd => Self::Zstd,
        }
    }
}
