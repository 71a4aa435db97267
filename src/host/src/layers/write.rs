//! Writing the changes of a mounted tree as a layer.

use crate::error::{Error, Result};
use cowshed_ext4diff::{TreeChange, TreeChanges};
use cowshed_oci::{LayerSummary, LayerWriter};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// Writes `changes` of the tree at `root` to `layer`, and finishes it.
pub(crate) fn write_layer<W: Write>(
    mut layer: LayerWriter<W>,
    root: &Path,
    changes: &TreeChanges,
) -> Result<(W, LayerSummary)> {
    let directory = File::open(root).map_err(Error::io("open", root))?;
    for (path, change) in changes {
        match change {
            TreeChange::Removed => layer.whiteout(path.as_bytes())?,
            TreeChange::Added | TreeChange::Changed => {
                let path = if path.as_bytes().is_empty() {
                    b".".as_slice()
                } else {
                    path.as_bytes()
                };
                // A socket is not stored: it means nothing without its process.
                layer.add(directory.as_fd(), path)?;
            }
        }
    }
    Ok(layer.finish()?)
}
