//! A blob that holds a layer, as a registry has it: a layer need not be compressed again to be sent
//! where its blob is.

use super::compression::Compression;
use super::digest::Digest;
use serde::{Deserialize, Serialize};

/// The compressed form of a layer, in which it was fetched or sent once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownBlob {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its size.
    pub size_bytes: u64,
    /// Its compression.
    pub compression: Compression,
    /// The digest of its uncompressed content: that of the layer, unless the layer had to be written
    /// anew.
    pub diff_id: Digest,
    /// The repository where it was, as `HOST[:PORT]/PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}
