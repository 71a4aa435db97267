//! Filling the volume that a receive makes of a stream's ranges.
//!
//! The caller's thread reads and verifies records; another one writes them to the volume.

use crate::Observer;
use crate::error::{Error, Fault, Result};
use crate::labels::without_local;
use crate::partial::{Slot, UNFINISHED, unfinished_name};
use crate::record::Receiving;
use crate::wire::{Begin, Record, StreamReader};
use cowshed_engine::{Hold, Name, Pool, Transaction, Volume, VolumeId};
use cowshed_format::base::{Cancel, cancel};
use parking_lot::Mutex;
use std::io::Read;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Number of records that are read ahead.
const RECORDS_AHEAD: usize = 4;
/// After so many bytes the position is recorded, so that not much is sent again.
const SAVE_BYTES: u64 = 16 << 20;

/// The volume that a receive fills.
pub(crate) struct Target<'a> {
    pool: &'a Pool,
    /// The name or prefix that is received into.
    name: &'a str,
    slot: Slot,
    volume: Volume,
    base: Option<Name>,
    kept: Receiving,
    /// Everything below this offset was written.
    position: Mutex<u64>,
    _hold: Option<Hold>,
}

impl<'a> Target<'a> {
    /// Makes the volume that a stream fills, or finds the one that it goes on with. A stream from
    /// its start replaces what `slot` has.
    ///
    /// # Errors
    /// `OtherStream` or `NothingKept` when the stream goes on with another one; `NoSpace`.
    pub(crate) fn prepare(
        pool: &'a Pool,
        name: &'a str,
        slot: Slot,
        begin: &Begin,
        base: Option<&Volume>,
    ) -> Result<Self> {
        refuse_labels(begin)?;
        let hold = base.map(Volume::hold).transpose()?;
        let kept = match (begin.position, slot.read(pool)?) {
            (0, kept) => {
                if let Some(kept) = kept {
                    slot.remove(pool, &kept)?;
                }
                start(pool, &slot, begin, base)?
            }
            (_, None) => return Err(Error::NothingKept(name.into())),
            (_, Some(kept)) => {
                check_continues(name, begin, &kept)?;
                kept
            }
        };
        let volume = pool.volume_by_id(kept.volume)?;
        if begin.position > 0 && volume.size_bytes() != begin.size_bytes {
            return Err(Error::OtherStream(name.into(), "that had another size"));
        }
        let target = Self {
            pool,
            name,
            slot,
            volume,
            base: base.map(Volume::name),
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

    /// Returns the base's name in this pool, if the stream is a difference.
    pub(crate) const fn base(&self) -> Option<&Name> {
        self.base.as_ref()
    }

    /// Writes all records to the volume; returns the number of bytes of data. After an error it
    /// keeps what was verified and written.
    pub(crate) fn fill<R: Read>(
        &self,
        reader: &mut StreamReader<R>,
        observer: &dyn Observer,
    ) -> Result<u64> {
        let filled = self.copy(reader, observer);
        filled.inspect_err(|error| self.keep(error))
    }

    fn copy<R: Read>(&self, reader: &mut StreamReader<R>, observer: &dyn Observer) -> Result<u64> {
        let (verified, pieces) = sync_channel(RECORDS_AHEAD);
        let (spare, empty) = channel();
        for _ in 0..RECORDS_AHEAD {
            // Its other end is a line above.
            let _ = spare.send(Vec::new());
        }
        let cancel = Cancel::current();
        thread::scope(|scope| {
            let writing = scope.spawn(move || cancel.during(|| self.write(&pieces, &spare)));
            let read = read(reader, &verified, &empty, observer);
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
        let receiving = Receiving {
            position,
            ..self.kept
        };
        self.slot.put(&mut transaction, &receiving);
        Ok(transaction.commit()?)
    }

    /// Keeps what was received before an error for a stream that goes on, or removes it if there
    /// is nothing to keep or no space to keep it.
    fn keep(&self, error: &Error) {
        let position = *self.position.lock();
        let is_full = matches!(error, Error::Pool(error) if error.is_no_room());
        let done = cancel::never(|| {
            if position == 0 || is_full {
                let removed = self.slot.remove(self.pool, &self.kept);
                removed.map_err(Error::from)
            } else {
                self.save(position)
            }
        });
        if let Err(error) = done {
            tracing::warn!(%error, "what was received of {} was not recorded", self.name);
        }
    }

    /// Ends the receive, now that everything was verified: in one transaction, `finish` makes of
    /// the volume what it is to be.
    ///
    /// # Errors
    /// The engine's error; what was received is kept then.
    pub(crate) fn finish(
        &self,
        begin: &Begin,
        finish: impl FnOnce(&mut Transaction, VolumeId),
    ) -> Result<Volume> {
        let id = self.volume.id();
        let mut transaction = self.pool.transaction();
        transaction.set_labels(id, without_local(begin.labels.clone()));
        self.slot.clear(&mut transaction);
        finish(&mut transaction, id);
        let committed = transaction.commit().map_err(Error::from);
        committed.inspect_err(|error| self.keep(error))?;
        Ok(self.volume.clone())
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

/// Reads and verifies the ranges of a snapshot that the pool has already; returns the number of
/// bytes of data.
pub(crate) fn skip<R: Read>(reader: &mut StreamReader<R>, observer: &dyn Observer) -> Result<u64> {
    let (mut data_bytes, mut buffer) = (0, Vec::new());
    loop {
        cancel::check()?;
        match reader.next(&mut buffer)? {
            Record::Data { .. } => {
                data_bytes += buffer.len() as u64;
                observer.advance(buffer.len() as u64);
            }
            Record::Zero { .. } => {}
            Record::End => return Ok(data_bytes),
        }
    }
}

/// Refuses a label that would have the volume removed.
fn refuse_labels(begin: &Begin) -> Result<()> {
    if begin.labels.contains_key(UNFINISHED) {
        let what = "one of its labels is none that a snapshot has";
        return Err(Fault::Malformed { record: 0, what }.into());
    }
    Ok(())
}

/// Makes the volume that a stream fills from its start.
fn start(pool: &Pool, slot: &Slot, begin: &Begin, base: Option<&Volume>) -> Result<Receiving> {
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
    slot.put(&mut transaction, &receiving);
    transaction.commit()?;
    Ok(receiving)
}

/// Checks that a stream goes on with what is kept.
fn check_continues(name: &str, begin: &Begin, kept: &Receiving) -> Result<()> {
    let refusal = if begin.identity != kept.identity {
        "that was of another snapshot"
    } else if begin.base.as_ref().map(|base| base.identity) != kept.base {
        "that had another base"
    } else if begin.position > kept.position {
        "that did not come so far"
    } else {
        return Ok(());
    };
    Err(Error::OtherStream(name.into(), refusal))
}

/// Refuses a stream with more data than the pool has free space for. The space of what it replaces
/// counts as free.
pub(crate) fn check_space(pool: &Pool, data_bytes: u64, slot: &Slot) -> Result<()> {
    let replaced = slot.read(pool)?.map_or(0, |kept| {
        let info = pool
            .volume_by_id(kept.volume)
            .and_then(|volume| volume.info());
        info.map_or(0, |info| info.own_bytes)
    });
    let available_bytes = pool.status()?.available_bytes() + replaced;
    if data_bytes > available_bytes {
        return Err(Error::TooLarge {
            data_bytes,
            available_bytes,
        });
    }
    Ok(())
}
