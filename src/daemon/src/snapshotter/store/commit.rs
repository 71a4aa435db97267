//! Committing an active snapshot: its volume is frozen, and its record gets the committed name. An
//! overlay is committed as a new volume: a clone of its parent's with the changes applied, which takes
//! time in proportion to them, and is cancelled when the daemon stops.

use super::super::MountMode;
use super::super::convert;
use super::super::error::{Error, Result};
use super::super::record::{Index, Kind, Labels, Record};
use super::super::wire::CommitRequest;
use super::Store;
use cowshed_engine::Volume;
use cowshed_format::base::{self, VolumeId};
use cowshed_host::{self as container, Sealed, Sizing};

/// The result that a commit is to produce from an active snapshot.
struct Committing {
    key: String,
    name: String,
    labels: Labels,
    parent: Option<String>,
}

impl Store {
    pub(super) fn commit_key(&self, request: CommitRequest) -> Result<()> {
        convert::check_key("the key", &request.key)?;
        convert::check_key("the name", &request.name)?;
        let committing = Committing {
            labels: convert::labels(request.labels)?,
            parent: convert::parent(request.parent)?,
            key: request.key,
            name: request.name,
        };
        let mut keys = [committing.key.as_str(), committing.name.as_str()];
        let _held = self.keys.lock_all(&mut keys);
        let active = committing.check(&self.index.read())?;
        let volume = self.volume_of(&active)?;
        let key = || committing.key.as_str().into();
        if self.host.roots().was_interrupted(&volume)? {
            // Data that was being written when the daemon or host stopped may be lost.
            return Err(if active.fill {
                Error::HalfFilled(key())
            } else {
                Error::Interrupted(key())
            });
        }
        let lower = active.is_overlay().then(|| self.lower_of(&active));
        let lower = lower.transpose()?;
        let sealed = self.seal(&volume, lower.as_ref());
        let sealed = sealed.map_err(|error| match error {
            container::Error::Incomplete(lost) if lost == volume.name() => Error::Incomplete(key()),
            // A copy that was made for the commit: another one may find the space.
            container::Error::Incomplete(_) => base::Error::NoSpace.into(),
            error => error.into(),
        })?;
        let is_alone = matches!(&sealed, Sealed::Quiesced(still) if still.is_alone());
        let committed = self.settle(&committing, &active, volume.id(), &sealed);
        if let (Err(_), Sealed::Copy(copy)) = (&committed, &sealed) {
            self.reaper.volume(copy.id());
        }
        let left = committed?;
        // A client that still has it mounted goes on.
        drop(sealed);
        let flushed = self.pool().flush();
        if let Some(left) = left {
            // Exactly what the next layer needs, unless another process may write to it by now.
            if active.fill && active.mounts == MountMode::Dir && is_alone {
                self.reaper.leftover(&committing.name, left);
            } else {
                self.reaper.volume(left);
            }
        }
        if let Some(lower) = lower {
            self.reaper.view(lower.id());
        }
        Ok(flushed?)
    }

    fn seal(&self, volume: &Volume, lower: Option<&Volume>) -> container::Result<Sealed> {
        let roots = self.host.roots();
        match lower {
            Some(lower) => {
                let usual_bytes = self.options.size_bytes;
                let sizing = Sizing::Following { usual_bytes };
                self.commits
                    .during(|| roots.seal_overlay(volume, lower, sizing))
            }
            None => roots.seal(volume),
        }
    }

    /// Commits the record with the frozen volume; returns the volume that is left over, if any.
    fn settle(
        &self,
        committing: &Committing,
        active: &Record,
        volume: VolumeId,
        sealed: &Sealed,
    ) -> Result<Option<VolumeId>> {
        let (name, passing) = (
            self.host.roots().new_name()?,
            self.host.roots().passing_name()?,
        );
        let mut index = self.index.write();
        committing.check(&index)?;
        let mut transaction = self.pool().transaction();
        let (frozen, left) = match sealed {
            Sealed::Quiesced(_) => {
                transaction.rename(volume, &passing);
                (transaction.snapshot(volume, &name), Some(volume))
            }
            Sealed::Idle(_) => {
                transaction.freeze(volume);
                (volume, None)
            }
            Sealed::Copy(copy) => {
                transaction.rename(volume, &passing);
                transaction.rename(copy.id(), &name);
                (copy.id(), Some(volume))
            }
        };
        let labels = committing.labels.clone();
        let mut record = Record::new(Kind::Committed, active.parent.clone(), labels, frozen);
        if !active.is_overlay() {
            record.set_mounts(active.mounts);
        }
        Record::remove(&mut transaction, &committing.key);
        record.put(&mut transaction, &committing.name)?;
        transaction.commit()?;
        index.remove(&committing.key);
        index.put(committing.name.clone(), record);
        Ok(left)
    }
}

impl Committing {
    /// Returns the active snapshot, or the reason why it cannot be committed, checked in
    /// containerd's order.
    fn check(&self, index: &Index) -> Result<std::sync::Arc<Record>> {
        if index.get(&self.name).is_some() {
            return Err(Error::Exists(self.name.as_str().into()));
        }
        let key = || self.key.as_str().into();
        let active = index.get(&self.key).ok_or_else(|| Error::NotFound(key()))?;
        if active.kind != Kind::Active {
            return Err(Error::NotActive(key()));
        }
        match (&active.parent, &self.parent) {
            (None, Some(_)) => Err(Error::Rebase(key())),
            (Some(own), Some(other)) if own != other => Err(Error::OtherParent(key())),
            _ => Ok(std::sync::Arc::clone(active)),
        }
    }
}
