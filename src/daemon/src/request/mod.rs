//! The requests that the daemon carries out, as they are sent to it: plain values, in JSON, with no
//! trace of the options of the program that sends them.
//!
//! There is a module for each kind of thing that a request can be about. A request comes with the
//! three streams that its execution uses (`protocol`); its results go to the output, its messages
//! to the error stream, and the reply is an exit status.
//!
//! # Invariants
//! - Client and daemon have the same [`VERSION`]. Whoever changes a name, a meaning or a default
//!   here raises it; the texts in `tests` tell a change. Of requests with another version only
//!   those of [`serving`] are understood, so that any version can take over from any other.
//! - A field that the daemon does not know is an error, and not ignored: ignoring it would carry
//!   out something else than was asked for. A field that may be absent says what that means.
//! - Sizes are in bytes, paths are absolute and byte for byte what the caller named.

pub mod attach;
pub mod container;
pub mod gc;
pub mod image;
pub mod path;
pub mod pool;
pub mod serving;
pub mod stream;
pub mod tree;
pub mod volume;

pub use path::{CopySide, FileOrPipe, HostPath};

use super::protocol::{HANDOVER_VERSION, Message, ProtocolError, VERSION};
use serde::{Deserialize, Serialize};

/// A request, and how its results are to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The form of results and messages.
    pub style: Style,
    /// What to do.
    pub command: Command,
}

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Something with the pool.
    Pool(pool::Command),
    /// Something with volumes.
    Volume(volume::Command),
    /// Something with attached volumes.
    Attach(attach::Command),
    /// Something with images.
    Image(image::Command),
    /// Something with containers.
    Container(container::Command),
    /// Remove what nothing uses.
    Gc(gc::Gc),
    /// Draw the volumes as a forest.
    Tree(tree::Tree),
    /// Something with the processes that serve, sent in the form of [`HANDOVER_VERSION`].
    #[serde(skip)]
    Serving(serving::Command),
}

/// The form of results and messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Style {
    /// Results are one JSON document instead of text for people.
    pub json: bool,
    /// No messages and no progress are shown.
    pub quiet: bool,
    /// Tables show full values, however wide. Without it they fit 80 columns.
    #[serde(default)]
    pub no_trunc: bool,
    /// The number of times that more messages were asked for.
    pub verbose: u8,
    /// The width of the terminal that is the error stream. Without it that is no terminal that
    /// takes escapes, and no progress is shown.
    #[serde(default)]
    pub terminal_columns: Option<u16>,
}

/// The body of a request with a command of one version.
#[derive(Serialize)]
struct Sent<'a, C> {
    style: &'a Style,
    command: &'a C,
}

#[derive(Deserialize)]
struct Received<C> {
    style: Style,
    command: C,
}

impl<C> Received<C> {
    fn into_request(self, command: impl FnOnce(C) -> Command) -> Request {
        Request {
            style: self.style,
            command: command(self.command),
        }
    }
}

impl Message for Request {
    fn encode(&self) -> serde_json::Result<(u32, Vec<u8>)> {
        let style = &self.style;
        Ok(match &self.command {
            Command::Serving(command) => {
                let body = serde_json::to_vec(&Sent { style, command })?;
                (HANDOVER_VERSION, body)
            }
            command => (VERSION, serde_json::to_vec(&Sent { style, command })?),
        })
    }

    fn decode(version: u32, body: &[u8]) -> Result<Self, ProtocolError> {
        let theirs = version;
        match version {
            VERSION => {
                let received: Received<Command> = serde_json::from_slice(body)?;
                Ok(received.into_request(|command| command))
            }
            // Every other request of that version has a meaning that this program does not know.
            HANDOVER_VERSION => serde_json::from_slice(body)
                .map(|received: Received<_>| received.into_request(Command::Serving))
                .map_err(|_| ProtocolError::Version { theirs }),
            _ => Err(ProtocolError::Version { theirs }),
        }
    }
}

#[cfg(test)]
mod tests;
