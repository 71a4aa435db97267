//! Receiving: a stream becomes a snapshot, which appears under its name as a whole or not at all.
//! `fill` writes it, and an interrupted receive keeps what was verified and written (see
//! `partial`), so that a later stream goes on from there. `receive_set` receives a set.

pub use crate::partial::{UNFINISHED, clean, discard, token};

use crate::Observer;
use crate::error::{Error, Result};
use crate::fill::{Target, check_space};
use crate::identity::Identity;
use crate::partial::{Claim, Slot};
use crate::receive_set::IncomingSet;
use crate::record::{self, ReceivedRecord};
use crate::wire::{Begin, Head, StreamReader};
use cowshed_engine::{Name, Pool, Volume, VolumeId};
use std::io::Read;
use std::time::SystemTime;

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

/// A stream whose start was read.
pub enum Incoming<R> {
    /// It holds one snapshot.
    Snapshot(IncomingSnapshot<R>),
    /// It holds a set.
    Set(IncomingSet<R>),
}

/// A stream of one snapshot whose start was read.
pub struct IncomingSnapshot<R> {
    reader: StreamReader<R>,
    begin: Begin,
}

impl<R: Read> Incoming<R> {
    /// Reads the start of a stream.
    ///
    /// # Errors
    /// `Read`, `Stream`.
    pub fn open(input: R) -> Result<Self> {
        let (reader, head) = StreamReader::new(input)?;
        Ok(match head {
            Head::Snapshot(begin) => Self::Snapshot(IncomingSnapshot { reader, begin }),
            Head::Set(head) => Self::Set(IncomingSet::new(reader, head)),
        })
    }
}

impl<R: Read> IncomingSnapshot<R> {
    /// Receives it as the snapshot `name`.
    ///
    /// # Errors
    /// `Exists`, `Receiving`; `Stream` or `Read` when the stream is not whole; `BaseMissing`,
    /// `TooLarge`, `NoSpace`; `OtherStream` or `NothingKept` when it does not go on with what is
    /// kept. What was verified is kept for a later stream that goes on, except when there was no
    /// space.
    pub fn receive(
        mut self,
        pool: &Pool,
        name: &Name,
        observer: &dyn Observer,
    ) -> Result<Received> {
        let _claim = Claim::new(pool, name.as_str())?;
        refuse_taken(pool, name)?;
        let begin = &self.begin;
        let base = find_base(pool, begin)?;
        let slot = Slot::of_snapshot(name.as_str());
        check_space(pool, begin.data_bytes, &slot)?;
        let target = Target::prepare(pool, name.as_str(), slot, begin, base.as_ref())?;
        observer.begin(begin.data_bytes);
        let data_bytes = target.fill(&mut self.reader, observer)?;
        let volume = target.finish(begin, |transaction, id| {
            transaction.rename(id, name).freeze(id);
            ReceivedRecord::of(begin).put(transaction, id);
        })?;
        pool.flush()?;
        Ok(Received {
            volume,
            data_bytes,
            base: target.base().cloned(),
        })
    }
}

/// Receives a stream of one snapshot as the snapshot `name`.
///
/// # Errors
/// `IsSet`, and as `IncomingSnapshot::receive`.
pub fn receive(
    pool: &Pool,
    name: &Name,
    input: impl Read,
    observer: &dyn Observer,
) -> Result<Received> {
    match Incoming::open(input)? {
        Incoming::Snapshot(incoming) => incoming.receive(pool, name, observer),
        Incoming::Set(_) => Err(Error::IsSet),
    }
}

/// Refuses a name that a volume has.
fn refuse_taken(pool: &Pool, name: &Name) -> Result<()> {
    match pool.volume(name.as_str()) {
        Ok(found) if found.name() == *name => {
            Err(cowshed_engine::Error::Exists(name.clone()).into())
        }
        _ => Ok(()),
    }
}

/// Returns the snapshot that a stream is a difference to. A stream that goes on needs it no more:
/// the volume that it goes on with was cloned from it.
pub(crate) fn find_base(pool: &Pool, begin: &Begin) -> Result<Option<Volume>> {
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
