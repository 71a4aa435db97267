//! Container images: reading them from any source, applying and writing layers.
//!
//! - [`source`] opens an image in any format, and streams its layers, verified.
//! - [`apply`](mod@apply) creates a layer's entries beneath a directory.
//! - [`layer`] writes a layer, [`layout`] a whole image as an archive.
//! - [`recipe`] is what a layer's tar has beside its files, so that it can be written again byte by byte.
//! - [`config`] is the image's configuration, [`digest`] identifies all objects; [`mod@reference`]
//!   is an image's name, [`platform`] the system that it runs on.
//! - [`relay`] passes an image from one process to another; [`offer`] passes on what a registry lacks
//!   of one.
//! - [`old_store`] reads the images that Docker, containerd or Podman keep on a host.
//!
//! This crate knows neither pools nor volumes: a root is any directory. All input is hostile until
//! its digest is verified, and bounded by [`limits`] even then.

pub mod apply;
pub mod compression;
pub mod config;
mod data_map;
pub mod digest;
pub mod dropped;
pub mod error;
mod known_blob;
pub mod layer;
pub mod layout;
pub mod limits;
mod made_stream;
pub mod offer;
pub mod old_store;
pub mod platform;
pub mod recipe;
pub mod reference;
pub mod relay;
pub mod source;
mod tarball;
#[cfg(test)]
mod testing;
pub mod tree;

pub use apply::{Applied, ApplyOptions, Room, apply, apply_recording, apply_with};
pub use compression::Compression;
pub use config::{ImageConfig, LayerOrigin};
pub use digest::{Digest, chain_above, chain_id};
pub use dropped::{Dropped, Loss};
pub use error::{Error, Result};
pub use known_blob::KnownBlob;
pub use layer::{LayerSummary, LayerWriter};
pub use layout::{
    LayerBlob, LayerDescriptor, LayoutImage, MANIFEST_TYPE, manifest_of, write_layout,
    write_layouts,
};
pub use platform::{InvalidPlatform, Platform};
pub use reference::{InvalidReference, Reference, ReferenceFault, same_reference};
pub use source::{
    Document, Image, LayerDigest, LayerInfo, LayerReader, Remote, Select, SourceInput,
};
pub use tarball::Time;
pub use tree::add_tree;
