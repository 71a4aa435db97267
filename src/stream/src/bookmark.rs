//! Bookmarks: the place of a snapshot in its line, kept as a base for sending after the snapshot
//! itself was removed.
//!
//! A bookmark is a frozen clone of the snapshot in which everything was discarded, with a record
//! that says what it marks. As a clone it keeps the snapshot's place in the forest: a removed
//! snapshot with two branches stays there, and the engine frees all blocks of it that neither
//! branch needs. The clone needs none, so what stays are blocks that the other branch has anyway.
//!
//! # Invariants
//! - What is younger than the marked snapshot has a later birth, in each volume that descends from
//!   it, as long as the snapshot has its place. So the births alone give the difference.
//! - If the bookmark is the last branch, the snapshot is gone from the forest, and the bookmark's
//!   parent is another volume than the one in its record: then nothing descends from it.

use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::partial::{UNFINISHED, remove_quietly, unfinished_name};
use crate::record::{self, BOOKMARK, Mark};
use cowshed_engine::{Labels, Name, Pool, Volume};

/// What a bookmark marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The snapshot's name when it was marked.
    pub name: Name,
    /// Which snapshot it is.
    pub identity: Identity,
}

/// Makes a bookmark of a snapshot.
///
/// # Errors
/// `NotFrozen`, `Exists`, `IsBookmark`, `NoSpace`.
pub fn create(pool: &Pool, snapshot: &Volume, name: &Name) -> Result<Volume> {
    refuse(pool, snapshot)?;
    let info = snapshot.info()?;
    let _hold = snapshot.hold()?;
    let mark = Mark {
        identity: Identity::of(pool, snapshot)?,
        snapshot: info.id,
        name: info.name,
    };
    if pool
        .volume(name.as_str())
        .is_ok_and(|found| found.name() == *name)
    {
        return Err(cowshed_engine::Error::Exists(name.clone()).into());
    }
    let mut transaction = pool.transaction();
    let id = transaction.clone_volume(info.id, &unfinished_name()?);
    let label = (UNFINISHED.to_owned(), "bookmark".to_owned());
    transaction.set_labels(id, Labels::from([label]));
    transaction.commit()?;
    let volume = pool.volume_by_id(id)?;
    let finish = || -> Result<()> {
        volume.discard(0, info.size_bytes)?;
        let mut transaction = pool.transaction();
        transaction.rename(id, name).set_labels(id, Labels::new());
        transaction.freeze(id);
        mark.put(&mut transaction, id);
        Ok(transaction.commit()?)
    };
    match finish() {
        Ok(()) => Ok(volume),
        Err(error) => {
            remove_quietly(pool, &volume);
            Err(error)
        }
    }
}

/// Returns what a volume marks, if it is a bookmark.
///
/// # Errors
/// `Record` when the pool's record is of a newer version.
pub fn marked(pool: &Pool, volume: &Volume) -> Result<Option<Marked>> {
    let mark = record::mark(pool, volume.id())?;
    Ok(mark.map(|mark| Marked {
        name: mark.name,
        identity: mark.identity,
    }))
}

/// Refuses a bookmark where contents are wanted.
///
/// # Errors
/// `IsBookmark`; `Record` when the pool's record is of a newer version.
pub fn refuse(pool: &Pool, volume: &Volume) -> Result<()> {
    match record::mark(pool, volume.id())? {
        Some(_) => Err(Error::IsBookmark(volume.name())),
        None => Ok(()),
    }
}

/// Returns a bookmark of the snapshot with this identity.
pub(crate) fn find(pool: &Pool, identity: &Identity) -> Result<Option<Volume>> {
    for (key, _) in pool.records(BOOKMARK) {
        let Some(id) = record::volume_of(&key) else {
            continue;
        };
        let Ok(volume) = pool.volume_by_id(id) else {
            continue;
        };
        if record::mark(pool, id)?.is_some_and(|mark| mark.identity == *identity) {
            return Ok(Some(volume));
        }
    }
    Ok(None)
}
