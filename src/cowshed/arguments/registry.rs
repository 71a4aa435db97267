//! The arguments of `cowshed image pull` and `cowshed image push`.

use super::place;
use super::size::Size;
use clap::{Args, Subcommand};
use cowshed_daemon::request::HostPath;
use cowshed_oci::Platform;

/// The commands that talk to a registry.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Fetch an image from a registry; layers that the pool has already are not fetched
    #[command(
        after_help = "Credentials are those of docker login, podman login or skopeo login: \
        $REGISTRY_AUTH_FILE, or else $DOCKER_CONFIG,\n$XDG_RUNTIME_DIR/containers/auth.json and \
        ~/.docker/config.json, with their credential helpers. Certificates\nare those of the host, and \
        /etc/docker/certs.d/HOST/*.crt and /etc/containers/certs.d/HOST/*.crt.\n\nExamples:\n  \
        cowshed image pull debian:12\n  \
        cowshed image pull registry.example.com/team/app@sha256:4c1b… --platform linux/arm64"
    )]
    Pull(Pull),
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
    /// How the registry is reached.
    #[command(flatten)]
    pub connection: Connection,
}

/// How a registry is reached.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Use HTTP without TLS: whoever is on the way can read and change everything
    #[arg(long)]
    pub plain_http: bool,
    /// Trust the authority with this certificate too
    #[arg(long, value_name = "FILE", value_parser = place::path())]
    pub ca: Option<HostPath>,
}
