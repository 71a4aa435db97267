//! Fetching blobs into files, several at a time, while they are read.
//!
//! # Invariants
//! - A reader gets a blob's last byte only once the whole blob has its digest and size, and else the
//!   error.
//! - A broken connection continues where it broke. What an earlier process has left is shown to a
//!   reader only once the whole blob is verified.

use crate::cache::{Cache, Slot};
use crate::call::Call;
use crate::client::{Client, is_page};
use crate::error::{Error, Result};
use crate::retry::Attempts;
use cowshed_format::base::Cancel;
use cowshed_oci::Digest;
use cowshed_oci::digest::Hasher;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Number of blobs that are fetched at the same time.
const AT_A_TIME: usize = 4;
/// The interval at which a waiting reader checks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(100);
/// The size of the buffer for what an earlier process has left.
const BUFFER_BYTES: usize = 1 << 20;

/// A blob that is to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size, as its manifest states it.
    pub size_bytes: u64,
}

/// How far a blob is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes that are here.
    pub bytes: u64,
    /// True once all are here and verified.
    pub is_whole: bool,
}

/// Blobs that are being fetched. Dropping it stops that; what is here so far is kept.
pub struct Downloads {
    parts: Vec<Arc<Part>>,
    _tasks: JoinSet<()>,
}

/// One blob and its file.
struct Part {
    blob: Blob,
    slot: Slot,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes in the file.
    len: u64,
    /// True if some of these are from an earlier process.
    is_continued: bool,
    outcome: Option<Result<(), Arc<Error>>>,
}

impl Downloads {
    /// Starts to fetch `blobs`, the first ones first.
    pub(crate) fn start(client: &Arc<Client>, blobs: &[Blob], cache: &Cache) -> Result<Self> {
        cache.check_space(blobs)?;
        let mut parts = Vec::with_capacity(blobs.len());
        let mut tasks = JoinSet::new();
        let permits = Arc::new(Semaphore::new(AT_A_TIME));
        for blob in blobs {
            let part = Arc::new(Part {
                blob: *blob,
                slot: cache.open(blob.digest)?,
                state: Mutex::default(),
                changed: Condvar::new(),
            });
            let (client, permits) = (Arc::clone(client), Arc::clone(&permits));
            let fetched = Arc::clone(&part);
            tasks.spawn(async move {
                // The semaphore lets them pass in the order in which they asked, and is never
                // closed.
                let _permit = permits.acquire().await;
                let outcome = fetched.fetch(&client).await;
                fetched.end(outcome);
            });
            parts.push(part);
        }
        Ok(Self {
            parts,
            _tasks: tasks,
        })
    }

    /// Returns how far each blob is.
    #[must_use]
    pub fn fetched(&self) -> Vec<Fetched> {
        self.parts.iter().map(|part| part.fetched()).collect()
    }

    /// Returns a reader of the blob with this index, which waits for what is not here yet.
    ///
    /// # Panics
    /// If there is no such blob.
    #[must_use]
    pub fn reader(&self, index: usize) -> BlobReader {
        BlobReader {
            part: Arc::clone(&self.parts[index]),
            offset: 0,
            cancel: Cancel::current(),
        }
    }

    /// Removes the file of the blob with this index, which is not read any more.
    pub fn remove_file(&self, index: usize) {
        if let Some(part) = self.parts.get(index) {
            part.slot.remove();
        }
    }

    /// Ends all readers of what is not here yet with an error.
    pub fn stop(&self) {
        for part in &self.parts {
            part.end(Err(Error::Stopped));
        }
    }

    /// Removes the files, which are not needed any more.
    pub fn remove(self) {
        for part in &self.parts {
            part.slot.remove();
        }
    }
}

impl Part {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetched(&self) -> Fetched {
        let state = self.state();
        Fetched {
            bytes: state.len,
            is_whole: matches!(state.outcome, Some(Ok(()))),
        }
    }

