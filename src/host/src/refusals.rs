//! Volumes to which a write was refused: what they hold is incomplete, though the file system on
//! them may look sound, and nothing is made of them that is to be relied on.
//!
//! The host tells a program that writes to a file system of a refused write at its next fsync(2),
//! once, and syncfs(2) likewise. So the export remembers it, for as long as its keeper lives, and
//! a record in the pool does after that.
//!
//! # Invariants
//! - A volume with a refused write is never committed, until it is removed.
//! - A write that waited for room and got it was not refused.

use super::error::{Error, Result};
use super::ext4::Superblock;
use super::host::Host;
use cowshed_engine::{RecordKind, Volume};
use cowshed_format::base::VolumeId;

impl Host {
    /// Refuses to go on with a volume that does not hold all that was written to it.
    ///
    /// # Errors
    /// `Incomplete`, and what the pool and the host answer.
    pub fn check_complete(&self, volume: &Volume) -> Result<()> {
        let id = volume.id();
        let is_refused = self.export()?.was_refused(id)
            || self.pool().record(RecordKind::REFUSED, &key(id)).is_some();
        if is_refused || Superblock::read(volume)?.is_some_and(|found| found.has_errors()) {
            return Err(Error::Incomplete(volume.name()));
        }
        Ok(())
    }

    /// Remembers that something written to the volume is lost.
    pub(super) fn note_refusal(&self, volume: &Volume) {
        if let Ok(export) = self.export() {
            export.note_refusal(volume.id());
        }
    }

    /// Writes down what only memory knows, for the next one who opens the pool.
    pub fn keep_refusals(&self) {
        let Some(export) = self.present_export() else {
            return;
        };
        for id in export.refused() {
            let is_kept = self.pool().record(RecordKind::REFUSED, &key(id)).is_some();
            if is_kept || self.pool().volume_by_id(id).is_err() {
                continue;
            }
            let mut transaction = self.pool().transaction();
            // What removes may take the last room there is, and a full pool is why this is needed.
            transaction
                .remove_record(RecordKind::REFUSED, &key(id))
                .put_record(RecordKind::REFUSED, &key(id), &[]);
            if let Err(error) = transaction.commit() {
                tracing::error!(%error, volume = %id, "it is not written down that it is incomplete");
            }
        }
    }

    /// Forgets volumes that are gone.
    pub(super) fn tidy_refusals(&self) {
        for (key, _) in self.pool().records(RecordKind::REFUSED) {
            let id = str::from_utf8(&key).ok().and_then(|id| id.parse().ok());
            if id.is_some_and(|id| self.pool().volume_by_id(VolumeId(id)).is_ok()) {
                continue;
            }
            let mut transaction = self.pool().transaction();
            transaction.remove_record(RecordKind::REFUSED, &key);
            if let Err(error) = transaction.commit() {
                tracing::warn!(%error, "the record of a volume that is gone stays");
            }
        }
    }
}

fn key(id: VolumeId) -> Vec<u8> {
    id.to_string().into_bytes()
}
