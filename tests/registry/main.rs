//! Images from and to registries: a real one (Debian's docker-registry, with TLS and a password), and
//! one that breaks the rules.
//!
//! - `real` runs the registry, `fake` is a server that answers as a test says.
//! - `pull` fetches images through the command line; `faults` does so from registries that break,
//!   lie and send what is no image.
//! - `push` sends images through the command line; `refusals` does so to registries that break, lie
//!   and take nothing, which are made of `shelf`; `sending` to ones that are unusual or fail for a moment.
//! - `streams` sends images that came in streams.
//! - `walk` does all with an image that can be done.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;
mod faults;
mod pull;
mod push;
mod real;
mod refusals;
mod sending;
mod shelf;
mod streams;
mod walk;

use cowshed_testkit::harness::Bench;
use std::ffi::OsStr;
use std::process::Command;

/// Returns the command on the bench's pool, with no credentials, caches and proxies of this host.
fn command<S: AsRef<OsStr>>(bench: &Bench, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = bench.command(arguments);
    command
        .env("HOME", bench.path("home"))
        .env("NO_PROXY", "*")
        .env("no_proxy", "*")
        .env("COWSHED_CACHE", bench.path("cache"))
        .env_remove("DOCKER_CONFIG")
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("REGISTRY_AUTH_FILE");
    command
}
