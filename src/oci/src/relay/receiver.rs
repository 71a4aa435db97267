//! The end that stores the image.

use super::{Head, Kind, number, numbers, read, read_body, read_header, unexpected, write};
use crate::digest::Digest;
use crate::error::{Error, Part, Printable, Result};
use crate::source::{Document, Image, LayerInfo, Remote};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// An image that is being received.
pub struct Received<W> {
    image: Image,
    /// What tells the sender what is needed, and what is done.
    reports: Reports<W>,
}

/// What tells the sender what is needed, and what is done.
pub struct Reports<W> {
    out: W,
    layers: Arc<Mutex<Incoming>>,
}

/// Receives the documents of an image over `input`, and verifies them.
///
/// # Errors
/// `PassedOn` if the sender ends or fails, and the errors of [`Image::open_all`].
pub fn receive<R, W>(mut input: R, out: W) -> Result<Received<W>>
where
    R: Read + Send + 'static,
    W: Write,
{
    let head = read(&mut input, Kind::Image)?;
    let head: Head = serde_json::from_slice(&head).map_err(|_| unexpected())?;
    let manifest = read(&mut input, Kind::Manifest)?;
    let config = read(&mut input, Kind::Config)?;
    let layers = Arc::new(Mutex::new(Incoming {
        input: Box::new(input),
        current: None,
        left: 0,
        is_over: false,
        failure: None,
    }));
    let remote: Arc<dyn Remote> = Arc::new(Sent {
        config,
        layers: Arc::clone(&layers),
    });
    let image = Image::open_chosen(&remote, &manifest, head.names)?;
    let reports = Reports { out, layers };
    Ok(Received { image, reports })
}

impl<W: Write> Received<W> {
    /// Returns the image. Its layers can be read in ascending order, once they were asked for.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// Asks for the layers with these indexes, which must ascend.
    ///
    /// # Errors
    /// `Io` if the sender has ended.
    pub fn request(mut self, layers: &[usize]) -> Result<(Image, Reports<W>)> {
        let mut body = Vec::with_capacity(4 * layers.len());
        for layer in layers {
            body.extend_from_slice(&number(*layer)?);
        }
        write(&mut self.reports.out, Kind::Request, &body)
            .map_err(|source| Error::io("ask for the layers", source))?;
        Ok((self.image, self.reports))
    }
}

impl<W: Write> Reports<W> {
    /// Says how many layers are stored.
    pub fn stored(&mut self, layers: usize) {
        let body = number(layers).unwrap_or_default();
        // A sender that has ended is found by reading.
        let _ = write(&mut self.out, Kind::Progress, &body);
    }

    /// Says that the rest is not needed.
    pub fn give_up(&mut self) {
        // As in `stored`.
        let _ = write(&mut self.out, Kind::GivenUp, &[]);
    }

    /// Waits until the sender has seen what was said last, and has ended.
    pub fn wait_for_end(self) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        // What is read, and an error, mean nothing: all that was needed is here.
        let _ = io::copy(&mut layers.input, &mut io::sink());
    }
}

/// The documents that were sent, and the layers that are.
struct Sent {
    config: Vec<u8>,
    layers: Arc<Mutex<Incoming>>,
}

impl Remote for Sent {
    fn document(&self, document: Document, digest: Digest, _: u64) -> Result<Vec<u8>> {
        match document {
            Document::Config => Ok(self.config.clone()),
            Document::Manifest => Err(Error::Missing {
                what: Part::Manifest,
                name: Printable::from(&*digest.to_string()),
            }),
        }
    }

    fn layer(&self, index: usize, _: &LayerInfo) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(LayerStream {
            layers: Arc::clone(&self.layers),
            index,
            is_over: false,
        }))
    }
}

/// The layers as they come.
struct Incoming {
    input: Box<dyn Read + Send>,
    /// The layer whose pieces come now.
    current: Option<usize>,
    /// Bytes of the piece that were not read yet.
    left: usize,
    /// True if the sender has no more layers.
    is_over: bool,
    /// Why the sender has failed: it sends nothing more, however often it is read.
    failure: Option<Printable>,
}

impl Incoming {
    /// Reads the next bytes of the layer with this index; none at its end.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<usize> {
        if let Some(why) = &self.failure {
            return Err(Error::PassedOn(why.clone()));
        }
        while self.left == 0 || self.current != Some(index) {
            if self.left > 0 {
                let left = std::mem::take(&mut self.left);
                read_body(&mut self.input, left)?;
            }
            if self.is_over || self.current.is_some_and(|current| current > index) {
                return Err(not_requested(index));
            }
            let (kind, len) = read_header(&mut self.input)?;
            match kind {
                Kind::Data => self.left = len,
                Kind::Layer => {
                    let body = read_body(&mut self.input, len)?;
                    self.current = numbers(&body)?.first().copied();
                }
                Kind::EndOfLayer if self.current == Some(index) => {
                    self.current = None;
                    return Ok(0);
                }
                Kind::EndOfLayer => self.current = None,
                Kind::End => self.is_over = true,
                Kind::Failure => {
                    let why = read_body(&mut self.input, len)?;
                    let why = self.failure.insert(Printable::from(&*why));
                    return Err(Error::PassedOn(why.clone()));
                }
                _ => return Err(unexpected()),
            }
        }
        let want = buffer.len().min(self.left);
        let len = self.input.read(&mut buffer[..want]);
        let len = len.map_err(super::failed)?;
        if len == 0 {
            return Err(super::ended());
        }
        self.left -= len;
        Ok(len)
    }
}

fn not_requested(index: usize) -> Error {
    Error::Missing {
        what: Part::layer(index),
        name: Printable::from("it was removed from the pool meanwhile"),
    }
}

/// One layer as it comes.
struct LayerStream {
    layers: Arc<Mutex<Incoming>>,
    index: usize,
    is_over: bool,
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.is_over {
            return Ok(0);
        }
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let len = layers.read(self.index, buffer)?;
        self.is_over = len == 0;
        Ok(len)
    }
}
