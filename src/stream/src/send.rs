//! Sending: a snapshot's bytes, or those that differ from a base, as a stream.
//!
//! One thread reads the volume, in order and up to 1 MiB at a time, into the records' places; the
//! caller's thread computes the checksums and writes.

use crate::changes::{Base, Changes};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::labels::without_local;
use crate::token::{Place, Token};
use crate::wire::{BaseName, Begin, DATA_BYTES_MAX, DIGEST_BYTES, Frame, Packer, StreamWriter};
use crate::{Observer, bookmark};
use cowshed_engine::{Extent, ExtentKind, Hold, Pool, Volume};
use cowshed_format::base::Cancel;
use std::io::Write;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Number of records that are read ahead.
const FRAMES_AHEAD: usize = 4;

/// How a snapshot is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// Compresses each record with zstd.
    pub compress: bool,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the volume.
    pub data_bytes: u64,
    /// The stream's digest.
    pub digest: [u8; DIGEST_BYTES],
}

/// A snapshot that is ready to be sent. It and its base are not removed while this lives.
pub struct Sending {
    pool: Pool,
    snapshot: Volume,
    base: Option<Base>,
    begin: Begin,
    _holds: Vec<Hold>,
}

/// Sends a snapshot, or its difference to the snapshot or bookmark `from`.
///
/// # Errors
/// As `Sending::new` and `Sending::run`.
pub fn send(
    pool: &Pool,
    snapshot: &Volume,
    from: Option<&Volume>,
    output: impl Write,
    options: SendOptions,
    observer: &dyn Observer,
) -> Result<Sent> {
    Sending::new(pool, snapshot, from, None)?.run(output, options, observer)
}

/// Returns the snapshot of `pool` whose stream a token is of.
///
/// # Errors
/// `TokenForeign`.
pub fn snapshot_of(pool: &Pool, token: &Place) -> Result<Volume> {
    let found = token.identity.find(pool)?;
    found.ok_or(Error::TokenForeign("snapshot"))
}

/// Returns the place in the stream of one snapshot that a token is of.
///
/// # Errors
/// `TokenOfSet`.
pub const fn place_of(token: &Token) -> Result<Place> {
    match token {
        Token::Snapshot(place) => Ok(*place),
        Token::Set(_) => Err(Error::TokenOfSet),
    }
}

impl Sending {
    /// Prepares to send `snapshot`, as a difference if `from` is given or the token is of one.
    ///
    /// # Errors
    /// `NotFrozen`, `IsBookmark`, `NotABase`, `NotDescended`; `OtherSnapshot`, `OtherBase` or
    /// `TokenForeign` for a token of another stream.
    pub fn new(
        pool: &Pool,
        snapshot: &Volume,
        from: Option<&Volume>,
        token: Option<&Place>,
    ) -> Result<Self> {
        bookmark::refuse(pool, snapshot)?;
        let base = base_of(pool, from, token)?;
        if let Some(token) = token {
            if token.identity != Identity::of(pool, snapshot)? {
                return Err(Error::OtherSnapshot(snapshot.name()));
            }
            if token.base != base.as_ref().map(|base| base.identity) {
                return Err(Error::OtherBase);
            }
        }
        Self::prepare(
            pool,
            snapshot,
            base,
            token.map_or(0, |token| token.position),
        )
    }

    /// Prepares to send what is at or after `position`.
    pub(crate) fn prepare(
        pool: &Pool,
        snapshot: &Volume,
        base: Option<Base>,
        position: u64,
    ) -> Result<Self> {
        let info = snapshot.info()?;
        if !snapshot.is_frozen() {
            return Err(cowshed_engine::Error::NotFrozen(info.name).into());
        }
        let identity = Identity::of(pool, snapshot)?;
        let mut holds = vec![snapshot.hold()?];
        if let Some(base) = &base {
            holds.push(base.volume.hold()?);
        }
        let changes = Changes {
            pool,
            snapshot,
            base: base.as_ref(),
        };
        let data_bytes = changes.data_bytes(position)?;
        let begin = Begin {
            identity,
            name: info.name,
            size_bytes: info.size_bytes,
            labels: without_local(info.labels),
            base: base.as_ref().map(|base| BaseName {
                identity: base.identity,
                name: base.name.clone(),
            }),
            position,
            data_bytes,
        };
        Ok(Self {
            pool: pool.clone(),
            snapshot: snapshot.clone(),
            base,
            begin,
            _holds: holds,
        })
    }

    /// Returns what the stream begins with.
    #[must_use]
    pub const fn begin(&self) -> &Begin {
        &self.begin
    }

    /// As `begin`, to be changed.
    pub(crate) const fn begin_mut(&mut self) -> &mut Begin {
        &mut self.begin
    }

