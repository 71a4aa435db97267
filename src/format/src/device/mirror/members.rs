//! The sides of a mirror: which there are, which of them are good, and how one comes and goes.
//!
//! # Invariants
//! - A set is durable in the labels of the good sides before anything that follows from it is
//!   written or acknowledged.
//! - The label of a side that joins says that it is behind before it gets the first change, and
//!   that it is good only after it has been flushed with all that it lacked.

use super::side::{Progress, Role, Side};
use super::{Device, MirrorDevice, SideId, SideSet, SideState};
use crate::base::MirrorError;
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::{ArcSwap, Mutex, RwLock};
use crate::base::{BLOCK_BYTES, BlockAddr, Generation, Result};
use crate::side::{Epoch, Lack, PATH_BYTES_MAX, SIDES_MAX, SLOTS, SideEntry, label_places};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// An open device that is, or becomes, a side.
#[derive(Clone)]
pub struct Found {
    /// Its path, absolute.
    pub path: PathBuf,
    /// The device.
    pub device: Arc<dyn Device>,
}

/// The state of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideStanding {
    /// It has everything.
    Good,
    /// It is there, and lacks this.
    Behind(Lack),
    /// It is not there or has failed, and lacks this.
    Missing(Lack),
}

/// The properties of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideReport {
    /// Its identity.
    pub id: SideId,
    /// The path at which it is, or was last.
    pub path: PathBuf,
    /// Its state.
    pub standing: SideStanding,
    /// Number of bytes copied to it, and of all that are to be; both 0 while nothing is copied.
    pub copied_bytes: u64,
    /// As far as it is known.
    pub total_bytes: u64,
    /// True while it is being brought up to date.
    pub is_joining: bool,
}

impl MirrorDevice {
    fn with(set: SideSet, pool: OnceLock<[u8; 16]>, sides: Vec<Arc<Side>>) -> Self {
        Self {
            pool,
            founders: sides.clone(),
            sides: ArcSwap::from_pointee(sides),
            writing: RwLock::new(()),
            table: Mutex::new(set),
            durable: AtomicU64::new(0),
            failed: OnceLock::new(),
            read_only: AtomicBool::new(true),
            log: Mutex::new(None),
            preferred: OnceLock::new(),
            unreadable: Mutex::default(),
            healed: AtomicU64::new(0),
        }
    }

    /// Returns a mirror for a new pool on all of `found`. Labels are written by `name_pool`.
    ///
    /// # Errors
    /// `Mirror` for too many sides or a path that is too long.
    pub fn new(found: Vec<Found>) -> Result<Self> {
        let mut set = SideSet {
            epoch: Epoch {
                number: 1,
                tag: rand::random(),
            },
            history: Vec::new(),
            is_apart: false,
            sides: Vec::new(),
        };
        let mut sides = Vec::new();
        for found in found {
            let id = SideId(rand::random());
            add_entry(&mut set, id, &found.path, SideState::Good)?;
            sides.push(Arc::new(Side::new(id, found.path, found.device)));
        }
        sides.iter().for_each(|side| side.set_role(Role::Good));
        let mirror = Self::with(set, OnceLock::new(), sides);
        mirror.read_only.store(false, Ordering::Release);
        Ok(mirror)
    }

    /// Writes the first labels, which name the pool, durably.
    ///
    /// # Errors
    /// `Io` if a side fails: a pool is made with all its sides.
    pub fn name_pool(&self, uuid: [u8; 16]) -> Result<()> {
        // A mirror is named once.
        let _ = self.pool.set(uuid);
        let table = self.table.lock();
        let sides = self.sides();
        for side in sides.iter().filter(|side| side.is_good()) {
            // Into both slots: later labels need no new space of the host.
            for _ in 0..SLOTS {
                side.write_label(&self.label(&table, side.id))?;
            }
        }
        Ok(())
    }

