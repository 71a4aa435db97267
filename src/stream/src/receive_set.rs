//! Receiving a set: its members come one after the other into volumes with generated names, and
//! appear all at once, in one transaction that the caller commits after everything was verified.
//!
//! # Invariants
//! - Nothing of a set appears under a name before the whole stream was verified.
//! - A member that came as a whole has a record until then, so that an interrupted receive goes on
//!   after it; and so has the one that came in part.
//! - A member that the pool has, under the name that it would get and with its identity, is not
//!   received again.

use crate::Observer;
use crate::error::{Error, Fault, Result};
use crate::fill::{Target, check_space, skip};
use crate::identity::Identity;
use crate::partial::{Claim, Slot, remove_whole};
use crate::receive::find_base;
use crate::record::{self, ReceivedRecord, WHOLE, WholeMember};
use crate::wire::{Begin, Member, MemberKind, SetHead, Source, StreamReader};
use cowshed_engine::{Hold, Name, Pool, Transaction, Volume};
use std::collections::{HashMap, HashSet};
use std::io::Read;

/// What the parts of a transaction take in the log beside names, keys and values.
const OPERATION_BYTES: u64 = 256;
/// The part of a log that one transaction may take.
const LOG_PART: u64 = 8;

/// A stream of a set whose start was read.
pub struct IncomingSet<R> {
    reader: StreamReader<R>,
    head: SetHead,
}

/// The treatment of a member once the whole set has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gets this name.
    Named(Name),
    /// It is a base for other members, and then removed: they keep what they share with it.
    Base,
}

/// A set that came as a whole, and whose members have no names yet. While it lives, nothing else is
/// received into the same prefix.
pub struct Arrived<'a> {
    pool: &'a Pool,
    set: String,
    /// The members, in the order of the stream.
    pub members: Vec<ArrivedMember>,
    /// Bytes of data that the stream held.
    pub data_bytes: u64,
    _claim: Claim,
}

/// A member of a set that came.
pub struct ArrivedMember {
    /// What the stream says about it.
    pub member: Member,
    /// Its volume.
    pub volume: Volume,
    /// Its treatment.
    pub fate: Fate,
    /// True if it was not in the pool before.
    pub is_new: bool,
    _hold: Option<Hold>,
}

impl<R: Read> IncomingSet<R> {
    pub(crate) const fn new(reader: StreamReader<R>, head: SetHead) -> Self {
        Self { reader, head }
    }

    /// Returns what the set consists of.
    #[must_use]
    pub const fn head(&self) -> &SetHead {
        &self.head
    }

    /// Receives the set; `set` is the prefix of its names, or `-`. `fates` says for each member what
    /// becomes of it.
    ///
    /// # Errors
    /// As `IncomingSnapshot::receive`. What came is kept for a later stream that goes on, except
    /// when there was no space.
    ///
    /// # Panics
    /// When `fates` has another length than the set.
    pub fn receive<'a>(
        mut self,
        pool: &'a Pool,
        set: &str,
        fates: Vec<Fate>,
        observer: &dyn Observer,
    ) -> Result<Arrived<'a>> {
        assert_eq!(fates.len(), self.head.members.len(), "a fate for each");
        let claim = Claim::new(pool, set)?;
        check_log(pool, &self.head, &fates)?;
        let slot = Slot::of_member(set);
        let are_there = refuse_taken(pool, &self.head.members, &fates)?;
        let whole = keep_members(pool, set, &self.head.members)?;
        if !are_there && whole.is_empty() {
            check_space(pool, self.head.data_bytes, &slot)?;
        }
        observer.begin(self.head.data_bytes);
        let mut coming = Coming {
            pool,
            set,
            whole,
            arrived: Vec::new(),
            data_bytes: 0,
        };
        let members = self.head.members.iter().zip(fates);
        let came = (0..)
            .zip(members)
            .try_for_each(|(index, (member, fate))| {
                coming.member(&mut self.reader, index, member, fate, observer)
            })
            .and_then(|()| self.reader.end_of_set());
        if let Err(error) = came {
            coming.give_up(&error);
            return Err(error);
        }
        Ok(Arrived {
            pool,
            set: set.to_owned(),
            members: coming.arrived,
            data_bytes: coming.data_bytes,
            _claim: claim,
        })
    }
}