    /// Writes the stream.
    ///
    /// # Errors
    /// `Write`; `Pool` when the snapshot cannot be read. The stream then has no end, and no
    /// receiver takes it for whole.
    pub fn run(
        &self,
        output: impl Write,
        options: SendOptions,
        observer: &dyn Observer,
    ) -> Result<Sent> {
        observer.begin(self.begin.data_bytes);
        let mut writer = StreamWriter::new(output, &self.begin)?;
        let data_bytes = self.ranges(&mut writer, options, observer)?;
        let digest = writer.end()?;
        Ok(Sent { data_bytes, digest })
    }

    /// Writes the ranges; returns the number of bytes of data.
    pub(crate) fn ranges<W: Write>(
        &self,
        writer: &mut StreamWriter<W>,
        options: SendOptions,
        observer: &dyn Observer,
    ) -> Result<u64> {
        let mut data_bytes = 0;
        let (filled, frames) = sync_channel(FRAMES_AHEAD);
        let (spare, empty) = channel();
        for _ in 0..FRAMES_AHEAD {
            // Its other end is a line above.
            let _ = spare.send(Frame::default());
        }
        let cancel = Cancel::current();
        thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let filler = Filler {
                    sending: self,
                    filled,
                    empty,
                };
                cancel.during(|| filler.fill(options))
            });
            let mut write = |frames: Receiver<Frame>, spare: Sender<Frame>| {
                for mut frame in frames {
                    let len_bytes = frame.data_bytes() as u64;
                    writer.send(&mut frame)?;
                    data_bytes += len_bytes;
                    observer.advance(len_bytes);
                    // The reader may have come to its end.
                    let _ = spare.send(frame);
                }
                Ok(())
            };
            // After an error the channels are closed, which ends the reader.
            let written: Result<()> = write(frames, spare);
            let read = reading.join().unwrap_or_else(|panic| resume_unwind(panic));
            written.and(read)
        })?;
        Ok(data_bytes)
    }
}

/// Returns the base of a stream: what the caller names, or what the token is of.
fn base_of(pool: &Pool, from: Option<&Volume>, token: Option<&Place>) -> Result<Option<Base>> {
    let volume = match (from, token.and_then(|token| token.base)) {
        (Some(from), _) => from.clone(),
        (None, Some(identity)) => match identity.find(pool)? {
            Some(snapshot) => snapshot,
            None => bookmark::find(pool, &identity)?.ok_or(Error::TokenForeign("base"))?,
        },
        (None, None) => return Ok(None),
    };
    Base::new(pool, volume).map(Some)
}

/// The thread that reads the volume.
struct Filler<'a> {
    sending: &'a Sending,
    filled: SyncSender<Frame>,
    empty: Receiver<Frame>,
}

/// The writer has ended, and says why.
struct Gone;

impl Filler<'_> {
    fn fill(&self, options: SendOptions) -> Result<()> {
        let mut packer = match options.compress {
            true => Some(Packer::new().map_err(Error::Write)?),
            false => None,
        };
        let changes = Changes {
            pool: &self.sending.pool,
            snapshot: &self.sending.snapshot,
            base: self.sending.base.as_ref(),
        };
        let mut is_gone = false;
        changes.each(self.sending.begin.position, &mut |extent| {
            cowshed_format::base::cancel::check()?;
            if !is_gone {
                is_gone = self.extent(extent, &mut packer)?.is_err();
            }
            Ok(())
        })
    }

    fn extent(&self, extent: Extent, packer: &mut Option<Packer>) -> Result<Result<(), Gone>> {
        if extent.kind == ExtentKind::Zero {
            return self.pass(|frame| {
                frame.zero(extent.offset_bytes, extent.len_bytes);
                Ok(())
            });
        }
        let end = extent.offset_bytes + extent.len_bytes;
        let mut at = extent.offset_bytes;
        while at < end {
            let len =
                usize::try_from(end - at).map_or(DATA_BYTES_MAX, |len| len.min(DATA_BYTES_MAX));
            let passed = self.pass(|frame| {
                self.sending.snapshot.read_at(frame.data(at, len), at)?;
                if let Some(packer) = packer {
                    packer.pack(frame);
                }
                Ok(())
            })?;
            if passed.is_err() {
                return Ok(passed);
            }
            at += len as u64;
        }
        Ok(Ok(()))
    }

    fn pass(&self, fill: impl FnOnce(&mut Frame) -> Result<()>) -> Result<Result<(), Gone>> {
        let Ok(mut frame) = self.empty.recv() else {
            return Ok(Err(Gone));
        };
        fill(&mut frame)?;
        Ok(self.filled.send(frame).map_err(|_| Gone))
    }
}