    /// Returns the mirror whose sides, or some of them, are `found`. Devices without a label of
    /// the pool are left out. Nothing can be written before `begin`.
    ///
    /// # Errors
    /// `Mirror` when two sides were written apart from each other.
    pub fn assemble(found: Vec<Found>) -> Result<Self> {
        let mut sides = Vec::new();
        for Found { path, device } in found {
            if let Some((label, _)) = super::newest_label(&*device) {
                sides.push(Arc::new(Side::new(label.side, path, device)));
            }
        }
        let labels = sides.iter().filter_map(|side| Some((side, side.label()?)));
        let labels: Vec<_> = labels.collect();
        // Sides of another pool are none of this one. Of equals the first one counts.
        let pool = labels.first().map(|(_, label)| label.pool);
        let own = labels.iter().filter(|(_, label)| Some(label.pool) == pool);
        let newest = own.rev().max_by_key(|(_, label)| label.set.epoch.number);
        let Some((first, newest)) = newest else {
            return Err(crate::base::Error::NotAPool);
        };
        for (side, label) in &labels {
            if label.pool == newest.pool && !newest.set.descends_from(&label.set) {
                return Err(MirrorError::Diverged {
                    first: first.path.clone(),
                    second: side.path.clone(),
                }
                .into());
            }
        }
        let (pool, set) = (newest.pool, newest.set.clone());
        let mut seen = Vec::new();
        sides.retain(|side| {
            let is_new = !seen.contains(&side.id);
            seen.push(side.id);
            let is_ours = side.label().is_some_and(|label| label.pool == pool);
            is_new && is_ours && set.entry(side.id).is_some()
        });
        Ok(Self::with(set, OnceLock::from(pool), sides))
    }

    /// Returns the pool's identity, as the labels have it.
    #[must_use]
    pub fn pool_uuid(&self) -> Option<[u8; 16]> {
        self.pool.get().copied()
    }

    /// Returns the sides whose devices are open.
    #[must_use]
    pub fn open_sides(&self) -> Vec<Arc<Side>> {
        self.sides().to_vec()
    }

    /// Returns the sides that have everything.
    #[must_use]
    pub fn good_sides(&self) -> Vec<Arc<Side>> {
        let sides = self.sides();
        sides
            .iter()
            .filter(|side| side.is_good())
            .cloned()
            .collect()
    }

    /// Returns the state of a side, as the newest labels have it.
    #[must_use]
    pub fn state_of(&self, id: SideId) -> Option<SideState> {
        self.table.lock().entry(id).map(|entry| entry.state)
    }

    /// Returns the path of a side that the newest labels call good and that is not open.
    #[must_use]
    pub fn missing_good(&self) -> Option<PathBuf> {
        let sides = self.sides();
        let table = self.table.lock();
        let missing = table.sides.iter().find(|entry| {
            entry.state == SideState::Good && !sides.iter().any(|side| side.id == entry.id)
        });
        missing.map(|entry| path_of(&entry.path))
    }

    /// Begins to use the mirror: the sides in `good` have the same state, whose superblock has the
    /// generation `durable`; those in `behind` lack what is beside them. Unless it is `read_only`, the labels say so durably before this returns; if it is, the
    /// first good side answers whatever it can, since the others may differ from it.
    ///
    /// # Errors
    /// `Io` if no good side can be written.
    pub fn begin(
        &self,
        good: &[SideId],
        behind: &[(SideId, Lack)],
        durable: Generation,
        read_only: bool,
    ) -> Result<()> {
        self.durable.store(durable.0, Ordering::Release);
        let sides = self.sides();
        for side in sides.iter().filter(|side| good.contains(&side.id)) {
            side.set_role(Role::Good);
        }
        if read_only {
            if let Some(first) = good.first() {
                // A mirror is begun once.
                let _ = self.preferred.set(*first);
            }
            return Ok(());
        }
        self.read_only.store(false, Ordering::Release);
        let mut table = self.table.lock();
        let before = table.clone();
        for entry in &mut table.sides {
            let claimed = behind.iter().find(|(id, _)| *id == entry.id);
            let claimed = claimed.map(|(_, lack)| *lack);
            entry.state = match (entry.state, claimed) {
                _ if good.contains(&entry.id) => SideState::Good,
                (SideState::Good, Some(lack)) => SideState::Behind(lack),
                (SideState::Good, None) => SideState::Behind(Lack::since(durable)),
                (SideState::Behind(known), Some(lack)) => SideState::Behind(known.and(lack)),
                (SideState::Behind(known), None) => SideState::Behind(known.and_since(durable)),
            };
            if let Some(side) = sides.iter().find(|side| side.id == entry.id)
                && side.path.as_os_str().len() <= PATH_BYTES_MAX
            {
                entry.path = side.path.as_os_str().as_bytes().to_vec();
            }
        }
        let is_old = |side: &Arc<Side>| {
            let epoch = side.label().map(|label| label.set.epoch);
            side.is_good() && epoch != Some(before.epoch)
        };
        let all_good = table
            .sides
            .iter()
            .all(|entry| entry.state == SideState::Good);
        let is_told = all_good || before.is_apart;
        if is_told && table.sides == before.sides && !sides.iter().any(is_old) {
            return Ok(());
        }
        // What is done now without a side, and what that side does by itself, must not both count as
        // the continuation of one set.
        for entry in &table.sides {
            let was_good = before.entry(entry.id).map(|it| it.state) == Some(SideState::Good);
            if was_good && entry.state != SideState::Good {
                let path = path_of(&entry.path);
                tracing::warn!(path = %path.display(), "a side of the mirror is left out");
            }
        }
        table.advance();
        table.is_apart = !all_good;
        self.write_labels(&table, Side::is_good);
        drop(table);
        self.settle()
    }

