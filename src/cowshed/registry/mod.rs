//! `cowshed image pull` and `cowshed image push`: they fetch an image from a registry, or send one to
//! it, for the process that has the pool.
//!
//! The process of the command talks to the registry: it has its user's network, proxies and
//! credentials, and a daemon needs none of these. The image goes over a socket to or from the process
//! that has the pool open, which may be the same one.

mod pull;
mod push;

use super::arguments::registry::{Connection, RegistryCommand};
use super::console::Console;
use super::failure::Exit;
use super::open::Place;
use cowshed_oci::Reference;
use cowshed_registry::{self as registry, Access, Cache, login};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The folder for layers on their way, which an interrupted pull leaves for the next one.
const CACHE: &str = "/var/cache/cowshed/layers";
/// Another folder for that.
const CACHE_VARIABLE: &str = "COWSHED_CACHE";

/// Runs a command that uses a registry.
///
/// # Errors
/// Errors of the network, the registry and the pool.
pub(super) fn run(
    command: &RegistryCommand,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    match command {
        RegistryCommand::Pull(pull) => pull::pull(pull, place, console),
        RegistryCommand::Push(push) => push::push(push, place, console),
    }
}

/// Returns the way to the registry of `reference`, and the credentials for it.
fn access(
    reference: &Reference,
    connection: &Connection,
    console: &Console,
) -> anyhow::Result<Access> {
    let own = connection.ca.iter().map(|path| path.as_path().to_owned());
    let files = login::files(|name| std::env::var_os(name));
    let mut unusable = |error: cowshed_registry::Error| {
        console.complain(&format!("warning: {error}; going on without it"));
    };
    Ok(Access {
        is_plain_http: connection.plain_http,
        authorities: own.chain(login::authorities(reference)).collect(),
        credentials: login::credentials(reference, &files, &mut unusable)?,
    })
}

/// Adds the options that help to the error.
fn hinted(error: registry::Error) -> anyhow::Error {
    match &error {
        registry::Error::Untrusted {
            wants_certificate: true,
            ..
        } => anyhow::anyhow!("{error} (--ca)"),
        registry::Error::WantsTls { .. } => anyhow::anyhow!("{error} (omit --plain-http)"),
        registry::Error::NoTls { .. } => anyhow::anyhow!("{error} (--plain-http)"),
        _ => error.into(),
    }
}

/// Tells the other side, when it is dropped, that nothing more comes: it waits for that, however this
/// side ends.
struct Ended<'s>(&'s UnixStream);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // Fails only if it was told already.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

fn cache() -> Cache {
    let named = std::env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty());
    let folder = match named {
        Some(folder) => PathBuf::from(folder),
        None if nix::unistd::geteuid().is_root() => PathBuf::from(CACHE),
        None => return Cache::nowhere(),
    };
    let cache = Cache::at(&folder);
    cache.sweep();
    cache
}
