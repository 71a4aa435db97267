//! What a receive has while it runs, and what an interrupted one leaves: a volume with a generated
//! name, and a record that says which stream it is of and how far it has come.
//!
//! # Invariants
//! - Volume and record come in one transaction and go in one.
//! - Everything below the record's position is in the volume. The record is logged after that data,
//!   and the log keeps their order over a crash.
//! - One receive into a name runs at a time: `Claim`.

use crate::error::{Error, Result};
use crate::record::{self, RECEIVING, Receiving};
use crate::token::Token;
use cowshed_engine::{Name, Pool, Volume};
use cowshed_format::base::cancel;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// The label of a volume that a running command makes and that has no use without its end: the
/// next start removes it.
pub(crate) const UNFINISHED: &str = "cowshed.unfinished";

/// The names into which something is being received, by pool. One process has a pool open.
static CLAIMS: Mutex<BTreeSet<([u8; 16], Name)>> = Mutex::new(BTreeSet::new());

/// The right to receive into a name.
#[must_use = "another receive may begin once this is dropped"]
pub(crate) struct Claim([u8; 16], Name);

impl Claim {
    pub(crate) fn new(pool: &Pool, name: &Name) -> Result<Self> {
        if !CLAIMS.lock().insert((pool.uuid(), name.clone())) {
            return Err(Error::Receiving(name.clone()));
        }
        Ok(Self(pool.uuid(), name.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMS.lock().remove(&(self.0, self.1.clone()));
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

/// Returns the token of an interrupted receive of `name`.
///
/// # Errors
/// `NothingKept`; `Receiving` while one runs.
pub fn token(pool: &Pool, name: &Name) -> Result<Token> {
    let _claim = Claim::new(pool, name)?;
    let kept = record::receiving(pool, name)?.ok_or_else(|| Error::NothingKept(name.clone()))?;
    Ok(Token {
        identity: kept.identity,
        base: kept.base,
        position: kept.position,
    })
}

/// Removes what an interrupted receive of `name` has kept.
///
/// # Errors
/// `NothingKept`; `Receiving` while one runs.
pub fn discard(pool: &Pool, name: &Name) -> Result<()> {
    let _claim = Claim::new(pool, name)?;
    let kept = record::receiving(pool, name)?.ok_or_else(|| Error::NothingKept(name.clone()))?;
    remove(pool, name, &kept)
}

/// Removes the volume and the record of a receive.
pub(crate) fn remove(pool: &Pool, name: &Name, kept: &Receiving) -> Result<()> {
    let mut transaction = pool.transaction();
    if pool.volume_by_id(kept.volume).is_ok() {
        transaction.remove(kept.volume);
    }
    transaction.remove_record(RECEIVING, name.as_str().as_bytes());
    Ok(transaction.commit()?)
}

/// Removes what killed receives have left of which nothing was received, and records without their
/// volumes. Only for a caller that has just opened the pool.
///
/// # Errors
/// The engine's error.
pub fn clean(pool: &Pool) -> Result<()> {
    for (key, value) in pool.records(RECEIVING) {
        let name = std::str::from_utf8(&key).map(Name::new);
        let (Ok(Ok(name)), Some(kept)) = (name, Receiving::decode(&value)) else {
            // A newer version's, which knows what to do with it.
            continue;
        };
        if kept.position == 0 || pool.volume_by_id(kept.volume).is_err() {
            remove(pool, &name, &kept)?;
        }
    }
    record::sweep(pool)
}