    /// Returns the side of this identity, if its device is open.
    #[must_use]
    pub fn side(&self, id: SideId) -> Option<Arc<Side>> {
        self.sides().iter().find(|side| side.id == id).cloned()
    }

    /// Refuses a side at `path` that the format has no place for.
    ///
    /// # Errors
    /// `TooMany` unless a side was last at `path`; `PathTooLong`.
    pub fn check_addition(&self, path: &Path) -> Result<()> {
        let mut set = self.table.lock().clone();
        set.sides.retain(|entry| path_of(&entry.path) != path);
        add_entry(&mut set, SideId([0; 16]), path, SideState::Good)
    }

    /// Adds a side that lacks everything.
    ///
    /// # Errors
    /// `Mirror` when there are too many or the path is too long; `Io`.
    pub fn add(&self, found: Found) -> Result<Arc<Side>> {
        let id = SideId(rand::random());
        let mut table = self.table.lock();
        self.check()?;
        let mut set = table.clone();
        // A side that was last at this path is not there: this is another device, or its addition
        // was cut off before it had a label.
        set.sides.retain(|entry| path_of(&entry.path) != found.path);
        add_entry(&mut set, id, &found.path, SideState::Behind(Lack::ALL))?;
        let side = Arc::new(Side::new(id, found.path, found.device));
        // One of an earlier life could have a higher epoch.
        side.forget_labels()?;
        set.advance();
        *table = set;
        let mut sides = self.sides().to_vec();
        sides.retain(|side| table.entry(side.id).is_some());
        sides.push(Arc::clone(&side));
        self.sides.store(Arc::new(sides));
        self.write_labels(&table, Side::is_good);
        drop(table);
        self.settle()?;
        Ok(side)
    }

    /// Takes a device that a side of the pool is on, and which was not there before.
    pub fn found_again(&self, found: Found) -> Option<Arc<Side>> {
        let (label, _) = super::newest_label(&*found.device)?;
        let mut table = self.table.lock();
        if Some(label.pool) != self.pool_uuid() || !table.descends_from(&label.set) {
            return None;
        }
        let entry = table.entry_mut(label.side)?;
        entry.path = found.path.as_os_str().as_bytes().to_vec();
        let side = Arc::new(Side::new(label.side, found.path, found.device));
        let mut sides = self.sides().to_vec();
        sides.retain(|other| other.id != side.id);
        sides.push(Arc::clone(&side));
        self.sides.store(Arc::new(sides));
        Some(side)
    }

