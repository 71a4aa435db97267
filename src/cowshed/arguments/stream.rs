//! The arguments of sending and receiving, the same for volumes, images and containers.

use super::size::Size;
use clap::{Args, ValueEnum};
use cowshed_daemon::request::stream as request;

/// The options of sending.
#[derive(Debug, Args)]
pub(crate) struct SendOptions {
    /// Compress the stream
    #[arg(long, value_name = "METHOD")]
    pub compress: Option<Method>,
    /// Continue an interrupted send; `receive --token` prints the token on the other side
    #[arg(long, value_name = "TOKEN")]
    pub resume: Option<String>,
    /// Send no more than this in a second: 500K, 20M
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Size>,
}

/// A method of compressing a stream.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Method {
    /// zstd
    Zstd,
}

/// The options that replace receiving.
#[derive(Debug, Args)]
pub(crate) struct ReceiveStep {
    /// Print the token with which `send --resume` goes on after an interruption
    #[arg(long, conflicts_with = "discard")]
    pub token: bool,
    /// Remove what an interrupted receive into this name has kept
    #[arg(long)]
    pub discard: bool,
}

/// `cowshed image receive` and `cowshed container receive`
#[derive(Debug, Args)]
pub(crate) struct ReceiveSet {
    /// A prefix for the names of what is received, or - for none
    #[arg(value_name = "PREFIX", default_value = "-")]
    pub prefix: String,
    /// The options that replace receiving.
    #[command(flatten)]
    pub step: ReceiveStep,
}

impl SendOptions {
    /// Returns the request's options; the receiver has `from`.
    #[must_use]
    pub(super) fn with_base(self, from: Option<String>) -> request::SendOptions {
        request::SendOptions {
            from,
            compress: matches!(self.compress, Some(Method::Zstd)),
            resume: self.resume,
            bytes_per_s: self.limit.map(|limit| limit.0),
        }
    }
}

impl ReceiveStep {
    /// Returns the request for this name.
    #[must_use]
    pub(super) fn of(&self, name: String) -> request::Receive {
        let step = match (self.token, self.discard) {
            (true, _) => request::ReceiveStep::Token,
            (_, true) => request::ReceiveStep::Discard,
            _ => request::ReceiveStep::Stream,
        };
        request::Receive { name, step }
    }
}
