//! The arguments of `cowshed container`.

use super::place;
use super::size::Size;
use super::stream::{ReceiveSet, SendOptions};
use clap::{Args, Subcommand};
use cowshed_daemon::request::container as request;
use cowshed_daemon::request::{CopySide, HostPath};
use cowshed_host::RootKind;

/// `cowshed container …`
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Create a container: a writable root, cloned from an image
    Create(Create),
    /// Mount a container's root (needs the daemon)
    Mount(Mount),
    /// Unmount a container's root (needs the daemon)
    Unmount(One),
    /// List what a container added (A), changed (C) and deleted (D)
    Diff(One),
    /// Create an image from a container: its image plus one layer
    Commit(Commit),
    /// Write containers, as they are now, with their images as a stream to the standard output
    #[command(after_help = "The containers may be running. Examples:\n  \
        cowshed container send web | ssh host cowshed container receive\n  \
        cowshed container send web --from debian:12 | ssh host cowshed container receive")]
    Send(Send),
    /// Receive containers, or another set, from a stream on the standard input
    Receive(ReceiveSet),
    /// Copy files into or out of a container
    #[command(
        after_help = "With - the other side is a tar archive on the standard input or output.\n\n\
        Examples:\n  cowshed container cp web:/etc/nginx ./nginx\n  \
        cowshed container cp ./site web:/srv/site\n  \
        tar -c site | cowshed container cp - web:/srv"
    )]
    Cp(Copy),
    /// List all containers
    Ls,
    /// Remove containers; those that are mounted are unmounted
    Rm(Remove),
}

/// `cowshed container create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The image, by name or id
    pub image: String,
    /// The container's name; otherwise one is made up
    #[arg(long)]
    pub name: Option<String>,
    /// The size of its file system; otherwise the image's
    #[arg(long)]
    pub size: Option<Size>,
    /// The kind of its root: `block` is a file system of its own; with `overlay` all containers of the
    /// image share one in memory, and the first write to a file copies it
    #[arg(
        long,
        value_name = "block|overlay",
        default_value = "block",
        hide_default_value = true
    )]
    pub root: RootKind,
    /// Mount it, too, and print the directory instead of the name (needs the daemon)
    #[arg(long)]
    pub mount: bool,
    /// An existing directory to mount it at; otherwise one is made
    #[arg(long, requires = "mount", value_parser = place::path())]
    pub dir: Option<HostPath>,
}

/// `cowshed container mount`
#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The container, by name or id
    pub container: String,
    /// An existing directory to mount it at; otherwise one is made
    #[arg(value_parser = place::path())]
    pub dir: Option<HostPath>,
}

/// One container.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The container, by name or id
    pub container: String,
}

/// `cowshed container commit`
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// The container, by name or id
    pub container: String,
    /// The new image's name
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// `cowshed container send`
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// Send no layers of this image, which the receiver has from an earlier stream
    #[arg(long, value_name = "IMAGE")]
    pub from: Option<String>,
    /// The options of the stream.
    #[command(flatten)]
    pub options: SendOptions,
}

/// `cowshed container cp`
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Copy what a symbolic link at the end of SRC leads to, and not the link
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Keep owners and modes, which is always done: for those who know the option of docker cp
    #[arg(short, long)]
    pub archive: bool,
    /// The source: CONTAINER:PATH, a path on this host, or - for a tar archive on the standard input
    #[arg(value_name = "SRC", value_parser = place::side())]
    pub source: CopySide,
    /// The target: CONTAINER:PATH, a path on this host, or - for a tar archive on the standard output
    #[arg(value_name = "DST", value_parser = place::side())]
    pub target: CopySide,
}

/// `cowshed container rm`
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

impl From<ContainerCommand> for request::Command {
    fn from(arguments: ContainerCommand) -> Self {
        match arguments {
            ContainerCommand::Create(new) => Self::Create(request::Create {
                image: new.image,
                name: new.name,
                size_bytes: new.size.map(|size| size.0),
                root: new.root,
                mount: new.mount.then(|| new.dir.into()),
            }),
            ContainerCommand::Mount(Mount { container, dir }) => Self::Mount {
                container,
                at: dir.into(),
            },
            ContainerCommand::Unmount(One { container }) => Self::Unmount { container },
            ContainerCommand::Diff(One { container }) => Self::Diff { container },
            ContainerCommand::Commit(Commit {
                container,
                reference,
            }) => Self::Commit {
                container,
                image: reference,
            },
            ContainerCommand::Send(Send {
                containers,
                from,
                options,
            }) => Self::Send {
                containers,
                options: options.with_base(from),
            },
            ContainerCommand::Receive(ReceiveSet { prefix, step }) => {
                Self::Receive(step.of(prefix))
            }
            ContainerCommand::Cp(copy) => Self::Copy(request::Copy {
                source: copy.source,
                target: copy.target,
                follow_link: copy.follow_link,
            }),
            ContainerCommand::Ls => Self::List,
            ContainerCommand::Rm(Remove { containers }) => Self::Remove { containers },
        }
    }
}