    /// Takes a side out of the mirror. The labels of the good sides no longer name it.
    ///
    /// # Errors
    /// `LastGood` when no other side is good; `NoSuchSide`; `Io`.
    pub fn remove(&self, id: SideId, path: &Path) -> Result<Option<Arc<Side>>> {
        let _copying = self.writing.write();
        let mut table = self.table.lock();
        self.check()?;
        let sides = self.sides();
        let path = || path.to_owned();
        if table.entry(id).is_none() {
            return Err(MirrorError::NoSuchSide { path: path() }.into());
        }
        if !sides.iter().any(|side| side.id != id && side.is_good()) {
            return Err(MirrorError::LastGood { path: path() }.into());
        }
        table.sides.retain(|entry| entry.id != id);
        table.advance();
        self.write_labels(&table, |side| side.id != id && side.is_good());
        let removed = sides.iter().find(|side| side.id == id).cloned();
        let others = sides.iter().filter(|side| side.id != id).cloned();
        self.sides.store(Arc::new(others.collect()));
        if let Some(side) = &removed {
            side.set_role(Role::Away);
        }
        drop(table);
        self.settle()?;
        Ok(removed)
    }

    /// Says that sides that are not good lack everything, and so will those that fail from now on:
    /// what is written now has no births that would tell.
    ///
    /// # Errors
    /// `Io` if no good side is left.
    pub fn outdate(&self) -> Result<()> {
        self.durable.store(0, Ordering::Release);
        let mut table = self.table.lock();
        let before = table.sides.clone();
        for entry in &mut table.sides {
            if entry.state != SideState::Good {
                entry.state = SideState::Behind(Lack::ALL);
            }
        }
        if table.sides == before {
            return Ok(());
        }
        table.advance();
        self.write_labels(&table, Side::is_good);
        drop(table);
        self.settle()
    }

    /// Returns true if a side is missing or behind.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.first_not_good().is_some()
    }

    /// Returns the path of the first side that is missing or behind.
    #[must_use]
    pub fn first_not_good(&self) -> Option<PathBuf> {
        let mut sides = self.report().into_iter();
        let bad = sides.find(|side| side.standing != SideStanding::Good);
        bad.map(|side| side.path)
    }

    /// Returns the sides as they are now.
    #[must_use]
    pub fn report(&self) -> Vec<SideReport> {
        let sides = self.sides();
        let table = self.table.lock().clone();
        let describe = |entry: &SideEntry| {
            let side = sides.iter().find(|side| side.id == entry.id);
            let is_there = side.is_some_and(|side| {
                side.role() != Role::Failing && !side.has_failed.load(Ordering::Acquire)
            });
            let progress = |read: fn(&Progress) -> &AtomicU64| {
                side.map_or(0, |side| read(&side.progress).load(Ordering::Relaxed))
            };
            SideReport {
                id: entry.id,
                path: side.map_or_else(|| path_of(&entry.path), |side| side.path.clone()),
                standing: match entry.state {
                    SideState::Good if is_there => SideStanding::Good,
                    SideState::Good => {
                        let durable = Generation(self.durable.load(Ordering::Acquire));
                        SideStanding::Missing(Lack::since(durable))
                    }
                    SideState::Behind(lack) if is_there => SideStanding::Behind(lack),
                    SideState::Behind(lack) => SideStanding::Missing(lack),
                },
                copied_bytes: progress(|it| &it.copied_bytes),
                total_bytes: progress(|it| &it.total_bytes),
                is_joining: side.is_some_and(|side| side.role() == Role::Joining),
            }
        };
        table.sides.iter().map(describe).collect()
    }
}

impl Side {
    /// Writes zeros over the labels and over `places`, durably: it is no side any more.
    ///
    /// # Errors
    /// `Io`.
    pub fn wipe(&self, places: &[BlockAddr]) -> Result<()> {
        let labels = (0..SLOTS).flat_map(label_places);
        for place in places.iter().copied().chain(labels) {
            self.device
                .write_at(&[0; BLOCK_BYTES], place.offset_bytes())?;
        }
        self.device.flush()
    }
}

fn add_entry(set: &mut SideSet, id: SideId, path: &Path, state: SideState) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if set.sides.len() >= SIDES_MAX {
        return Err(MirrorError::TooMany { max: SIDES_MAX }.into());
    }
    if bytes.len() > PATH_BYTES_MAX {
        let max = PATH_BYTES_MAX;
        return Err(MirrorError::PathTooLong { max }.into());
    }
    set.sides.push(SideEntry {
        id,
        state,
        path: bytes.to_vec(),
    });
    Ok(())
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