    /// Sets the outcome, unless there is one.
    fn end(&self, outcome: Result<()>) {
        let outcome = outcome.map_err(Arc::new);
        self.state().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    fn set_len(&self, len: u64) {
        self.state().len = len;
        self.changed.notify_all();
    }

    /// Fetches what is missing and verifies the whole.
    async fn fetch(&self, client: &Client) -> Result<()> {
        let mut hasher = self.continue_earlier()?;
        let mut attempts = Attempts::default();
        loop {
            let before = hasher.len_bytes();
            let failed = match self.fetch_rest(client, &mut hasher).await {
                Ok(()) if self.is_continued() && hasher.digest() != self.blob.digest => {
                    // What was left was damaged: once more, from the start.
                    hasher = Hasher::default();
                    self.state().is_continued = false;
                    self.set_len(0);
                    continue;
                }
                Ok(()) => return self.verify(client, &hasher),
                Err(error) => error,
            };
            if hasher.len_bytes() > before {
                attempts.progress();
            }
            attempts.wait(failed).await?;
        }
    }

    fn is_continued(&self) -> bool {
        self.state().is_continued
    }

    /// Returns the hash of what an earlier process has left in the file.
    fn continue_earlier(&self) -> Result<Hasher> {
        let failed = || Error::io("read a layer that was fetched in part");
        let file = &self.slot.file;
        let len = file.metadata().map_err(failed())?.len();
        let mut hasher = Hasher::default();
        if len > self.blob.size_bytes {
            file.set_len(0).map_err(failed())?;
            return Ok(hasher);
        }
        let mut buffer = vec![0; if len == 0 { 0 } else { BUFFER_BYTES }];
        while hasher.len_bytes() < len {
            let read = file.read_at(&mut buffer, hasher.len_bytes());
            let read = read.map_err(failed())?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        self.state().is_continued = hasher.len_bytes() > 0;
        self.set_len(hasher.len_bytes());
        Ok(hasher)
    }

    async fn fetch_rest(&self, client: &Client, hasher: &mut Hasher) -> Result<()> {
        let Blob { digest, size_bytes } = self.blob;
        let offset = hasher.len_bytes();
        if offset == size_bytes {
            return Ok(());
        }
        let url = client.url(&format!("blobs/{digest}"))?;
        let what = format!("the layer {digest}");
        let mut call = Call::get(url, &what);
        call.from = (offset > 0).then_some(offset);
        let mut answer = client.send(call).await?;
        let mut skip = self.check_answer(client, &answer, offset)?;
        loop {
            let piece = answer
                .chunk()
                .await
                .map_err(|error| client.broken(&error))?;
            let Some(piece) = piece else { break };
            let skipped = piece.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            let piece = &piece[skipped..];
            let at = hasher.len_bytes();
            if piece.len() as u64 > size_bytes - at {
                return Err(self.wrong_size(client, at.saturating_add(piece.len() as u64)));
            }
            if let Err(error) = self.slot.file.write_all_at(piece, at) {
                if error.kind() == io::ErrorKind::StorageFull {
                    // Others need the space more than the next pull needs these bytes.
                    self.slot.remove();
                    let _ = self.slot.file.set_len(0);
                }
                return Err(Error::io("write a layer to a temporary file")(error));
            }
            hasher.update(piece);
            self.set_len(hasher.len_bytes());
        }
        if hasher.len_bytes() == size_bytes {
            Ok(())
        } else {
            // A length that the answer stated is checked by what reads it.
            Err(Error::Cut {
                server: client.server().to_owned(),
                cause: "it sent less than the whole layer".to_owned(),
            })
        }
    }

    /// Returns the number of bytes at the start of the answer that are here already.
    fn check_answer(&self, client: &Client, answer: &Response, offset: u64) -> Result<u64> {
        let wanted = self.blob.size_bytes;
        let starts_at = if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer.headers().get(CONTENT_RANGE);
            let start = range
                .and_then(|text| text.to_str().ok()?.strip_prefix("bytes "))
                .and_then(|range| range.split_once('-')?.0.trim().parse().ok());
            start.filter(|start| *start == offset).ok_or_else(|| {
                client.not_a_registry("it sends another part of a layer than the one asked for")
            })?
        } else {
            0
        };
        let Some(len) = answer.content_length() else {
            return Ok(offset - starts_at);
        };
        let whole = starts_at.saturating_add(len);
        if whole == wanted {
            return Ok(offset - starts_at);
        }
        if is_page(answer.headers()) {
            return Err(client.not_a_registry("with a page for browsers"));
        }
        Err(self.wrong_size(client, whole))
    }

    fn wrong_size(&self, client: &Client, found_bytes: u64) -> Error {
        Error::Size {
            server: client.server().to_owned(),
            digest: self.blob.digest,
            expected_bytes: self.blob.size_bytes,
            found_bytes,
        }
    }

    fn verify(&self, client: &Client, hasher: &Hasher) -> Result<()> {
        let (expected, found) = (self.blob.digest, hasher.digest());
        if expected == found {
            return Ok(());
        }
        self.slot.remove();
        Err(Error::Digest {
            server: client.server().to_owned(),
            expected,
            found,
        })
    }
}

/// A reader of a blob that is being fetched.
pub struct BlobReader {
    part: Arc<Part>,
    offset: u64,
    cancel: Cancel,
}

impl BlobReader {
    /// Waits for bytes after the offset; returns how many there are, none at the end.
    fn wait(&self) -> io::Result<u64> {
        let mut state = self.part.state();
        loop {
            self.cancel.check()?;
            let here = match &state.outcome {
                Some(Err(error)) => {
                    let error = cowshed_oci::Error::Remote(Box::new(Arc::clone(error)));
                    return Err(error.into());
                }
                Some(Ok(())) => return Ok(state.len.saturating_sub(self.offset)),
                None if state.is_continued => 0,
                // The last byte comes once all are verified.
                None => state.len.min(self.part.blob.size_bytes.saturating_sub(1)),
            };
            if here > self.offset {
                return Ok(here - self.offset);
            }
            let waited = self.part.changed.wait_timeout(state, CANCEL_POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let here = usize::try_from(self.wait()?).unwrap_or(usize::MAX);
        let want = buffer.len().min(here);
        let len = self
            .part
            .slot
            .file
            .read_at(&mut buffer[..want], self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}
