//! Passing an image from the process that has it to the one that stores it, over a socket: the
//! documents first, then only the layers that the receiver asks for, in their order.
//!
//! A daemon needs no network for that: the process that fetches an image has its user's network,
//! proxies and credentials. Both ends are of one version of the program, which their caller
//! ensures; the receiver verifies all content nevertheless.
//!
//! A message is one byte with its kind, the length of its body as four bytes, and the body.
//!
//! # Invariants
//! - The sender sends the layers that were asked for, in ascending order, each once. Then it says
//!   that there are no more.
//! - A receiver that skips a layer that it asked for discards its bytes.

mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use receiver::{Received, Reports, receive};
pub use sender::{Requests, Sender};

use super::error::{Error, Printable, Result};
use super::limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The length of a message's kind and length.
const HEADER_BYTES: usize = 5;
/// The maximum length of a piece of a layer.
const PIECE_BYTES: usize = 1 << 20;
/// The maximum length of a message that is neither a document nor a piece of a layer.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// To the receiver: the image's names and what else is known of it.
    Image = b'I',
    /// To the receiver: the manifest.
    Manifest = b'M',
    /// To the receiver: the configuration.
    Config = b'C',
    /// To the receiver: the index of the layer that follows.
    Layer = b'L',
    /// To the receiver: a piece of that layer.
    Data = b'D',
    /// To the receiver: the end of that layer.
    EndOfLayer = b'E',
    /// To the receiver: there are no more layers.
    End = b'Z',
    /// To the receiver: the sender fails, and why.
    Failure = b'F',
    /// To the sender: the indexes of the layers that are to be sent.
    Request = b'R',
    /// To the sender: the number of layers that are stored.
    Progress = b'P',
    /// To the sender: the rest is not needed.
    GivenUp = b'X',
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Image,
            Self::Manifest,
            Self::Config,
            Self::Layer,
            Self::Data,
            Self::EndOfLayer,
            Self::End,
            Self::Failure,
            Self::Request,
            Self::Progress,
            Self::GivenUp,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Returns the maximum length of a message of this kind.
    const fn bytes_max(self) -> u64 {
        match self {
            Self::Manifest => MANIFEST_BYTES_MAX,
            Self::Config => CONFIG_BYTES_MAX,
            Self::Data => PIECE_BYTES as u64,
            _ => SMALL_BYTES_MAX,
        }
    }
}

/// The body of the first message.
#[derive(Serialize, Deserialize)]
struct Head {
    names: Vec<String>,
}

fn ended() -> Error {
    Error::PassedOn(Printable::from(
        "the process that fetched the image has ended",
    ))
}

fn unexpected() -> Error {
    Error::PassedOn(Printable::from("the image was not passed on in order"))
}

fn failed(source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        ended()
    } else {
        Error::io("read the image", source)
    }
}

fn write(out: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len()).map_err(io::Error::other)?;
    let [l0, l1, l2, l3] = len.to_le_bytes();
    out.write_all(&[kind as u8, l0, l1, l2, l3])?;
    out.write_all(body)
}

/// Reads the kind and the length of a message.
fn read_header(input: &mut impl Read) -> Result<(Kind, usize)> {
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).map_err(failed)?;
    let [kind, l0, l1, l2, l3] = header;
    let kind = Kind::of(kind).ok_or_else(unexpected)?;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    if u64::from(len) > kind.bytes_max() {
        return Err(unexpected());
    }
    Ok((kind, usize::try_from(len).map_err(|_| unexpected())?))
}

fn read_body(input: &mut impl Read, len: usize) -> Result<Vec<u8>> {
    let mut body = vec![0; len];
    input.read_exact(&mut body).map_err(failed)?;
    Ok(body)
}

/// Reads a message that must be of this kind.
fn read(input: &mut impl Read, wanted: Kind) -> Result<Vec<u8>> {
    let (kind, len) = read_header(input)?;
    let body = read_body(input, len)?;
    if kind == Kind::Failure {
        return Err(Error::PassedOn(Printable::from(&*body)));
    }
    if kind == wanted {
        Ok(body)
    } else {
        Err(unexpected())
    }
}

/// Returns the bytes of a number of layers, or of a layer's index.
fn number(value: usize) -> Result<[u8; 4]> {
    let value = u32::try_from(value).map_err(|_| unexpected())?;
    Ok(value.to_le_bytes())
}

/// Returns the numbers in the body of a message.
fn numbers(body: &[u8]) -> Result<Vec<usize>> {
    let (numbers, rest) = body.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(unexpected());
    }
    let numbers = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes));
    numbers
        .map(|number| usize::try_from(number).map_err(|_| unexpected()))
        .collect()
}
