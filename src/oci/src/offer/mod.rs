//! Offering an image to another process, which sends what a registry lacks of it: first what the
//! image consists of, then each layer that is asked for.
//!
//! The process with the network asks for a layer and passes the file along into which the layer is
//! to be written, so that no layer goes over the socket and a daemon writes nowhere else. Both ends
//! are of one version of the program, which their caller ensures.
//!
//! A message is its length as four bytes and a JSON document; a file comes with the first byte.

mod giver;
mod taker;
#[cfg(test)]
mod tests;

pub use giver::{Asked, Giver};
pub use taker::Taker;

use super::compression::Compression;
use super::digest::Digest;
use super::error::{Error, Printable, Result};
use super::known_blob::KnownBlob;
use super::limits::OFFER_BYTES_MAX;
use cowshed_format::base::cancel;
use cowshed_sys::descriptors;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Number of bytes of a message's length.
const LEN_BYTES: usize = 4;

/// An image that is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The digest of its configuration.
    pub id: Digest,
    /// The name that was meant, if it was a name.
    pub name: Option<String>,
    /// Its configuration, byte by byte.
    pub config: String,
    /// Its layers, lowest first.
    pub layers: Vec<OfferedLayer>,
}

/// One layer of an image that is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedLayer {
    /// The identity of the stack up to here.
    pub chain_id: Digest,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer, if known.
    pub size_bytes: Option<u64>,
    /// Bytes that only this layer holds in the pool.
    pub own_bytes: u64,
    /// The blobs that are known to hold it.
    pub blobs: Vec<KnownBlob>,
}

/// A layer that is in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenLayer {
    /// The blob that the file is.
    pub blob: KnownBlob,
    /// The reason if it is not as it was imported.
    pub why_anew: Option<String>,
}

/// To the one who takes the image.
#[derive(Debug, Serialize, Deserialize)]
enum ToTaker<'o> {
    Offer(Cow<'o, Offer>),
    /// The layer is in its file, uncompressed or compressed.
    Written {
        layer: usize,
        written: WrittenLayer,
    },
    /// A layer cannot be written, and why.
    Failed {
        layer: usize,
        why: String,
    },
}

/// To the one who offers the image.
#[derive(Debug, Serialize, Deserialize)]
enum ToGiver {
    /// Write a layer into the file that comes along, which is in this folder.
    Write {
        layer: usize,
        compression: Compression,
        folder: String,
    },
    /// A blob is in a registry now.
    Stored { layer: usize, blob: KnownBlob },
}

fn failed(source: io::Error) -> Error {
    Error::io("pass the image on", source)
}

fn unexpected() -> Error {
    Error::PassedOn(Printable::from("the image was not passed on in order"))
}

fn send<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).map_err(io::Error::other)?;
    let bytes = [&len.to_le_bytes()[..], &body].concat();
    let sent = match file {
        Some(file) => descriptors::send(socket, &bytes, &[file])?,
        None => 0,
    };
    (&*socket).write_all(&bytes[sent..])
}

/// Receives the next message and the file that came with it; `None` at the end.
fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut len = [0; LEN_BYTES];
    let (read, mut files) = loop {
        match descriptors::receive(socket, &mut len) {
            Ok(received) => break received,
            Err(error) if may_go_on(&error) => cancel::check()?,
            // The other side has ended in the middle of something.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
    };
    if read == 0 {
        return Ok(None);
    }
    fill(socket, &mut len[read..])?;
    let len = u32::from_le_bytes(len);
    if len > OFFER_BYTES_MAX {
        return Err(unexpected());
    }
    let mut body = vec![0; usize::try_from(len).map_err(|_| unexpected())?];
    fill(socket, &mut body)?;
    let message = serde_json::from_slice(&body).map_err(|_| unexpected())?;
    Ok(Some((message, files.pop())))
}

/// Reads until `buffer` is full. The socket may have a limit of time, at which this checks whether
/// the work was cancelled.
fn fill(mut socket: &UnixStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match socket.read(&mut buffer[filled..]) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => filled += len,
            Err(error) if may_go_on(&error) => cancel::check()?,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn may_go_on(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
