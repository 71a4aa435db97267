//! Sending a set: several snapshots in one stream, each as its difference to the nearest one that
//! it descends from and that is a member, too. So what they share is sent once, and is shared on
//! the other side.
//!
//! # Invariants
//! - A base comes before what was made of it, and snapshots come before volumes, which are never a
//!   base.
//! - The order of the snapshots that a set has does not change when others are added to it: that is
//!   how a token can say how many of them came.

use crate::Observer;
use crate::changes::Base;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::labels::without_local;
use crate::send::{SendOptions, Sending, Sent};
use crate::token::{Place, SetPlace, Token, Whole};
use crate::wire::{Entry, Member, MemberKind, SetHead, Source, StreamWriter};
use cowshed_engine::{Hold, Labels, Name, Pool, Volume, VolumeId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::Write;

/// The most attempts to read the forest while volumes are removed from it.
const LOOKS_MAX: u32 = 8;

/// A member of a set that is sent.
#[derive(Clone)]
pub struct SetMember {
    /// The snapshot with its contents.
    pub volume: Volume,
    /// The name that is sent.
    pub name: Name,
    /// The labels that are sent, but for those that hold in one pool only.
    pub labels: Labels,
    /// What it becomes.
    pub kind: MemberKind,
    /// True if the receiver has it from an earlier stream: it is only a base.
    pub is_there: bool,
}

/// A set that is ready to be sent. Its members are not removed while this lives.
pub struct SetSending {
    head: SetHead,
    sendings: Vec<Sending>,
    _holds: Vec<Hold>,
}

impl SetSending {
    /// Prepares to send a set, or the rest of it if there is a token.
    ///
    /// # Errors
    /// `NotFrozen`, `IsBookmark`; `OtherSet` for a token of another set.
    pub fn new(
        pool: &Pool,
        members: &[SetMember],
        entries: Vec<Entry>,
        token: Option<&SetPlace>,
    ) -> Result<Self> {
        let holds = members.iter().map(|member| member.volume.hold());
        let holds = holds.collect::<cowshed_engine::Result<_>>()?;
        let bases = nearest_members(pool, members);
        let order = ordered(members, &bases);
        let mut listed = Vec::with_capacity(members.len());
        for &index in &order {
            let member = &members[index];
            listed.push(Member {
                identity: Identity::of(pool, &member.volume)?,
                name: member.name.clone(),
                kind: member.kind,
                source: if member.is_there {
                    Source::Pool
                } else {
                    Source::Stream
                },
            });
        }
        // The receiver keeps a part only until another member comes.
        let mut part = match token {
            Some(token) => skip_whole(&mut listed, token)?,
            None => None,
        };
        let mut sendings = Vec::new();
        for (listed, &index) in listed.iter().zip(&order) {
            if listed.source == Source::Stream {
                let base = bases[index].map(|base| &members[base]);
                sendings.push(sending(pool, &members[index], base, part.take())?);
            }
        }
        let data_bytes = sendings.iter().map(|sending| sending.begin().data_bytes);
        let head = SetHead {
            data_bytes: data_bytes.fold(0, u64::saturating_add),
            members: listed,
            entries,
        };
        Ok(Self {
            head,
            sendings,
            _holds: holds,
        })
    }

    /// Returns what the stream begins with.
    #[must_use]
    pub const fn head(&self) -> &SetHead {
        &self.head
    }

    /// Writes the stream.
    ///
    /// # Errors
    /// `Write`, `SetTooLarge`; `Pool` when a member cannot be read. The stream then has no end, and
    /// no receiver takes it for whole.
    pub fn run(
        &self,
        output: impl Write,
        options: SendOptions,
        observer: &dyn Observer,
    ) -> Result<Sent> {
        observer.begin(self.head.data_bytes);
        let mut writer = StreamWriter::of_set(output, &self.head)?;
        let mut data_bytes = 0;
        for sending in &self.sendings {
            writer.begin_member(sending.begin())?;
            data_bytes += sending.ranges(&mut writer, options, observer)?;
            writer.end_member()?;
        }
        let digest = writer.end()?;
        Ok(Sent { data_bytes, digest })
    }
}

/// Returns the place in the stream of a set that a token is of.
///
/// # Errors
/// `TokenOfSnapshot`.
pub const fn place_of(token: &Token) -> Result<SetPlace> {
    match token {
        Token::Set(place) => Ok(*place),
        Token::Snapshot(_) => Err(Error::TokenOfSnapshot),
    }
}

/// Prepares a member that is in the stream.
fn sending(
    pool: &Pool,
    member: &SetMember,
    base: Option<&SetMember>,
    part: Option<Place>,
) -> Result<Sending> {
    let base = match base {
        Some(base) => Some(Base::new(pool, base.volume.clone())?),
        None => None,
    };
    let identity = Identity::of(pool, &member.volume)?;
    let of_base = base.as_ref().map(|base| base.identity);
    let part = part.filter(|part| part.identity == identity && part.base == of_base);
    let position = part.map_or(0, |part| part.position);
    crate::bookmark::refuse(pool, &member.volume)?;
    let mut sending = Sending::prepare(pool, &member.volume, base, position)?;
    let begin = sending.begin_mut();
    begin.name = member.name.clone();
    begin.labels = without_local(member.labels.clone());
    Ok(sending)
}

/// Marks what came as a whole before, as a token says; returns the place in the next member.
fn skip_whole(members: &mut [Member], token: &SetPlace) -> Result<Option<Place>> {
    let is_sent =
        |member: &Member| member.source == Source::Stream && member.kind == MemberKind::Snapshot;
    let count = usize::try_from(token.whole.count).unwrap_or(usize::MAX);
    let sent = || members.iter().filter(|member| is_sent(member)).take(count);
    if Whole::of(sent().map(|member| &member.identity)) != token.whole {
        return Err(Error::OtherSet);
    }
    let whole = members.iter_mut().filter(|member| is_sent(member));
    for member in whole.take(count) {
        member.source = Source::Kept;
    }
    Ok(token.part)
}

/// Returns, for each member, the nearest snapshot among them that it descends from.
fn nearest_members(pool: &Pool, members: &[SetMember]) -> Vec<Option<usize>> {
    let of_volume: HashMap<VolumeId, usize> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.kind == MemberKind::Snapshot)
        .map(|(index, member)| (member.volume.id(), index))
        .collect();
    for _ in 1..LOOKS_MAX {
        let parents = parents(pool);
        let found: Option<Vec<_>> = members
            .iter()
            .map(|member| nearest(&parents, &of_volume, member.volume.id()))
            .collect();
        if let Some(found) = found {
            return found;
        }
        // A removed volume on the way went away between two looks.
    }
    vec![None; members.len()]
}