/// A set that is being received.
struct Coming<'a> {
    pool: &'a Pool,
    set: &'a str,
    /// What came as a whole before.
    whole: HashMap<Identity, WholeMember>,
    arrived: Vec<ArrivedMember>,
    data_bytes: u64,
}

impl Coming<'_> {
    fn member<R: Read>(
        &mut self,
        reader: &mut StreamReader<R>,
        index: u32,
        member: &Member,
        fate: Fate,
        observer: &dyn Observer,
    ) -> Result<()> {
        let begin = match member.source {
            Source::Stream => Some(self.begin(reader, member)?),
            Source::Pool | Source::Kept => None,
        };
        let known = self.find(member, &fate)?;
        let (volume, is_new) = match (known, begin) {
            (Some(known), None) => known,
            (Some(known), Some(_)) => {
                self.data_bytes += skip(reader, observer)?;
                known
            }
            (None, Some(begin)) => {
                let volume = self.fill(reader, index, member, &begin, observer)?;
                (volume, true)
            }
            (None, None) if member.source == Source::Kept => {
                let what = "that had other members";
                return Err(Error::OtherStream(self.set.into(), what));
            }
            (None, None) => {
                let name = member.name.clone();
                return Err(Error::BaseMissing { name });
            }
        };
        // What is new has a name that no command removes.
        let hold = if is_new { None } else { Some(volume.hold()?) };
        self.arrived.push(ArrivedMember {
            member: member.clone(),
            volume,
            fate,
            is_new,
            _hold: hold,
        });
        Ok(())
    }

    fn begin<R: Read>(&self, reader: &mut StreamReader<R>, member: &Member) -> Result<Begin> {
        let begin = reader.next_member()?;
        if begin.identity != member.identity || begin.name != member.name {
            let what = "it is not the next member of the set";
            let record = reader.records().saturating_sub(1);
            return Err(Fault::Malformed { record, what }.into());
        }
        Ok(begin)
    }

    /// Returns the member if the pool has it, and whether it is new there.
    fn find(&self, member: &Member, fate: &Fate) -> Result<Option<(Volume, bool)>> {
        if let Some(whole) = self.whole.get(&member.identity) {
            return Ok(Some((self.pool.volume_by_id(whole.volume)?, true)));
        }
        if let Fate::Named(name) = fate
            && let Some(found) = same_snapshot(self.pool, member, name)?
        {
            return Ok(Some((found, false)));
        }
        if member.source == Source::Pool {
            let found = member.identity.find(self.pool)?;
            return Ok(found.map(|volume| (volume, false)));
        }
        Ok(None)
    }

    fn fill<R: Read>(
        &mut self,
        reader: &mut StreamReader<R>,
        index: u32,
        member: &Member,
        begin: &Begin,
        observer: &dyn Observer,
    ) -> Result<Volume> {
        let base = match &begin.base {
            None => None,
            Some(base) => {
                let found = self.arrived.iter();
                let found = found
                    .filter(|arrived| arrived.member.kind == MemberKind::Snapshot)
                    .find(|arrived| arrived.member.identity == base.identity);
                match found {
                    Some(found) => Some(found.volume.clone()),
                    None => find_base(self.pool, begin)?,
                }
            }
        };
        let slot = Slot::of_member(self.set);
        let target = Target::prepare(self.pool, self.set, slot, begin, base.as_ref())?;
        self.data_bytes += target.fill(reader, observer)?;
        target.finish(begin, |transaction, id| {
            if member.kind == MemberKind::Snapshot {
                transaction.freeze(id);
                ReceivedRecord::of(begin).put(transaction, id);
            }
            let whole = WholeMember {
                index,
                kind: member.kind,
                volume: id,
                identity: member.identity,
            };
            whole.put(transaction, self.set);
        })
    }

    /// Removes what came if there was no space for the rest.
    fn give_up(&self, error: &Error) {
        if !matches!(error, Error::Pool(error) if error.is_no_room()) {
            return;
        }
        let removed = cowshed_format::base::cancel::never(|| {
            let whole = record::whole_members(self.pool, self.set)?;
            Ok::<_, Error>(remove_whole(self.pool, self.set, &whole)?)
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "what was received into {} was not removed", self.set);
        }
    }
}

