//! Checking that operations are valid, one after the other, before any of them is logged.

use super::forest::Forest;
use super::holds::{held_by, holds};
use super::{MAX_KEY_BYTES, MAX_LABELS_BYTES, MAX_VALUE_BYTES, MAX_VOLUME_BYTES};
use cowshed_format::base::{Error, Name, Result, VolumeId};
use cowshed_format::operation::Operation;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// The forest as it would be after the operations added so far.
pub(super) struct Plan<'a> {
    forest: &'a Forest,
    volumes: HashMap<VolumeId, Planned>,
    names: HashMap<Name, Option<VolumeId>>,
}

#[derive(Clone)]
struct Planned {
    name: Option<Name>,
    frozen: bool,
}

impl<'a> Plan<'a> {
    /// Returns a plan of the forest as it is.
    pub(super) fn new(forest: &'a Forest) -> Self {
        Self {
            forest,
            volumes: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Adds an operation, if it is valid.
    pub(super) fn add(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::Create {
                volume,
                name,
                size_bytes,
                ..
            } => {
                check_size(*size_bytes)?;
                self.appear(*volume, name, false)
            }
            Operation::Snapshot {
                volume,
                snapshot,
                name,
                ..
            } => {
                self.writable(*volume)?;
                self.appear(*snapshot, name, true)
            }
            Operation::Clone {
                snapshot,
                volume,
                name,
                ..
            } => {
                self.frozen(*snapshot)?;
                self.appear(*volume, name, false)
            }
            Operation::Freeze { volume } => {
                self.named(*volume)?;
                self.volumes
                    .entry(*volume)
                    .and_modify(|volume| volume.frozen = true);
                Ok(())
            }
            Operation::Resize { volume, size_bytes } => {
                self.writable(*volume)?;
                check_size(*size_bytes)
            }
            Operation::Rename { volume, name } => self.rename(*volume, name),
            Operation::Label { volume, labels } => {
                self.named(*volume)?;
                let pairs = labels
                    .iter()
                    .map(|(key, value)| key.len() + value.len() + 4);
                bound("a volume's labels", pairs.sum::<usize>(), MAX_LABELS_BYTES)
            }
            Operation::Remove { volume } => {
                let name = self.idle(*volume)?;
                let tags = holds(self.forest, *volume).into_boxed_slice();
                if !tags.is_empty() {
                    return Err(Error::Held { volume: name, tags });
                }
                self.names.insert(name, None);
                self.volumes
                    .entry(*volume)
                    .and_modify(|volume| volume.name = None);
                Ok(())
            }
            Operation::Rollback {
                volume,
                snapshot,
                discarded,
            } => self.rollback(*volume, *snapshot, *discarded),
            Operation::PutRecord { key, value, .. } => {
                if let Some(volume) = held_by(operation) {
                    self.named(volume)?;
                }
                bound("a record's key", key.len(), MAX_KEY_BYTES)?;
                bound("a record", value.len(), MAX_VALUE_BYTES)
            }
            Operation::RemoveRecord { key, .. } => {
                bound("a record's key", key.len(), MAX_KEY_BYTES)
            }
            Operation::Write { volume, .. } | Operation::Discard { volume, .. } => {
                self.writable(*volume).map(drop)
            }
        }
    }

    fn appear(&mut self, id: VolumeId, name: &Name, frozen: bool) -> Result<()> {
        if self.holder(name).is_some() || self.known(id) {
            return Err(Error::Exists(name.clone()));
        }
        self.names.insert(name.clone(), Some(id));
        self.volumes.insert(
            id,
            Planned {
                name: Some(name.clone()),
                frozen,
            },
        );
        Ok(())
    }

    fn rename(&mut self, volume: VolumeId, name: &Name) -> Result<()> {
        let old = self.named(volume)?;
        if self.holder(name).is_some_and(|holder| holder != volume) {
            return Err(Error::Exists(name.clone()));
        }
        self.names.insert(old, None);
        self.names.insert(name.clone(), Some(volume));
        self.volumes
            .entry(volume)
            .and_modify(|volume| volume.name = Some(name.clone()));
        Ok(())
    }

    fn rollback(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        discarded: VolumeId,
    ) -> Result<()> {
        self.writable(volume)?;
        self.frozen(snapshot)?;
        let names = (self.idle(volume)?, self.named(snapshot)?);
        if !self.forest.is_ancestor(snapshot, volume) || self.known(discarded) {
            return Err(Error::NotAncestor {
                volume: names.0,
                snapshot: names.1,
            });
        }
        self.volumes.insert(
            discarded,
            Planned {
                name: None,
                frozen: true,
            },
        );
        Ok(())
    }

    fn known(&self, id: VolumeId) -> bool {
        self.volumes.contains_key(&id) || self.forest.volumes.contains_key(&id)
    }

    fn holder(&self, name: &Name) -> Option<VolumeId> {
        match self.names.get(name) {
            Some(holder) => *holder,
            None => self.forest.names.get(name).copied(),
        }
    }

    fn volume(&mut self, id: VolumeId) -> Result<&Planned> {
        if !self.volumes.contains_key(&id) {
            let volume_node = self
                .forest
                .volumes
                .get(&id)
                .ok_or(Error::NoSuchVolume(id))?;
            let frozen = volume_node.core.frozen.load(Ordering::Relaxed);
            self.volumes.insert(
                id,
                Planned {
                    name: volume_node.name.clone(),
                    frozen,
                },
            );
        }
        self.volumes.get(&id).ok_or(Error::NoSuchVolume(id))
    }

    fn named(&mut self, id: VolumeId) -> Result<Name> {
        self.volume(id)?.name.clone().ok_or(Error::NoSuchVolume(id))
    }

    fn writable(&mut self, id: VolumeId) -> Result<Name> {
        let name = self.named(id)?;
        if self.volume(id)?.frozen {
            Err(Error::Frozen(name))
        } else {
            Ok(name)
        }
    }

    fn frozen(&mut self, id: VolumeId) -> Result<()> {
        let name = self.named(id)?;
        if self.volume(id)?.frozen {
            Ok(())
        } else {
            Err(Error::NotFrozen(name))
        }
    }

    /// Returns the name of a volume, which must have one and must not be held.
    pub(super) fn idle(&mut self, id: VolumeId) -> Result<Name> {
        let name = self.named(id)?;
        let held = self.forest.volumes.get(&id);
        if held.is_some_and(|volume| volume.core.holds.load(Ordering::Acquire) > 0) {
            return Err(Error::Busy(name));
        }
        Ok(name)
    }
}

fn check_size(size_bytes: u64) -> Result<()> {
    if (1..=MAX_VOLUME_BYTES).contains(&size_bytes) {
        return Ok(());
    }
    Err(Error::InvalidSize {
        what: "a volume",
        min_bytes: 1,
        max_bytes: MAX_VOLUME_BYTES,
    })
}

fn bound(what: &'static str, len: usize, max: usize) -> Result<()> {
    if len <= max {
        Ok(())
    } else {
        Err(Error::TooLarge {
            what,
            max_bytes: max as u64,
        })
    }
}
