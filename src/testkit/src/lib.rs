//! Parts that several test programs and benchmarks share. No other crate may use this one.
//!
//! - [`harness`]: pools and daemons driven through the command line, [`load`] what works on them
//!   meanwhile.
//! - [`oracle`]: a plain model of a pool; [`compare`]: a pool against it.
//! - [`fixtures`]: images and roots that are made on the spot, and what they must look like.
//! - [`faulty_host`]: a file whose host fails as a test says.
//! - [`small_host`]: small file systems for pools whose host is to be full.
//! - [`test_program`]: test programs with options of their own.
//! - [`snapshots_client`]: what containerd says to a snapshotter.
//! - [`sandbox`], [`packages`], [`process`], [`service`], [`containerd`], [`docker`], [`images`],
//!   [`world`]: other container runtimes, each with its own state, in namespaces of its own.
//!
//! Everything that it mounts, attaches or starts goes away with the value that stands for it, also
//! when a test fails. It panics where something goes wrong, as that fails the test.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "tests are its only users, and fail by panicking"
)]

pub mod compare;
pub mod containerd;
pub mod docker;
pub mod faulty_host;
pub mod fixtures;
pub mod harness;
pub mod images;
pub mod load;
pub mod oracle;
pub mod packages;
pub mod process;
pub mod sandbox;
pub mod service;
pub mod small_host;
pub mod snapshots_client;
pub mod test_program;
pub mod world;

use std::path::{Path, PathBuf};

/// The folder of the whole source.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.join("../..").canonicalize().unwrap()
}

/// The folder of the build that this program is part of: a test or benchmark lies in its `deps`.
fn build() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().to_owned()
}

/// The program `cowshed` of the same build.
///
/// # Panics
/// When it is not there: Cargo makes it before it runs tests of the package at the top.
pub fn program() -> PathBuf {
    let program = build().join("cowshed");
    assert!(program.is_file(), "there is no {}", program.display());
    program
}

/// A folder for what tests keep between runs.
fn scratch() -> PathBuf {
    build().join("../tmp")
}
