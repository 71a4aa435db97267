//! Receiving: a stream becomes a snapshot, which appears under its name as a whole or not at all.
//!
//! The caller's thread reads and verifies records; another one writes them to the volume. An
//! interrupted receive keeps what was verified and written (see `partial`), and a later stream goes
//! on from there.

pub use crate::partial::{clean, discard, token};

use crate::Observer;
use crate::error::{Error, Fault, Result};
use crate::identity::Identity;
use crate::partial::{self, Claim, UNFINISHED, unfinished_name};
use crate::record::{self, RECEIVING, ReceivedRecord, Receiving};
use crate::wire::{Begin, Record, StreamReader};
use cowshed_engine::{Hold, Name, Pool, Volume, VolumeId};
use cowshed_format::base::{Cancel, cancel};
use parking_lot::Mutex;
use std::io::Read;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::SystemTime;

/// Number of records that are read ahead.
const RECORDS_AHEAD: usize = 4;
/// After so many bytes the position is recorded, so that not much is sent again.
const SAVE_BYTES: u64 = 64 << 20;

/// A received snapshot.
pub struct Received {
    /// The snapshot.
    pub volume: Volume,
    /// Bytes of data that the stream held.
    pub data_bytes: u64,
    /// The base's name in this pool, if the stream was a difference.
    pub base: Option<Name>,
}

/// Where a snapshot of this pool was received from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name where it was sent.
    pub name: Name,
    /// When it was taken there.
    pub created: SystemTime,
    /// Which snapshot it is.
    pub identity: Identity,
}

/// Returns where a volume was received from, if it was received.
///
/// # Errors
/// `Record` when the pool's record is of a newer version.
pub fn origin(pool: &Pool, volume: VolumeId) -> Result<Option<Origin>> {
    let received = record::received(pool, volume)?;
    Ok(received.map(|received| Origin {
        name: received.name,
        created: received.identity.created(),
        identity: received.identity,
    }))
}

/// Receives a stream as the snapshot `name`.
///
/// # Errors
/// `Exists`, `Receiving`; `Stream` or `Read` when the stream is not whole; `BaseMissing`,
/// `TooLarge`, `NoSpace`; `OtherStream` or `NothingKept` when it does not go on with what is kept.
/// What was verified is kept for a later stream that goes on, except when there was no space.
pub fn receive(
    pool: &Pool,
    name: &Name,
    input: impl Read,
    observer: &dyn Observer,
) -> Result<Received> {
    let _claim = Claim::new(pool, name)?;
    if pool
        .volume(name.as_str())
        .is_ok_and(|found| found.name() == *name)
    {
        return Err(cowshed_engine::Error::Exists(name.clone()).into());
    }
    let (reader, begin) = StreamReader::new(input)?;
    let target = Target::prepare(pool, name, &begin)?;
    observer.begin(begin.data_bytes);
    let done = target.fill(reader, observer);
    match done {
        Ok(data_bytes) => target.finish(&begin, data_bytes),
        Err(error) => {
            target.keep(&error);
            Err(error)
        }
    }
}

/// The volume that a receive fills.
struct Target<'a> {
    pool: &'a Pool,
    name: &'a Name,
    volume: Volume,
    base: Option<Name>,
    kept: Receiving,
    /// Everything below this offset was written.
    position: Mutex<u64>,
    _hold: Option<Hold>,
}

impl<'a> Target<'a> {
    fn prepare(pool: &'a Pool, name: &'a Name, begin: &Begin) -> Result<Self> {
        if begin.labels.contains_key(UNFINISHED) {
            let what = "one of its labels is none that a snapshot has";
            return Err(Fault::Impossible { record: 0, what }.into());
        }
        let base = find_base(pool, begin)?;
        let kept = record::receiving(pool, name)?;
        // What is replaced gives its space back.
        let replaced = kept.map_or(0, |kept| own_bytes(pool, kept.volume));
        let available_bytes = pool.status()?.available_bytes() + replaced;
        if begin.data_bytes > available_bytes {
            return Err(Error::TooLarge {
                data_bytes: begin.data_bytes,
                available_bytes,
            });
        }
        let kept = match (begin.position, kept) {
            (0, kept) => {
                if let Some(kept) = kept {
                    partial::remove(pool, name, &kept)?;
                }
                start(pool, name, begin, base.as_ref())?
            }
            (_, None) => return Err(Error::NothingKept(name.clone())),
            (position, Some(kept)) => {
                check_continues(name, begin, position, &kept)?;
                kept
            }
        };
        let volume = pool.volume_by_id(kept.volume)?;
        let hold = base.as_ref().map(Volume::hold).transpose()?;
        let target = Self {
            pool,
            name,
            volume,
            base: base.map(|base| base.name()),
            kept,
            position: Mutex::new(begin.position),
            _hold: hold,
        };
        target.resize(begin.size_bytes)
    }

    fn resize(self, size_bytes: u64) -> Result<Self> {
        if self.volume.size_bytes() != size_bytes
            && let Err(error) = self.pool.resize(&self.volume, size_bytes)
        {
            let error = error.into();
            self.keep(&error);
            return Err(error);
        }
        Ok(self)
    }

    /// Writes all records to the volume; returns the number of bytes of data.
    fn fill<R: Read>(&self, mut reader: StreamReader<R>, observer: &dyn Observer) -> Result<u64> {
        let (verified, pieces) = sync_channel(RECORDS_AHEAD);
        let (spare, empty) = channel();
        for _ in 0..RECORDS_AHEAD {
            // Its other end is a line above.
            let _ = spare.send(Vec::new());
        }
        let cancel = Cancel::current();
        thread::scope(|scope| {
            let writing = scope.spawn(move || cancel.during(|| self.write(&pieces, &spare)));
            let read = read(&mut reader, &verified, &empty, observer);
            // The writer ends once nothing more can come.
            drop(verified);
            let written = writing.join().unwrap_or_else(|panic| resume_unwind(panic));
            written.and(read)
        })
    }

