//! A root file system in a folder, as a layer stream: sorted, so that the same tree gives the same
//! digest.
//!
//! Other file systems mounted in the folder appear as empty folders, and sockets not at all: a
//! host's `/proc` or a daemon's socket is not part of an image.

use crate::compression::Compression;
use crate::error::Result;
use crate::layer::LayerWriter;
use crate::made_stream::MadeStream;
use crate::tree::add_children;
use std::os::fd::{AsFd, OwnedFd};

/// Returns the layer stream of `folder`, made while it is read.
pub(super) fn layer_of(folder: OwnedFd) -> Result<MadeStream> {
    MadeStream::start(move |out| {
        let mut layer = LayerWriter::new(out, Compression::None)?;
        layer.add(folder.as_fd(), b"./")?;
        add_children(&mut layer, folder.as_fd())?;
        Ok(layer.finish()?.0)
    })
}