/// Returns the nearest of `members` that a volume descends from; `None` if the way to it is not
/// known.
#[expect(clippy::option_option, reason = "not known, none, and one")]
fn nearest(
    parents: &HashMap<VolumeId, Option<VolumeId>>,
    members: &HashMap<VolumeId, usize>,
    volume: VolumeId,
) -> Option<Option<usize>> {
    let mut at = volume;
    loop {
        let Some(parent) = *parents.get(&at)? else {
            return Some(None);
        };
        if let Some(index) = members.get(&parent) {
            return Some(Some(*index));
        }
        at = parent;
    }
}

/// Returns the parents of all volumes, also of removed ones.
pub fn parents(pool: &Pool) -> HashMap<VolumeId, Option<VolumeId>> {
    let named = pool.volumes();
    let removed = pool.removed_volumes();
    let named = named.iter().map(|info| (info.id, info.parent));
    let removed = removed.iter().map(|info| (info.id, info.parent));
    named.chain(removed).collect()
}

/// Returns the order in which the members are sent: of those whose bases were sent, the one with
/// the lowest id comes first, and all snapshots before the first volume.
fn ordered(members: &[SetMember], bases: &[Option<usize>]) -> Vec<usize> {
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); members.len()];
    let mut ready = BinaryHeap::new();
    let rank = |index: usize| {
        let member = &members[index];
        Reverse((
            member.kind == MemberKind::Volume,
            member.volume.id().0,
            index,
        ))
    };
    for (index, base) in bases.iter().enumerate() {
        match base {
            Some(base) => after[*base].push(index),
            None => ready.push(rank(index)),
        }
    }
    let mut order = Vec::with_capacity(members.len());
    while let Some(Reverse((_, _, index))) = ready.pop() {
        order.push(index);
        ready.extend(after[index].iter().map(|next| rank(*next)));
    }
    order
}
