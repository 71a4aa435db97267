//! Labels that hold in one pool only.

use cowshed_engine::Labels;

/// The label of a layer with the blobs that are known to hold it. They count only because the pool
/// has read or written each of them itself: in a stream they would decide what the receiver sends to
/// registries in the place of the layer.
pub const BLOBS: &str = "cowshed.blobs";
/// The label of a layer with its place in another program's store on this host. It counts only because
/// the pool has read the layer there itself: in a stream it would decide which files the receiver takes
/// for those of its own stores.
pub const ORIGIN: &str = "cowshed.origin";

/// Returns the labels that are sent, and taken from a stream.
pub(crate) fn without_local(mut labels: Labels) -> Labels {
    labels.remove(BLOBS);
    labels.remove(ORIGIN);
    labels
}
