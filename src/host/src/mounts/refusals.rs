//! Volumes to which a write was refused: their content is incomplete, though their file system may
//! look sound, and nothing reliable can be made from them.
//!
//! The host reports a refused write to a program only once, at its next fsync(2), and likewise for
//! syncfs(2). So the export records it, for as long as its keeper lives, and after that a record in
//! the pool does.
//!
//! # Invariants
//! - A volume with a refused write is never committed, until it is removed.
//! - A write that waited for space and got it was not refused.

use super::Mounts;
use super::ext4;
use crate::error::{Error, Result};
use cowshed_engine::{RecordKind, Volume};
use cowshed_format::base::VolumeId;

impl Mounts {
    /// Returns an error if the volume does not hold all data that was written to it.
    ///
    /// # Errors
    /// `Incomplete`, and any error of the pool and the host.
    pub fn check_complete(&self, volume: &Volume) -> Result<()> {
        let id = volume.id();
        let is_refused = self.export()?.was_refused(id)
            || self.pool().record(RecordKind::REFUSED, &key(id)).is_some();
        if is_refused || ext4::superblock(volume)?.is_some_and(|found| found.has_errors()) {
            return Err(Error::Incomplete(volume.name()));
        }
        Ok(())
    }

    /// Records in the export that data written to the volume is lost.
    pub(crate) fn note_refusal(&self, volume: &Volume) {
        if let Ok(export) = self.export() {
            export.note_refusal(volume.id());
        }
    }

    /// Writes the export's records to the pool, for its next user.
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
            // A transaction that removes something may use the last free space, and this is needed
            // precisely when the pool is full.
            transaction
                .remove_record(RecordKind::REFUSED, &key(id))
                .put_record(RecordKind::REFUSED, &key(id), &[]);
            if let Err(error) = transaction.commit() {
                tracing::error!(%error, volume = %id, "cannot record that a volume is incomplete");
            }
        }
    }

    /// Removes the records of volumes that no longer exist.
    pub(crate) fn tidy_refusals(&self) {
        for (key, _) in self.pool().records(RecordKind::REFUSED) {
            let id = str::from_utf8(&key).ok().and_then(|id| id.parse().ok());
            if id.is_some_and(|id| self.pool().volume_by_id(VolumeId(id)).is_ok()) {
                continue;
            }
            let mut transaction = self.pool().transaction();
            transaction.remove_record(RecordKind::REFUSED, &key);
            if let Err(error) = transaction.commit() {
                tracing::warn!(
                    %error,
                    "cannot remove the record of a volume that no longer exists"
                );
            }
        }
    }
}

fn key(id: VolumeId) -> Vec<u8> {
    id.to_string().into_bytes()
}
