//! The end that takes the image.

use super::{Offer, ToGiver, ToTaker, WrittenLayer, failed, receive, send};
use crate::compression::Compression;
use crate::error::{Error, Printable, Result};
use crate::known_blob::KnownBlob;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

/// One who takes an image that is offered. Several threads may ask for layers at the same time.
pub struct Taker<'s> {
    socket: &'s UnixStream,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Where the outcome for a layer goes.
    layers: HashMap<usize, Sender<Result<WrittenLayer>>>,
    /// True once nothing more comes.
    is_over: bool,
}

fn ended() -> Error {
    Error::PassedOn(Printable::from("the process that has the pool has ended"))
}

impl<'s> Taker<'s> {
    /// Receives what is offered.
    ///
    /// # Errors
    /// `PassedOn` if the other side has ended, which says why.
    pub fn new(socket: &'s UnixStream) -> Result<(Self, Offer)> {
        match receive(socket)? {
            Some((ToTaker::Offer(offer), _)) => {
                let waiting = Mutex::default();
                Ok((Self { socket, waiting }, offer.into_owned()))
            }
            Some(_) => Err(super::unexpected()),
            None => Err(ended()),
        }
    }

    /// Passes answers on to those who wait for them, until the other side ends.
    pub fn listen(&self) {
        loop {
            let (layer, outcome) = match receive(self.socket) {
                Ok(Some((ToTaker::Written { layer, written }, _))) => (layer, Ok(written)),
                Ok(Some((ToTaker::Failed { layer, why }, _))) => {
                    (layer, Err(Error::PassedOn(Printable::from(&*why))))
                }
                _ => break,
            };
            if let Some(waiting) = self.waiting().layers.remove(&layer) {
                // Whoever has given up needs no answer.
                let _ = waiting.send(outcome);
            }
        }
        let mut waiting = self.waiting();
        waiting.is_over = true;
        // Dropping the senders wakes all who wait.
        waiting.layers.clear();
    }

    /// Asks for the layer with this index, once at a time, and waits until it is in `file`, which is in
    /// `folder`. Another thread must listen.
    ///
    /// # Errors
    /// `PassedOn` if the layer cannot be written or the other side has ended.
    pub fn write(
        &self,
        layer: usize,
        compression: Compression,
        file: &File,
        folder: &Path,
    ) -> Result<WrittenLayer> {
        let (sender, outcome) = channel();
        {
            let mut waiting = self.waiting();
            if waiting.is_over {
                return Err(ended());
            }
            waiting.layers.insert(layer, sender);
            let message = ToGiver::Write {
                layer,
                compression,
                folder: folder.display().to_string(),
            };
            send(self.socket, &message, Some(file.as_fd())).map_err(failed)?;
        }
        outcome.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Says that a blob with a layer is in a registry now.
    ///
    /// # Errors
    /// `Io` if the other side has ended.
    pub fn stored(&self, layer: usize, blob: KnownBlob) -> Result<()> {
        let _held = self.waiting();
        send(self.socket, &ToGiver::Stored { layer, blob }, None).map_err(failed)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