impl Arrived<'_> {
    /// Adds to a transaction what gives the members their names. The set has arrived once the caller
    /// has committed it; until then it is kept.
    ///
    /// # Errors
    /// `Record` when a record of the pool is of a newer version.
    pub fn settle(&self, transaction: &mut Transaction) -> Result<()> {
        for arrived in self.members.iter().filter(|arrived| arrived.is_new) {
            let id = arrived.volume.id();
            match &arrived.fate {
                Fate::Named(name) => drop(transaction.rename(id, name)),
                Fate::Base => {
                    transaction.remove(id);
                    record::forget(self.pool, transaction, id);
                }
            }
        }
        for whole in record::whole_members(self.pool, &self.set)? {
            transaction.remove_record(WHOLE, &whole.key(&self.set));
        }
        Ok(())
    }
}

/// Returns the snapshot of this name if it is the member.
fn same_snapshot(pool: &Pool, member: &Member, name: &Name) -> Result<Option<Volume>> {
    let found = pool.volume(name.as_str()).ok();
    let Some(found) = found.filter(|found| found.name() == *name) else {
        return Ok(None);
    };
    let is_same = member.kind == MemberKind::Snapshot
        && found.is_frozen()
        && Identity::of(pool, &found)? == member.identity;
    Ok(is_same.then_some(found))
}

/// Refuses a set of which a member would get the name of another volume. Returns true if the pool
/// has a member already.
fn refuse_taken(pool: &Pool, members: &[Member], fates: &[Fate]) -> Result<bool> {
    let (mut names, mut are_there) = (HashSet::new(), false);
    for (member, fate) in members.iter().zip(fates) {
        let Fate::Named(name) = fate else { continue };
        let is_taken = pool
            .volume(name.as_str())
            .is_ok_and(|found| found.name() == *name);
        let is_other = is_taken && same_snapshot(pool, member, name)?.is_none();
        are_there |= is_taken;
        if is_other || !names.insert(name) {
            return Err(cowshed_engine::Error::Exists(name.clone()).into());
        }
    }
    Ok(are_there)
}

/// Refuses a set whose names and entries do not fit into one transaction.
fn check_log(pool: &Pool, head: &SetHead, fates: &[Fate]) -> Result<()> {
    let names = fates.iter().map(|fate| match fate {
        Fate::Named(name) => name.as_str().len(),
        Fate::Base => 0,
    });
    let entries = head
        .entries
        .iter()
        .map(|entry| entry.key.len() + entry.value.len());
    let operations = 2 * (head.members.len() + head.entries.len()) as u64;
    let needed_bytes = names.chain(entries).sum::<usize>() as u64 + operations * OPERATION_BYTES;
    let max_bytes = pool.status()?.log_bytes / LOG_PART;
    if needed_bytes > max_bytes {
        return Err(Error::SetExceedsLog {
            needed_bytes,
            max_bytes,
        });
    }
    Ok(())
}

/// Keeps the members that came as a whole and belong to the set, with their numbers in it, and
/// removes the others.
fn keep_members(
    pool: &Pool,
    set: &str,
    members: &[Member],
) -> Result<HashMap<Identity, WholeMember>> {
    let numbers: HashMap<(&Identity, MemberKind), u32> = members
        .iter()
        .map(|member| (&member.identity, member.kind))
        .zip(0..)
        .collect();
    let (mut kept, mut others) = (HashMap::new(), Vec::new());
    for whole in record::whole_members(pool, set)? {
        match numbers.get(&(&whole.identity, whole.kind)) {
            Some(&index) if pool.volume_by_id(whole.volume).is_ok() => {
                if whole.index != index {
                    let mut transaction = pool.transaction();
                    let whole = WholeMember { index, ..whole };
                    whole.put(&mut transaction, set);
                    transaction.commit()?;
                }
                kept.insert(whole.identity, WholeMember { index, ..whole });
            }
            _ => others.push(whole),
        }
    }
    // Nothing is removed for a stream that is refused.
    let is_lost =
        |member: &Member| member.source == Source::Kept && !kept.contains_key(&member.identity);
    let is_snapshot = |whole: &WholeMember| whole.kind == MemberKind::Snapshot;
    let is_other = kept.is_empty() && others.iter().any(is_snapshot);
    if is_other || members.iter().any(is_lost) {
        let what = "that was of another set; --discard removes it";
        return Err(Error::OtherStream(set.into(), what));
    }
    remove_whole(pool, set, &others)?;
    Ok(kept)
}
