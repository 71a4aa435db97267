//! What the pool's catalogue keeps about streams: where a received snapshot comes from, what a
//! bookmark marks, and what an interrupted receive has.
//!
//! Each value starts with a version. Integers are little-endian.
//!
//! | kind | key | value |
//! |---|---|---|
//! | 7, received | the volume's id in decimal | version (1), identity (32), name where it was sent |
//! | 8, receiving | the name that it gets | version (1), volume id (u64), position (u64), identity (32), base (0, or 1 and an identity) |
//! | 9, bookmark | the bookmark's id in decimal | version (1), identity (32), id of the snapshot (u64), its name |
//! | 10, receiving of a set | the prefix that its names get, or `-` | as that of receiving: the member that came in part |
//! | 11, whole member | the same, a byte 0, and the member's identity in hexadecimal | version (1), number in the set (u32), 0 for a snapshot or 1 for a volume, volume id (u64), identity (32) |
//!
//! # Invariants
//! - A record is written in the transaction that makes what it describes.
//! - A record about a volume that is gone means nothing: ids are never used twice. `sweep` removes
//!   it.

use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::wire::{Begin, MemberKind};
use cowshed_engine::{Name, Pool, RecordKind, Transaction, VolumeId};
use cowshed_format::base::codec::{Reader, Writer};

/// A received snapshot.
pub(crate) const RECEIVED: RecordKind = RecordKind(7);
/// An unfinished receive.
pub(crate) const RECEIVING: RecordKind = RecordKind(8);
/// The member of an unfinished receive of a set that came in part.
pub(crate) const RECEIVING_SET: RecordKind = RecordKind(10);
/// A member of an unfinished receive of a set that came as a whole.
pub(crate) const WHOLE: RecordKind = RecordKind(11);
/// A bookmark.
pub(crate) const BOOKMARK: RecordKind = RecordKind(9);

const VERSION: u8 = 1;

/// A snapshot that came as a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedRecord {
    pub identity: Identity,
    /// Its name where it was sent.
    pub name: Name,
}

/// What a receive has so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receiving {
    /// The volume that it fills.
    pub volume: VolumeId,
    /// Everything below this offset is there.
    pub position: u64,
    pub identity: Identity,
    pub base: Option<Identity>,
}

/// A member of a set that came as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WholeMember {
    /// Its number in the set.
    pub index: u32,
    pub kind: MemberKind,
    pub volume: VolumeId,
    pub identity: Identity,
}

/// The place of a snapshot in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub identity: Identity,
    /// The snapshot's id in this pool.
    pub snapshot: VolumeId,
    /// The snapshot's name when it was marked.
    pub name: Name,
}

/// Returns the key of a record about a volume.
pub(crate) fn key_of(volume: VolumeId) -> Vec<u8> {
    volume.0.to_string().into_bytes()
}

/// Returns the volume that a key is about.
pub(crate) fn volume_of(key: &[u8]) -> Option<VolumeId> {
    std::str::from_utf8(key).ok()?.parse().ok().map(VolumeId)
}

fn name(input: &mut Reader<'_>) -> Option<Name> {
    Name::new(std::str::from_utf8(input.short_bytes()?).ok()?).ok()
}

impl ReceivedRecord {
    /// Returns the record of the snapshot that a stream begins with.
    pub(crate) fn of(begin: &Begin) -> Self {
        Self {
            identity: begin.identity,
            name: begin.name.clone(),
        }
    }

    pub(crate) fn put(&self, transaction: &mut Transaction, volume: VolumeId) {
        let mut out = Writer::new();
        self.identity.encode(out.u8(VERSION));
        out.short_bytes(self.name.as_str().as_bytes());
        transaction.put_record(RECEIVED, &key_of(volume), &out.into_bytes());
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut input = Reader::new(value);
        (input.u8()? == VERSION).then_some(())?;
        Some(Self {
            identity: Identity::decode(&mut input)?,
            name: name(&mut input)?,
        })
    }
}

impl Receiving {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION).u64(self.volume.0).u64(self.position);
        self.identity.encode(&mut out);
        put_base(&mut out, self.base.as_ref());
        out.into_bytes()
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut input = Reader::new(value);
        (input.u8()? == VERSION).then_some(())?;
        Some(Self {
            volume: VolumeId(input.u64()?),
            position: input.u64()?,
            identity: Identity::decode(&mut input)?,
            base: take_base(&mut input)?,
        })
    }
}

impl WholeMember {
    /// Returns the key in the set of this key.
    pub(crate) fn key(&self, set: &str) -> Vec<u8> {
        let mut identity = Writer::new();
        self.identity.encode(&mut identity);
        let digits = identity.into_bytes();
        let digits = digits.iter().map(|byte| format!("{byte:02x}"));
        let mut key = start_of(set);
        key.extend_from_slice(digits.collect::<String>().as_bytes());
        key
    }

