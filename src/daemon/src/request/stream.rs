//! Requests about streams, the same for volumes, images and containers.

use serde::{Deserialize, Serialize};

/// How something is sent as a stream to the output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendOptions {
    /// What the receiver has, to send only what differs from it: a snapshot or bookmark for one
    /// snapshot, a snapshot for a set of volumes, an image for images and containers. Without it,
    /// everything is sent, or what `resume` is of.
    #[serde(default)]
    pub from: Option<String>,
    /// Compresses the stream with zstd.
    #[serde(default)]
    pub compress: bool,
    /// The token of an interrupted receive, to send only the rest.
    #[serde(default)]
    pub resume: Option<String>,
    /// The largest number of bytes in a second. Without it there is no limit.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
}

/// The receiving of the stream on the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// The snapshot's name; for a set the prefix of the names, or `-` for none.
    pub name: String,
    /// What to do about that name.
    pub step: ReceiveStep,
}

/// What to do about the name of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiveStep {
    /// Receive a stream.
    Stream,
    /// Show the token of an interrupted receive.
    Token,
    /// Remove what an interrupted receive has kept.
    Discard,
}
