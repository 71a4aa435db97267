//! The first records of a stream that holds a set: its members, and entries of the catalogue that
//! belong to them.

use super::begin::take_name;
use super::{ENTRIES_BYTES_MAX, ENTRIES_MAX, MEMBERS_MAX, SET_BYTES_MAX};
use crate::identity::Identity;
use cowshed_engine::{MAX_KEY_BYTES, MAX_VALUE_BYTES, MAX_VOLUME_BYTES, Name};
use cowshed_format::base::codec::{Reader, Writer};
use std::collections::HashSet;

/// What a member becomes on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberKind {
    /// A snapshot.
    Snapshot,
    /// A volume that can be written.
    Volume,
}

/// Where the contents of a member are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this stream.
    Stream,
    /// In the receiver's pool, from an earlier stream.
    Pool,
    /// In what the receiver keeps of the interrupted receive of this set.
    Kept,
}

/// A volume or snapshot of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which snapshot its contents are.
    pub identity: Identity,
    /// Its name where it was sent.
    pub name: Name,
    /// What it becomes.
    pub kind: MemberKind,
    /// Where its contents are.
    pub source: Source,
}

/// An entry of the catalogue that belongs to a set. This crate does not know what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The kind of entry.
    pub kind: EntryKind,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// An image.
    Image,
    /// A name of an image.
    Reference,
    /// A container.
    Container,
}

/// What a set consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetHead {
    /// Its members: bases come before what was made of them.
    pub members: Vec<Member>,
    /// The entries that belong to them.
    pub entries: Vec<Entry>,
    /// The number of bytes of data that follow, for progress and to compare with the free space.
    pub data_bytes: u64,
}

impl SetHead {
    /// Returns the payload of the set's record.
    ///
    /// # Errors
    /// The limit that the set exceeds.
    pub(super) fn encode(&self) -> Result<Vec<u8>, &'static str> {
        let mut out = Writer::new();
        let count = |len: usize| u32::try_from(len).map_err(|_| "too many members");
        out.u32(count(self.members.len())?);
        out.u32(count(self.entries.len())?);
        for member in &self.members {
            member.identity.encode(&mut out);
            out.short_bytes(member.name.as_str().as_bytes());
            out.u8(match member.kind {
                MemberKind::Snapshot => 0,
                MemberKind::Volume => 1,
            });
            out.u8(match member.source {
                Source::Stream => 0,
                Source::Pool => 1,
                Source::Kept => 2,
            });
        }
        let payload = out.into_bytes();
        let entries = self.entries.iter().map(Entry::len_bytes).sum::<usize>();
        if self.entries.len() > ENTRIES_MAX {
            return Err("too many records of images and containers");
        }
        if self.members.len() > MEMBERS_MAX || payload.len() > SET_BYTES_MAX {
            return Err("too many members");
        }
        if entries > ENTRIES_BYTES_MAX {
            return Err("too many records of images and containers");
        }
        Ok(payload)
    }

    /// Returns the set in a payload and the number of its entries, or the rule that it breaks.
    pub(super) fn decode(payload: &[u8], data_bytes: u64) -> Result<(Self, u32), &'static str> {
        let mut input = Reader::new(payload);
        let decoded = Self::fields(&mut input).filter(|_| input.is_empty());
        let (members, entries) = decoded.ok_or("it does not list the members of a set")?;
        if members.is_empty() {
            return Err("the set has no members");
        }
        let is_absent =
            |member: &Member| member.kind == MemberKind::Volume && member.source == Source::Pool;
        if members.iter().any(is_absent) {
            return Err("a volume that can be written is not in the stream");
        }
        let names: HashSet<&Name> = members.iter().map(|member| &member.name).collect();
        let identities: HashSet<&Identity> =
            members.iter().map(|member| &member.identity).collect();
        if names.len() < members.len() || identities.len() < members.len() {
            return Err("two members of the set are the same");
        }
        let all_bytes = MAX_VOLUME_BYTES.saturating_mul(members.len() as u64);
        if data_bytes > all_bytes {
            return Err("it announces more bytes than its members have");
        }
        let head = Self {
            members,
            entries: Vec::new(),
            data_bytes,
        };
        Ok((head, entries))
    }

    fn fields(input: &mut Reader<'_>) -> Option<(Vec<Member>, u32)> {
        let count = usize::try_from(input.u32()?).ok()?;
        let entries = input.u32()?;
        if count > MEMBERS_MAX || entries as usize > ENTRIES_MAX {
            return None;
        }
        let mut members = Vec::new();
        for _ in 0..count {
            members.push(Member {
                identity: Identity::decode(input)?,
                name: take_name(input)?,
                kind: match input.u8()? {
                    0 => MemberKind::Snapshot,
                    1 => MemberKind::Volume,
                    _ => return None,
                },
                source: match input.u8()? {
                    0 => Source::Stream,
                    1 => Source::Pool,
                    2 => Source::Kept,
                    _ => return None,
                },
            });
        }
        Some((members, entries))
    }
}

impl EntryKind {
    /// Returns the number that stands for it in a stream.
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Image => 1,
            Self::Reference => 2,
            Self::Container => 3,
        }
    }

    pub(super) const fn of(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Image),
            2 => Some(Self::Reference),
            3 => Some(Self::Container),
            _ => None,
        }
    }
}

impl Entry {
    /// Returns the bytes that key and value have together.
    pub(super) fn len_bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }

    /// Returns the entry in a payload whose first `key_bytes` bytes are the key.
    pub(super) fn decode(kind: u64, key_bytes: u64, payload: &[u8]) -> Result<Self, &'static str> {
        let kind = EntryKind::of(kind).ok_or("it is an entry of an unknown kind")?;
        let split = usize::try_from(key_bytes).ok();
        let split = split.and_then(|at| payload.split_at_checked(at));
        let (key, value) = split.ok_or("its key is longer than the entry")?;
        if !(1..=MAX_KEY_BYTES).contains(&key.len()) || value.len() > MAX_VALUE_BYTES {
            return Err("no catalogue has an entry of such a length");
        }
        Ok(Self {
            kind,
            key: key.to_vec(),
            value: value.to_vec(),
        })
    }
}