    pub(crate) fn put(&self, transaction: &mut Transaction, set: &str) {
        let mut out = Writer::new();
        out.u8(VERSION).u32(self.index).u8(match self.kind {
            MemberKind::Snapshot => 0,
            MemberKind::Volume => 1,
        });
        self.identity.encode(out.u64(self.volume.0));
        transaction.put_record(WHOLE, &self.key(set), &out.into_bytes());
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut input = Reader::new(value);
        (input.u8()? == VERSION).then_some(())?;
        Some(Self {
            index: input.u32()?,
            kind: match input.u8()? {
                0 => MemberKind::Snapshot,
                1 => MemberKind::Volume,
                _ => return None,
            },
            volume: VolumeId(input.u64()?),
            identity: Identity::decode(&mut input)?,
        })
    }
}

/// Returns what the keys of the whole members of a set begin with.
fn start_of(set: &str) -> Vec<u8> {
    [set.as_bytes(), &[0]].concat()
}

impl Mark {
    pub(crate) fn put(&self, transaction: &mut Transaction, bookmark: VolumeId) {
        let mut out = Writer::new();
        self.identity.encode(out.u8(VERSION));
        out.u64(self.snapshot.0);
        out.short_bytes(self.name.as_str().as_bytes());
        transaction.put_record(BOOKMARK, &key_of(bookmark), &out.into_bytes());
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut input = Reader::new(value);
        (input.u8()? == VERSION).then_some(())?;
        Some(Self {
            identity: Identity::decode(&mut input)?,
            snapshot: VolumeId(input.u64()?),
            name: name(&mut input)?,
        })
    }
}

/// Appends an identity that may be missing.
pub(crate) fn put_base(out: &mut Writer, base: Option<&Identity>) {
    match base {
        None => drop(out.u8(0)),
        Some(base) => base.encode(out.u8(1)),
    }
}

/// Takes an identity that may be missing; `None` if the bytes are not one.
#[expect(clippy::option_option, reason = "ill-formed, missing, and there")]
pub(crate) fn take_base(input: &mut Reader<'_>) -> Option<Option<Identity>> {
    match input.u8()? {
        0 => Some(None),
        1 => Identity::decode(input).map(Some),
        _ => None,
    }
}

/// Returns where a volume was received from, if it was received.
pub(crate) fn received(pool: &Pool, volume: VolumeId) -> Result<Option<ReceivedRecord>> {
    read(pool, RECEIVED, &key_of(volume), ReceivedRecord::decode)
}

/// Returns what a volume marks, if it is a bookmark.
pub(crate) fn mark(pool: &Pool, volume: VolumeId) -> Result<Option<Mark>> {
    read(pool, BOOKMARK, &key_of(volume), Mark::decode)
}

/// Returns what an interrupted or running receive has, by the kind and key of its record.
pub(crate) fn receiving(pool: &Pool, kind: RecordKind, key: &[u8]) -> Result<Option<Receiving>> {
    read(pool, kind, key, Receiving::decode)
}

/// Returns the members of a set that came as a whole, in their order.
pub(crate) fn whole_members(pool: &Pool, set: &str) -> Result<Vec<WholeMember>> {
    let start = start_of(set);
    let mut found = Vec::new();
    for (key, value) in pool.records(WHOLE) {
        if key.starts_with(&start) {
            let member = WholeMember::decode(&value);
            found.push(member.ok_or_else(|| Error::Record(set.into()))?);
        }
    }
    found.sort_by_key(|member| member.index);
    Ok(found)
}

fn read<T>(
    pool: &Pool,
    kind: RecordKind,
    key: &[u8],
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    let Some(value) = pool.record(kind, key) else {
        return Ok(None);
    };
    let unknown = || Error::Record(String::from_utf8_lossy(key).into());
    decode(&value).map(Some).ok_or_else(unknown)
}

/// Removes the records about a volume in the transaction that removes the volume.
pub fn forget(pool: &Pool, transaction: &mut Transaction, volume: VolumeId) {
    let key = key_of(volume);
    for kind in [RECEIVED, BOOKMARK] {
        if pool.record(kind, &key).is_some() {
            transaction.remove_record(kind, &key);
        }
    }
}

/// Removes the records about volumes that are gone.
pub(crate) fn sweep(pool: &Pool) -> cowshed_engine::Result<()> {
    let mut transaction = pool.transaction();
    for kind in [RECEIVED, BOOKMARK] {
        for (key, _) in pool.records(kind) {
            let is_there = volume_of(&key).is_some_and(|id| pool.volume_by_id(id).is_ok());
            if !is_there {
                transaction.remove_record(kind, &key);
            }
        }
    }
    for (key, value) in pool.records(WHOLE) {
        // A newer version's may mean something else.
        let member = WholeMember::decode(&value);
        if member.is_some_and(|member| pool.volume_by_id(member.volume).is_err()) {
            transaction.remove_record(WHOLE, &key);
        }
    }
    transaction.commit()
}