    fn write(&self, pieces: &Receiver<Piece>, spare: &Sender<Vec<u8>>) -> Result<()> {
        let mut saved = *self.position.lock();
        for piece in pieces {
            let end = match piece {
                Piece::Data { offset, bytes } => {
                    self.volume.write_at(&bytes, offset)?;
                    let end = offset + bytes.len() as u64;
                    // The reader may have come to its end.
                    let _ = spare.send(bytes);
                    end
                }
                Piece::Zero { offset, len_bytes } => {
                    self.volume.discard(offset, len_bytes)?;
                    offset + len_bytes
                }
            };
            *self.position.lock() = end;
            if end - saved >= SAVE_BYTES {
                self.save(end)?;
                saved = end;
            }
        }
        Ok(())
    }

    /// Records how far the receive has come.
    fn save(&self, position: u64) -> Result<()> {
        let mut transaction = self.pool.transaction();
        Receiving {
            position,
            ..self.kept
        }
        .put(&mut transaction, self.name);
        Ok(transaction.commit()?)
    }

    /// Keeps what was received before an error for a stream that goes on, or removes it if there
    /// is nothing to keep or no space to keep it.
    fn keep(&self, error: &Error) {
        let position = *self.position.lock();
        let is_no_room = matches!(error, Error::Pool(error) if error.is_no_room());
        let done = cancel::never(|| {
            if position == 0 || is_no_room {
                partial::remove(self.pool, self.name, &self.kept)
            } else {
                self.save(position)
            }
        });
        if let Err(error) = done {
            tracing::warn!(%error, "what was received of {} was not recorded", self.name);
        }
    }

    /// Gives the volume its name, now that everything was verified.
    fn finish(self, begin: &Begin, data_bytes: u64) -> Result<Received> {
        let id = self.volume.id();
        let mut transaction = self.pool.transaction();
        transaction
            .rename(id, self.name)
            .set_labels(id, begin.labels.clone())
            .freeze(id);
        transaction.remove_record(RECEIVING, self.name.as_str().as_bytes());
        ReceivedRecord {
            identity: begin.identity,
            name: begin.name.clone(),
        }
        .put(&mut transaction, id);
        let committed = transaction.commit().map_err(Error::from);
        if let Err(error) = committed {
            self.keep(&error);
            return Err(error);
        }
        self.pool.flush()?;
        Ok(Received {
            volume: self.volume,
            data_bytes,
            base: self.base,
        })
    }
}

/// A verified record on its way to the volume.
enum Piece {
    Data { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len_bytes: u64 },
}

/// Reads and verifies all records, and passes them on; returns the number of bytes of data. If the
/// other side has ended, it says why.
fn read<R: Read>(
    reader: &mut StreamReader<R>,
    verified: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
    observer: &dyn Observer,
) -> Result<u64> {
    let mut data_bytes = 0;
    let mut unused = None;
    loop {
        let Some(mut bytes) = unused.take().or_else(|| empty.recv().ok()) else {
            return Ok(data_bytes);
        };
        let piece = match reader.next(&mut bytes)? {
            Record::Data { offset } => {
                data_bytes += bytes.len() as u64;
                observer.advance(bytes.len() as u64);
                Piece::Data { offset, bytes }
            }
            Record::Zero { offset, len_bytes } => {
                unused = Some(bytes);
                Piece::Zero { offset, len_bytes }
            }
            Record::End => return Ok(data_bytes),
        };
        if verified.send(piece).is_err() {
            return Ok(data_bytes);
        }
    }
}

/// Returns the snapshot that a stream is a difference to. A stream that goes on needs it no more:
/// the volume that it goes on with was cloned from it.
fn find_base(pool: &Pool, begin: &Begin) -> Result<Option<Volume>> {
    let Some(base) = &begin.base else {
        return Ok(None);
    };
    match base.identity.find(pool)? {
        None if begin.position == 0 => Err(Error::BaseMissing {
            name: base.name.clone(),
        }),
        found => Ok(found),
    }
}

/// Makes the volume that a stream fills from its start.
fn start(pool: &Pool, name: &Name, begin: &Begin, base: Option<&Volume>) -> Result<Receiving> {
    let mut transaction = pool.transaction();
    let unfinished = unfinished_name()?;
    let volume = match base {
        None => transaction.create_volume(&unfinished, begin.size_bytes),
        Some(base) => transaction.clone_volume(base.id(), &unfinished),
    };
    let receiving = Receiving {
        volume,
        position: 0,
        identity: begin.identity,
        base: begin.base.as_ref().map(|base| base.identity),
    };
    receiving.put(&mut transaction, name);
    transaction.commit()?;
    Ok(receiving)
}

/// Checks that a stream goes on with what is kept.
fn check_continues(name: &Name, begin: &Begin, position: u64, kept: &Receiving) -> Result<()> {
    let refusal = if begin.identity != kept.identity {
        "that was of another snapshot"
    } else if begin.base.as_ref().map(|base| base.identity) != kept.base {
        "that had another base"
    } else if position > kept.position {
        "that did not come so far"
    } else {
        return Ok(());
    };
    Err(Error::OtherStream(name.clone(), refusal))
}

/// Returns the bytes that only this volume has.
fn own_bytes(pool: &Pool, volume: VolumeId) -> u64 {
    let info = pool.volume_by_id(volume).and_then(|volume| volume.info());
    info.map_or(0, |info| info.own_bytes)
}
