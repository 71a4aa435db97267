//! Images in registries: fetching and sending them over the OCI distribution API, verified.
//!
//! - [`repository`] is one repository of a registry, for callers without a runtime; it is an
//!   [`oci::Remote`](cowshed_oci::Remote), so that an image in it is opened by the same code as one
//!   in a file.
//! - [`download`] fetches blobs into files, several at a time, while they are read; [`cache`] has
//!   the files, which a later fetch continues.
//! - [`upload`] sends blobs and manifests.
//! - [`access`] has the way to a registry and the credentials for it; [`login`] finds these in the
//!   files of Docker and containers.
//! - `client` sends requests, `call` is one of them, `challenge` is how a registry asks for credentials, `retry` waits
//!   between attempts.
//!
//! This crate knows neither pools nor volumes, nor how an image is applied.
//!
//! # Invariants
//! - Everything that comes from a registry is hostile until its digest is verified, and bounded even
//!   then.
//! - Credentials go nowhere but to the registry that they belong to and the token server that it
//!   names, and are in no message and no log.

pub mod access;
pub mod cache;
mod call;
mod challenge;
mod client;
pub mod download;
pub mod error;
pub mod login;
pub mod repository;
mod retry;
mod trust;
pub mod upload;

pub use access::{Access, Credentials};
pub use cache::Cache;
pub use download::{Blob, Downloads, Fetched};
pub use error::{Error, Result};
pub use repository::Repository;
pub use upload::Upload;
