//! What a receive has while it runs, and what an interrupted one leaves: a volume with a generated
//! name, and a record that says which stream it is of and how far it has come. Of a set, there are
//! also the members that came as a whole.
//!
//! # Invariants
//! - Volume and record come in one transaction and go in one.
//! - Everything below the record's position is in the volume. The record is logged after that data,
//!   and the log keeps their order over a crash.
//! - One receive into a name or prefix runs at a time: `Claim`.

use crate::error::{Error, Result};
use crate::record::{self, RECEIVING, RECEIVING_SET, Receiving, WHOLE, WholeMember};
use crate::token::{Place, SetPlace, Token, Whole};
use crate::wire::MemberKind;
use cowshed_engine::{Name, Pool, RecordKind, Transaction, Volume};
use cowshed_format::base::cancel;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// The label of a volume that a running command makes and that has no use without its end: the
/// next start removes it.
pub const UNFINISHED: &str = "cowshed.unfinished";
/// The most members of a set that one transaction removes.
const MEMBERS_AT_A_TIME: usize = 256;

/// The names and prefixes into which something is being received, by pool. One process has a pool
/// open.
static CLAIMS: Mutex<BTreeSet<([u8; 16], Box<str>)>> = Mutex::new(BTreeSet::new());

/// The right to receive into a name or prefix.
#[must_use = "another receive may begin once this is dropped"]
pub(crate) struct Claim([u8; 16], Box<str>);

impl Claim {
    pub(crate) fn new(pool: &Pool, name: &str) -> Result<Self> {
        if !CLAIMS.lock().insert((pool.uuid(), name.into())) {
            return Err(Error::Receiving(name.into()));
        }
        Ok(Self(pool.uuid(), name.into()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMS.lock().remove(&(self.0, self.1.clone()));
    }
}

/// The place of the record about a volume that is being received.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    kind: RecordKind,
    key: Box<[u8]>,
}

impl Slot {
    /// Returns that of a snapshot by itself.
    pub(crate) fn of_snapshot(name: &str) -> Self {
        Self {
            kind: RECEIVING,
            key: name.as_bytes().into(),
        }
    }

    /// Returns that of the member of a set that is being received.
    pub(crate) fn of_member(set: &str) -> Self {
        Self {
            kind: RECEIVING_SET,
            key: set.as_bytes().into(),
        }
    }

    pub(crate) fn read(&self, pool: &Pool) -> Result<Option<Receiving>> {
        record::receiving(pool, self.kind, &self.key)
    }

    pub(crate) fn put(&self, transaction: &mut Transaction, receiving: &Receiving) {
        transaction.put_record(self.kind, &self.key, &receiving.encode());
    }

    pub(crate) fn clear(&self, transaction: &mut Transaction) {
        transaction.remove_record(self.kind, &self.key);
    }

    /// Removes the volume and the record.
    pub(crate) fn remove(&self, pool: &Pool, kept: &Receiving) -> cowshed_engine::Result<()> {
        let mut transaction = pool.transaction();
        if pool.volume_by_id(kept.volume).is_ok() {
            transaction.remove(kept.volume);
        }
        self.clear(&mut transaction);
        transaction.commit()
    }
}

/// Returns a name for a volume that is not finished.
pub(crate) fn unfinished_name() -> Result<Name> {
    Ok(Name::new(&format!(
        "unfinished/{:032x}",
        rand::random::<u128>()
    ))?)
}

/// Removes a volume that was not finished. A failure is logged: the caller has an error already.
pub(crate) fn remove_quietly(pool: &Pool, volume: &Volume) {
    if let Err(error) = cancel::never(|| pool.remove(volume)) {
        tracing::warn!(%error, "an unfinished volume stays until the pool is opened again");
    }
}

/// Returns the token of an interrupted receive into `name`, which is a prefix or `-` for a set.
///
/// # Errors
/// `NothingKept`; `Receiving` while one runs.
pub fn token(pool: &Pool, name: &str) -> Result<Token> {
    let _claim = Claim::new(pool, name)?;
    let place = |kept: Receiving| Place {
        identity: kept.identity,
        base: kept.base,
        position: kept.position,
    };
    if let Some(kept) = Slot::of_snapshot(name).read(pool)? {
        return Ok(Token::Snapshot(place(kept)));
    }
    let whole = record::whole_members(pool, name)?;
    let part = Slot::of_member(name).read(pool)?;
    if whole.is_empty() && part.is_none() {
        return Err(Error::NothingKept(name.into()));
    }
    let snapshots = whole.iter().filter(|it| it.kind == MemberKind::Snapshot);
    Ok(Token::Set(SetPlace {
        whole: Whole::of(snapshots.map(|member| &member.identity)),
        part: part.map(place),
    }))
}

/// Removes what an interrupted receive into `name` has kept.
///
/// # Errors
/// `NothingKept`; `Receiving` while one runs.
pub fn discard(pool: &Pool, name: &str) -> Result<()> {
    let _claim = Claim::new(pool, name)?;
    let mut is_nothing = true;
    for slot in [Slot::of_snapshot(name), Slot::of_member(name)] {
        if let Some(kept) = slot.read(pool)? {
            slot.remove(pool, &kept)?;
            is_nothing = false;
        }
    }
    let whole = record::whole_members(pool, name)?;
    remove_whole(pool, name, &whole)?;
    if is_nothing && whole.is_empty() {
        return Err(Error::NothingKept(name.into()));
    }
    Ok(())
}

/// Removes members of a set that came as a whole.
pub(crate) fn remove_whole(
    pool: &Pool,
    set: &str,
    members: &[WholeMember],
) -> cowshed_engine::Result<()> {
    for some in members.chunks(MEMBERS_AT_A_TIME) {
        let mut transaction = pool.transaction();
        for member in some {
            if pool.volume_by_id(member.volume).is_ok() {
                transaction.remove(member.volume);
                record::forget(pool, &mut transaction, member.volume);
            }
            transaction.remove_record(WHOLE, &member.key(set));
        }
        transaction.commit()?;
    }
    Ok(())
}

/// Removes what killed receives have left of which nothing was received, and records without their
/// volumes. Only for a caller that has just opened the pool.
///
/// # Errors
/// The engine's error.
pub fn clean(pool: &Pool) -> cowshed_engine::Result<()> {
    for kind in [RECEIVING, RECEIVING_SET] {
        for (key, value) in pool.records(kind) {
            let Some(kept) = Receiving::decode(&value) else {
                // A newer version's, which knows what to do with it.
                continue;
            };
            if kept.position == 0 || pool.volume_by_id(kept.volume).is_err() {
                let key = (*key).into();
                Slot { kind, key }.remove(pool, &kept)?;
            }
        }
    }
    record::sweep(pool)
}
