//! The arguments of `cowshed image pull` and `cowshed image push`.

use super::image::Compressed;
use super::place;
use super::size::Size;
use clap::{Args, Subcommand};
use cowshed_daemon::request::HostPath;
use cowshed_oci::Platform;

/// The commands that use a registry.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Fetch an image from a registry; layers that the pool has already are not fetched
    #[command(
        after_help = "Credentials are those of docker login, podman login or skopeo login, with their \
        credential helpers:\n$REGISTRY_AUTH_FILE, or else the first of $DOCKER_CONFIG/config.json,\n\
        $XDG_RUNTIME_DIR/containers/auth.json (or /run/containers/UID/auth.json),\n\
        ~/.config/containers/auth.json and ~/.docker/config.json that has the registry.\n\
        Certificates are those of the host, and /etc/docker/certs.d/HOST/*.crt and\n\
        /etc/containers/certs.d/HOST/*.crt.\n\nExamples:\n  \
        cowshed image pull debian:12\n  \
        cowshed image pull registry.example.com/team/app@sha256:4c1b… --platform linux/arm64"
    )]
    Pull(Pull),
    /// Send an image to a registry; layers that the registry has already are not sent
    #[command(
        after_help = "Credentials and certificates are those of cowshed image pull.\n\nExamples:\n  \
        cowshed image push registry.example.com/team/app:1\n  \
        cowshed image push app:1 registry.example.com/team/app:1"
    )]
    Push(Push),
}

/// `cowshed image pull`
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image, as `docker pull` names it
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Take the image for this platform [default: what suits this host best]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// The size of its file system: 64M, 40G. Unless given, it follows the image and leaves 10 GiB
    /// or more
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// The connection to the registry.
    #[command(flatten)]
    pub connection: Connection,
}

/// `cowshed image push`
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The image, by name or id
    #[arg(value_name = "REF")]
    pub image: String,
    /// The name that it gets in a registry [default: REF]
    #[arg(value_name = "DEST")]
    pub destination: Option<String>,
    /// The compression of all layers. Unless given, layers that the registry has stay as they are, and
    /// the others are compressed with gzip
    #[arg(long, value_enum)]
    pub compression: Option<Compressed>,
    /// The connection to the registry.
    #[command(flatten)]
    pub connection: Connection,
}

/// The options for the connection to a registry.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Use HTTP without TLS: whoever is on the way can read and change everything
    #[arg(long)]
    pub plain_http: bool,
    /// Trust the authority with this certificate too
    #[arg(long, value_name = "FILE", value_parser = place::path())]
    pub ca: Option<HostPath>,
}
