//! Deciding which side of a pool counts, where the labels do not tell; and looking at one side alone.
//!
//! The caller has seen to it that no process has the pool open, and that there is something to decide.

use super::MirrorDevice;
use super::members::Found;
use super::side::{Side, newest_label};
use crate::base::sync::atomic::Ordering;
use crate::base::{Error, MirrorError, Result};
use crate::side::{Lack, SIDES_MAX, SideLabel, SideState};
use std::path::PathBuf;

/// The number of the epoch of a side whose label is written without knowing an earlier one: higher
/// than any that another side of the pool may have got to, so that none of them takes it for an
/// ancestor.
const EPOCH_WITHOUT_ANCESTORS: u64 = 1 << 32;

/// Makes the first of `found` the side that counts, whatever the labels say; the others lack
/// everything from then on. Returns their paths. With `force` it may be behind.
///
/// # Errors
/// `LacksSome` unless `force`; `NotAPool` if it has no label; `Io`.
pub fn keep_side(found: Vec<Found>, force: bool) -> Result<Vec<PathBuf>> {
    let mut sides = Vec::new();
    for Found { path, device } in found {
        match newest_label(&*device) {
            Some((label, _)) => sides.push((Side::new(label.side, path, device), label)),
            None if sides.is_empty() => return Err(Error::NotAPool),
            None => {}
        }
    }
    let mut sides = sides.into_iter();
    let (kept, label) = sides.next().ok_or(Error::NotAPool)?;
    let others: Vec<_> = sides.filter(|(other, _)| other.id != kept.id).collect();
    if let Some(lack) = lack_of(&kept, &label, &others).filter(|_| !force) {
        let (path, since) = (kept.path.clone(), lack.since);
        return Err(MirrorError::LacksSome { path, since }.into());
    }
    let numbers = others.iter().map(|(_, label)| label.set.epoch.number);
    let highest = numbers.max().unwrap_or(0).max(label.set.epoch.number);
    let mut set = label.set;
    set.advance();
    set.epoch.number = highest + 1;
    for (other, label) in &others {
        let entry = label.set.entry(other.id).cloned();
        if set.entry(other.id).is_none() && set.sides.len() < SIDES_MAX {
            set.sides.extend(entry);
        }
    }
    for entry in &mut set.sides {
        entry.state = match entry.id == kept.id {
            true => SideState::Good,
            false => SideState::Behind(Lack::ALL),
        };
    }
    let label = |side| SideLabel {
        pool: label.pool,
        side,
        set: set.clone(),
    };
    // Until the others have theirs, they and this one were written apart.
    kept.write_label(&label(kept.id))?;
    let known = others.iter().map(|(other, _)| other);
    let known = known.filter(|other| set.entry(other.id).is_some());
    known
        .map(|other| {
            other
                .write_label(&label(other.id))
                .map(|()| other.path.clone())
        })
        .collect()
}

/// Returns what a side lacks, by its own label and by those of the sides that went on without it.
/// Where two went on without each other, neither says what the other one has.
fn lack_of(kept: &Side, label: &SideLabel, others: &[(Side, SideLabel)]) -> Option<Lack> {
    let said = others.iter().filter(|(_, other)| {
        other.set.epoch.number > label.set.epoch.number && other.set.descends_from(&label.set)
    });
    let said = said.filter_map(|(_, other)| match other.set.entry(kept.id)?.state {
        SideState::Behind(lack) => Some(lack),
        SideState::Good => None,
    });
    kept.claims_behind()
        .into_iter()
        .chain(said)
        .reduce(Lack::and)
}

/// Gives a side whose label is damaged a new one, as the only side of the pool.
///
/// # Errors
/// `PathTooLong`; `Io`.
pub fn label_anew(found: Found, pool: [u8; 16]) -> Result<()> {
    let mirror = MirrorDevice::new(vec![found])?;
    mirror.table.lock().epoch.number = EPOCH_WITHOUT_ANCESTORS;
    mirror.name_pool(pool)
}

impl MirrorDevice {
    /// Returns a mirror on one side alone, which shows what that side has, whatever its label says.
    /// Nothing can be written to it.
    ///
    /// # Errors
    /// `PathTooLong`.
    pub fn of_one_side(found: Found, pool: [u8; 16]) -> Result<Self> {
        let mirror = Self::new(vec![found])?;
        mirror.read_only.store(true, Ordering::Release);
        // It was made just now.
        let _ = mirror.pool.set(pool);
        Ok(mirror)
    }

    /// Returns the path of the first side that is good.
    #[must_use]
    pub fn first_good(&self) -> Option<PathBuf> {
        let sides = self.sides();
        let good = sides.iter().find(|side| side.is_good());
        good.map(|side| side.path.clone())
    }
}
