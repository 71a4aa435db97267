//! The end that has the image.

use super::{Offer, ToGiver, ToTaker, WrittenLayer, failed, receive, send};
use crate::compression::Compression;
use crate::error::Result;
use crate::known_blob::KnownBlob;
use std::borrow::Cow;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The interval at which one who waits for a message checks whether the work was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(100);
/// Number of characters of an error's text that are passed on.
const WHY_CHARS_MAX: usize = 4096;

/// One who offers an image.
pub struct Giver {
    socket: UnixStream,
    /// Held while a message is sent.
    sending: Mutex<()>,
}

/// What the other side asks for, or says.
#[derive(Debug)]
pub enum Asked {
    /// It wants a layer in a file.
    Write {
        /// The index of the layer.
        layer: usize,
        /// The compression that it wants.
        compression: Compression,
        /// The file.
        file: File,
        /// The folder of the file, for messages.
        folder: String,
    },
    /// A blob with a layer is in a registry now.
    Stored {
        /// The index of the layer.
        layer: usize,
        /// The blob.
        blob: KnownBlob,
    },
}

impl Giver {
    /// Offers an image over a socket.
    ///
    /// # Errors
    /// `Io` if the other side has ended.
    pub fn new(socket: UnixStream, offer: &Offer) -> Result<Self> {
        socket.set_read_timeout(Some(CANCEL_POLL)).map_err(failed)?;
        let giver = Self {
            socket,
            sending: Mutex::default(),
        };
        giver.send(&ToTaker::Offer(Cow::Borrowed(offer)))?;
        Ok(giver)
    }

    /// Returns what the other side wants next; `None` once it has ended.
    ///
    /// # Errors
    /// `PassedOn` for what is no request, `Cancelled`, and `Io`.
    pub fn next(&self) -> Result<Option<Asked>> {
        let Some((message, file)) = receive(&self.socket)? else {
            return Ok(None);
        };
        match (message, file) {
            (
                ToGiver::Write {
                    layer,
                    compression,
                    folder,
                },
                Some(file),
            ) => Ok(Some(Asked::Write {
                layer,
                compression,
                file: File::from(file),
                folder,
            })),
            (ToGiver::Stored { layer, blob }, _) => Ok(Some(Asked::Stored { layer, blob })),
            (ToGiver::Write { .. }, None) => Err(super::unexpected()),
        }
    }

    /// Says that a layer is in its file, or why it is not.
    ///
    /// # Errors
    /// `Io` if the other side has ended.
    pub fn written(&self, layer: usize, outcome: Result<WrittenLayer, String>) -> Result<()> {
        self.send(&match outcome {
            Ok(written) => ToTaker::Written { layer, written },
            Err(why) => ToTaker::Failed {
                layer,
                why: why.chars().take(WHY_CHARS_MAX).collect(),
            },
        })
    }

    fn send(&self, message: &ToTaker<'_>) -> Result<()> {
        let _held = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        send(&self.socket, message, None).map_err(failed)
    }
}
