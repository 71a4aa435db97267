//! The end that has the image.

use super::{Head, Kind, PIECE_BYTES, numbers, read_body, read_header, unexpected, write};
use crate::error::{Error, Part, Result};
use crate::source::Image;
use cowshed_format::base::cancel;
use std::io::{self, Read, Write};

/// Sends an image.
pub struct Sender<W> {
    out: W,
}

impl<W: Write> Sender<W> {
    /// Sends the documents of `image`, which must have a manifest and a configuration.
    ///
    /// # Errors
    /// `Io` if the receiver has ended.
    pub fn new(mut out: W, image: &Image) -> Result<Self> {
        let (Some(manifest), Some(config)) = (image.manifest(), image.config()) else {
            return Err(unexpected());
        };
        let head = Head {
            names: image.reference_names().to_vec(),
        };
        let what = Part::Manifest;
        let head = serde_json::to_vec(&head).map_err(|source| Error::Json { what, source })?;
        for (kind, body) in [
            (Kind::Image, &*head),
            (Kind::Manifest, manifest),
            (Kind::Config, config.raw()),
        ] {
            write(&mut out, kind, body).map_err(write_failed)?;
        }
        Ok(Self { out })
    }

    /// Sends the layer with this index.
    ///
    /// # Errors
    /// The error of `content`, or `Io` if the receiver has ended.
    pub fn layer(&mut self, index: usize, mut content: impl Read) -> Result<()> {
        let number = super::number(index)?;
        write(&mut self.out, Kind::Layer, &number).map_err(write_failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            cancel::check()?;
            let len = match content.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|source| Error::io("read the layer", source))?,
            };
            if len == 0 {
                break;
            }
            write(&mut self.out, Kind::Data, &piece[..len]).map_err(write_failed)?;
        }
        write(&mut self.out, Kind::EndOfLayer, &[]).map_err(write_failed)
    }

    /// Says that there are no more layers.
    ///
    /// # Errors
    /// `Io` if the receiver has ended.
    pub fn finish(mut self) -> Result<()> {
        write(&mut self.out, Kind::End, &[]).map_err(write_failed)
    }

    /// Says that the rest cannot be sent, and why.
    pub fn fail(mut self, why: &str) {
        let len = why.len().min(PIECE_BYTES / 32);
        // A receiver that has ended needs no reason.
        let _ = write(&mut self.out, Kind::Failure, &why.as_bytes()[..len]);
    }
}

/// What the receiver says.
pub struct Requests<R> {
    input: R,
}

impl<R: Read> Requests<R> {
    /// Returns the receiver's messages, which come over `input`.
    pub const fn new(input: R) -> Self {
        Self { input }
    }

    /// Returns the indexes of the layers that the receiver asks for.
    ///
    /// # Errors
    /// `PassedOn` or `Io` if it has ended.
    pub fn wanted(&mut self) -> Result<Vec<usize>> {
        numbers(&super::read(&mut self.input, Kind::Request)?)
    }

    /// Waits for a layer to be stored; returns how many are. `None` once the receiver has ended or
    /// given up.
    pub fn stored(&mut self) -> Option<usize> {
        let (kind, len) = read_header(&mut self.input).ok()?;
        let body = read_body(&mut self.input, len).ok()?;
        match kind {
            Kind::Progress => numbers(&body).ok()?.first().copied(),
            _ => None,
        }
    }
}

fn write_failed(source: io::Error) -> Error {
    Error::io("pass the image on", source)
}
